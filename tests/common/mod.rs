//! Shared by the tests on real mounts: layer trees from text, stacks mounted by either driver, a watchdog.
//!
//! Every test runs on kernel overlayfs (which proves that the expectation is right), on stratafs, and on stratafs with layers
//! that have inventories. Each test gets its own mount namespace, so a test that dies leaves no mount behind. It has a minute to
//! finish, because a dead FUSE mount would otherwise block it for ever.

#![allow(dead_code, unused_imports, clippy::unwrap_used)]

pub mod stack;
pub mod sys;
pub mod tree;
pub mod uppers;

use std::cell::RefCell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use rustix::io::Errno;
pub use stack::{Mount, Stack};
pub use uppers::Upper;

/// Longest time that a test may take.
const TEST_LIMIT: Duration = Duration::from_secs(60);

/// The implementation of the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's own; stratafs must be indistinguishable from it.
    Overlayfs,
    /// The binary under test.
    Stratafs,
}

impl Driver {
    /// Why tests of this driver cannot run here; `None` if they can.
    fn missing(self) -> Option<&'static str> {
        if !rustix::process::geteuid().is_root() {
            return Some("needs root");
        }
        match self {
            Self::Overlayfs => {
                let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
                (!known.lines().any(|line| line.ends_with("\toverlay"))).then_some("the kernel has no overlayfs")
            }
            Self::Stratafs => (!Path::new("/dev/fuse").exists()).then_some("there is no /dev/fuse"),
        }
    }
}

thread_local! {
    /// True if layers of the running test get inventories.
    static INVENTORIES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    /// Daemons of the running test, for the watchdog to kill.
    static DAEMONS: RefCell<Arc<Mutex<Vec<u32>>>> = RefCell::default();
}

/// From now on the layers of the running test get inventories.
pub fn use_inventories() {
    INVENTORIES.set(true);
}

/// True if layers of the running test get inventories.
pub fn uses_inventories() -> bool {
    INVENTORIES.get()
}

/// Puts a daemon under the watchdog of the running test.
pub fn watch_daemon(pid: u32) {
    DAEMONS.with(|daemons| daemons.borrow().lock().unwrap().push(pid));
}

/// Takes a daemon that has been waited for off the watchdog's list.
pub fn unwatch_daemon(pid: u32) {
    DAEMONS.with(|daemons| daemons.borrow().lock().unwrap().retain(|&other| other != pid));
}

/// Runs `body` in a mount namespace of its own, and fails it after [`TEST_LIMIT`].
pub fn run_test(name: &str, driver: Driver, body: impl FnOnce(Driver) + Send + 'static) {
    run_test_within(TEST_LIMIT, name, driver, body);
}

/// [`run_test`] with a limit of its own.
pub fn run_test_within(limit: Duration, name: &str, driver: Driver, body: impl FnOnce(Driver) + Send + 'static) {
    if let Some(reason) = driver.missing() {
        let may_skip = driver == Driver::Overlayfs || std::env::var_os("STRATAFS_TEST_NO_FUSE").is_some();
        assert!(may_skip, "{reason}; STRATAFS_TEST_NO_FUSE=1 skips the tests that mount");
        return skip(name, reason);
    }
    let daemons = Arc::<Mutex<Vec<u32>>>::default();
    let watched = Arc::clone(&daemons);
    let (sender, finished) = channel();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            DAEMONS.with(|slot| *slot.borrow_mut() = watched);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                sys::enter_private_namespace();
                body(driver);
            }));
            sender.send(outcome).expect("the watchdog has gone");
        })
        .unwrap();
    match finished.recv_timeout(limit) {
        Ok(Ok(())) => thread.join().unwrap(),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(RecvTimeoutError::Disconnected) => panic!("the test's thread died"),
        Err(RecvTimeoutError::Timeout) => {
            for &pid in daemons.lock().unwrap().iter() {
                sys::kill(pid);
            }
            // When the daemon is dead, every blocked call fails; the body then unwinds and unmounts.
            drop(finished.recv_timeout(Duration::from_secs(5)));
            panic!("hung: not finished after {limit:?}");
        }
    }
}

/// Records a skipped test where `scripts/test` counts it.
pub fn skip(name: &str, reason: &str) {
    eprintln!("SKIPPED {name}: {reason}");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{name}: {reason}\n").as_bytes()).unwrap();
}

/// Defines tests that run on kernel overlayfs and on stratafs: `NAME::overlayfs`, `NAME::stratafs`, and
/// `NAME::stratafs_with_inventories`.
#[macro_export]
macro_rules! on_both {
    ($($(#[$meta:meta])* fn $name:ident($driver:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn body($driver: $crate::common::Driver) $body
            #[test]
            fn overlayfs() {
                $crate::common::run_test(concat!(module_path!(), "::overlayfs"), $crate::common::Driver::Overlayfs, body);
            }
            #[test]
            fn stratafs() {
                $crate::common::run_test(concat!(module_path!(), "::stratafs"), $crate::common::Driver::Stratafs, body);
            }
            #[test]
            fn stratafs_with_inventories() {
                let name = concat!(module_path!(), "::stratafs_with_inventories");
                $crate::common::run_test(name, $crate::common::Driver::Stratafs, |driver| {
                    $crate::common::use_inventories();
                    body(driver);
                });
            }
        }
    )*};
}

/// Defines tests of features that only stratafs has: `NAME::stratafs`.
#[macro_export]
macro_rules! on_stratafs {
    ($($(#[$meta:meta])* fn $name:ident($driver:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn body($driver: $crate::common::Driver) $body
            #[test]
            fn stratafs() {
                $crate::common::run_test(concat!(module_path!(), "::stratafs"), $crate::common::Driver::Stratafs, body);
            }
        }
    )*};
}
