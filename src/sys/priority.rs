//! Priorities of threads (`sched_setscheduler(2)`, `ioprio_set(2)`).

#![allow(unsafe_code)]

use std::io;

use rustix::thread::Pid;

/// Numbers of `linux/ioprio.h`, which libc lacks.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_CLASS_SHIFT: libc::c_int = 13;

/// Scheduling policy of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy(libc::c_int);

impl Policy {
    /// `SCHED_IDLE`: the thread gives way to all threads of other policies.
    pub const IDLE: Self = Self(libc::SCHED_IDLE);

    /// The policy of the calling thread.
    ///
    /// # Errors
    /// The errors of `sched_getscheduler(2)`.
    pub fn of_this_thread() -> io::Result<Self> {
        // Called directly, since musl's function of that name always fails. SAFETY: the argument is a number;
        // 0 stands for the calling thread.
        match unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) } {
            -1 => Err(io::Error::last_os_error()),
            policy => Ok(Self(policy as libc::c_int)),
        }
    }

    /// Returns true if threads of this policy take turns according to their nice values.
    pub fn is_fair(self) -> bool {
        matches!(self.0 & !libc::SCHED_RESET_ON_FORK, libc::SCHED_OTHER | libc::SCHED_BATCH)
    }

    /// Gives `thread` this policy. The nice value of the thread stays.
    ///
    /// # Errors
    /// `EPERM`: leaving `SCHED_IDLE` needs `CAP_SYS_NICE` or `RLIMIT_NICE`. Other errors of
    /// `sched_setscheduler(2)`.
    pub fn set(self, thread: Pid) -> io::Result<()> {
        let parameters = libc::sched_param { sched_priority: 0 };
        let thread = thread.as_raw_nonzero().get();
        // SAFETY: the pointer is valid for the call; the other arguments are numbers.
        match unsafe { libc::syscall(libc::SYS_sched_setscheduler, thread, self.0, &raw const parameters) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Gives the calling thread the lowest priority: from now on it runs and reads only when no other thread wants to.
///
/// # Errors
/// Those of the two system calls; the effect of the first one remains.
pub fn idle_in_this_thread() -> io::Result<()> {
    Policy::IDLE.set(rustix::thread::gettid())?;
    let priority = IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT;
    // SAFETY: the arguments are numbers; 0 stands for the calling thread.
    if unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_becomes_idle_alone() {
        let before = Policy::of_this_thread().expect("a policy");
        let own = std::thread::spawn(|| idle_in_this_thread().and_then(|()| Policy::of_this_thread()));
        assert_eq!(own.join().expect("it ends").expect("a priority that anyone may have"), Policy::IDLE);
        assert_eq!(Policy::of_this_thread().expect("a policy"), before);
        assert!(!Policy::IDLE.is_fair());
    }
}
