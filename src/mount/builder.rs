//! The builder returned by [`Mount::builder`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Error, Mount};
use crate::config::error::OptionError;
use crate::config::options::{Access, MountOptions};
use crate::config::{IdRange, Inventories, Passthrough, RedirectDir, XattrPermissions, Xino};

/// The layers and options of a future mount; made by [`Mount::builder`].
///
/// Every method sets one option of `stratafs` and names its default. `docs/options.md` describes them in full. Errors
/// are reported by [`Builder::mount`].
///
/// ```
/// use stratafs::{Mount, RedirectDir};
///
/// // Layers are added from the topmost one down. Without an upper directory the mount is read-only.
/// let builder = Mount::builder().lower("top").lower("base").redirect_dir(RedirectDir::Follow).fs_name("my-union");
/// let error = builder.mount("/no/such/directory").unwrap_err();
/// assert!(error.to_string().starts_with("mountpoint '/no/such/directory': "));
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is mounted before `mount` is called"]
pub struct Builder {
    options: MountOptions,
    /// The first malformed option given as text.
    wrong: Option<OptionError>,
}

impl Default for Builder {
    fn default() -> Self {
        Self { options: MountOptions::defaults(rustix::process::geteuid().is_root()), wrong: None }
    }
}

impl Builder {
    /// Adds a read-only layer below those so far. At least one is needed.
    pub fn lower(mut self, layer: impl Into<PathBuf>) -> Self {
        self.options.overlay.lowers.push(layer.into());
        self
    }

    /// Adds read-only layers, the topmost first, below those so far.
    pub fn lowers<P: Into<PathBuf>>(mut self, layers: impl IntoIterator<Item = P>) -> Self {
        self.options.overlay.lowers.extend(layers.into_iter().map(Into::into));
        self
    }

    /// Adds a layer that only holds content of metacopy files and is not visible itself. Needs [`Builder::metacopy`].
    pub fn data_only(mut self, layer: impl Into<PathBuf>) -> Self {
        self.options.overlay.data_only.push(layer.into());
        self
    }

    /// Sets the writable layer, and its work directory, which must be on the same file system. Default: none.
    pub fn upper(mut self, upper: impl Into<PathBuf>, work: impl Into<PathBuf>) -> Self {
        self.options.overlay.upper = Some(upper.into());
        self.options.overlay.work = Some(work.into());
        self
    }

    /// Mounts read-only, even with an upper directory. Default: false.
    pub fn read_only(mut self, on: bool) -> Self {
        self.options.overlay.read_only = on;
        self
    }

    /// Sets whether directories of lower layers can be renamed. Default: they can.
    pub fn redirect_dir(mut self, mode: RedirectDir) -> Self {
        self.options.overlay.redirect_dir = mode;
        self
    }

    /// Keeps hard links between lower files when one of them is changed. Default: false.
    pub fn index(mut self, on: bool) -> Self {
        self.options.overlay.index = on;
        self
    }

    /// Copies no data when only attributes of a lower file change. Default: false.
    pub fn metacopy(mut self, on: bool) -> Self {
        self.options.overlay.metacopy = on;
        self
    }

    /// Sets which inventories of layers are used and made. Default: [`Inventories::On`].
    pub fn inventory(mut self, inventories: Inventories) -> Self {
        self.options.overlay.inventory = inventories;
        self
    }

    /// Sets how inode numbers of layers on several file systems are made distinct. Default: [`Xino::Auto`].
    pub fn xino(mut self, mode: Xino) -> Self {
        self.options.overlay.xino = mode;
        self
    }

    /// Writes marks as `user.overlay.*`. Default: false for root, always true without privilege.
    pub fn userxattr(mut self, on: bool) -> Self {
        self.options.overlay.userxattr = on;
        self
    }

    /// Never waits for the disk. After a crash of the machine the upper directory must be thrown away. Default: false.
    pub fn volatile(mut self, on: bool) -> Self {
        self.options.overlay.volatile = on;
        self
    }

    /// Shows and keeps POSIX access control lists. Default: true.
    pub fn acl(mut self, on: bool) -> Self {
        self.options.overlay.no_acl = !on;
        self
    }

