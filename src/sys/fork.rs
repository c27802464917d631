//! `fork(2)`.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The two results of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// In the original process; the id is the child's.
    Parent(rustix::process::Pid),
    /// In the new process.
    Child,
}

/// Makes a second process that continues from here. Must be called before the first thread is started: locks held
/// by other threads would stay locked in the child for ever.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`; if the process has more than one thread, nothing is done.
pub fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other("cannot fork a process with threads"));
    }
    // SAFETY: there is one thread, so the child's memory is consistent.
    let pid = unsafe { libc::fork() };
    match rustix::process::Pid::from_raw(pid) {
        Some(child) if pid > 0 => Ok(Forked::Parent(child)),
        None => Ok(Forked::Child),
        Some(_) => Err(io::Error::last_os_error()),
    }
}

/// Makes a second process that runs `body` in its own session, in `/`, with the null device as standard input, output and
/// error, and with no other open file except `kept`. Must be called before the first thread is started.
///
/// # Errors
/// As for [`fork`].
pub fn fork_apart(kept: OwnedFd, body: fn(OwnedFd) -> !) -> io::Result<()> {
    match fork()? {
        Forked::Parent(_) => Ok(()),
        Forked::Child => {
            if set_apart(&kept).is_err() {
                std::process::exit(1);
            }
            body(kept)
        }
    }
}

fn set_apart(kept: &OwnedFd) -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let kept = kept.as_raw_fd().cast_unsigned();
    let first = libc::STDERR_FILENO.cast_unsigned() + 1;
    for (from, to) in [(first, kept.saturating_sub(1)), (kept.max(first - 1) + 1, u32::MAX)] {
        // SAFETY: the process only runs a function without captures, so the descriptors are not used again, and it ends
        // without dropping their owners.
        if from <= to && unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
