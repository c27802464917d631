//! Namespaces of this process.

#![allow(unsafe_code)]

use std::io;

use rustix::thread::{CapabilitySet, UnshareFlags};

/// True if this process has these capabilities in the first user namespace, which is the one that maps every id to itself:
/// there they hold for every file.
pub fn has_everywhere(capabilities: CapabilitySet) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let held = || rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capabilities));
    map.split_whitespace().eq(["0", "0", "4294967295"]) && held()
}

/// Puts this process into a user namespace of its own, with all capabilities there and no ids yet, and into a mount
/// namespace that belongs to it. Must be called before the first thread is started.
///
/// # Errors
/// Those of `unshare(2)`: user namespaces may be switched off, or used up; and when the process has more than one
/// thread.
pub fn unshare_user_and_mounts() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other("cannot change the namespace of a process with threads"));
    }
    // SAFETY: the table of file descriptors stays shared with nobody else, as there is one thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?)
}
