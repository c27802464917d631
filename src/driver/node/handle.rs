//! Open files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::driver::node::sync::{AtomicU64, Ordering, RwLock};
use crate::driver::node::{NodeRef, ReadPattern};
use crate::union::layer::LayerId;
use dashmap::DashMap;
use rustix::fs::OFlags;

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    /// The file.
    pub node: NodeRef,
    /// The real file. A handle that reads a lower file switches to the upper one after a copy-up.
    pub real: RwLock<RealFile>,
    /// Flags with which the real file is opened again.
    pub flags: OFlags,
    /// True if it was opened for writing.
    pub writable: bool,
    /// True if the kernel reads and writes the backing file itself.
    pub passthrough: bool,
    /// True if it can be mapped for writing: it was opened for reading and writing.
    pub mappable: bool,
    /// True if it is a program that is being executed.
    pub executing: bool,
    /// Number of failed flushes that were reported to its user.
    pub failed_flushes: std::sync::atomic::AtomicU32,
    /// The read pattern.
    pub pattern: ReadPattern,
}

impl OpenFile {
    /// Notes that the real file has moved from the layer `from` to the upper `to`.
    pub(super) fn carry(&self, from: LayerId, to: LayerId) {
        let real = &mut *self.real.write();
        if let RealFile::Lower(fd, layer) | RealFile::Upper(fd, layer) = real
            && *layer == from
        {
            *real = RealFile::Upper(Arc::clone(fd), to);
        }
    }
}

/// The real file behind an open one. Handles may share it, because it has no position of its own.
#[derive(Clone, Debug)]
pub enum RealFile {
    /// A file that is opened when it is next used: one of a lower layer that was not read yet, or one that was closed because
    /// there were too few descriptors.
    Unopened,
    /// An open file of a lower layer.
    Lower(Arc<OwnedFd>, LayerId),
    /// A file of the upper, which may have become a lower layer since. Handles of one access mode share it.
    Upper(Arc<OwnedFd>, LayerId),
}

impl RealFile {
    /// An open file of `layer`; `upper` is true if that is the upper.
    pub fn opened(fd: Arc<OwnedFd>, layer: LayerId, upper: bool) -> Self {
        if upper { Self::Upper(fd, layer) } else { Self::Lower(fd, layer) }
    }

    /// Its descriptor, if it is a file of `layer`.
    pub fn of_layer(&self, layer: Option<LayerId>) -> Option<&Arc<OwnedFd>> {
        self.fd().filter(|_| self.layer() == layer)
    }

    /// Its descriptor.
    pub fn fd(&self) -> Option<&Arc<OwnedFd>> {
        match self {
            Self::Unopened => None,
            Self::Lower(fd, _) | Self::Upper(fd, _) => Some(fd),
        }
    }

    /// The layer that it is a file of.
    pub fn layer(&self) -> Option<LayerId> {
        match self {
            Self::Unopened => None,
            Self::Lower(_, layer) | Self::Upper(_, layer) => Some(*layer),
        }
    }

    /// True if it was in the upper when it was opened.
    pub fn is_upper(&self) -> bool {
        matches!(self, Self::Upper(..))
    }
}

/// All open handles.
#[derive(Debug, Default)]
pub struct HandleTable {
    handles: DashMap<u64, Arc<OpenFile>>,
    /// Nodes that may still be mapped for writing through a handle that is closed.
    once_mappable: DashMap<u64, ()>,
    next: AtomicU64,
}

impl HandleTable {
    /// Adds a handle; returns its number.
    pub fn insert(&self, handle: Arc<OpenFile>) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.insert(id, handle);
        id
    }

    /// The open file with the number `id`.
    pub fn get(&self, id: u64) -> Option<Arc<OpenFile>> {
        self.handles.get(&id).map(|handle| handle.clone())
    }

    /// Removes a handle.
    pub fn remove(&self, id: u64) -> Option<Arc<OpenFile>> {
        let (_, handle) = self.handles.remove(&id)?;
        if handle.mappable {
            self.once_mappable.insert(handle.node.id().0, ());
        }
        Some(handle)
    }

    /// The files that are open for writing; a file may be listed several times.
    pub fn writers(&self) -> Vec<NodeRef> {
        self.handles.iter().filter(|handle| handle.writable).map(|handle| handle.node.clone()).collect()
    }

    /// The files that are open for writing through the kernel's page cache; a file may be listed several times.
    pub fn cached_writers(&self) -> Vec<NodeRef> {
        let is_cached = |handle: &OpenFile| handle.writable && !handle.passthrough;
        self.handles.iter().filter(|handle| is_cached(handle)).map(|handle| handle.node.clone()).collect()
    }

    /// The files that are open; one may be there several times.
    pub fn nodes(&self) -> Vec<NodeRef> {
        self.handles.iter().map(|handle| handle.node.clone()).collect()
    }

    /// The files that the kernel reads and writes itself; a file may be listed several times.
    pub fn passed_through(&self) -> Vec<NodeRef> {
        self.handles.iter().filter(|handle| handle.passthrough).map(|handle| handle.node.clone()).collect()
    }

    /// Nodes that may still be mapped for writing through a handle that is closed.
    pub fn once_mappable(&self) -> Vec<u64> {
        self.once_mappable.iter().map(|entry| *entry.key()).collect()
    }

    /// Notes that the node is no longer mapped.
    pub fn forget_mappable(&self, node: u64) {
        self.once_mappable.remove(&node);
    }

    /// Closes the descriptors of all handles. Each handle opens its file again when it is next used.
    pub fn close_descriptors(&self) {
        for handle in &self.handles {
            *handle.real.write() = RealFile::Unopened;
        }
    }

    /// Number of open handles.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// True if nothing is open.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Closes everything.
    pub fn clear(&self) {
        self.handles.clear();
    }
}
