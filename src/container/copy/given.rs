//! Owner, mode, times and extended attributes that are copied from a source.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::source::Node;
use super::{Copied, CopyOptions};
use crate::confined::xattr::{self, Target};
use crate::confined::{FileType, Stat, TimeTo, Times, Timestamp, WritableDir};
use crate::marks::override_stat::is_override;
use crate::tar;

/// The attribute that gives a program capabilities. A change of owner removes it, like the set-user-ID bit.
const CAPABILITY: &[u8] = b"security.capability";

/// Attributes of one file.
pub(super) struct Given {
    uid: u32,
    gid: u32,
    mode: u32,
    times: Times,
    xattrs: Vec<(CString, Vec<u8>)>,
}

/// True for attributes that are copied. Labels of security modules belong to a machine, marks of unions belong to a layer.
fn is_wanted(name: &[u8], options: CopyOptions) -> bool {
    let is_acl = name.starts_with(b"system.posix_acl_");
    name.starts_with(b"user.") && !is_override(name) || name == CAPABILITY || is_acl && options.archive
}

impl Given {
    /// Reads the attributes of an open file.
    pub(super) fn of(node: &Node, options: CopyOptions) -> Result<Self, Errno> {
        let Stat { uid, gid, mode, .. } = node.stat;
        let mut xattrs = Vec::new();
        if node.stat.file_type() != FileType::Symlink {
            let target = Target { dir: node.fd.as_fd(), name: c"" };
            for name in xattr::names(&xattr::list(target)?).filter(|name| is_wanted(name.to_bytes(), options)) {
                // `None`: it was removed meanwhile.
                if let Some(value) = xattr::value(target, name)? {
                    xattrs.push((name.to_owned(), value));
                }
            }
        }
        Ok(Self { uid, gid, mode: mode & 0o7777, times: Times::of(&node.stat), xattrs })
    }

    /// Takes the attributes of a member of a tar stream.
    pub(super) fn of_member(attributes: &tar::Attributes, options: CopyOptions) -> Self {
        let time = TimeTo::At(Timestamp { sec: attributes.mtime.seconds, nsec: attributes.mtime.nanoseconds });
        let wanted = attributes.xattrs.iter().filter(|(name, _)| is_wanted(name, options));
        let xattrs = wanted.filter_map(|(name, value)| Some((CString::new(name.as_slice()).ok()?, value.clone())));
        Self {
            uid: attributes.uid,
            gid: attributes.gid,
            mode: attributes.mode,
            times: Times { atime: Some(time), mtime: Some(time) },
            xattrs: xattrs.collect(),
        }
    }

    /// The attributes as a tar stream has them.
    pub(super) fn to_member(&self) -> tar::Attributes {
        let mtime = match self.times.mtime {
            Some(TimeTo::At(time)) => tar::Time { seconds: time.sec, nanoseconds: time.nsec },
            _ => tar::Time::default(),
        };
        let xattrs = self.xattrs.iter().map(|(name, value)| (name.to_bytes().to_vec(), value.clone())).collect();
        tar::Attributes { mode: self.mode, uid: self.uid, gid: self.gid, mtime, xattrs }
    }

    /// Sets the attributes on an open file, which may be `O_PATH`. The owner comes first: changing it removes the
    /// set-user-ID bit and capabilities. Attributes that only a privileged process may set, or that the file system
    /// cannot store, are noted in `copied`.
    pub(super) fn put(
        &self,
        file: &WritableDir,
        options: CopyOptions,
        shown: &dyn Fn() -> String,
        copied: &mut Copied,
    ) -> Result<(), Errno> {
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let wanted = if options.archive { (self.uid, self.gid) } else { own };
        let stat = file.stat_self()?;
        let mut owner = (stat.uid, stat.gid);
        if owner != wanted {
            match file.set_owner(c"", Some(wanted.0), Some(wanted.1)) {
                Ok(()) => owner = wanted,
                // INVAL: the user namespace has no such id.
                Err(Errno::PERM | Errno::INVAL) => {
                    copied.warn(format!("{}: its owner {}:{} was not kept", shown(), wanted.0, wanted.1));
                }
                Err(errno) => return Err(errno),
            }
        }
        if stat.file_type() == FileType::Symlink {
            return file.set_times(c"", &self.times);
        }
        for (name, value) in &self.xattrs {
            if name.to_bytes() == CAPABILITY && owner.0 != self.uid {
                continue;
            }
            match file.set_xattr(c"", name, value, 0) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::INVAL) => {
                    copied.warn(format!("{}: its attribute {} was not kept", shown(), name.to_string_lossy()));
                }
                Err(errno) => return Err(errno),
            }
        }
        file.set_mode(c"", self.mode_for(owner))?;
        file.set_times(c"", &self.times)
    }

    /// The mode for a file of this owner. Programs with a set-user-ID bit keep it only if they also keep their owner.
    fn mode_for(&self, (uid, gid): (u32, u32)) -> u32 {
        let set_user = if uid == self.uid { 0 } else { libc::S_ISUID };
        let set_group = if gid == self.gid { 0 } else { libc::S_ISGID };
        self.mode & !(set_user | set_group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_id_bits_go_with_the_owner() {
        let given = Given { uid: 0, gid: 7, mode: 0o6755, times: Times::default(), xattrs: Vec::new() };
        for (owner, mode) in [((0, 7), 0o6755), ((1, 7), 0o2755), ((0, 8), 0o4755), ((1, 8), 0o755)] {
            assert_eq!(given.mode_for(owner), mode, "{owner:?}");
        }
    }

    #[test]
    fn attributes_that_are_copied() {
        let archive = |archive| CopyOptions { archive };
        for (name, plain, with_owner) in [
            (&b"user.note"[..], true, true),
            (b"user.containers.override_stat", false, false),
            (b"security.capability", true, true),
            (b"security.selinux", false, false),
            (b"trusted.overlay.opaque", false, false),
            (b"system.posix_acl_access", false, true),
        ] {
            assert_eq!((is_wanted(name, archive(false)), is_wanted(name, archive(true))), (plain, with_owner));
        }
    }
}
