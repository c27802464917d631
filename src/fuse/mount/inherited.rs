//! What the daemon takes over from the process that starts it, and must not.
//!
//! A mount serves everybody, so the limits of the shell that made it are not its own: with a limit on the size of files
//! one user's copy-up would end the daemon, and with it the mount. What is kept on purpose: the priority, the processors,
//! the control group and the limit on core files, which are set for a daemon as for any other program.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys::signals;

/// Limits whose excess ends the process, or fails its calls, whatever request it works on.
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

/// Signals that end the mount, unless the starting process had them ignored: `nohup(1)` and shells without job control
/// do. `SIGTERM` is never ignored.
const IGNORABLE: [i32; 2] = [libc::SIGHUP, libc::SIGINT];

/// Frees the process from the limits, timers and masks of its caller, as far as it may: root from the hard limits too.
/// To be called before other threads are started.
///
/// # Errors
/// Signals cannot be set. A limit that stays is only logged.
pub fn shed() -> io::Result<()> {
    signals::start_afresh()?;
    for resource in LIMITS {
        raise(resource, None);
    }
    // A union of many layers holds many directories and files open. The kernel has its own limit on that one.
    let most = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    raise(Resource::Nofile, Some(most.unwrap_or(1 << 20)));
    Ok(())
}

/// The signals that shall unmount.
///
/// # Errors
/// The dispositions cannot be asked for.
pub fn ending_signals() -> io::Result<Vec<i32>> {
    let mut ending = vec![libc::SIGTERM];
    for signal in IGNORABLE {
        if !signals::is_ignored(signal)? {
            ending.push(signal);
        }
    }
    Ok(ending)
}

/// Raises both limits to `most` (none: no limit), or the soft one to the hard one where only root may do more.
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
