//! `fork(2)`.

#![allow(unsafe_code)]

use std::io;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The process that forked; the id is the child's.
    Parent(rustix::process::Pid),
    /// The new process.
    Child,
}

/// Makes a second process that goes on from here. Must be called before the first thread is started: locks that other
/// threads hold would stay locked in the child for ever.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`; and when the process has more than one thread, nothing is done.
pub fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other("cannot fork a process with threads"));
    }
    // SAFETY: there is one thread, so that the child's memory is as consistent as the parent's.
    let pid = unsafe { libc::fork() };
    match rustix::process::Pid::from_raw(pid) {
        Some(child) if pid > 0 => Ok(Forked::Parent(child)),
        None => Ok(Forked::Child),
        Some(_) => Err(io::Error::last_os_error()),
    }
}
