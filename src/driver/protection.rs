//! What immutable and append-only files refuse. The kernel itself judges by the flags of its inode (`may_open`, `may_delete`,
//! `may_setattr`, `xattr_permission`); that of a FUSE file has none, so the driver judges. `access(2)` still says that such a
//! file may be written.

use crate::driver::node::Node;
use crate::driver::types::{Errno, Result, SetAttr, SetTime};
use crate::marks::Protection;
use crate::union::layer::Stat;

/// Fails with `PERM` if what is said is so.
fn refuse_if(refused: bool) -> Result<()> {
    if refused { Err(Errno::PERM) } else { Ok(()) }
}

impl Protection {
    /// That of a file whose inode has the one and whose mark says the other.
    #[must_use]
    pub(in crate::driver) fn with(self, mark: Self) -> Self {
        Self { immutable: self.immutable || mark.immutable, append_only: self.append_only || mark.append_only }
    }
}

/// A file's attributes, with what its mark says.
pub(in crate::driver) fn marked(stat: Stat, mark: Protection) -> Stat {
    let Protection { immutable, append_only } = stat.protection().with(mark);
    Stat { immutable, append_only, ..stat }
}

impl Node {
    /// Before an entry comes into the directory.
    pub(in crate::driver) fn check_addition(&self) -> Result<()> {
        refuse_if(self.protection().immutable)
    }

    /// Before an entry of the directory goes, whose file is `node`.
    pub(in crate::driver) fn check_removal(&self, node: &Self) -> Result<()> {
        refuse_if(self.protection().is_any() || node.protection().is_any())
    }

    /// Before the file gets a further name, or its extended attributes change.
    pub(in crate::driver) fn check_unprotected(&self) -> Result<()> {
        refuse_if(self.protection().is_any())
    }

    /// Before the file is opened for writing. `appends`: at its end only.
    pub(in crate::driver) fn check_writing(&self, appends: bool) -> Result<()> {
        let Protection { immutable, append_only } = self.protection();
        refuse_if(immutable || (append_only && !appends))
    }

    /// Before attributes change. `flushes`: the kernel writes back what it let happen before.
    pub(in crate::driver) fn check_attributes(&self, set: &SetAttr, flushes: bool) -> Result<()> {
        let Protection { immutable, append_only } = self.protection();
        let times = [set.atime, set.mtime];
        let sets_time = !flushes && times.iter().any(|time| matches!(time, Some(SetTime::At(_))));
        let touches = !flushes && times.iter().any(|time| matches!(time, Some(SetTime::Now)));
        let changes = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || set.size.is_some() || sets_time;
        refuse_if((changes && (immutable || append_only)) || (touches && immutable))
    }
}
