//! `stratafs` without a mount: refused arguments and their messages.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn stratafs(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stratafs")).args(arguments).current_dir(directory).output().unwrap()
}

/// Exit code and the one line that must be on stderr.
fn refusal(directory: &Path, arguments: &[&str]) -> (i32, String) {
    let output = stratafs(directory, arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("stratafs: "), "{arguments:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    (output.status.code().unwrap(), stderr)
}

#[test]
fn errors_of_usage() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("mnt")).unwrap();
    for (arguments, named) in [
        (&[][..], "MOUNTPOINT"),
        (&["-o", "lowerdir=l"], "MOUNTPOINT"),
        (&["-o", "lowerdir=l", "a", "b", "c"], "'c'"),
        (&["-x", "mnt"], "'-x'"),
        (&["--nonsense", "mnt"], "'--nonsense'"),
        (&["mnt", "-o"], "-o"),
        (&["mnt"], "lowerdir"),
        (&["-o", "upperdir=u,workdir=w", "mnt"], "lowerdir"),
        (&["-o", "lowerdir=", "mnt"], "lowerdir"),
        (&["-o", "lowerdir=a::", "mnt"], "lowerdir"),
        (&["-o", "lowerdir=l,index=maybe", "mnt"], "'index': 'maybe'"),
        (&["-o", "lowerdir=l", "-o", "timeout=soon", "mnt"], "'timeout': 'soon'"),
        (&["-o", "lowerdir=l,uidmapping=1:2", "mnt"], "'uidmapping': '1:2'"),
        (&["-o", "lowerdir=l,plugins=/x.so", "mnt"], "plugins"),
    ] {
        let (code, line) = refusal(directory.path(), arguments);
        assert_eq!(code, 2, "{arguments:?}: {line}");
        assert!(line.contains(named), "{arguments:?}: {line}");
    }
}

#[test]
fn mounts_that_cannot_be() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["mnt", "l", "u"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    std::fs::write(directory.path().join("file"), "").unwrap();
    for (arguments, named) in [
        (&["-o", "lowerdir=l", "nowhere"][..], "nowhere"),
        (&["-o", "lowerdir=l", "file"], "'file'"),
        (&["-o", "lowerdir=l,upperdir=u", "mnt"], "workdir"),
        (&["-o", "lowerdir=l,metacopy=on,redirect_dir=off", "mnt"], "metacopy"),
    ] {
        let (code, line) = refusal(directory.path(), arguments);
        assert_eq!(code, 1, "{arguments:?}: {line}");
        assert!(line.contains(named), "{arguments:?}: {line}");
    }
}

#[test]
fn a_mount_helper_with_f_only_checks() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["mnt", "l"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    let helper = directory.path().join("mount.stratafs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_stratafs"), &helper).unwrap();
    let fake = |options: &str| {
        let mut command = Command::new(&helper);
        command.args(["source", "mnt", "-f", "-n", "-s", "-v", "-t", "fuse.stratafs", "-o", options]);
        command.current_dir(directory.path()).output().unwrap()
    };
    let output = fake("rw,lowerdir=l");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fake("rw,lowerdir=l,index=maybe").status.code(), Some(2));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(directory.path().to_str().unwrap()));
}

#[test]
fn version_and_help() {
    let directory = tempfile::tempdir().unwrap();
    for flag in ["-V", "--version"] {
        let output = stratafs(directory.path(), &[flag]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with(concat!("stratafs ", env!("CARGO_PKG_VERSION"), "\nFUSE protocol 7.")), "{text}");
    }
    for flag in ["-h", "--help"] {
        let output = stratafs(directory.path(), &[flag]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("lowerdir="));
    }
}
