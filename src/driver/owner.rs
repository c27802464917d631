//! Owners as the mount shows them and as they are on disk (`squash_to_*`, `uidmapping`, `gidmapping`).

use std::ffi::CStr;

use crate::config::ids::{on_disk, shown};
use crate::driver::Union;
use crate::driver::types::{Caller, Errno, Result};
use crate::sys::namespace::OverflowIds;
use crate::union::layer::{Dir, FileType, Stat};

/// The caller's id if the request does not tell it, or if an idmapped mount does not map it.
const NOT_TOLD: u32 = u32::MAX;

/// True if `gid` is one of the caller's groups. Supplementary groups are read from the caller's process, if that is known.
/// So is its own group if the request does not tell it.
pub(in crate::driver) fn is_in_group(caller: &Caller, gid: u32) -> bool {
    if caller.gid == gid {
        return true;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).unwrap_or_default();
    let ids = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().split_whitespace();
    // The last of the four ids of a process is the one for file systems.
    let own = if caller.gid == NOT_TOLD { ids("Gid:").nth(3) } else { None };
    ids("Groups:").chain(own).any(|group| group.parse() == Ok(gid))
}

impl Union {
    /// Owner and group to show for those on disk.
    pub(in crate::driver) fn shown_owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        let config = &self.config;
        (
            config.squash_to_uid.unwrap_or_else(|| shown(&config.uid_mapping, uid)),
            config.squash_to_gid.unwrap_or_else(|| shown(&config.gid_mapping, gid)),
        )
    }

    /// Owner and group on disk of files that the caller creates.
    ///
    /// # Errors
    /// `OVERFLOW` if an idmapped mount does not map them.
    pub(in crate::driver) fn owner_of_new(&self, caller: &Caller) -> Result<(u32, u32)> {
        if caller.uid == NOT_TOLD || caller.gid == NOT_TOLD {
            return Err(Errno::OVERFLOW);
        }
        Ok(if self.squashes() { self.own_ids } else { (self.uid_on_disk(caller.uid), self.gid_on_disk(caller.gid)) })
    }

    /// The user id on disk for `uid` given by a caller.
    pub(in crate::driver) fn uid_on_disk(&self, uid: u32) -> u32 {
        on_disk(&self.config.uid_mapping, uid)
    }

    /// The group id on disk for `gid` given by a caller.
    pub(in crate::driver) fn gid_on_disk(&self, gid: u32) -> u32 {
        on_disk(&self.config.gid_mapping, gid)
    }

    /// Refuses a file whose owner is not known here: its copy would belong to the overflow user and keep its set-user-id
    /// bit (CVE-2023-0386; kernel: `ovl_copy_up_one`). fuse-overlayfs copies such files.
    ///
    /// A file that is shown as owned by the overflow user may really be owned by that user. A call that needs a capability
    /// over the file tells the two apart: capabilities do not reach files of unmapped owners (kernel:
    /// `privileged_wrt_inode_uidgid`). Devices, symlinks and the group of the driver's own files offer no such call
    /// without an effect, so their owner counts as known.
    ///
    /// # Errors
    /// `OVERFLOW`.
    pub(in crate::driver) fn check_owner_is_known(&self, dir: &Dir, name: &CStr, stat: &Stat) -> Result<()> {
        let OverflowIds { uid, gid } = OverflowIds::get();
        if (stat.uid != uid.0 && stat.gid != gid.0) || self.squashes() || !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let unknown = |(id, is_mapped): (u32, bool), shown: u32, is_refused: &dyn Fn() -> bool| {
            id == shown && (!is_mapped || is_refused())
        };
        let is_plain = matches!(stat.file_type(), FileType::Regular | FileType::Directory);
        if unknown(uid, stat.uid, &|| is_plain && dir.refuses_noatime(name))
            || unknown(gid, stat.gid, &|| is_plain && dir.refuses_writing(name))
        {
            tracing::warn!("{:?}: not copied up: its owner has no number here", dir.shown_path(name));
            return Err(Errno::OVERFLOW);
        }
        Ok(())
    }

    /// If everything is shown with one owner, the ownership on disk cannot be changed.
    pub(in crate::driver) fn squashes(&self) -> bool {
        self.config.squash_to_uid.is_some() || self.config.squash_to_gid.is_some()
    }
}
