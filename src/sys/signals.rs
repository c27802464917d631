//! Signals that are read from a queue, and what a process inherits of signals.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

/// Signals of the process that are queued and read instead of taking effect.
#[derive(Debug)]
pub struct SignalQueue(File);

impl SignalQueue {
    /// Blocks `signals` in the calling thread and in all threads that it starts from now on, and queues them.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that it is given.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for &signal in signals {
            // SAFETY: the set is initialised; an unknown number makes the call fail.
            if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the set is initialised; no old mask is asked for.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and has no other owner.
        Ok(Self(unsafe { File::from_raw_fd(descriptor) }))
    }

    /// Waits for a signal, removes it from the queue and returns its number.
    ///
    /// # Errors
    /// From reading the queue.
    pub fn next(&self) -> io::Result<i32> {
        // struct signalfd_siginfo: 128 bytes, the first four are ssi_signo.
        let mut record = [0; 128];
        (&self.0).read_exact(&mut record)?;
        let [a, b, c, d, ..] = record;
        Ok(i32::from_ne_bytes([a, b, c, d]))
    }
}

/// Blocks all signals in the calling thread and in threads that it starts from now on; other threads of the process receive them.
///
/// # Errors
/// Those of `pthread_sigmask(3)`; none is expected.
pub fn block_all() -> io::Result<()> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set before it is read; no old mask is asked for.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut())
    };
    if blocked == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(blocked)) }
}

/// Undoes the effects of the caller's masks, dispositions and timers on a daemon. Signals that report a resource limit
/// are ignored, so that the system call fails instead of ending the process. No signal is blocked, children can be
/// waited for, and no timer is pending. A program inherits all of these from the one that executes it (`execve(2)`).
///
/// # Errors
/// Those of `sigaction(2)`, `sigprocmask(2)` and `setitimer(2)`; none is expected.
pub fn start_afresh() -> io::Result<()> {
    dispose(libc::SIGXFSZ, libc::SIG_IGN)?;
    dispose(libc::SIGXCPU, libc::SIG_IGN)?;
    receive()?;
    let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let off = libc::itimerval { it_interval: zero, it_value: zero };
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: the new value lives through the call, and no old one is asked for.
        if unsafe { libc::setitimer(timer, &raw const off, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Undoes the effects of the caller's masks and dispositions on a program that runs others. A write beyond the
/// caller's `RLIMIT_FSIZE` fails with `EFBIG` and does not end the process. No signal is blocked, and children
/// can be waited for. Programs started by this one have the default dispositions.
///
/// # Errors
/// Those of `sigaction(2)` and `sigprocmask(2)`; none is expected.
pub fn start_program() -> io::Result<()> {
    // A handler and not "ignore", because started programs would inherit an ignored signal.
    dispose(libc::SIGXFSZ, nothing as *const () as libc::sighandler_t)?;
    dispose(libc::SIGXCPU, libc::SIG_DFL)?;
    receive()
}

/// From now on, a change of the terminal's size interrupts blocking system calls (`EINTR` from `poll(2)`). By default it
/// is ignored.
///
/// # Errors
/// Those of `sigaction(2)`; none is expected.
pub fn interrupt_at_resize() -> io::Result<()> {
    // `signal` of the C library restarts calls after the signal, but poll(2) is never restarted (signal(7)).
    dispose(libc::SIGWINCH, nothing as *const () as libc::sighandler_t)
}

/// Does nothing: the failure of the system call that the signal interrupts, or that raised it, is enough.
extern "C" fn nothing(_signal: libc::c_int) {}

fn dispose(signal: libc::c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: the disposition is SIG_IGN, SIG_DFL or `nothing`, which does nothing.
    match unsafe { libc::signal(signal, disposition) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Unblocks all signals and makes children waitable.
fn receive() -> io::Result<()> {
    dispose(libc::SIGCHLD, libc::SIG_DFL)?;
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before it is read; no old mask is asked for.
    let unblocked = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if unblocked == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(unblocked)) }
}

/// True if the process ignores `signal`, as under `nohup(1)` with `SIGHUP`.
///
/// # Errors
/// `EINVAL` if there is no such signal.
pub fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is changed, and the kernel writes the whole structure before it is read.
    let action = unsafe {
        if libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        action.assume_init()
    };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
