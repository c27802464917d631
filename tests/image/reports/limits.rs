//! Limits, signal masks and dispositions of the caller: an exceeded limit gives one error that names the file, and
//! nothing is lost.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::container::{wait_until, worlds};
use super::super::tar_build::{Tar, spec};
use super::*;

/// Runs the program with a limit on the size of files, in KiB.
fn limited(root: &Path, kib: u64, args: &[&str]) -> Output {
    let mut command = Command::new("/bin/bash");
    command.args(["-c", &format!("ulimit -f {kib}; exec \"$@\""), "bash", env!("CARGO_BIN_EXE_strata")]);
    command.arg("--root").arg(root).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Bytes that do not compress.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn a_limit_of_file_sizes_is_one_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let layer = Tar::new().entry(spec("large", b'0').content(noise(300_000))).file("small", "x").end();
    let files = layout("l:1", &config(std::slice::from_ref(&layer), "l:1"), std::slice::from_ref(&layer));
    fs::write(place("in.tar"), tar_of(&files)).unwrap();
    fs::write(place("layer.tar"), &layer).unwrap();
    let (archive, rootfs) = (place("in.tar").display().to_string(), place("layer.tar").display().to_string());
    let out = place("out.tar").display().to_string();
    for kib in [0, 1, 4, 100, 292] {
        let root = place(&format!("store-{kib}"));
        ok(&root, &["images"]);
        let refused = |args: &[&str]| {
            let output = limited(&root, kib, args);
            let said = told(&output);
            assert_eq!(output.status.code(), Some(1), "{kib} KiB: {args:?}: {said}");
            // For a path chosen by the user, the error names the path; for a layer's file, its name in the layer.
            let names_it = ["/", "large"].iter().any(|name| said.contains(name));
            assert!(said.contains("File too large") && names_it, "{kib} KiB: {args:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{kib} KiB: {args:?}: {said}");
        };
        refused(&["load", "-qi", &archive]);
        refused(&["import", &rootfs, "i:1"]);
        assert_eq!(ok(&root, &["images", "-q"]), "", "{kib} KiB: nothing is half there");
        ok(&root, &["verify"]);
        ok(&root, &["load", "-qi", &archive]);
        refused(&["save", "-o", &out, "l:1"]);
        refused(&["save", "--format", "docker-archive", "-o", &out, "l:1"]);
        refused(&["flatten", "l:1", "f:1"]);
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name.to_str().unwrap().starts_with(['i', 'l', 's'])), "{kib} KiB: {names:?}");
        assert_eq!(ok(&root, &["images", "-q"]).lines().count(), 1, "{kib} KiB");
        ok(&root, &["verify"]);
        ok(&root, &["save", "-o", &out, "l:1"]);
        fs::remove_file(&out).unwrap();
    }
}

#[test]
fn a_limit_of_file_sizes_in_commit_and_export() {
    for world in worlds() {
        let driver = world.driver;
        let merged = world.ok(&["mount", "--name", "c", "tool:1"]);
        fs::write(Path::new(merged.trim()).join("large"), noise(300_000)).unwrap();
        world.ok(&["umount", "c"]);
        let out = world.dir.path().join("out.tar").display().to_string();
        for kib in [1, 100] {
            for args in [&["commit", "c", "new:1"][..], &["export", "-o", &out, "c"], &["export", "-o", &out, "tool:1"]]
            {
                let output = limited(&world.root(), kib, args);
                let said = told(&output);
                assert_eq!(output.status.code(), Some(1), "{driver}: {kib} KiB: {args:?}: {said}");
                assert!(said.contains("File too large"), "{driver}: {kib} KiB: {args:?}: {said}");
                assert_eq!(world.mounts(), 0, "{driver}: {kib} KiB: {args:?}");
                assert_eq!(world.names(), "c\n", "{driver}: {kib} KiB: {args:?}");
            }
            assert_eq!(world.ok(&["images", "-q"]).lines().count(), 1, "{driver}");
            assert!(!Path::new(&out).exists(), "{driver}");
        }
        world.ok(&["verify"]);
        world.ok(&["commit", "c", "new:1"]);
        world.ok(&["rm", "c"]);
    }
}

/// `env` of coreutils sets them as a caller may have done.
#[test]
fn masks_and_dispositions_of_the_caller() {
    let started = |world: &super::super::container::World, setting: &str, script: &str| {
        let mut command = Command::new("env");
        command.env("STRATA_DRIVER", world.driver).stdin(Stdio::null()).arg(setting);
        command.arg(env!("CARGO_BIN_EXE_strata")).arg("--root").arg(world.root());
        command.args(["run", "--rm", "tool:1", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for world in worlds() {
        let driver = world.driver;
        let settings = ["--ignore-signal=CHLD,PIPE,XFSZ,XCPU", "--block-signal=TERM,INT,HUP,CHLD,PIPE,XFSZ,USR1"];
        for setting in settings {
            let show = "while read -r name value; do case $name in SigIgn:|SigBlk:) echo $name $value;; esac; done";
            let script = format!("{show} </proc/self/status");
            let output = started(&world, setting, &script).wait_with_output().unwrap();
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{driver}: {setting}: {}", told(&output));
            // `env` does not know 32 and 33, which belong to the C library.
            let masks = shown.split_whitespace().filter_map(|word| u64::from_str_radix(word, 16).ok());
            assert_eq!(
                masks.map(|mask| mask & 0x7fff_ffff).collect::<Vec<_>>(),
                [0, 0],
                "{driver}: {setting}: {shown}"
            );
            let mut child = started(&world, setting, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done");
            let mut ready = [0; 6];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
            assert_eq!(&ready, b"ready\n");
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(9), "{driver}: {setting}: {}", told(&output));
            wait_until("no mount", || world.mounts() == 0);
        }
    }
}
