//! Failures are reported: in the log with path, error and level, and in the counts of `strata mounts`; a panic costs one request.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;

use crate::common::stack::{Mount, Stack};
use crate::common::{Driver, run_test_within, sys};
use crate::gate::{Act, Counted, Gate, Order};

/// A daemon that logs by `filter`, with its calls going through the gate.
fn mount(gate: &Gate, filter: &str) -> Mount {
    let layers = Stack::new().lower("file d/f \"lower\\n\" mtime=1000").build();
    layers.mount_started_by(|command| gate.spawn(command.env("STRATAFS_LOG", filter)))
}

fn stratafs(name: &'static str, body: fn()) {
    run_test_within(Duration::from_secs(120), name, Driver::Stratafs, move |_| body());
}

/// Lines of the log that report a failed request, without their times.
fn told(mount: &Mount) -> Vec<String> {
    let line = |line: &str| line.split_once(' ').unwrap_or_default().1.trim_start().to_owned();
    mount.log().lines().map(line).filter(|line| line.contains(": failed ")).collect()
}

fn fail_once<T>(gate: &Gate, errno: Errno, act: impl FnOnce() -> T) -> T {
    gate.give(Order { at: 0, act: Act::Fail(errno), counted: Counted::Changes });
    let result = act();
    assert!(gate.take().is_some(), "no call was made to fail");
    result
}

/// The number of an error in `strata mounts MOUNT`, and the number of all errors in its list of mounts.
fn counted(point: &Path, error: &str) -> (u64, u64) {
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        let output = command.arg("mounts").args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let point = point.to_str().unwrap();
    let stats: serde_json::Value = serde_json::from_str(&ask(&["--json", point])).unwrap();
    let list = ask(&[]);
    let row = list.lines().find(|line| line.starts_with(point)).unwrap_or_else(|| panic!("{point} in {list}"));
    // MOUNTPOINT STATE PID REQUESTS ERRORS …
    let total = row.split_whitespace().nth(4).unwrap().parse().unwrap();
    (stats[0]["errors"][error].as_u64().unwrap_or(0), total)
}

/// Errors of the disk below: how they are logged and counted.
const FAILURES: [(Errno, &str, &str); 4] = [
    (Errno::IO, "ERROR", "Input/output error"),
    (Errno::NOSPC, "WARN", "No space left on device"),
    (Errno::DQUOT, "WARN", "Disk quota exceeded"),
    (Errno::NOMEM, "WARN", "Cannot allocate memory"),
];

#[test]
fn failures_are_logged_and_counted() {
    stratafs("failures_are_logged_and_counted", || {
        // Without STRATAFS_LOG the level is `warn`.
        for filter in ["warn", "debug"] {
            let gate = Gate::default();
            let mount = mount(&gate, filter);
            let path = mount.at("d/f");
            for (at, (errno, level, error)) in FAILURES.into_iter().enumerate() {
                let (before, total) = counted(mount.root(), error);
                assert_eq!(fail_once(&gate, errno, || sys::chmod(&path, 0o600)), Err(errno));
                let told = told(&mount);
                let number = errno.raw_os_error();
                let line = format!(
                    "{level} stratafs::fuse::serve: failed request=\"SETATTR\" path=\"/d/f\" error={error} (os error {number})"
                );
                assert_eq!((told.len(), &told[at]), (at + 1, &line));
                // `strata mounts` may itself look up missing names, but other ones.
                let now = counted(mount.root(), error);
                assert_eq!((now.0, now.1 > total), (before + 1, true));
            }
        }
    });
}

/// If descriptors run out, cached ones are closed, and the request is repeated.
#[test]
fn a_lack_of_descriptors_is_made_up_for() {
    stratafs("a_lack_of_descriptors_is_made_up_for", || {
        let gate = Gate::default();
        let mount = mount(&gate, "warn");
        let path = mount.at("d/f");
        for errno in [Errno::MFILE, Errno::NFILE] {
            assert_eq!(fail_once(&gate, errno, || sys::chmod(&path, 0o600)), Ok(()));
        }
        assert!(told(&mount).is_empty(), "{:?}", told(&mount));
    });
}

#[test]
fn what_a_caller_asks_in_vain_is_logged_at_debug_only() {
    stratafs("what_a_caller_asks_in_vain_is_logged_at_debug_only", || {
        for (filter, lines) in [("warn", 0), ("debug", 1), ("stratafs::fuse=debug", 1), ("stratafs::driver=trace", 0)] {
            let mount = mount(&Gate::default(), filter);
            assert_eq!(sys::rmdir(&mount.at("d")), Err(Errno::NOTEMPTY));
            let told = told(&mount);
            assert_eq!(told.len(), lines, "{filter}: {told:?}");
            let line = "DEBUG stratafs::fuse::serve: failed request=\"RMDIR\" path=\"/d\" \
                        error=Directory not empty (os error 39)";
            assert!(told.iter().all(|told| told == line), "{told:?}");
            assert_eq!(counted(mount.root(), "Directory not empty").0, 1);
        }
    });
}

#[test]
fn an_invalid_log_filter_is_refused() {
    stratafs("an_invalid_log_filter_is_refused", || {
        let layers = Stack::new().lower("dir d").build();
        let mut command = Command::new(env!("CARGO_BIN_EXE_stratafs"));
        let output = command.args(layers.stratafs_arguments()).env("STRATAFS_LOG", "stratafs=loud").output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{told}");
        assert!(told.contains("STRATAFS_LOG 'stratafs=loud'"), "{told}");
    });
}

/// Only builds with debug assertions can be told to panic.
#[cfg(debug_assertions)]
#[test]
fn a_panic_costs_one_request() {
    stratafs("a_panic_costs_one_request", || {
        let layers = Stack::new().lower("file d/f \"lower\\n\"").build();
        let mount = layers.mount_started_by(|command| command.env("STRATAFS_TEST_PANIC", "MKDIR").spawn());
        // More than the number of threads: none of them is lost.
        for round in 1..=100 {
            assert_eq!(sys::mkdir(&mount.at("new"), 0o755), Err(Errno::IO));
            sys::create(&mount.at(&format!("file{round}")), b"content").unwrap();
        }
        sys::append(&mount.at("d/f"), b"more\n").unwrap();
        assert_eq!(sys::text(&mount.at("d/f")), "lower\nmore\n");
        assert_eq!(sys::names(mount.root()).len(), 101);
        assert_eq!(counted(mount.root(), "Input/output error").0, 100);
        let log = mount.log();
        let of = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        assert_eq!(of("panicked at src/fuse/serve.rs"), 100, "{log}");
        assert_eq!(of("ERROR stratafs::fuse::serve: answered with EIO after a panic request=\"MKDIR\""), 100, "{log}");
        assert_eq!(of("ERROR stratafs::fuse::serve: failed request=\"MKDIR\" path=\"/new\""), 100, "{log}");
        // Unmounting asserts that the log tells of no panic, and that the driver ends well.
        std::fs::write(mount.layers().log(), "").unwrap();
        mount.remount(Driver::Stratafs);
    });
}
