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
