//! The `-o` language of `mount(8)`, engines and users, as the kernel's overlayfs and fuse-overlayfs read it.
//!
//! An option string is a list of `name` or `name=value`, separated by commas. A backslash takes away the special
//! meaning of the next character: `\,` in every value, `\:` in `lowerdir=`, `\\` for a backslash itself. A value that
//! begins with `"` extends to the next `"`, including commas (`context="…"`). Later options override earlier ones.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::catalogue;
use super::error::OptionError;
use super::value::{self, Word};
use super::{Inventories, OverlayConfig, Passthrough, RedirectDir, XattrPermissions, Xino};

/// All options of a mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The union.
    pub overlay: OverlayConfig,
    /// The FUSE mount.
    pub mount: MountConfig,
    /// Lines for the user: options that are unknown or have no effect here. Each option is named once.
    pub warnings: Vec<String>,
    warned: BTreeSet<String>,
    /// `squash_to_root`; an explicit id overrides it, in any order.
    squash_to_root: bool,
}

/// The FUSE mount itself.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Whose requests are served.
    pub access: Access,
    /// The source that `/proc/self/mountinfo` shows.
    pub fsname: Option<String>,
    /// The mount's type is `fuse.` followed by this.
    pub subtype: String,
    /// Set-user-id bits and file capabilities have an effect.
    pub suid: bool,
    /// Device files work.
    pub dev: bool,
    /// Programs can be executed.
    pub exec: bool,
    /// Access times are updated.
    pub atime: bool,
    /// `sync`: writes are synchronous.
    pub sync: bool,
    /// `dirsync`: changes of directories are synchronous.
    pub dirsync: bool,
    /// Options for security modules, which are passed to the kernel unchanged: `context="…"`.
    pub security: Vec<String>,
    /// Maximum number of threads that answer requests; `None`: depends on the number of processors.
    pub threads: Option<usize>,
    /// How requests come from the kernel.
    pub transport: Transport,
    /// `debug`: stay in the foreground and log every request.
    pub debug: bool,
    /// `auto_unmount`: a second process unmounts if the one that serves the mount is killed.
    pub auto_unmount: bool,
}

/// `transport=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Rings if the kernel grants them, otherwise the device.
    #[default]
    Auto,
    /// Rings; without them, mounting fails.
    Ring,
    /// `/dev/fuse`
    Device,
}

/// Whose requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The mounting user's; the kernel checks.
    Owner,
    /// `allow_root`: also root's. The driver checks, because the kernel has no such mode.
    RootAndOwner,
    /// `allow_other`: all users', subject to the permissions of the files.
    Everybody,
}

impl MountOptions {
    /// Parses the option strings of a command line, in order. `privileged` is true if root mounts. The defaults
    /// are then those of a kernel file system (`allow_other,suid,dev`), as in fuse-overlayfs.
    ///
    /// # Errors
    /// One line that names the option and the value.
    pub fn parse<S: AsRef<OsStr>>(groups: impl IntoIterator<Item = S>, privileged: bool) -> Result<Self, OptionError> {
        let mut options = Self::defaults(privileged);
        for group in groups {
            options.add(group.as_ref())?;
        }
        options.complete()?;
        Ok(options)
    }

    /// Parses one option string. Its options override earlier ones.
    pub(crate) fn add(&mut self, group: &OsStr) -> Result<(), OptionError> {
        value::split(group.as_bytes(), b',')
            .into_iter()
            .filter(|piece| !piece.is_empty())
            .try_for_each(|piece| self.set(&Word::new(piece)))
    }

    /// Options without layers; the others have the defaults for root (`privileged`) or for a user.
    pub(crate) fn defaults(privileged: bool) -> Self {
        Self {
            overlay: OverlayConfig::default(),
            mount: MountConfig {
                access: if privileged { Access::Everybody } else { Access::Owner },
                fsname: None,
                subtype: "stratafs".to_owned(),
                suid: privileged,
                dev: privileged,
                exec: true,
                atime: true,
                sync: false,
                dirsync: false,
                security: Vec::new(),
                threads: None,
                transport: Transport::Auto,
                debug: false,
                auto_unmount: false,
            },
            warnings: Vec::new(),
            warned: BTreeSet::new(),
            squash_to_root: false,
        }
    }

    fn set(&mut self, word: &Word<'_>) -> Result<(), OptionError> {
        // Only options that the manual describes are accepted.
        let ours = catalogue::is_known(word.name)
            && (self.set_layers(word)?
                || self.set_behaviour(word)?
                || self.set_ownership(word)?
                || self.set_presentation(word)?
                || self.set_flag(word));
        if !ours && !self.set_foreign(word)? {
            let name = word.name_lossy();
            if let Some(near) = catalogue::nearest(&name) {
                return Err(OptionError::Usage(format!("option '{name}' is not known; did you mean '{near}'?")));
            }
            self.warn(word, "is not known and has no effect");
        }
        Ok(())
    }

