//! Priorities of threads (`sched_setscheduler(2)`, `ioprio_set(2)`).

#![allow(unsafe_code)]

use std::io;

/// Numbers of `linux/ioprio.h`, which libc lacks.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_CLASS_SHIFT: libc::c_int = 13;

/// From now on, the calling thread only runs and reads when no other thread wants to.
///
/// # Errors
/// Those of the two system calls; the effect of the first one remains.
pub fn idle_in_this_thread() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is valid for the call; 0 stands for the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } != 0 {
        return Err(io::Error::last_os_error());
    }
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
        // SAFETY: 0 stands for the calling thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        let own = std::thread::spawn(move || idle_in_this_thread().map(|()| policy())).join().expect("it ends");
        assert_eq!(own.expect("a priority that anyone may have"), libc::SCHED_IDLE);
        assert_eq!(policy(), before);
    }
}
