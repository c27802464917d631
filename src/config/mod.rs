//! Mount options: what may be asked of a mount. Pure: parsing opens no file.

mod catalogue;
pub mod error;
pub(crate) mod ids;
pub mod manual;
pub mod options;
pub mod remount;
mod value;

pub use ids::IdRange;

use std::path::PathBuf;
use std::time::Duration;

/// The parts of the union and its behaviour: everything that does not concern the FUSE mount.
#[derive(Clone, Debug, Default)]
pub struct OverlayConfig {
    /// Read-only layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Layers that only hold content of metacopy files (after `::`), topmost first.
    pub data_only: Vec<PathBuf>,
    /// The writable layer; without one, the mount is read-only.
    pub upper: Option<PathBuf>,
    /// The work directory; on the upper's file system.
    pub work: Option<PathBuf>,
    /// `ro`: nothing is changed, not even the work directory.
    pub read_only: bool,
    /// `noatime`: the driver's reads do not change access times.
    pub no_atime: bool,
    /// Whether directories with a lower part can be renamed.
    pub redirect_dir: RedirectDir,
    /// `index=on`: hard links survive copy-up.
    pub index: bool,
    /// `metacopy=on`: a change of attributes does not copy the content.
    pub metacopy: bool,
    /// Which inventories of layers are used, and which are made.
    pub inventory: Inventories,
    /// How inode numbers of layers on several file systems are made distinct.
    pub xino: Xino,
    /// `userxattr`: marks are `user.overlay.*` even if the process may set `trusted.*`.
    pub userxattr: bool,
    /// `volatile`: no fsync, neither at copy-up nor on request; after a crash, the upper is lost.
    pub volatile: bool,
    /// `fsync=0`: fsync requests are answered but have no effect.
    pub ignore_fsync: bool,
    /// `noacl`: POSIX ACLs are neither shown nor kept.
    pub no_acl: bool,
    /// `noxattrs`: extended attributes are neither shown nor kept, except marks.
    pub no_xattrs: bool,
    /// `static_nlink`: directories and files show a link count of 1.
    pub static_nlink: bool,
    /// All files appear to be owned by this user.
    pub squash_to_uid: Option<u32>,
    /// All files appear to be owned by this group.
    pub squash_to_gid: Option<u32>,
    /// `uidmapping=`; empty: ids are not mapped.
    pub uid_mapping: Vec<IdRange>,
    /// `gidmapping=`; empty: ids are not mapped.
    pub gid_mapping: Vec<IdRange>,
    /// `xattr_permissions`: where owner and mode are kept.
    pub xattr_permissions: XattrPermissions,
    /// Which files the kernel reads and writes without asking the driver.
    pub passthrough: Passthrough,
    /// `writeback`: the kernel combines small writes.
    pub writeback: bool,
    /// `timeout=`: how long the kernel may trust names and attributes; `None` for ever.
    pub timeout: Option<Duration>,
    /// `size=`: how many bytes the upper may hold; none: as many as its file system.
    pub size: Option<u64>,
}

impl OverlayConfig {
    /// The paths of all layers and of the work directory.
    pub fn directories_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.lowers.iter_mut().chain(&mut self.data_only).chain(&mut self.upper).chain(&mut self.work)
    }
}

/// `redirect_dir=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedirectDir {
    /// Renames work and set a redirect; redirects are followed.
    #[default]
    On,
    /// Renames fail with EXDEV; redirects are followed. `off` means the same.
    Follow,
    /// Renames fail with EXDEV; redirects are not followed.
    NoFollow,
}

/// `xino=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Xino {
    /// Put the number of the layer's file system into the high bits if they are free.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never; files of different file systems may have the same number.
    Off,
}

/// `xattr_permissions=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum XattrPermissions {
    /// In the inode, unless the root of a layer has such an attribute.
    #[default]
    Auto,
    /// In the inode, even if a layer has such an attribute (`0`).
    Inode,
    /// In `security.fuseoverlayfs.override_stat`, for privileged processes (`1`).
    Privileged,
    /// In `user.containers.override_stat` (`2`).
    Containers,
}

/// `inventory=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inventories {
    /// None is used: names and attributes are always read from the layers.
    Off,
    /// Existing ones are used.
    Use,
    /// Existing ones are used. Missing ones are made in the background for layers in the store of a container engine.
    #[default]
    On,
    /// As [`Self::On`], for all layers. The caller guarantees that the layers do not change.
    Make,
}

/// `passthrough=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Passthrough {
    /// None.
    Off,
    /// Upper files, and all files of a mount without an upper.
    Upper,
    /// Also programs and shared libraries in lower layers: ELF files, and files that are executed.
    #[default]
    Programs,
    /// Also lower files.
    All,
}
