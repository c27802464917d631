//! Images as a whole: archives in and out, the store, new images, other tools. The rules of single layers are in
//! `tests/layer.rs`. Needs root (layers hold other users' files and devices), but no FUSE.

#![allow(clippy::unwrap_used)]

#[path = "../common/layer_dirs.rs"]
mod layer_dirs;
#[path = "../common/terminal.rs"]
mod pty;
#[path = "../common/readme.rs"]
mod readme;
#[path = "../common/tar_build.rs"]
mod tar_build;

mod archives;
mod bad_input;
mod cli;
mod container;
mod crashes;
mod create;
mod engines;
mod fixture;
mod interop;
mod inventory;
mod run;
mod store;
mod terminal;
mod tour;

/// True if the kernel mounts overlayfs; else the test is counted as skipped where `scripts/test` looks.
fn overlayfs_for(test: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.ends_with("\toverlay")) || skip(test, "the kernel has no overlayfs")
}

/// The same for stratafs, whose absence is a failure unless the caller says otherwise.
fn fuse_for(test: &str) -> bool {
    let there = std::path::Path::new("/dev/fuse").exists();
    let may_skip = std::env::var_os("STRATAFS_TEST_NO_FUSE").is_some();
    assert!(there || may_skip, "there is no /dev/fuse; STRATAFS_TEST_NO_FUSE=1 skips the tests that mount");
    there || skip(test, "there is no /dev/fuse")
}

fn skip(test: &str, reason: &str) -> bool {
    use std::io::Write;
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
    writeln!(file, "{test}: {reason}").unwrap();
    false
}
