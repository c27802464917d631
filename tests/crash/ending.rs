//! If the driver takes long to end after the unmount, a new mount of the same upper waits for it.
//!
//! `umount(8)` of a FUSE file system returns before the driver has seen it (`fuse_conn_destroy()` waits for an answer only
//! on block devices); overlayfs is gone by then (`generic_shutdown_super()` runs in `umount(2)`).

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::mount::{UnmountFlags, unmount};

use crate::common::stack::{Layers, Stack};
use crate::common::{Driver, run_test_within, sys, unwatch_daemon, watch_daemon};
use crate::gate::{Act, Counted, Gate, Order};

/// Longer than a mount waits for an upper that is in use.
const SLOW: Duration = Duration::from_secs(6);

/// A mount whose driver is delayed, while it ends, at its first call that changes something.
struct Slow {
    daemon: Child,
    gate: Gate,
}

impl Slow {
    fn mount(layers: &Layers) -> Self {
        let gate = Gate::default();
        let before = sys::lstat(&layers.point).unwrap().st_dev;
        let mut command = Command::new(env!("CARGO_BIN_EXE_stratafs"));
        let daemon = gate.spawn(command.args(layers.stratafs_arguments())).unwrap();
        watch_daemon(daemon.id());
        let deadline = Instant::now() + Duration::from_secs(60);
        while sys::lstat(&layers.point).unwrap().st_dev == before {
            assert!(Instant::now() < deadline, "it does not mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { daemon, gate }
    }

    fn hold_up(&self) {
        self.gate.give(Order { at: 0, act: Act::Wait(SLOW), counted: Counted::Changes });
    }

    fn ended(mut self) {
        let status = self.daemon.wait().unwrap();
        unwatch_daemon(self.daemon.id());
        assert!(status.success(), "{status}");
    }
}

fn stratafs(name: &'static str, body: fn()) {
    run_test_within(Duration::from_secs(120), name, Driver::Stratafs, move |_| body());
}

/// Regression: `upperdir … is in use by another mount`, three seconds after an unmount.
#[test]
fn a_mount_waits_until_the_last_one_has_ended() {
    stratafs("a_mount_waits_until_the_last_one_has_ended", || {
        // Volatile: all is written to the disk at the end.
        for option in ["volatile", "index=on"] {
            let layers = Stack::new().lower("file f \"lower\\n\"").option(option).build();
            let first = Slow::mount(&layers);
            sys::append(&layers.point.join("f"), b"first\n").unwrap();
            sys::unlink(&layers.point.join("f")).unwrap();
            first.hold_up();
            unmount(&layers.point, UnmountFlags::empty()).unwrap();
            let unmounted = Instant::now();
            let second = layers.mount(Driver::Stratafs);
            assert!(unmounted.elapsed() >= SLOW, "{option}: {:?}: before the last one ended", unmounted.elapsed());
            first.ended();
            sys::create(&second.at("f"), b"second\n").unwrap();
            second.remount(Driver::Stratafs).assert_tree("file f \"second\\n\"");
        }
    });
}

#[test]
fn a_mount_goes_on_when_the_last_one_dies_in_ending() {
    stratafs("a_mount_goes_on_when_the_last_one_dies_in_ending", || {
        let layers = Stack::new().lower("file f \"lower\\n\"").option("index=on").build();
        let mut first = Slow::mount(&layers);
        sys::unlink(&layers.point.join("f")).unwrap();
        first.hold_up();
        unmount(&layers.point, UnmountFlags::empty()).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        first.daemon.kill().unwrap();
        first.daemon.wait().unwrap();
        unwatch_daemon(first.daemon.id());
        layers.mount(Driver::Stratafs).assert_tree("");
    });
}

/// A new mount waits only for a driver that is ending. It does not wait for a working mount, or for one that stays
/// because its files are open.
#[test]
fn an_upper_in_use_is_refused() {
    stratafs("an_upper_in_use_is_refused", || {
        let layers = Stack::new().lower("file f \"lower\\n\"").build();
        let first = Slow::mount(&layers);
        let refused = |mut layers: Layers| {
            let point = layers.directory.path().join("elsewhere");
            if !sys::exists(&point) {
                sys::mkdir(&point, 0o755).unwrap();
            }
            let point = std::mem::replace(&mut layers.point, point);
            let Err((message, mut layers)) = layers.try_mount(Driver::Stratafs) else { panic!("mounted twice") };
            assert!(message.contains("is in use by another mount"), "{message}");
            std::fs::write(layers.log(), "").unwrap();
            layers.point = point;
            layers
        };
        let layers = refused(layers);
        let file = sys::open(&layers.point.join("f"), OFlags::RDWR, 0).unwrap();
        unmount(&layers.point, UnmountFlags::DETACH).unwrap();
        let layers = refused(layers);
        sys::write_all(&file, b"still\n").unwrap();
        drop(file);
        layers.mount(Driver::Stratafs).assert_tree("file f \"still\\n\"");
        first.ended();
    });
}

/// Every mount empties its work directory, whichever upper it has.
#[test]
fn a_work_directory_in_use_is_refused() {
    stratafs("a_work_directory_in_use_is_refused", || {
        let first = Stack::new().lower("file f \"lower\\n\"").build().mount(Driver::Stratafs);
        let mut second = Stack::new().lower("file f").build();
        second.work.clone_from(&first.layers().work);
        let Err((message, _)) = second.try_mount(Driver::Stratafs) else { panic!("mounted with the same workdir") };
        assert!(message.contains("workdir") && message.contains("is in use by another mount"), "{message}");
        sys::append(&first.at("f"), b"more\n").unwrap();
        first.assert_tree("file f \"lower\\nmore\\n\"");
    });
}
