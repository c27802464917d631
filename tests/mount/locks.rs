//! flock, POSIX and open-file-description locks, also over copy-up.

use rustix::fs::{FlockOperation, OFlags};

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    fn flock_excludes(driver) {
        let mount = Stack::new().lower("file low \"x\"").upper("file up \"x\"").mount(driver);
        for name in ["low", "up"] {
            let one = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            let two = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            rustix::fs::flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
            let second = rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive);
            assert_eq!(second, Err(Errno::WOULDBLOCK), "{name}");
            rustix::fs::flock(&one, FlockOperation::Unlock).unwrap();
            rustix::fs::flock(&two, FlockOperation::NonBlockingLockShared).unwrap();
            rustix::fs::flock(&one, FlockOperation::NonBlockingLockShared).unwrap();
        }
    }

    /// A lock taken before a copy-up is seen by processes that open the file after it.
    fn locks_hold_across_copy_up(driver) {
        let mount = Stack::new().lower("file flock \"x\"\nfile ofd \"x\"").mount(driver);
        let early = sys::open(&mount.at("flock"), OFlags::RDONLY, 0).unwrap();
        rustix::fs::flock(&early, FlockOperation::NonBlockingLockExclusive).unwrap();
        sys::append(&mount.at("flock"), b"y").unwrap();
        let late = sys::open(&mount.at("flock"), OFlags::RDWR, 0).unwrap();
        assert_eq!(rustix::fs::flock(&late, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
        let early = sys::open(&mount.at("ofd"), OFlags::RDONLY, 0).unwrap();
        sys::try_lock(&early, false, true).unwrap();
        sys::append(&mount.at("ofd"), b"y").unwrap();
        let late = sys::open(&mount.at("ofd"), OFlags::RDWR, 0).unwrap();
        assert_eq!(sys::try_lock(&late, true, true).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        sys::try_lock(&late, false, true).unwrap();
    }

    fn posix_locks_between_processes(driver) {
        let mount = Stack::new().lower("file f \"x\"").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        sys::try_lock(&file, true, false).unwrap();
        let script = "import fcntl,sys\ntry: fcntl.lockf(open(sys.argv[1],'r+'), fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError: sys.exit(9)";
        if let Ok(status) = std::process::Command::new("python3").args(["-c", script]).arg(mount.at("f")).status() {
            assert_eq!(status.code(), Some(9));
        }
    }
}
