//! How a file is open.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::driver::node::{FileHandle, State};

/// How a file is open.
#[derive(Debug, Default)]
pub struct OpenState {
    /// Handles that use the kernel's page cache.
    pub cached: u32,
    /// Handles that go straight to the backing file.
    pub passthrough: u32,
    /// Of the latter, those that can be mapped for writing.
    pub mappable: u32,
    /// The registration that they share.
    pub backing: Option<u32>,
    /// It is of the upper's file.
    pub backing_is_upper: bool,
    /// The open files, for requests that name no handle.
    pub handles: SmallVec<[Arc<FileHandle>; 1]>,
    /// How it is open under the number that it had before.
    pub former: Option<Box<OpenState>>,
}

impl OpenState {
    pub(super) fn close(&mut self, handle: &Arc<FileHandle>) -> Option<u32> {
        let before = self.handles.len();
        self.handles.retain(|other| !Arc::ptr_eq(other, handle));
        if self.handles.len() == before {
            let former = self.former.as_mut()?;
            let unused = former.close(handle);
            self.former.take_if(|former| former.is_unused());
            return unused;
        }
        if !handle.passthrough {
            self.cached = self.cached.saturating_sub(1);
            return None;
        }
        self.passthrough = self.passthrough.saturating_sub(1);
        self.mappable = self.mappable.saturating_sub(u32::from(handle.mappable));
        if self.passthrough == 0 { self.backing.take() } else { None }
    }

    /// True if no handle is open.
    pub(super) fn is_unused(&self) -> bool {
        self.handles.is_empty() && self.former.is_none()
    }
}

impl State {
    /// True if it is a program that is being executed.
    pub fn is_executed(&self) -> bool {
        self.open().is_some_and(|open| open.handles.iter().any(|handle| handle.executing))
    }

    /// True if the kernel's inode can serve no further open: the file is in the upper, and readers make the kernel read
    /// it from a lower layer.
    pub fn must_part(&self) -> bool {
        let lower_backing = |open: &OpenState| open.passthrough > 0 && !open.backing_is_upper;
        self.has_upper_content() && self.open().is_some_and(lower_backing)
    }

    /// Counts the open handles as those of another inode of the kernel's.
    pub fn part_from_readers(&mut self) {
        let former = self.take_open();
        *self.open_mut() = OpenState { former, ..OpenState::default() };
    }
}
