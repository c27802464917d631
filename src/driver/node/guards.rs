//! The guards of the locks that are held over I/O. The compiler checks their order ([`crate::driver::node`]): taking a
//! lock borrows a [`Turn`] until the guard is dropped, and the guard lends a turn for the locks that come later.
//!
//! ```
//! use stratafs::driver::node::{CopyUpGuard, LinksGuard, NamesPair, NamesWrite, NodeRef, RenameLock, Turn};
//!
//! fn copied_up(node: &NodeRef, parent: &NodeRef) -> rustix::io::Result<()> {
//!     let mut turn = Turn::begin();
//!     let mut copy_up = CopyUpGuard::lock(&mut turn, node);
//!     let names = NamesWrite::lock(copy_up.after(), parent)?;
//!     let _links = LinksGuard::lock(&names, node);
//!     Ok(())
//! }
//!
//! fn moved(lock: &RenameLock, from: &NodeRef, to: &NodeRef) -> rustix::io::Result<()> {
//!     let mut turn = Turn::begin();
//!     let mut rename = lock.lock(&mut turn);
//!     let _names = NamesPair::across(&mut rename, from, to)?;
//!     Ok(())
//! }
//!
//! fn one_after_the_other(a: &NodeRef, b: &NodeRef) -> rustix::io::Result<()> {
//!     let mut turn = Turn::begin();
//!     drop(NamesWrite::lock(&mut turn, a)?);
//!     drop(NamesWrite::lock(&mut turn, b)?);
//!     Ok(())
//! }
//! ```
//!
//! Each of the following breaks the order and does not compile. The names of a second directory are taken while those of
//! a first are held:
//!
//! ```compile_fail,E0499
//! # use stratafs::driver::node::{NamesWrite, NodeRef, Turn};
//! # fn wrong(a: &NodeRef, b: &NodeRef) -> rustix::io::Result<()> {
//! let mut turn = Turn::begin();
//! let first = NamesWrite::lock(&mut turn, a)?;
//! let second = NamesWrite::lock(&mut turn, b)?;
//! # drop((first, second));
//! # Ok(())
//! # }
//! ```
//!
//! The rename lock is taken while names are held:
//!
//! ```compile_fail,E0499
//! # use stratafs::driver::node::{NamesWrite, NodeRef, RenameLock, Turn};
//! # fn wrong(lock: &RenameLock, a: &NodeRef) -> rustix::io::Result<()> {
//! let mut turn = Turn::begin();
//! let names = NamesWrite::lock(&mut turn, a)?;
//! let rename = lock.lock(&mut turn);
//! # drop((names, rename));
//! # Ok(())
//! # }
//! ```
//!
//! A copy-up begins while names are held:
//!
//! ```compile_fail,E0499
//! # use stratafs::driver::node::{CopyUpGuard, NamesRead, NodeRef, Turn};
//! # fn wrong(node: &NodeRef, parent: &NodeRef) -> rustix::io::Result<()> {
//! let mut turn = Turn::begin();
//! let names = NamesRead::lock(&mut turn, parent)?;
//! let copy_up = CopyUpGuard::lock(&mut turn, node);
//! # drop((names, copy_up));
//! # Ok(())
//! # }
//! ```
//!
//! The rename lock is taken twice:
//!
//! ```compile_fail,E0277
//! # use stratafs::driver::node::{RenameLock, Turn};
//! # fn wrong(lock: &RenameLock) {
//! let mut turn = Turn::begin();
//! let mut rename = lock.lock(&mut turn);
//! let again = lock.lock(rename.after());
//! # }
//! ```
//!
//! A copy-up begins while the rename lock is held:
//!
//! ```compile_fail,E0308
//! # use stratafs::driver::node::{CopyUpGuard, NodeRef, RenameLock, Turn};
//! # fn wrong(lock: &RenameLock, node: &NodeRef) {
//! let mut turn = Turn::begin();
//! let mut rename = lock.lock(&mut turn);
//! let copy_up = CopyUpGuard::lock(rename.after(), node);
//! # }
//! ```
//!
//! Names are taken while a file's link count is held. The link count must not outlive the names that it was taken with:
//!
//! ```compile_fail,E0505
//! # use stratafs::driver::node::{LinksGuard, NamesWrite, NodeRef, Turn};
//! # fn wrong(node: &NodeRef, a: &NodeRef) -> rustix::io::Result<()> {
//! let mut turn = Turn::begin();
//! let names = NamesWrite::lock(&mut turn, a)?;
//! let links = LinksGuard::lock(&names, node);
//! drop(names);
//! # drop(links);
//! # Ok(())
//! # }
//! ```
//!
//! ```compile_fail,E0499
//! # use stratafs::driver::node::{LinksGuard, NamesWrite, NodeRef, Turn};
//! # fn wrong(node: &NodeRef, a: &NodeRef) -> rustix::io::Result<()> {
//! let mut turn = Turn::begin();
//! let links = LinksGuard::alone(&mut turn, node);
//! let names = NamesWrite::lock(&mut turn, a)?;
//! # drop((links, names));
//! # Ok(())
//! # }
//! ```

