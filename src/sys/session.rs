//! Sessions of processes (`setsid(2)`).

#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Starts the program in a new session without a controlling terminal: signals that a terminal sends to the caller's
/// process group do not reach it.
pub fn start_in_new_session(command: &mut Command) {
    let enter = || match rustix::process::setsid() {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::from(error)),
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(enter) };
}
