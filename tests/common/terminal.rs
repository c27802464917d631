//! A pseudo-terminal whose other side is held by a test.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

fn wait_until(what: &str, done: &mut dyn FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A terminal with a program in it.
pub struct Terminal {
    master: File,
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// Runs a program in a session whose terminal it is.
    pub fn run(program: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let open = || File::options().read(true).write(true).open(&name).unwrap();
        let terminal = Self::resize_of(&master, 24, 80).map(|()| open()).unwrap();
        // As after a login: signals that the tests themselves ignore (started in the background, by nohup) are not ignored there.
        let mut command = Command::new("env");
        command
            .args(["--default-signal", "setsid", "--ctty", "--wait"])
            .arg(program.get_program())
            .args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
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

    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    /// Its output so far.
    pub fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// True if the terminal echoes input.
    pub fn echoes(&self) -> bool {
        tcgetattr(&self.master).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    pub fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub fn becomes(&self, what: &str, so: impl Fn(&Self) -> bool) {
        wait_until(what, &mut || so(self));
    }

    pub fn waits_for(&self, text: &str) {
        wait_until(text, &mut || self.shown.lock().unwrap().contains(text));
    }

    pub fn ends(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("its end", &mut || {
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