use std::marker::PhantomData;

use rustix::io::Errno;

use crate::driver::node::rank::{Rank, Ranked};
use crate::driver::node::sync::{Mutex, MutexGuard, RwLockReadGuard, RwLockWriteGuard};
use crate::driver::node::{Dir, Node, NodeRef};

/// No lock of this module is held.
#[derive(Debug)]
pub enum Nothing {}

/// A [`CopyUpGuard`] is held.
#[derive(Debug)]
pub enum CopyUp {}

/// A [`RenameGuard`] is held.
#[derive(Debug)]
pub enum Rename {}

/// The right to take locks; a guard borrows it for as long as it is held. `Held` is the lock that was taken before. A
/// function that takes locks begins one turn. Debug builds check at run time that its callers hold no lock that comes
/// later.
#[derive(Debug)]
pub struct Turn<Held = Nothing>(PhantomData<Held>);

impl Turn {
    /// Begins a turn.
    pub fn begin() -> Self {
        Self(PhantomData)
    }
}

/// Held while a directory moves, or a file moves to another directory. It protects the paths of directories.
#[derive(Debug, Default)]
pub struct RenameLock(Mutex<()>);

/// Holds a [`RenameLock`].
#[derive(Debug)]
pub struct RenameGuard<'o> {
    _held: MutexGuard<'o, ()>,
    _rank: Ranked,
    after: Turn<Rename>,
}

/// The locks after which a [`RenameLock`] may be taken.
pub trait BeforeRename {}

impl BeforeRename for Nothing {}

impl BeforeRename for CopyUp {}

impl RenameLock {
    /// Takes the lock.
    pub fn lock<'o, Held: BeforeRename>(&'o self, _turn: &'o mut Turn<Held>) -> RenameGuard<'o> {
        let rank = Ranked::first(Rank::Rename);
        RenameGuard { _held: self.0.lock(), _rank: rank, after: Turn(PhantomData) }
    }
}

impl RenameGuard<'_> {
    /// Lends a turn for the locks that come later.
    pub fn after(&mut self) -> &mut Turn<Rename> {
        &mut self.after
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
    _rank: Ranked,
}

/// Holds the names of a directory for writing.
#[derive(Debug)]
pub struct NamesWrite<'d> {
    parent: &'d NodeRef,
    dir: &'d Dir,
    _held: RwLockWriteGuard<'d, ()>,
    _rank: Ranked,
}

impl<'d> NamesRead<'d> {
    /// Takes the lock.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn lock<Held>(_turn: &'d mut Turn<Held>, parent: &'d NodeRef) -> Result<Self, Errno> {
        let dir = parent.dir().ok_or(Errno::NOTDIR)?;
        let rank = Ranked::first(Rank::Names);
        Ok(Self { parent, _held: dir.names.read(), _rank: rank })
    }
}

impl<'d> NamesWrite<'d> {
    /// Takes the lock.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn lock<Held>(_turn: &'d mut Turn<Held>, parent: &'d NodeRef) -> Result<Self, Errno> {
        Self::take(parent, Ranked::first(Rank::Names))
    }

    /// Takes the lock of one of several directories, which the caller orders.
    fn take(parent: &'d NodeRef, rank: Ranked) -> Result<Self, Errno> {
        let dir = parent.dir().ok_or(Errno::NOTDIR)?;
        Ok(Self { parent, dir, _held: dir.names.write(), _rank: rank })
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
    rename: Option<&'d RenameGuard<'d>>,
}

