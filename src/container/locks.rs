//! Locks on a container's directory: one to run it, one to change it.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;

use super::Container;
use crate::image::{ImageError, IoContext, Result};
use crate::store::retry_interrupted;

/// A lock on an open directory. It is released when this is dropped, even if a child that was just forked, and has not
/// executed its program yet, also has the directory open.
#[derive(Debug)]
pub(super) struct DirLock(pub(super) Option<File>);

impl Drop for DirLock {
    fn drop(&mut self) {
        if let Some(file) = &self.0
            && let Err(error) = flock(file, FlockOperation::Unlock)
        {
            tracing::debug!("a lock ends late: {error}");
        }
    }
}

/// Held by the process that runs a container.
#[derive(Debug)]
pub struct RunLock(pub(super) DirLock);

impl RunLock {
    /// Passes the lock to another program, which holds it as long as the file is open.
    pub fn into_file(mut self) -> Option<File> {
        self.0.0.take()
    }

    /// The lock that the parent process passed as standard input.
    ///
    /// # Errors
    /// Standard input is not this container's directory.
    pub fn handed_over(container: &Container) -> Result<Self> {
        let stdin = rustix::io::dup(rustix::stdio::stdin()).at(&container.dir)?;
        let (given, own) = (fstat(&stdin).at(&container.dir)?, rustix::fs::stat(&container.dir).at(&container.dir)?);
        if (given.st_dev, given.st_ino) != (own.st_dev, own.st_ino) {
            return Err(ImageError::refused(&container.name, "was not handed over to be run"));
        }
        Ok(Self(DirLock(Some(stdin.into()))))
    }
}

/// Held while a container is mounted, unmounted, read or removed, or while another one that uses its volumes, or a named volume,
/// is made.
#[derive(Debug)]
pub struct ChangeLock {
    _lock: DirLock,
}

/// Takes the lock on a directory if it is free.
pub(super) fn lock_dir(path: &Path) -> Result<DirLock> {
    let file = File::open(path).at(path)?;
    retry_interrupted(|| flock(&file, FlockOperation::NonBlockingLockExclusive)).at(path)?;
    Ok(DirLock(Some(file)))
}

/// Waits for the lock on the directory `path`. `None` if there is no such directory, or its previous holder has removed it.
pub(super) fn lock_existing(path: &Path, operation: FlockOperation) -> Result<Option<ChangeLock>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.at(path)?,
    };
    retry_interrupted(|| flock(&file, operation)).at(path)?;
    let locked = fstat(&file).at(path)?;
    match rustix::fs::stat(path) {
        Ok(there) if (there.st_dev, there.st_ino) == (locked.st_dev, locked.st_ino) => {
            Ok(Some(ChangeLock { _lock: DirLock(Some(file)) }))
        }
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).at(path),
    }
}
