//! Passing signals on to a child process.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

/// The child that gets the signals; 0: none.
static CHILD: AtomicI32 = AtomicI32::new(0);

const FORWARDED: [libc::c_int; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// Ends the forwarding when dropped; signals that come later are swallowed.
#[derive(Debug)]
pub struct Forwarding(());

impl Drop for Forwarding {
    fn drop(&mut self) {
        CHILD.store(0, Ordering::SeqCst);
    }
}

/// Sends every signal of the usual ones that this process gets on to the process `child`, instead of dying of it.
/// What a terminal sends reaches the child by itself, as it is in the same process group, and is not sent twice.
///
/// # Errors
/// When a handler cannot be installed.
pub fn forward_to(child: u32) -> io::Result<Forwarding> {
    CHILD.store(i32::try_from(child).map_err(io::Error::other)?, Ordering::SeqCst);
    for signal in FORWARDED {
        install(signal)?;
    }
    Ok(Forwarding(()))
}

fn install(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: `sigaction` is plain data for which all zeroes is a valid value; `pass_on` has the signature that
    // SA_SIGINFO asks for and calls only async-signal-safe functions (kill(2)) and atomics.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = pass_on as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn pass_on(signal: libc::c_int, origin: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let child = CHILD.load(Ordering::SeqCst);
    // SAFETY: with SA_SIGINFO the kernel passes a valid pointer; kill(2) takes any numbers. errno is restored, as
    // the interrupted code may be about to read it.
    unsafe {
        let from_terminal = !origin.is_null() && (*origin).si_code == libc::SI_KERNEL;
        if child > 0 && !from_terminal {
            let errno = *libc::__errno_location();
            libc::kill(child, signal);
            *libc::__errno_location() = errno;
        }
    }
}