    /// Shows and keeps extended attributes. Default: true.
    pub fn xattrs(mut self, on: bool) -> Self {
        self.options.overlay.no_xattrs = !on;
        self
    }

    /// Shows all files as owned by this user and this group. Default: the owners on disk.
    pub fn squash_to(mut self, uid: u32, gid: u32) -> Self {
        self.options.overlay.squash_to_uid = Some(uid);
        self.options.overlay.squash_to_gid = Some(gid);
        self
    }

    /// Maps ranges of user ids to other ids. Default: none.
    pub fn map_uids(mut self, ranges: impl IntoIterator<Item = IdRange>) -> Self {
        self.options.overlay.uid_mapping = ranges.into_iter().collect();
        self
    }

    /// Maps ranges of group ids to other ids. Default: none.
    pub fn map_gids(mut self, ranges: impl IntoIterator<Item = IdRange>) -> Self {
        self.options.overlay.gid_mapping = ranges.into_iter().collect();
        self
    }

    /// Sets where owner, mode and device number of files are stored. Default: [`XattrPermissions::Auto`].
    pub fn permissions(mut self, place: XattrPermissions) -> Self {
        self.options.overlay.xattr_permissions = place;
        self
    }

    /// Sets which files the kernel reads and writes without asking the driver. Needs root and Linux 6.9.
    pub fn passthrough(mut self, files: Passthrough) -> Self {
        self.options.overlay.passthrough = files;
        self
    }

    /// Lets the kernel combine small writes; excludes passthrough. Default: false.
    pub fn writeback(mut self, on: bool) -> Self {
        self.options.overlay.writeback = on;
        self
    }

    /// Trusts names and attributes of lower layers only for this long. Default: for ever, so layers must not change.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.overlay.timeout = Some(timeout);
        self
    }

    /// Sets who may use the mount. Default: [`Access::Everybody`] for root, otherwise [`Access::Owner`].
    pub fn access(mut self, access: Access) -> Self {
        self.options.mount.access = access;
        self
    }

    /// Sets the source that `findmnt` shows. Default: `stratafs`.
    pub fn fs_name(mut self, name: impl Into<String>) -> Self {
        self.options.mount.fsname = Some(name.into());
        self
    }

    /// Honours set-user-id bits and file capabilities. Default: true for root.
    pub fn suid(mut self, on: bool) -> Self {
        self.options.mount.suid = on;
        self
    }

    /// Honours device files. Default: true for root.
    pub fn dev(mut self, on: bool) -> Self {
        self.options.mount.dev = on;
        self
    }

    /// Allows programs to be executed. Default: true.
    pub fn exec(mut self, on: bool) -> Self {
        self.options.mount.exec = on;
        self
    }

    /// Limits the number of threads that answer requests. Default: depends on the number of processors.
    pub fn threads(mut self, most: usize) -> Self {
        self.options.mount.threads = Some(most.clamp(1, 1024));
        self
    }

    /// Adds options in the format of `stratafs -o`, for example `"noatime,index=on"`.
    pub fn options(mut self, text: impl AsRef<OsStr>) -> Self {
        if let Err(error) = self.options.add(text.as_ref()) {
            self.wrong.get_or_insert(error);
        }
        self
    }

    /// Mounts the union on the directory `mountpoint` and returns when it answers.
    ///
    /// # Errors
    /// One line that names the option, the layer or the mountpoint. Nothing is mounted on an error.
    pub fn mount(mut self, mountpoint: impl AsRef<Path>) -> Result<Mount, Error> {
        if let Some(wrong) = self.wrong {
            return Err(wrong.into());
        }
        self.options.complete()?;
        for layer in self.options.overlay.directories_mut() {
            let absolute = std::path::absolute(&*layer);
            *layer = absolute.map_err(|source| Error::Layer { path: layer.clone(), source })?;
        }
        for warning in &self.options.warnings {
            tracing::warn!("{warning}");
        }
        super::mount(self.options, mountpoint.as_ref())
    }
}