impl<'d> NamesPair<'d> {
    /// Takes the locks for a rename from one directory to another.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn across(rename: &'d mut RenameGuard<'_>, source: &'d NodeRef, target: &'d NodeRef) -> Result<Self, Errno> {
        let rename = &*rename;
        Ok(Self { rename: Some(rename), ..Self::take(source, target)? })
    }

    /// Takes the lock for a rename inside one directory.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn within<Held>(_turn: &'d mut Turn<Held>, directory: &'d NodeRef) -> Result<Self, Errno> {
        Self::take(directory, directory)
    }

    /// Takes the locks of two directories.
    ///
    /// # Errors
    /// `NOTDIR`.
    pub fn ordered<Held>(_turn: &'d mut Turn<Held>, first: &'d NodeRef, second: &'d NodeRef) -> Result<Self, Errno> {
        Self::take(first, second)
    }

    /// Takes the lock of the directory with the lower node id first.
    fn take(first: &'d NodeRef, second: &'d NodeRef) -> Result<Self, Errno> {
        let take = |node, rank| NamesWrite::take(node, rank);
        let rank = Ranked::first(Rank::Names);
        if NodeRef::ptr_eq(first, second) {
            return Ok(Self { first: take(first, rank)?, second: None, rename: None });
        }
        let (first, second) = if first.id() < second.id() {
            let first = take(first, rank)?;
            (first, take(second, Ranked::further(Rank::Names))?)
        } else {
            let second = take(second, rank)?;
            (take(first, Ranked::further(Rank::Names))?, second)
        };
        Ok(Self { first, second: Some(second), rename: None })
    }

    /// The rename lock, if the names were taken with it.
    pub fn rename(&self) -> Option<&'d RenameGuard<'d>> {
        self.rename
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
    pub fn lock<Held>(_turn: &'d mut Turn<Held>, parents: impl Iterator<Item = &'d NodeRef>) -> Result<Self, Errno> {
        let mut parents: Vec<&NodeRef> = parents.collect();
        parents.sort_unstable_by_key(|parent| parent.id());
        parents.dedup_by_key(|parent| parent.id());
        let mut ranks = std::iter::once(Ranked::first(Rank::Names));
        let mut rank = || ranks.next().unwrap_or_else(|| Ranked::further(Rank::Names));
        parents.into_iter().map(|parent| NamesWrite::take(parent, rank())).collect::<Result<_, _>>().map(Self)
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

/// Holds the link count of a file with an index entry. For a directory, this is a no-op.
#[derive(Debug)]
pub struct LinksGuard<'n> {
    node: &'n Node,
    _held: Option<(MutexGuard<'n, ()>, Ranked)>,
}

impl<'n> LinksGuard<'n> {
    /// Takes the lock, to change the number of names.
    pub fn lock(_names: &'n NamesWrite<'_>, node: &'n Node) -> Self {
        Self::take(node)
    }

    /// Takes the lock to reach the file through its index entry. The caller must not take a lock of names afterwards.
    pub fn alone<Held>(_turn: &'n mut Turn<Held>, node: &'n Node) -> Self {
        Self::take(node)
    }

    fn take(node: &'n Node) -> Self {
        let lock = || {
            let rank = Ranked::first(Rank::Links);
            (node.links.lock(), rank)
        };
        Self { node, _held: node.dir().is_none().then(lock) }
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
    _rank: Ranked,
    after: Turn<CopyUp>,
}

impl<'n> CopyUpGuard<'n> {
    /// Takes the lock.
    pub fn lock(_turn: &'n mut Turn, node: &'n NodeRef) -> Self {
        let rank = if node.dir().is_some() { Rank::CopyUpOfDirectory } else { Rank::CopyUpOfFile };
        let rank = Ranked::first(rank);
        Self { node, _held: node.copy_up.lock(), _rank: rank, after: Turn(PhantomData) }
    }

    /// Lends a turn for the locks that come later.
    pub fn after(&mut self) -> &mut Turn<CopyUp> {
        &mut self.after
    }

    /// The node.
    pub fn node(&self) -> &'n NodeRef {
        self.node
    }
}
