//! `auto_unmount`: a second process that unmounts if the daemon is killed.
//!
//! libfuse leaves this to a `fusermount3` that keeps running and unmounts whatever is at the path by then. The watcher
//! looks up the mount itself. So it finds a mount that was moved, and never unmounts another one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::mountpoint::{Mountpoint, Unmounted};
use crate::sys::fork::fork_apart;

/// The daemon's end of the pipe to the watcher; the watcher unmounts once it is closed.
#[derive(Debug)]
pub struct Watcher(PipeWriter);

impl Watcher {
    /// Starts the process. Must be called before the first thread is started and while the process has all its privileges.
    ///
    /// # Errors
    /// Those of `pipe(2)` and `fork(2)`.
    pub fn start() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        fork_apart(OwnedFd::from(reader), watch)?;
        Ok(Self(writer))
    }

    /// Tells the watcher which mount to watch.
    pub(super) fn guard(&mut self, path: &Path) -> io::Result<()> {
        self.0.write_all(&[path.as_os_str().as_encoded_bytes(), b"\0"].concat())
    }
}

/// Main function of the watcher.
fn watch(pipe: OwnedFd) -> ! {
    let mut pipe = File::from(pipe);
    if let Some(mountpoint) = read_path(&mut pipe).and_then(|path| Mountpoint::find(&path).ok()) {
        wait_for_end(&mut pipe);
        unmount(&mountpoint);
    }
    std::process::exit(0)
}

/// The path, up to its NUL. `None` if the daemon ended without a mount.
fn read_path(pipe: &mut File) -> Option<PathBuf> {
    let mut path = Vec::new();
    let mut byte = [0];
    while pipe.read_exact(&mut byte).is_ok() {
        match byte {
            [0] => return Some(PathBuf::from(OsString::from_vec(path))),
            [other] => path.push(other),
        }
    }
    None
}

/// Nothing more is written, so the read returns when the last process that holds the other end has ended.
fn wait_for_end(pipe: &mut File) {
    let mut rest = [0];
    while let Err(error) = pipe.read(&mut rest) {
        if error.kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Best effort: no process waits for the result.
fn unmount(mountpoint: &Mountpoint) {
    let Ok(Unmounted::NotPermitted) = mountpoint.unmount(true) else { return };
    let Ok(Some(path)) = mountpoint.path() else { return };
    for program in ["fusermount3", "fusermount"] {
        if Command::new(program).args(["-u", "-q", "-z", "--"]).arg(&path).status().is_ok() {
            return;
        }
    }
}
