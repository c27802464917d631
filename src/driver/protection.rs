//! Refuses changes of immutable and append-only files. The kernel checks the flags of its inode (`may_open`, `may_delete`,
//! `may_setattr`, `xattr_permission`). A FUSE inode has none, so the driver checks. `access(2)` still says that such a
//! file may be written.

use std::os::fd::BorrowedFd;

use crate::driver::Union;
use crate::driver::node::Node;
use crate::driver::types::{Errno, Result, SetAttr, SetTime};
use crate::marks::Protection;
use crate::union::layer::Stat;

/// Fails with `PERM` if `refused` is true.
fn refuse_if(refused: bool) -> Result<()> {
    if refused { Err(Errno::PERM) } else { Ok(()) }
}

impl Protection {
    /// Combines the protection of a file's inode with that of its mark.
    #[must_use]
    pub(in crate::driver) fn with(self, mark: Self) -> Self {
        Self { immutable: self.immutable || mark.immutable, append_only: self.append_only || mark.append_only }
    }
}

/// The attributes of a file, with the protection of its mark.
pub(in crate::driver) fn marked(stat: Stat, mark: Protection) -> Stat {
    let Protection { immutable, append_only } = stat.protection().with(mark);
    Stat { immutable, append_only, ..stat }
}

impl Union {
    /// Checks that a write to an append-only file begins at its end. The kernel lets users of a FUSE file clear `O_APPEND` of a
    /// descriptor (`setfl`) and map the file for writing (`do_mmap`), and the driver only learns of the write. With the writeback
    /// cache, allowed writes cannot be told from these: it hands over whole pages.
    pub(in crate::driver) fn check_append(&self, node: &Node, file: BorrowedFd<'_>, offset: u64) -> Result<()> {
        if !node.protection().append_only || self.config.writeback {
            return Ok(());
        }
        refuse_if(offset < Stat::of(file, c"")?.size)
    }
}

impl Node {
    /// Checks that an entry may be added to the directory.
    pub(in crate::driver) fn check_addition(&self) -> Result<()> {
        refuse_if(self.protection().immutable)
    }

    /// Checks that the entry of the directory for the file `node` may be removed.
    pub(in crate::driver) fn check_removal(&self, node: &Self) -> Result<()> {
        refuse_if(self.protection().is_any() || node.protection().is_any())
    }

    /// Checks that the file may get a further name, or that its extended attributes may change.
    pub(in crate::driver) fn check_unprotected(&self) -> Result<()> {
        refuse_if(self.protection().is_any())
    }

    /// Checks that the file may be opened for writing. `appends` is true if it is written at its end only.
    pub(in crate::driver) fn check_writing(&self, appends: bool) -> Result<()> {
        let Protection { immutable, append_only } = self.protection();
        refuse_if(immutable || (append_only && !appends))
    }

    /// True if the kernel's pages of the file may hold what was refused.
    pub(in crate::driver) fn may_differ(&self) -> bool {
        self.protection().append_only
    }

    /// Checks that attributes may change. `flushes` is true if the kernel writes back a change that it already allowed.
    pub(in crate::driver) fn check_attributes(&self, set: &SetAttr, flushes: bool) -> Result<()> {
        let Protection { immutable, append_only } = self.protection();
        let times = [set.atime, set.mtime];
        let sets_time = !flushes && times.iter().any(|time| matches!(time, Some(SetTime::At(_))));
        let touches = !flushes && times.iter().any(|time| matches!(time, Some(SetTime::Now)));
        let changes = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || set.size.is_some() || sets_time;
        refuse_if((changes && (immutable || append_only)) || (touches && immutable))
    }
}
