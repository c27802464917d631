//! Namespaces of this process.

#![allow(unsafe_code)]

use std::io;

use rustix::mount::MountPropagationFlags;
use rustix::thread::{CapabilitySet, UnshareFlags};

/// True if this process has these capabilities in the initial user namespace, which maps every id to itself: there they
/// apply to every file.
pub fn has_everywhere(capabilities: CapabilitySet) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let held = || rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capabilities));
    map.split_whitespace().eq(["0", "0", "4294967295"]) && held()
}

/// The ids that stand for all ids which the user namespace, or the mount, does not map.
#[derive(Clone, Copy, Debug)]
pub struct OverflowIds {
    /// User id; `true` if a user is mapped to it too.
    pub uid: (u32, bool),
    /// The same for groups.
    pub gid: (u32, bool),
}

impl OverflowIds {
    /// The ids of this process, which do not change.
    pub fn get() -> Self {
        static IDS: std::sync::OnceLock<OverflowIds> = std::sync::OnceLock::new();
        *IDS.get_or_init(|| Self { uid: overflow("uid"), gid: overflow("gid") })
    }
}

fn overflow(kind: &str) -> (u32, bool) {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let id = read(format!("/proc/sys/kernel/overflow{kind}")).trim().parse().unwrap_or(65_534);
    let map = read(format!("/proc/self/{kind}_map"));
    (id, maps(&map, id))
}

/// True if a line of `map` (`INSIDE OUTSIDE COUNT`, `user_namespaces(7)`) maps `id`.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        match (words.next(), words.next(), words.next()) {
            (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) => id.checked_sub(inside).is_some_and(|at| at < count),
            _ => false,
        }
    })
}

/// Gives the calling thread, and threads that it starts from now on, their own working directory and umask. The other
/// threads of the process keep sharing theirs.
///
/// # Errors
/// Those of `unshare(2)`; `EPERM` if a seccomp filter forbids it.
pub fn unshare_directory_and_umask() -> io::Result<()> {
    // SAFETY: the table of file descriptors stays shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?)
}

/// Puts this process into a new user namespace, with all capabilities there and no ids yet, and into a mount
/// namespace that belongs to it. Must be called before the first thread is started.
///
/// # Errors
/// Those of `unshare(2)`: user namespaces may be disabled or exhausted. Also if the process has more than one thread.
pub fn unshare_user_and_mounts() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other("cannot change the namespace of a process with threads"));
    }
    // SAFETY: there is one thread, so the table of file descriptors is not shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?)
}

/// Puts this process into a new mount namespace, whose mounts no other process sees.
///
/// # Errors
/// Those of `unshare(2)` and `mount(2)`. Also if the process has more than one thread.
pub fn unshare_mounts() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other("cannot change the namespace of a process with threads"));
    }
    // SAFETY: there is one thread, so the table of file descriptors is not shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    Ok(rustix::mount::mount_change("/", private)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_ids() {
        assert!(maps("         0          0 4294967295\n", 65_534));
        assert!(!maps("0 1000 1\n1 100000 65533\n", 65_534));
        assert!(maps("0 1000 1\n1 100000 65534\n", 65_534));
        assert!(!maps("", 0));
    }
}
