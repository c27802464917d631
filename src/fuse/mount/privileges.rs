//! What the process gives up before it serves anybody.
//!
//! What was weighed beside it:
//!
//! - *seccomp*: the calls that are needed are those that open, read, write, rename and remove files by any name, so a
//!   filter leaves an attacker all that matters here; and a call that a newer libc or kernel makes instead of another
//!   would end in a file system that fails. Not done.
//! - *landlock*: rules name directories, and the layers' are known. But a domain with any rule may neither mount nor
//!   unmount, which the end of the mount needs, and renames between directories need a right that Linux before 5.19
//!   does not know. Each step of a path goes through a held directory without following links already. Not done.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What serving needs: files of any owner, their attributes and devices, handles, marks, passthrough, unmounting, labels of
/// security modules.
///
/// Not `CAP_SYS_RESOURCE`: it would let every user of the mount write past quotas, and into the blocks that file systems
/// reserve (kernel: `ovl_fill_super` lowers it in the mounter's credentials for the same reason). What passes through is
/// written with the credentials of the thread that registered the backing file, which has not got it either.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::MAC_OVERRIDE);

/// Leaves the calling thread, and those that it starts, only the capabilities that serving needs, and none that a program
/// could get by being executed. To be called before other threads are.
///
/// Where unmounting needs `fusermount3`, which is set-user-id, a program may still gain privileges.
///
/// # Errors
/// Those of `capset(2)` and `prctl(2)`.
pub fn give_up() -> Result<(), Errno> {
    let held = rustix::thread::capabilities(None)?;
    // The bounding set first: it takes CAP_SETPCAP, which goes after that.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(NEEDED).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // Newer than the kernel.
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

/// As container engines' own daemons have it: others go first when memory runs out, for many depend on this one.
const OOM_SCORE_ADJ: i32 = -500;

/// Asks the kernel to end others first when memory runs out. Takes `CAP_SYS_RESOURCE`.
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

    /// The machine of the tests may not have the capability, so that no mount shows whether it is given up.
    #[test]
    fn quotas_and_reserved_blocks_hold() {
        assert!(!NEEDED.contains(CapabilitySet::SYS_RESOURCE));
    }
}
