//! Signals of a process that must clean up before it ends: they are recorded, or passed on to a child.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// The child that gets the signals; 0 for none.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// True if the child is in the terminal's process group, so that it receives the terminal's signals directly.
static SHARES_TERMINAL: AtomicBool = AtomicBool::new(true);

/// Signals received while there was no child, one bit for each number.
static PENDING: AtomicU64 = AtomicU64::new(0);

const FORWARDED: [libc::c_int; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// Those of them that ask a process to end.
const ENDING: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Ends the forwarding when dropped. Signals that come later are recorded.
#[derive(Debug)]
pub struct Forwarding(());

impl Drop for Forwarding {
    fn drop(&mut self) {
        CHILD.store(0, Ordering::SeqCst);
    }
}

/// From now on, the usual signals do not end this process: they are recorded until there is a child for them. A signal
/// that the caller ignores (`nohup`) stays ignored.
///
/// # Errors
/// When a handler cannot be installed.
pub fn hold() -> io::Result<()> {
    FORWARDED.into_iter().try_for_each(install)
}

/// The signal that asked this process to end while it had no child, if any.
pub fn interrupted() -> Option<i32> {
    let pending = PENDING.load(Ordering::SeqCst);
    ENDING.into_iter().find(|signal| pending & bit(*signal) != 0)
}

/// Passes every signal on to the process `child`, starting with those recorded since [`hold`]. With
/// `shares_terminal`, the child receives the terminal's signals directly, and they are not sent again.
///
/// # Errors
/// When a handler cannot be installed.
pub fn forward_to(child: u32, shares_terminal: bool) -> io::Result<Forwarding> {
    hold()?;
    SHARES_TERMINAL.store(shares_terminal, Ordering::SeqCst);
    let child = i32::try_from(child).map_err(io::Error::other)?;
    CHILD.store(child, Ordering::SeqCst);
    // A handler records first and looks for a child afterwards. So either it sees the child, or the signal is seen here.
    for signal in FORWARDED {
        deliver(signal, child);
    }
    Ok(Forwarding(()))
}

const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal & 63)
}

/// Sends a recorded signal, once.
fn deliver(signal: libc::c_int, child: i32) {
    if PENDING.fetch_and(!bit(signal), Ordering::SeqCst) & bit(signal) != 0 {
        // SAFETY: kill(2) takes any numbers. A child that has ended has not been waited for yet, so its number is still its own.
        unsafe { libc::kill(child, signal) };
    }
}

fn install(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: `sigaction` is plain data for which all zeroes is a valid value; `pass_on` has the signature for
    // SA_SIGINFO and uses only async-signal-safe functions (kill(2)) and atomics.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut present: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, std::ptr::null(), &raw mut present) == 0 && present.sa_sigaction == libc::SIG_IGN {
            return Ok(());
        }
        action.sa_sigaction = pass_on as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn pass_on(signal: libc::c_int, origin: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid pointer. errno is restored, because the interrupted code may be
    // about to read it.
    unsafe {
        let errno = *libc::__errno_location();
        let from_terminal = !origin.is_null() && (*origin).si_code == libc::SI_KERNEL;
        let reaches_child = from_terminal && SHARES_TERMINAL.load(Ordering::SeqCst);
        if CHILD.load(Ordering::SeqCst) == 0 || !reaches_child {
            PENDING.fetch_or(bit(signal), Ordering::SeqCst);
        }
        let child = CHILD.load(Ordering::SeqCst);
        if child > 0 {
            deliver(signal, child);
        }
        *libc::__errno_location() = errno;
    }
}
