//! `doctor` tries what it reports.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

fn checks(output: &[u8]) -> Vec<Value> {
    serde_json::from_slice::<Value>(output).unwrap().as_array().unwrap().clone()
}

/// True if the check succeeded; `None` if there is no such check.
fn is_well(checks: &[Value], name: &str) -> Option<bool> {
    checks.iter().find(|check| check["Name"] == name).map(|check| check["Ok"] == true)
}

fn mounts_below(dir: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(dir.to_str().unwrap())).count()
}

#[test]
fn what_works_is_found_by_use_and_nothing_is_left() {
    if !super::fuse_for("doctor::what_works_is_found_by_use_and_nothing_is_left") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // The state of runtimes is in /run.
    let script = r#"mount -t tmpfs none /run && "$1" --root "$2/store" doctor --json && ls -A /run/strata >&2"#;
    let mut doctor = Command::new("unshare");
    doctor.args(["-m", "--propagation", "private", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_strata")]);
    let output = doctor.arg(dir.path()).stdin(Stdio::null()).output().unwrap();
    let found = checks(&output.stdout);
    assert!(output.status.success(), "{found:?}");
    for name in ["store", "/dev/fuse", "stratafs", "mount", "OCI runtime", "container"] {
        assert_eq!(is_well(&found, name), Some(true), "{name}: {found:?}");
    }
    for name in ["pasta", "limits", "overlayfs", "rings", "init"] {
        assert!(found.iter().any(|check| check["Name"] == name && check["Optional"] == true), "{name}");
    }
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "the runtime's state goes");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it makes no store");
    assert_eq!(mounts_below(dir.path()), 0);
}

/// The directory for the trials is not in the store, and a store that is an empty directory stays one.
#[test]
fn an_empty_directory_does_not_become_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    std::fs::create_dir(&root).unwrap();
    let changed = || std::fs::metadata(&root).unwrap().modified().unwrap();
    let before = changed();
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_strata"));
    let output = doctor.arg("--root").arg(&root).args(["doctor", "--json"]).stdin(Stdio::null()).output().unwrap();
    let found = checks(&output.stdout);
    assert_eq!(is_well(&found, "store"), Some(true), "{found:?}");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    assert_eq!(changed(), before, "nothing was made in it");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Without `newuidmap`, a user's containers work and have one id.
#[test]
fn a_user_without_newuidmap_runs_containers() {
    if !super::fuse_for("doctor::a_user_without_newuidmap_runs_containers") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    // A copy that the user may reach, a PATH without the two programs, and ranges for the user.
    let script = r#"set -e; mkdir -p "$1/bin" "$1/home" "$1/run"; chmod 755 "$1"; chown 65534:65534 "$1/home" "$1/run"
        cp "$2" "$(dirname "$2")/stratafs" "$1/bin/"
        for dir in /usr/local/bin /usr/sbin /usr/bin; do for program in "$dir"/*; do name=${program##*/}
            case $name in newuidmap|newgidmap) ;; *) [ -e "$1/bin/$name" ] || ln -s "$program" "$1/bin/$name";; esac
        done; done
        printf 'nobody:100000:65536\n' >"$1/sub"; mount --bind "$1/sub" /etc/subuid; mount --bind "$1/sub" /etc/subgid
        export PATH="$1/bin" XDG_RUNTIME_DIR="$1/run" HOME="$1/home"; unset STRATA_ROOT STRATA_RUNTIME; cd "$1/home"
        exec setpriv --reuid 65534 --regid 65534 --clear-groups strata --root "$1/home/store" doctor --json"#;
    let mut doctor = Command::new("unshare");
    doctor.args(["-m", "--propagation", "private", "sh", "-c", script, "sh", at, env!("CARGO_BIN_EXE_strata")]);
    let output = doctor.stdin(Stdio::null()).output().unwrap();
    assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = checks(&output.stdout);
    assert_eq!((is_well(&found, "newuidmap"), is_well(&found, "mount")), (Some(false), Some(true)), "{found:?}");
    if is_well(&found, "user namespaces") == Some(true) {
        assert_eq!(is_well(&found, "container"), Some(true), "{found:?}");
        assert!(output.status.success(), "{found:?}");
    }
}

#[test]
fn a_runtime_that_fails_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("runc");
    // It prints its version, and runs nothing.
    let script =
        "#!/bin/sh\n[ \"$1\" = --version ] && { echo runc version 9; exit; }\necho 'no such luck' >&2\nexit 1\n";
    std::fs::write(&runtime, script).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_strata"));
    doctor.arg("--root").arg(dir.path().join("store")).args(["doctor", "--json"]).stdin(Stdio::null());
    let output = doctor.env("STRATA_RUNTIME", &runtime).output().unwrap();
    let found = checks(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{found:?}");
    assert_eq!((is_well(&found, "OCI runtime"), is_well(&found, "container")), (Some(true), Some(false)), "{found:?}");
    let told = found.iter().find(|check| check["Name"] == "container").unwrap()["Problem"].to_string();
    assert!(told.contains("no such luck"), "{told}");
    assert_eq!(mounts_below(dir.path()), 0);
}

#[test]
fn a_missing_device_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mkdir "$1/dev" && mount -t tmpfs none "$1/dev" && mknod -m 666 "$1/dev/null" c 1 3 &&
        mknod -m 666 "$1/dev/urandom" c 1 9 && mount --rbind "$1/dev" /dev && exec "$2" --root "$1/store" doctor"#;
    let mut doctor = Command::new("unshare");
    doctor.args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]).arg(dir.path());
    let output = doctor.arg(env!("CARGO_BIN_EXE_strata")).stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told} {:?}", String::from_utf8_lossy(&output.stderr));
    let missing: Vec<&str> = told.lines().filter(|line| line.starts_with("missing")).collect();
    assert_eq!(missing.len(), 1, "{told}");
    assert!(missing[0].contains("/dev/fuse") && missing[0].contains("modprobe fuse"), "{told}");
}
