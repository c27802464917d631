//! Open files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::driver::node::sync::{AtomicU64, Ordering, RwLock};
use crate::driver::node::{NodeRef, ReadPattern};
use crate::union::layer::LayerId;
use dashmap::DashMap;

/// An open file.
#[derive(Debug)]
pub struct FileHandle {
    /// The file.
    pub node: NodeRef,
    /// The real file. A handle that reads a lower file changes over to the upper one after a copy-up.
    pub real: RwLock<RealFile>,
    /// It was opened for writing.
    pub writable: bool,
    /// The kernel reads and writes the backing file itself.
    pub passthrough: bool,
    /// It can be mapped for writing: opened for reading and writing.
    pub mappable: bool,
    /// It is a program that is being executed.
    pub executing: bool,
    /// Of how many failed flushes its user was told.
    pub failed_flushes: std::sync::atomic::AtomicU32,
    /// How it is read.
    pub pattern: ReadPattern,
}

impl FileHandle {
    /// The real file is in the upper `to` now, no more in the layer `from`.
    pub(super) fn carry(&self, from: LayerId, to: LayerId) {
        let real = &mut *self.real.write();
        if let RealFile::Lower(fd, layer) | RealFile::Upper(fd, layer) = real
            && *layer == from
        {
            *real = RealFile::Upper(Arc::clone(fd), to);
        }
    }
}

/// The real file behind an open one. Handles may share it, for it has no position of its own.
#[derive(Clone, Debug)]
pub enum RealFile {
    /// A lower layer's, to be opened when it is read.
    Unopened,
    /// A lower layer's.
    Lower(Arc<OwnedFd>, LayerId),
    /// The upper's; its layer may be a lower one by now. Handles of one access mode share it.
    Upper(Arc<OwnedFd>, LayerId),
}

impl RealFile {
    /// A file of `layer` that has been opened; `upper`: that is the upper.
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

    /// It was in the upper when it was opened.
    pub fn is_upper(&self) -> bool {
        matches!(self, Self::Upper(..))
    }
}

/// All open handles.
#[derive(Debug, Default)]
pub struct HandleTable {
    handles: DashMap<u64, Arc<FileHandle>>,
    /// Numbers of the nodes that could be mapped for writing through a handle which is closed.
    once_mappable: DashMap<u64, ()>,
    next: AtomicU64,
}

impl HandleTable {
    /// Puts a handle in; its number.
    pub fn insert(&self, handle: Arc<FileHandle>) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.insert(id, handle);
        id
    }

    /// The open file of a number.
    pub fn get(&self, id: u64) -> Option<Arc<FileHandle>> {
        self.handles.get(&id).map(|handle| handle.clone())
    }

    /// Takes a handle out.
    pub fn remove(&self, id: u64) -> Option<Arc<FileHandle>> {
        let (_, handle) = self.handles.remove(&id)?;
        if handle.mappable {
            self.once_mappable.insert(handle.node.id().0, ());
        }
        Some(handle)
    }

    /// The files that are open for writing; one may be there several times.
    pub fn writers(&self) -> Vec<NodeRef> {
        self.handles.iter().filter(|handle| handle.writable).map(|handle| handle.node.clone()).collect()
    }

    /// The files that the kernel reads and writes itself; one may be there several times.
    pub fn passed_through(&self) -> Vec<NodeRef> {
        self.handles.iter().filter(|handle| handle.passthrough).map(|handle| handle.node.clone()).collect()
    }

    /// Numbers of the nodes that could be mapped for writing through a handle which is closed.
    pub fn once_mappable(&self) -> Vec<u64> {
        self.once_mappable.iter().map(|entry| *entry.key()).collect()
    }

    /// The node of that number is not mapped any more.
    pub fn forget_mappable(&self, node: u64) {
        self.once_mappable.remove(&node);
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
