//! The guards of the locks that order matters for. A function that needs a later lock takes the guard of the earlier one
//! as an argument (order: [`crate::driver::node`]).

use rustix::io::Errno;

use crate::driver::node::sync::{Mutex, MutexGuard, RwLockReadGuard, RwLockWriteGuard};
use crate::driver::node::{Dir, Node, NodeRef};

/// Held while a directory moves, or a file moves to another directory. While it is held, the paths of
/// directories do not change.
#[derive(Debug, Default)]
pub struct RenameLock(Mutex<()>);

/// Holds a [`RenameLock`].
#[derive(Debug)]
pub struct RenameGuard<'o> {
    _held: MutexGuard<'o, ()>,
}

impl RenameLock {
    /// Takes the lock. The caller holds no lock of a directory's names.
    pub fn lock(&self) -> RenameGuard<'_> {
        RenameGuard { _held: self.0.lock() }
    }
}

/// The names of a directory, held for reading or for writing.
pub trait Names {
    /// The directory.
    fn parent(&self) -> &NodeRef;
}

/// Holds the names of a directory for reading: no name is added, removed or moved.
#[derive(Debug)]
pub struct NamesRead<'d> {
    parent: &'d NodeRef,
    _held: RwLockReadGuard<'d, ()>,
}

/// Holds the names of a directory for writing.
#[derive(Debug)]
pub struct NamesWrite<'d> {
    parent: &'d NodeRef,
    dir: &'d Dir,
    _held: RwLockWriteGuard<'d, ()>,
}

impl<'d> NamesRead<'d> {
    /// Takes the lock.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn lock(parent: &'d NodeRef) -> Result<Self, Errno> {
        let dir = parent.dir().ok_or(Errno::NOTDIR)?;
        Ok(Self { parent, _held: dir.names.read() })
    }
}

impl<'d> NamesWrite<'d> {
    /// Takes the lock.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn lock(parent: &'d NodeRef) -> Result<Self, Errno> {
        let dir = parent.dir().ok_or(Errno::NOTDIR)?;
        Ok(Self { parent, dir, _held: dir.names.write() })
    }

    /// The directory.
    pub fn dir(&self) -> &'d Dir {
        self.dir
    }
}

impl Names for NamesRead<'_> {
    fn parent(&self) -> &NodeRef {
        self.parent
    }
}

impl Names for NamesWrite<'_> {
    fn parent(&self) -> &NodeRef {
        self.parent
    }
}

/// Holds the names of two directories for writing, or those of one directory.
#[derive(Debug)]
pub struct NamesPair<'d> {
    first: NamesWrite<'d>,
    /// The other directory, if there are two.
    second: Option<NamesWrite<'d>>,
}

impl<'d> NamesPair<'d> {
    /// Takes the locks for a rename from one directory to another.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn across(_rename: &RenameGuard<'_>, source: &'d NodeRef, target: &'d NodeRef) -> Result<Self, Errno> {
        Self::ordered(source, target)
    }

    /// Takes the lock for a rename inside one directory.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn within(directory: &'d NodeRef) -> Result<Self, Errno> {
        Ok(Self { first: NamesWrite::lock(directory)?, second: None })
    }

    /// Takes the locks of two directories, the one with the lower node id first.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn ordered(first: &'d NodeRef, second: &'d NodeRef) -> Result<Self, Errno> {
        if NodeRef::ptr_eq(first, second) {
            return Self::within(first);
        }
        if first.id() < second.id() {
            let first = NamesWrite::lock(first)?;
            return Ok(Self { first, second: Some(NamesWrite::lock(second)?) });
        }
        let second = NamesWrite::lock(second)?;
        Ok(Self { first: NamesWrite::lock(first)?, second: Some(second) })
    }

    /// The first directory: the source of a rename.
    pub fn source(&self) -> &NamesWrite<'d> {
        &self.first
    }

    /// The second directory: the target of a rename.
    pub fn target(&self) -> &NamesWrite<'d> {
        self.second.as_ref().unwrap_or(&self.first)
    }
}

/// Holds the names of several directories for writing.
#[derive(Debug)]
pub struct NamesMany<'d>(Vec<NamesWrite<'d>>);

impl<'d> NamesMany<'d> {
    /// Takes the locks of `parents`, in the order of their node ids. A directory may be given several times.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn lock(parents: impl Iterator<Item = &'d NodeRef>) -> Result<Self, Errno> {
        let mut parents: Vec<&NodeRef> = parents.collect();
        parents.sort_unstable_by_key(|parent| parent.id());
        parents.dedup_by_key(|parent| parent.id());
        parents.into_iter().map(NamesWrite::lock).collect::<Result<_, _>>().map(Self)
    }

    /// The guards of all of them.
    pub fn iter(&self) -> impl Iterator<Item = &NamesWrite<'d>> {
        self.0.iter()
    }

    /// The guard of one of them.
    pub fn first(&self) -> Option<&NamesWrite<'d>> {
        self.0.first()
    }
}

/// Holds the link count of a file with an index entry; a no-op for a directory.
#[derive(Debug)]
pub struct LinksGuard<'n> {
    node: &'n Node,
    _held: Option<MutexGuard<'n, ()>>,
}

impl<'n> LinksGuard<'n> {
    /// Takes the lock to change the link count.
    pub fn lock(_names: &NamesWrite<'_>, node: &'n Node) -> Self {
        Self::alone(node)
    }

    /// Takes the lock to reach the file through its index entry. The caller takes no lock of names after it.
    pub fn alone(node: &'n Node) -> Self {
        let held = if node.dir().is_none() { Some(node.links.lock()) } else { None };
        Self { node, _held: held }
    }

    /// The file.
    pub fn node(&self) -> &'n Node {
        self.node
    }
}

/// Held while a node, or its content, is copied up.
#[derive(Debug)]
pub struct CopyUpGuard<'n> {
    node: &'n NodeRef,
    _held: MutexGuard<'n, ()>,
}

impl<'n> CopyUpGuard<'n> {
    /// Takes the lock. The caller holds no other lock of this module.
    pub fn lock(node: &'n NodeRef) -> Self {
        Self { node, _held: node.copy_up.lock() }
    }

    /// The node.
    pub fn node(&self) -> &'n NodeRef {
        self.node
    }
}
