//! Who makes a request: the process behind it.
//!
//! If idmapped mounts are allowed, the kernel sends user and group only with requests that create a file, as that mount
//! maps them (`fuse_get_req`). Few other requests need them; those read `/proc`.

use crate::driver::types::Caller;
use crate::fuse::wire::request::Header;

/// Stands for an id that the kernel does not send (`FUSE_INVALID_UIDGID`).
const NOT_TOLD: u32 = u32::MAX;

/// The caller according to the request.
pub(super) fn caller(header: &Header, umask: u32) -> Caller {
    Caller { uid: header.uid, gid: header.gid, pid: header.pid, umask }
}

/// The caller's file system user id; `None` if its process is gone or not visible here.
pub(super) fn user(header: &Header) -> Option<u32> {
    if header.uid != NOT_TOLD {
        return Some(header.uid);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", header.pid)).ok()?;
    user_in(&status)
}

/// The last of the four user ids in a `proc_pid_status(5)` text.
fn user_in(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fourth_id_counts() {
        assert_eq!(user_in("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"), Some(4));
        assert_eq!(user_in("Name:\tx\nUid:\t1\t2\t3\n"), None);
        assert_eq!(user_in(""), None);
    }
}
