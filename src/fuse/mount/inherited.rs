//! Frees the daemon from what it inherited from the process that started it.
//!
//! A mount serves all users, so the limits of the starting shell must not apply. With a limit on the size of files, for
//! example, one user's copy-up would end the daemon and with it the mount. Kept on purpose: the priority, the
//! processors, the control group and the limit on core files, which are set for a daemon as for any other program.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys::signals;

/// Limits that end the process or fail its calls when they are exceeded, whichever request it works on.
const LIMITS: [Resource; 9] = [
    Resource::Fsize,
    Resource::Cpu,
    Resource::As,
    Resource::Data,
    Resource::Rss,
    Resource::Nproc,
    Resource::Memlock,
    Resource::Locks,
    Resource::Rttime,
];

/// Signals that end the mount, unless the starting process ignored them, as `nohup(1)` and shells without job control
/// do. `SIGTERM` is never ignored. By default, the signals from `SIGUSR2` on and the real-time signals end the process,
/// which would leave a dead mount.
const IGNORABLE: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// Frees the process from the limits, timers and masks of its caller as far as it may; root also from the hard limits.
/// Must be called before other threads are started.
///
/// # Errors
/// Signals cannot be set. A limit that cannot be raised is only logged.
pub fn shed() -> io::Result<()> {
    signals::start_afresh()?;
    for resource in LIMITS {
        raise(resource, None);
    }
    // A union of many layers has many directories and files open. The kernel has its own maximum for that limit.
    let most = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    raise(Resource::Nofile, Some(most.unwrap_or(1 << 20)));
    Ok(())
}

/// The signals that unmount.
///
/// # Errors
/// The dispositions cannot be read.
pub fn ending_signals() -> io::Result<Vec<i32>> {
    let mut ending = vec![libc::SIGTERM];
    for signal in IGNORABLE.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        if !signals::is_ignored(signal)? {
            ending.push(signal);
        }
    }
    Ok(ending)
}

/// Raises both limits to `most` (`None`: no limit), or the soft one to the hard one if only root may do more.
fn raise(resource: Resource, most: Option<u64>) {
    let limit = getrlimit(resource);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| most.is_some_and(|most| limit >= most));
    let raised = if is_enough(limit.maximum) { limit.maximum } else { most };
    let all = Rlimit { current: raised, maximum: raised };
    let own = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(resource, all).or_else(|_| setrlimit(resource, own)) {
        tracing::warn!(?resource, %error, "a limit of the caller stays");
    }
}
