//! Containers in a terminal: a pseudo-terminal whose other side the test holds.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::container::{World, wait_until, worlds};

struct Terminal {
    master: File,
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// Runs strata in a session whose terminal it is.
    fn run(world: &World, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let open = || File::options().read(true).write(true).open(&name).unwrap();
        let terminal = Self::resize_of(&master, 24, 80).map(|()| open()).unwrap();
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_strata"), "--root"]).arg(world.root()).args(args);
        command.env("STRATA_DRIVER", world.driver).env_remove("STRATA_RUNTIME");
        command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap()).stderr(terminal);
        let child = command.spawn().unwrap();
        let master = File::from(master);
        let (mut reader, shown) = (master.try_clone().unwrap(), Arc::<Mutex<String>>::default());
        let log = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the terminal's end.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                log.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { master, child, shown }
    }

    fn resize_of(master: &OwnedFd, rows: u16, columns: u16) -> rustix::io::Result<()> {
        tcsetwinsize(master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
    }

    fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn waits_for(&self, text: &str) {
        wait_until(text, || self.shown.lock().unwrap().contains(text));
    }

    fn ends(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

#[test]
fn a_resize_and_an_interrupt_reach_the_container() {
    for world in worlds() {
        let script = "trap 'stty size' WINCH; trap 'echo caught; exit 3' INT; stty size; echo ready
            while :; do sleep 0.05; done";
        let mut terminal = Terminal::run(&world, &["run", "--rm", "-it", "tool:1", script]);
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
        let mut terminal = Terminal::run(&world, &["run", "--rm", "tool:1", script]);
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
        let mut terminal = Terminal::run(&world, &["exec", "-it", "c", "/bin/sh"]);
        terminal.resize(30, 90);
        terminal.types("stty size; echo $((40 + 2)); test -t 0 && exit 6\n");
        terminal.waits_for("30 90");
        terminal.waits_for("42");
        assert_eq!(terminal.ends(), Some(6), "{}", world.driver);
        world.ok(&["rm", "-f", "c"]);
    }
}
