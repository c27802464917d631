//! Containers in a terminal.

use super::container::worlds;
use super::pty::Terminal;

#[test]
fn a_resize_and_an_interrupt_reach_the_container() {
    for world in worlds() {
        let script = "trap 'stty size' WINCH; trap 'echo caught; exit 3' INT; stty size; echo ready
            while :; do sleep 0.05; done";
        let mut terminal = Terminal::run(&world.command(&["run", "--rm", "-it", "tool:1", script]));
        terminal.waits_for("24 80");
        terminal.waits_for("ready");
        terminal.resize(41, 103);
        terminal.waits_for("41 103");
        terminal.types("\x03");
        terminal.waits_for("caught");
        assert_eq!(terminal.ends(), Some(3), "{}", world.driver);
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{}", world.driver);
    }
}

#[test]
fn an_interrupt_ends_a_container_without_a_terminal_of_its_own() {
    for world in worlds() {
        let script = "trap 'exit 4' INT; echo ready; while :; do sleep 0.05; done";
        let mut terminal = Terminal::run(&world.command(&["run", "--rm", "tool:1", script]));
        terminal.waits_for("ready");
        terminal.types("\x03");
        assert_eq!(terminal.ends(), Some(4), "{}", world.driver);
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{}", world.driver);
    }
}

#[test]
fn what_is_typed_is_read_and_exec_has_a_terminal_too() {
    for world in worlds() {
        world.ok(&["run", "-d", "--name", "c", "tool:1", "sleep 1000"]);
        let mut terminal = Terminal::run(&world.command(&["exec", "-it", "c", "/bin/sh"]));
        // The runtime passes the size on at some time after the start.
        terminal.types(
            "until [ \"$(stty size)\" = '24 80' ]; do sleep 0.05; done; echo $((40 + 2)); test -t 0 && exit 6\n",
        );
        terminal.waits_for("42");
        assert_eq!(terminal.ends(), Some(6), "{}", world.driver);
        world.ok(&["rm", "-f", "c"]);
    }
}

/// A bar on a terminal, nothing elsewhere.
#[test]
fn work_that_takes_long_shows_how_far_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (root, tar, saved, exported) = (path("store"), path("in.tar"), path("saved.tar"), path("exported.tar"));
    let content = super::fixture::noise(8 << 20, 1);
    std::fs::write(&tar, super::tar_build::Tar::new().dir("./").file("big", content).end()).unwrap();
    let root = std::path::Path::new(&root);
    super::cli::ok(root, &["import", &tar, "big:1"]);
    super::cli::ok(root, &["create", "--name", "c", "big:1", "/big"]);
    for (args, shown) in [
        (&["import", &tar, "big:2"][..], "Importing: ["),
        (&["save", "-o", &saved, "big:1"], "Saving: ["),
        (&["export", "-o", &exported, "big:1"], "Writing: "),
        (&["flatten", "big:1", "flat:1"], "Flattening: "),
        (&["commit", "c", "c:1"], "Committing: "),
    ] {
        let silent = super::cli::strata(root, args);
        assert_eq!(
            (silent.status.success(), String::from_utf8(silent.stderr).unwrap()),
            (true, String::new()),
            "{args:?}"
        );
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_strata"));
        let mut terminal = Terminal::run(command.arg("--root").arg(root).args(args));
        assert_eq!(terminal.ends(), Some(0), "{args:?}");
        terminal.waits_for(shown);
        let text = terminal.shown();
        assert!(!text.contains("iB"), "decimal units: {text}");
        if let Some(id) = text.find("sha256:") {
            assert!(!text[id..].contains('\x1b'), "what removes the bar comes before the id: {text:?}");
        }
    }
}
