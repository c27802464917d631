//! How a file is open.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use rustix::fs::OFlags;
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::driver::node::{FileHandle, State};
use crate::union::layer::LayerId;

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
    /// The layer that has the file which is registered.
    pub backing_layer: Option<LayerId>,
    /// The open files, for requests that name no handle.
    pub handles: SmallVec<[Arc<FileHandle>; 1]>,
    /// Descriptors of files in the upper, by access mode, which handles share as long as one has them.
    shared: SmallVec<[(OFlags, LayerId, Weak<OwnedFd>); 1]>,
    /// How many flushes of the upper's file have failed, and how the last one did.
    failed_flushes: (u32, Option<Errno>),
    /// How it is open under the number that it had before.
    pub former: Option<Box<OpenState>>,
}

impl OpenState {
    /// An open descriptor of the file in `layer`, with the access mode `access`.
    pub fn shared(&self, access: OFlags, layer: LayerId) -> Option<Arc<OwnedFd>> {
        self.shared.iter().find(|(of, within, _)| *of == access && *within == layer)?.2.upgrade()
    }

    /// Lets later handles share the descriptor `file` of the file in `layer`, which has the access mode `access`.
    pub fn share(&mut self, access: OFlags, layer: LayerId, file: &Arc<OwnedFd>) {
        self.shared.retain(|(of, ..)| *of != access);
        self.shared.push((access, layer, Arc::downgrade(file)));
    }

    /// The file is in the layer `to` now, no more in `from`.
    pub(super) fn carry(&mut self, from: LayerId, to: LayerId) {
        if self.backing_layer == Some(from) {
            self.backing_layer = Some(to);
        }
        for (_, layer, _) in self.shared.iter_mut().filter(|(_, layer, _)| *layer == from) {
            *layer = to;
        }
        self.handles.iter().for_each(|handle| handle.carry(from, to));
    }

    /// How many flushes of the upper's file have failed.
    pub fn failed_flushes(&self) -> u32 {
        self.failed_flushes.0
    }

    /// What a flush tells its caller, where the handle was told of the first `seen` failures. The kernel tells a
    /// failed write-back once for each descriptor (`errseq_t`), and these handles share one.
    pub fn note_flush(&mut self, flushed: Result<(), Errno>, seen: &AtomicU32) -> Result<(), Errno> {
        if let Err(errno) = flushed {
            self.failed_flushes = (self.failed_flushes.0.wrapping_add(1), Some(errno));
        }
        let (count, last) = self.failed_flushes;
        let before = seen.swap(count, Ordering::Relaxed);
        last.filter(|_| before != count).map_or(Ok(()), Err)
    }

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

    /// How the file is open under the node's number (`current`), or under the one before.
    pub fn under(&mut self, current: bool) -> &mut Self {
        if current { self } else { self.former.get_or_insert_default() }
    }

    /// True if a handle can be mapped for writing.
    pub fn is_mappable(&self) -> bool {
        self.mappable > 0 || self.former.as_ref().is_some_and(|former| former.mappable > 0)
    }

    /// True if no handle is open.
    pub(super) fn is_unused(&self) -> bool {
        self.handles.is_empty() && self.former.is_none()
    }
}

impl State {
    /// True if the kernel's inode of the node's number (`current`), or of the one before, can serve a further open. That of
    /// the number before can once nobody reads the lower file through it: if both inodes go straight to the upper file, they
    /// show the same.
    pub fn can_open_under(&self, current: bool) -> bool {
        if current {
            return !self.must_part();
        }
        let other_backing = |former: &OpenState| self.has_other_backing(former);
        self.has_upper_content()
            && self.open().is_none_or(|open| open.cached == 0 && !open.former.as_deref().is_some_and(other_backing))
    }

    /// True if it is a program that is being executed.
    pub fn is_executed(&self) -> bool {
        self.open().is_some_and(|open| open.handles.iter().any(|handle| handle.executing))
    }

    /// True if the kernel's inode can serve no further open: the file is in the upper, and readers make the kernel read
    /// it from a lower layer.
    pub fn must_part(&self) -> bool {
        self.has_upper_content() && self.open().is_some_and(|open| self.has_other_backing(open))
    }

    /// True if handles make the kernel read the file of another layer than has the content now.
    fn has_other_backing(&self, open: &OpenState) -> bool {
        open.passthrough > 0 && open.backing_layer != self.content_layer()
    }

    /// Counts the open handles as those of another inode of the kernel's.
    pub fn part_from_readers(&mut self) {
        let former = self.take_open();
        *self.open_mut() = OpenState { former, ..OpenState::default() };
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Handles that share a descriptor are each told of a failed write-back, once.
    #[test]
    fn every_handle_is_told_of_a_failed_flush() {
        let mut open = OpenState::default();
        let [a, b] = [AtomicU32::new(0), AtomicU32::new(0)];
        assert_eq!(open.note_flush(Ok(()), &a), Ok(()));
        assert_eq!(open.note_flush(Err(Errno::IO), &a), Err(Errno::IO));
        assert_eq!(open.note_flush(Ok(()), &a), Ok(()));
        assert_eq!(open.note_flush(Ok(()), &b), Err(Errno::IO));
        assert_eq!(open.note_flush(Ok(()), &b), Ok(()));
        let late = AtomicU32::new(open.failed_flushes());
        assert_eq!(open.note_flush(Ok(()), &late), Ok(()));
    }
}
