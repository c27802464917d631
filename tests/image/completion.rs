//! Completions, in a real bash that receives typed input.

use std::process::{Command, Stdio};

use super::cli::ok;
use super::container::rootfs_with;
use super::pty::Terminal;

/// A store with `tool:1`, containers `web` (with the checkpoint `before`) and `db`, and the volume `cache`.
fn store(dir: &std::path::Path) -> std::path::PathBuf {
    let root = dir.join("store");
    let tar = dir.join("rootfs.tar");
    std::fs::write(&tar, rootfs_with(&[]).end()).unwrap();
    ok(&root, &["import", tar.to_str().unwrap(), "tool:1"]);
    for name in ["web", "db"] {
        ok(&root, &["create", "--name", name, "tool:1", "/bin/sh"]);
    }
    ok(&root, &["checkpoint", "create", "web", "before"]);
    ok(&root, &["volume", "create", "cache"]);
    root
}

#[test]
fn bash_completes_names_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    let rc = dir.path().join("rc");
    // `strata` completes; the line itself is only shown and not run.
    let script = format!(
        "strata() {{ case $1 in __complete|completions) {program} \"$@\" ;; *) printf '<%s>\\n' \"$*\" ;; esac; }}\n\
         source <(strata completions bash)\nPS1='$ '\n",
        program = env!("CARGO_BIN_EXE_strata"),
    );
    std::fs::write(&rc, script).unwrap();
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--rcfile", rc.to_str().unwrap(), "-i"]).env("STRATA_ROOT", &root).env("TERM", "dumb");
    let mut terminal = Terminal::run(&bash);
    terminal.waits_for("$ ");
    for (typed, completed) in [
        ("run to", "run tool:1"),
        ("run tool:", "run tool:1"),
        ("run --rm -it -e A=1 to", "run --rm -it -e A=1 tool:1"),
        ("rmi tool:1 to", "rmi tool:1 tool:1"),
        ("start we", "start web"),
        ("rm web d", "rm web db"),
        ("container rm d", "container rm db"),
        ("commit web@be", "commit web@before"),
        ("rollback web be", "rollback web before"),
        ("checkpoint rm web b", "checkpoint rm web before"),
        ("volume rm ca", "volume rm cache"),
        ("run -v ca", "run -v cache"),
        ("inspect we", "inspect web"),
        ("checkp", "checkpoint"),
        ("run --cidf", "run --cidfile"),
    ] {
        terminal.types(&format!("strata {typed}\t\n"));
        terminal.waits_for(&format!("<{completed}>"));
    }
    // Nothing of that name runs.
    terminal.types("strata exec we\t\n");
    terminal.waits_for("<exec we>");
    terminal.types("exit\n");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn scripts_of_every_shell_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    for (shell, calls) in
        [("bash", "complete -F _strata_names "), ("zsh", "_strata_static"), ("fish", "__strata_names")]
    {
        let script = ok(dir.path(), &["completions", shell]);
        assert!(script.contains("__complete -- ") && script.contains(calls), "{shell}");
        let path = dir.path().join(shell);
        std::fs::write(&path, script).unwrap();
        match Command::new(shell).arg("-n").arg(&path).stdin(Stdio::null()).output() {
            Ok(checked) => assert!(checked.status.success(), "{shell}: {checked:?}"),
            Err(_) => drop(super::skip("completion: the script", shell)),
        }
    }
    // For a store that does not exist nothing is completed, and none is made.
    let root = dir.path().join("none");
    let root_option = format!("--root={}", root.display());
    let mut complete = Command::new(env!("CARGO_BIN_EXE_strata"));
    let told = complete.args(["__complete", "--", &root_option, "run", ""]).output().unwrap();
    assert!(told.status.success() && told.stdout.is_empty() && told.stderr.is_empty(), "{told:?}");
    assert!(!root.exists());
}
