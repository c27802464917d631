//! Privileges that the process gives up before it serves requests.
//!
//! Also considered:
//!
//! - *seccomp*: the driver needs the calls that open, read, write, rename and remove files by any name, so a filter
//!   would leave an attacker everything that matters here. And if a newer libc or kernel makes another call instead
//!   of a known one, the file system would fail. Not done.
//! - *landlock*: rules name directories, and those of the layers are known. But a domain with any rule may neither mount nor
//!   unmount, which the end of the mount needs. And renames between directories need a right that Linux before 5.19 does not
//!   know. Each step of a path already goes through a held directory without following links. Not done.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Capabilities that serving needs: for files of any owner, their attributes and devices, handles, marks, passthrough,
/// unmounting, labels of security modules, and for threads to leave `SCHED_IDLE` (see `transport::idle_class`).
///
/// `CAP_SYS_RESOURCE` is left out: with it, every user of the mount could exceed quotas and use the blocks that file
/// systems reserve (kernel: `ovl_fill_super` drops it from the mounter's credentials for the same reason).
/// Passed-through writes use the credentials of the thread that registered the backing file, which lacks it too.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::MAC_OVERRIDE);

/// Leaves the calling thread, and the threads it starts, only the capabilities that serving needs, and none that an
/// executed program could regain. Must be called before other threads are started.
///
/// If unmounting needs `fusermount3`, which is set-user-id, a program may still gain privileges.
///
/// # Errors
/// Those of `capset(2)` and `prctl(2)`.
pub fn give_up() -> Result<(), Errno> {
    let held = rustix::thread::capabilities(None)?;
    // The bounding set comes first: changing it needs CAP_SETPCAP, which is dropped afterwards.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(NEEDED).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // The capability is newer than the kernel.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    let kept = CapabilitySets {
        effective: held.effective.intersection(NEEDED),
        permitted: held.permitted.intersection(NEEDED),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept)?;
    if kept.effective.contains(CapabilitySet::SYS_ADMIN) {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}

/// The value of container engines' own daemons: when memory runs out, others are killed first, because many
/// depend on this one.
const OOM_SCORE_ADJ: i32 = -500;

/// Asks the kernel to kill other processes first when memory runs out. Needs `CAP_SYS_RESOURCE`.
///
/// # Errors
/// Those of writing `/proc/self/oom_score_adj`: `EACCES` without the capability.
pub fn stay_when_memory_is_short() -> io::Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let now: i32 = fs::read_to_string(PATH)?.trim().parse().map_err(io::Error::other)?;
    if now <= OOM_SCORE_ADJ {
        return Ok(());
    }
    fs::write(PATH, OOM_SCORE_ADJ.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests may run without the capability, and then no mount shows whether it is given up.
    #[test]
    fn quotas_and_reserved_blocks_hold() {
        assert!(!NEEDED.contains(CapabilitySet::SYS_RESOURCE));
    }
}
