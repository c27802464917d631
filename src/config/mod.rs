//! Mount options: what may be asked of a mount. Pure; parsing opens no file.

mod catalogue;
pub mod error;
pub mod manual;
pub mod options;
pub mod remount;
mod value;

use std::path::PathBuf;
use std::time::Duration;

/// What the union is made of and how it behaves; everything that is not the FUSE mount's own business.
#[derive(Clone, Debug, Default)]
pub struct OverlayConfig {
    /// Read-only layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Layers that only hold the data of metacopy files (after `::`), topmost first.
    pub data_only: Vec<PathBuf>,
    /// The writable layer; none: the mount is read-only.
    pub upper: Option<PathBuf>,
    /// The work directory; on the upper's file system.
    pub work: Option<PathBuf>,
    /// `ro`: no change is made, not even to the work directory.
    pub read_only: bool,
    /// `noatime`: our reading leaves access times alone.
    pub no_atime: bool,
    /// Renaming of directories that have a lower part.
    pub redirect_dir: RedirectDir,
    /// `index=on`: hard links survive copy-up.
    pub index: bool,
    /// `metacopy=on`: changing only attributes copies no data.
    pub metacopy: bool,
    /// Which inventories of layers are used, and which are made.
    pub inventory: Inventories,
    /// How inode numbers of layers on several file systems are told apart.
    pub xino: Xino,
    /// `userxattr`: marks are `user.overlay.*` although the process may set `trusted.*`.
    pub userxattr: bool,
    /// `volatile`: no fsync, neither at copy-up nor when asked; a crash costs the upper.
    pub volatile: bool,
    /// `fsync=0`: fsync requests are answered without doing it.
    pub ignore_fsync: bool,
    /// `noacl`: POSIX ACLs are neither shown nor kept.
    pub no_acl: bool,
    /// `noxattrs`: no extended attribute is shown or kept but the marks.
    pub no_xattrs: bool,
    /// `static_nlink`: directories and files show a link count of 1.
    pub static_nlink: bool,
    /// Everything appears to be owned by this user.
    pub squash_to_uid: Option<u32>,
    /// Everything appears to be owned by this group.
    pub squash_to_gid: Option<u32>,
    /// `uidmapping=`; empty: ids are shown as they are.
    pub uid_mapping: Vec<IdRange>,
    /// `gidmapping=`; empty: ids are shown as they are.
    pub gid_mapping: Vec<IdRange>,
    /// `xattr_permissions`: where owner and mode are kept.
    pub xattr_permissions: XattrPermissions,
    /// Which files the kernel reads and writes without asking us.
    pub passthrough: Passthrough,
    /// `writeback`: the kernel gathers small writes.
    pub writeback: bool,
    /// `timeout=`: how long the kernel may trust names and attributes; none: for ever.
    pub timeout: Option<Duration>,
}

impl OverlayConfig {
    /// The paths of all layers and of the work directory.
    pub fn directories_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.lowers.iter_mut().chain(&mut self.data_only).chain(&mut self.upper).chain(&mut self.work)
    }
}

/// A range of ids that is shown under other numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id as the mount shows it.
    pub shown: u32,
    /// First id on disk.
    pub on_disk: u32,
    /// How many.
    pub count: u32,
}

/// `redirect_dir=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedirectDir {
    /// Renames work and leave a redirect; redirects are followed.
    #[default]
    On,
    /// Renames give EXDEV; redirects are followed. `off` means this too.
    Follow,
    /// Renames give EXDEV; redirects are not followed.
    NoFollow,
}

/// `xino=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Xino {
    /// Fold the layer's file system into the high bits where they are free.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never; numbers of different file systems may coincide.
    Off,
}

/// `xattr_permissions=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum XattrPermissions {
    /// In the inode, unless the root of a layer has such an attribute.
    #[default]
    Auto,
    /// In the inode, whatever a layer says (`0`).
    Inode,
    /// In `user.fuseoverlayfs.override_stat`-style attributes, for privileged processes (`1`).
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
    /// Those that exist are used.
    Use,
    /// Those that exist are used. Layers in the store of a container engine that have none get one in the background.
    #[default]
    On,
    /// As [`Self::On`], for all layers. The caller knows that nobody changes them.
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
    /// Also programs and shared libraries of lower layers: ELF files, and what is executed.
    #[default]
    Programs,
    /// Lower files too.
    All,
}