    fn set_layers(&mut self, word: &Word<'_>) -> Result<bool, OptionError> {
        let overlay = &mut self.overlay;
        match word.name {
            b"lowerdir" => (overlay.lowers, overlay.data_only) = value::lower_layers(word)?,
            b"lowerdir+" => overlay.lowers.push(value::path(word)?),
            b"datadir+" => overlay.data_only.push(value::path(word)?),
            b"upperdir" => overlay.upper = Some(value::path(word)?),
            b"workdir" => overlay.work = Some(value::path(word)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_behaviour(&mut self, word: &Word<'_>) -> Result<bool, OptionError> {
        let overlay = &mut self.overlay;
        match word.name {
            b"redirect_dir" => {
                overlay.redirect_dir = value::choice(
                    word,
                    &[
                        ("on", RedirectDir::On),
                        // The kernel's `off` follows redirects if its parameter `redirect_always_follow` is set,
                        // which is the default.
                        ("off", RedirectDir::Follow),
                        ("follow", RedirectDir::Follow),
                        ("nofollow", RedirectDir::NoFollow),
                    ],
                )?;
            }
            b"xino" => {
                overlay.xino = value::choice(word, &[("on", Xino::On), ("off", Xino::Off), ("auto", Xino::Auto)])?;
            }
            b"passthrough" => {
                overlay.passthrough = value::choice(
                    word,
                    &[
                        ("off", Passthrough::Off),
                        ("upper", Passthrough::Upper),
                        ("programs", Passthrough::Programs),
                        ("all", Passthrough::All),
                    ],
                )?;
            }
            b"index" => overlay.index = value::switch(word)?,
            b"metacopy" => overlay.metacopy = value::switch(word)?,
            b"userxattr" => overlay.userxattr = value::switch(word)?,
            b"volatile" => overlay.volatile = value::switch(word)?,
            b"fsync" => overlay.ignore_fsync = !value::switch(word)?,
            b"noacl" => overlay.no_acl = value::switch(word)?,
            b"acl" => overlay.no_acl = false,
            b"inventory" => {
                overlay.inventory = match word.value {
                    Some(b"use") => Inventories::Use,
                    Some(b"make") => Inventories::Make,
                    _ if value::switch(word)? => Inventories::On,
                    _ => Inventories::Off,
                }
            }
            b"noxattrs" => overlay.no_xattrs = value::switch(word)?,
            b"static_nlink" => overlay.static_nlink = value::switch(word)?,
            b"writeback" => overlay.writeback = value::switch(word)?,
            b"timeout" => overlay.timeout = Some(value::seconds(word)?),
            b"size" => overlay.size = value::size(word)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_ownership(&mut self, word: &Word<'_>) -> Result<bool, OptionError> {
        let overlay = &mut self.overlay;
        match word.name {
            b"squash_to_root" => self.squash_to_root = value::switch(word)?,
            b"squash_to_uid" => overlay.squash_to_uid = Some(value::id(word)?),
            b"squash_to_gid" => overlay.squash_to_gid = Some(value::id(word)?),
            b"uidmapping" => overlay.uid_mapping = value::id_ranges(word)?,
            b"gidmapping" => overlay.gid_mapping = value::id_ranges(word)?,
            b"xattr_permissions" => {
                overlay.xattr_permissions = value::choice(
                    word,
                    &[
                        ("0", XattrPermissions::Inode),
                        ("1", XattrPermissions::Privileged),
                        ("2", XattrPermissions::Containers),
                    ],
                )?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_presentation(&mut self, word: &Word<'_>) -> Result<bool, OptionError> {
        match word.name {
            b"fsname" => self.mount.fsname = Some(value::text(word)?),
            b"subtype" => self.mount.subtype = value::text(word)?,
            b"threads" => self.mount.threads = Some(value::threads(word)?),
            b"transport" => {
                let choices = [("auto", Transport::Auto), ("ring", Transport::Ring), ("device", Transport::Device)];
                self.mount.transport = value::choice(word, &choices)?;
            }
            b"context" | b"fscontext" | b"defcontext" | b"rootcontext" => {
                self.mount.security.push(value::verbatim(word)?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_flag(&mut self, word: &Word<'_>) -> bool {
        let mount = &mut self.mount;
        if word.value.is_some() {
            return false;
        }
        match word.name {
            b"ro" => self.overlay.read_only = true,
            b"rw" => self.overlay.read_only = false,
            b"suid" => mount.suid = true,
            b"nosuid" => mount.suid = false,
            b"dev" => mount.dev = true,
            b"nodev" => mount.dev = false,
            b"exec" => mount.exec = true,
            b"noexec" => mount.exec = false,
            b"atime" | b"relatime" => (mount.atime, self.overlay.no_atime) = (true, false),
            b"noatime" => (mount.atime, self.overlay.no_atime) = (false, true),
            b"sync" => mount.sync = true,
            b"async" => mount.sync = false,
            b"dirsync" => mount.dirsync = true,
            b"allow_other" => mount.access = Access::Everybody,
            b"allow_root" => mount.access = Access::RootAndOwner,
            b"debug" => mount.debug = true,
            b"auto_unmount" => mount.auto_unmount = true,
            // Always on.
            b"default_permissions" => {}
            // Not an option of a mount: `config::remount` has already handled it.
            b"remount" => {}
            _ => return false,
        }
        true
    }

    /// Options of other programs and of the kernel's overlayfs that have no meaning here or are not supported.
    fn set_foreign(&mut self, word: &Word<'_>) -> Result<bool, OptionError> {
        match word.name {
            // Options of mount(8), fstab(5), libfuse and fuse-overlayfs that have no meaning for a mounted union.
            b"defaults" | b"auto" | b"noauto" | b"user" | b"users" | b"nouser" | b"nousers" | b"owner" | b"group"
            | b"_netdev" | b"nofail" | b"silent" | b"loud" | b"comment" | b"norelatime" | b"nostrictatime"
            | b"nolazytime" | b"diratime" | b"noiversion" | b"nomand" | b"nonempty" | b"clone_fd"
            | b"max_idle_threads" | b"idle_threads" | b"max_threads" | b"big_writes" | b"max_read" | b"blkdev"
            | b"threaded" | b"fast_ino" | b"max_write" | b"max_readahead" | b"splice_read" | b"splice_write"
            | b"splice_move" => {}
            // Propagation: mount(8) sets it after mounting.
            b"private" | b"shared" | b"slave" | b"unbindable" | b"rprivate" | b"rshared" | b"rslave"
            | b"runbindable" => {}
            // Options that ask for a behaviour that is not supported.
            b"strictatime" | b"lazytime" | b"nodiratime" => {
                self.warn(word, "has no effect: access times are those of the layers' file systems");
            }
            b"iversion" | b"mand" => self.warn(word, "is not supported and has no effect"),
            b"ino32_t" => self.warn(word, "is not supported: inode numbers have 64 bits"),
            name if name.starts_with(b"x-") || name.starts_with(b"X-") => {}
            b"uuid" => {
                let asked = value::choice(word, &[("off", false), ("null", false), ("auto", false), ("on", true)])?;
                self.warn_if(asked, word);
            }
            b"nfs_export" => {
                let asked = value::switch(word)?;
                self.warn_if(asked, word);
            }
            b"verity" => {
                let asked = value::choice(word, &[("off", false), ("on", true), ("require", true)])?;
                self.warn_if(asked, word);
            }
            b"plugins" => return Err(OptionError::Usage("option 'plugins': plugins are not supported".to_owned())),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn warn_if(&mut self, unsupported: bool, word: &Word<'_>) {
        if unsupported {
            self.warn(word, "is not supported and has no effect");
        }
    }

    fn warn(&mut self, word: &Word<'_>, why: &str) {
        let name = word.name_lossy().into_owned();
        if !self.warned.contains(&name) {
            self.warnings.push(format!("option '{name}' {why}"));
            self.warned.insert(name);
        }
    }

    /// Checks that the options do not contradict each other. Called once, after the last option.
    pub(crate) fn complete(&mut self) -> Result<(), OptionError> {
        let overlay = &mut self.overlay;
        if overlay.lowers.is_empty() {
            return Err(OptionError::Usage("no layers: give them as -o lowerdir=DIR[:DIR…]".to_owned()));
        }
        match (&overlay.upper, &overlay.work) {
            (Some(upper), None) => {
                return Err(OptionError::Combination(format!("upperdir '{}' needs a workdir", upper.display())));
            }
            (None, Some(_)) => {
                overlay.work = None;
                self.warnings.push("option 'workdir' has no effect without an upperdir".to_owned());
            }
            _ => {}
        }
        if self.squash_to_root {
            overlay.squash_to_uid.get_or_insert(0);
            overlay.squash_to_gid.get_or_insert(0);
        }
        if !overlay.data_only.is_empty() && !overlay.metacopy {
            return Err(OptionError::Combination("data-only lower layers ('::') need metacopy=on".to_owned()));
        }
        // Like ovl_fs_params_verify(): a metadata copy finds its content through a redirect.
        if overlay.metacopy && overlay.redirect_dir != RedirectDir::On {
            return Err(OptionError::Combination("metacopy=on needs redirect_dir=on".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
