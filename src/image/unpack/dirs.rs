//! The directories of the layer that is being extracted. They are held open while in use, and their times are
//! restored when they are closed. So no list of all directory times is needed, and most entries find their
//! parent without a system call.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{has_default_acl, mtime, timestamps};
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::image::layer::path::is_at_or_below;
use crate::tar::Time;

/// Maximum number of directories held open.
const HELD: usize = 64;

/// An open directory of the layer.
#[derive(Clone)]
pub(crate) struct HeldDir {
    fd: Rc<OwnedFd>,
    /// New entries inherit an ACL from it.
    pub(crate) gives_acl: bool,
}

impl AsFd for HeldDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (*self.fd).as_fd()
    }
}

struct Held {
    dir: HeldDir,
    /// Its final modification time.
    mtime: Time,
    used: u64,
}

/// Every directory that is changed must come from here.
pub(crate) struct Dirs<'a> {
    root: BorrowedFd<'a>,
    held: HashMap<Vec<u8>, Held>,
    clock: u64,
}

impl<'a> Dirs<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, held: HashMap::new(), clock: 0 }
    }

    /// Opens the directory at `path`, no component of which is a symbolic link.
    pub(crate) fn get(&mut self, path: &[u8]) -> Result<HeldDir> {
        match self.try_get(path)? {
            Some(dir) => Ok(dir),
            None => Err(LayerError::io(path, Errno::NOTDIR)),
        }
    }

    /// Opens the directory at `path`; `None` if there is none, or if a component of the path is a symbolic link.
    pub(crate) fn try_get(&mut self, path: &[u8]) -> Result<Option<HeldDir>> {
        self.clock += 1;
        if let Some(held) = self.held.get_mut(path) {
            held.used = self.clock;
            return Ok(Some(held.dir.clone()));
        }
        let fd = match confined::open_dir(self.root, path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(LayerError::io(path, error)),
        };
        if self.held.len() >= HELD {
            self.let_oldest_go()?;
        }
        let mtime = mtime(&rustix::fs::fstat(&fd).at(path)?);
        let gives_acl = has_default_acl(fd.as_fd()).at(path)?;
        let dir = HeldDir { fd: Rc::new(fd), gives_acl };
        self.held.insert(path.to_vec(), Held { dir: dir.clone(), mtime, used: self.clock });
        Ok(Some(dir))
    }

    /// Notes that the directory's attributes were set: its time stays `mtime`, whatever is made in it.
    pub(crate) fn changed(&mut self, path: &[u8], mtime: Time) -> Result<()> {
        self.get(path)?;
        if let Some(held) = self.held.get_mut(path) {
            held.mtime = mtime;
            held.dir.gives_acl = has_default_acl(held.dir.as_fd()).at(path)?;
        }
        Ok(())
    }

    /// Notes that the tree at `path` is about to be removed.
    pub(crate) fn forget(&mut self, path: &[u8]) {
        self.held.retain(|held, _| !is_at_or_below(held, path));
    }

    fn let_oldest_go(&mut self) -> Result<()> {
        let oldest = self.held.iter().min_by_key(|(_, held)| held.used).map(|(path, _)| path.clone());
        match oldest.and_then(|path| Some((self.held.remove(&path)?, path))) {
            Some((held, path)) => restore(&held, &path),
            None => Ok(()),
        }
    }

    /// Restores the times of all directories that are held open.
    pub(crate) fn close(self) -> Result<()> {
        self.held.iter().try_for_each(|(path, held)| restore(held, path))
    }
}

fn restore(held: &Held, path: &[u8]) -> Result<()> {
    rustix::fs::futimens(held.dir.as_fd(), &timestamps(held.mtime)).at(path)
}
