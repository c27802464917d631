//! How a file is open.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use rustix::fs::OFlags;
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::driver::node::{OpenFile, State};
use crate::union::layer::LayerId;

/// The open handles of a file.
#[derive(Debug, Default)]
pub struct OpenState {
    /// Handles that use the kernel's page cache.
    pub cached: u32,
    /// Handles that go straight to the backing file.
    pub passthrough: u32,
    /// Of the latter, those that can be mapped for writing.
    pub mappable: u32,
    /// The registration that the latter share.
    pub backing: Option<u32>,
    /// The layer of the registered file.
    pub backing_layer: Option<LayerId>,
    /// The open files, for requests without a handle.
    pub handles: SmallVec<[Arc<OpenFile>; 1]>,
    /// Descriptors of files in the upper, by access mode, shared by handles for as long as one uses them.
    shared: SmallVec<[(OFlags, LayerId, Weak<OwnedFd>); 1]>,
    /// Number of failed flushes of the upper file, and the last error.
    failed_flushes: (u32, Option<Errno>),
    /// The handles that are open under the node's former number.
    pub former: Option<Box<OpenState>>,
}

impl OpenState {
    /// An open descriptor of the file in `layer` with the access mode `access`.
    pub fn shared(&self, access: OFlags, layer: LayerId) -> Option<Arc<OwnedFd>> {
        self.shared.iter().find(|(of, within, _)| *of == access && *within == layer)?.2.upgrade()
    }

    /// Lets later handles share `file`, a descriptor of the file in `layer` with the access mode `access`.
    pub fn share(&mut self, access: OFlags, layer: LayerId, file: &Arc<OwnedFd>) {
        self.shared.retain(|(of, ..)| *of != access);
        self.shared.push((access, layer, Arc::downgrade(file)));
    }

    /// Notes that the file has moved from the layer `from` to `to`.
    pub(super) fn carry(&mut self, from: LayerId, to: LayerId) {
        if self.backing_layer == Some(from) {
            self.backing_layer = Some(to);
        }
        for (_, layer, _) in self.shared.iter_mut().filter(|(_, layer, _)| *layer == from) {
            *layer = to;
        }
        self.handles.iter().for_each(|handle| handle.carry(from, to));
    }

    /// Number of failed flushes of the upper file.
    pub fn failed_flushes(&self) -> u32 {
        self.failed_flushes.0
    }

    /// The result of a flush for a caller whose handle has been told of the first `seen` failures. The kernel
    /// reports a failed write-back once for each descriptor (`errseq_t`), and these handles share one.
    pub fn note_flush(&mut self, flushed: Result<(), Errno>, seen: &AtomicU32) -> Result<(), Errno> {
        if let Err(errno) = flushed {
            self.failed_flushes = (self.failed_flushes.0.wrapping_add(1), Some(errno));
        }
        let (count, last) = self.failed_flushes;
        let before = seen.swap(count, Ordering::Relaxed);
        last.filter(|_| before != count).map_or(Ok(()), Err)
    }

    pub(super) fn close(&mut self, handle: &Arc<OpenFile>) -> Option<u32> {
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

    /// The handles under the node's number (`current`), or under its former one.
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
    /// True if the kernel's inode with the node's number (`current`), or with the former one, can serve a further open. The
    /// former inode can serve one when no handle reads the lower file through it any more: then both inodes use the upper
    /// file directly and show the same content.
    pub fn can_open_under(&self, current: bool) -> bool {
        if current {
            return !self.must_part();
        }
        let other_backing = |former: &OpenState| self.has_other_backing(former);
        self.has_upper_content()
            && self.open().is_none_or(|open| open.cached == 0 && !open.former.as_deref().is_some_and(other_backing))
    }

    /// True if a handle executes the file.
    pub fn is_executed(&self) -> bool {
        self.open().is_some_and(|open| open.handles.iter().any(|handle| handle.executing))
    }

    /// True if the kernel's inode can serve no further open: the file is in the upper, but readers still have the
    /// kernel read it from a lower layer.
    pub fn must_part(&self) -> bool {
        self.has_upper_content() && self.open().is_some_and(|open| self.has_other_backing(open))
    }

    /// True if handles have the kernel read a file in another layer than the one that has the content now.
    fn has_other_backing(&self, open: &OpenState) -> bool {
        open.passthrough > 0 && open.backing_layer != self.content_layer()
    }

    /// Counts the open handles as belonging to a former inode of the kernel.
    pub fn part_from_readers(&mut self) {
        let former = self.take_open();
        *self.open_mut() = OpenState { former, ..OpenState::default() };
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Each of the handles that share a descriptor is told once of a failed write-back.
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
