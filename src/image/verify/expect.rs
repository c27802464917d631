//! Derives from the entries of a tar stream what the final layer directory must contain.
//!
//! An entry that does not match is only suspected until the stream ends, because a later one may have replaced it. So
//! memory holds only the differences. If the stream alone does not tell where an entry went, nothing is suspected:
//! missing a change is better than reporting a correct layer as damaged.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use crate::confined;
use crate::image::layer::attributes::{self, Attributes, FileKind, OverrideKey, kind_of, lacks_xattr};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::image::layer::marks;
use crate::image::layer::path::{components, is_at_or_below, join, normalise, split};
use crate::image::unpack::entry::{attributes_of, device_of};
use crate::image::verify::ledger::Ledger;
use crate::marks::override_stat::is_override;
use crate::marks::{AUFS_OPAQUE, AUFS_PREFIX, AufsName, decode_aufs_name};
use crate::tar::Time;
use crate::tar::acl;
use crate::tar::read::{Entry, Kind};

const ACL: &[u8] = b"system.posix_acl_";
const CAPABILITY: &[u8] = b"security.capability";

/// A file that does not match its entry.
struct Suspect {
    reason: String,
    /// Nothing is at its place: it may have been made through a symbolic link that a directory has replaced.
    missing: bool,
}

pub(crate) struct Expectations<'a> {
    /// Unpacked without privileges: owners and modes are recorded in attributes of the files.
    recorded: bool,
    suspects: BTreeMap<Vec<u8>, Suspect>,
    ledger: Ledger<'a>,
}

impl<'a> Expectations<'a> {
    pub(crate) fn new(layer: BorrowedFd<'a>) -> Result<Self> {
        let recorded = attributes::is_recorded(layer).at(b"")?;
        Ok(Self { recorded, suspects: BTreeMap::new(), ledger: Ledger::new(layer) })
    }

    /// The differences from the whole stream, and why: first files of entries, then files without an entry, each sorted by path.
    pub(crate) fn unmet(self) -> Result<impl Iterator<Item = (Vec<u8>, String)>> {
        let added = self.ledger.added()?.into_iter().map(|path| (path, "it was added".to_owned()));
        Ok(self.suspects.into_iter().map(|(path, suspect)| (path, suspect.reason)).chain(added))
    }

    /// Checks the file of `entry`. `contents` is the file that holds its contents according to the recipe.
    pub(crate) fn check(&mut self, entry: &Entry, contents: Option<Vec<u8>>) -> Result<()> {
        let Ok(named) = normalise(&entry.name, usize::MAX) else { return Ok(()) };
        let (parent, name) = split(&named).unwrap_or((b"", b"."));
        if components(parent).any(|name| name.starts_with(AUFS_PREFIX)) {
            return Ok(());
        }
        let parent = match &contents {
            Some(path) => split(path).unwrap_or_default().0,
            None => parent,
        };
        let deleted = decode_aufs_name(OsStr::from_bytes(name));
        // The recipe itself has the contents, so the file was removed.
        let is_removed = matches!(&entry.kind, Kind::File { segments, .. } if !segments.is_empty());
        if deleted == AufsName::Plain && is_removed && contents.is_none() {
            return Ok(());
        }
        let Some(found) = self.ledger.find(parent)? else {
            self.stray(name, contents, entry);
            return Ok(());
        };
        let (dir, parent) = (found.dir.as_fd(), found.path);
        match deleted {
            AufsName::Bookkeeping => Ok(()),
            AufsName::Opaque => {
                if !marks::hides_lower(dir).at(&parent)? {
                    self.suspect(join(&parent, AUFS_OPAQUE), false, "the directory is no longer opaque".into());
                }
                Ok(())
            }
            AufsName::Whiteout(deleted) => {
                let path = join(&parent, deleted.as_bytes());
                let gone = confined::stat_entry(dir, deleted.as_bytes()).at(&path)?.is_none();
                self.ledger.account_whiteout(&path);
                self.go_elsewhere(&path);
                if gone && !marks::hides_lower(dir).at(&parent)? {
                    self.suspect(path, false, "its whiteout is gone".into());
                }
                Ok(())
            }
            AufsName::Plain => {
                let path = if name == b"." { parent } else { join(&parent, name) };
                self.ledger.account(&path);
                if let Kind::HardLink(target) = &entry.kind {
                    self.account_target(target)?;
                }
                self.check_file(dir, name, path, entry)
            }
        }
    }

    /// Handles an entry whose destination the layer alone does not tell.
    fn stray(&mut self, name: &[u8], contents: Option<Vec<u8>>, entry: &Entry) {
        match decode_aufs_name(OsStr::from_bytes(name)) {
            AufsName::Bookkeeping => {}
            AufsName::Opaque => self.ledger.stray_opaque(),
            AufsName::Whiteout(deleted) => self.ledger.stray(deleted.as_bytes()),
            AufsName::Plain => match contents {
                Some(path) => self.ledger.account(&path),
                None => self.ledger.stray(name),
            },
        }
        if let Kind::HardLink(target) = &entry.kind
            && let Some((_, name)) = normalise(target, usize::MAX).ok().as_deref().and_then(split)
        {
            self.ledger.stray(name);
        }
    }

    /// A hard link to a lower file has a copy of that file in this layer.
    fn account_target(&mut self, target: &[u8]) -> Result<()> {
        let Ok(target) = normalise(target, usize::MAX) else { return Ok(()) };
        let Some((parent, name)) = split(&target) else { return Ok(()) };
        match self.ledger.find(parent)? {
            Some(found) => self.ledger.account(&join(&found.path, name)),
            None => self.ledger.stray(name),
        }
        Ok(())
    }

    fn check_file(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: Vec<u8>, entry: &Entry) -> Result<()> {
        let stat = confined::stat_entry(dir, name);
        let found = stat.as_ref().ok().and_then(Option::as_ref).map(kind_of);
        self.make_room(&path, entry.kind == Kind::Directory, found == Some(FileKind::Directory));
        let stat = match stat {
            Ok(Some(stat)) => stat,
            Ok(None) => {
                if let Kind::Symlink(target) = &entry.kind {
                    self.ledger.link(&path, target, false);
                }
                self.suspect(path, true, "it is gone".into());
                return Ok(());
            }
            Err(error) => return Err(error).at(&path),
        };
        let (kind, found) =
            attributes::read(dir, name, &stat, self.recorded.then_some(OverrideKey::Containers)).at(&path)?;
        if let Kind::HardLink(_) = entry.kind {
            if kind == FileKind::Directory {
                self.suspect(path, false, "it is a directory, not a hard link".into());
            }
            return Ok(());
        }
        let expected_kind = file_kind(entry)?;
        if kind != expected_kind {
            if let Kind::Symlink(target) = &entry.kind {
                self.ledger.link(&path, target, false);
            }
            let reason = format!("it is {kind}, not {expected_kind}");
            self.suspect(path, false, reason);
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let difference = match &entry.kind {
            Kind::File { size: expected, .. } if size != *expected => {
                Some(format!("it is of {size} bytes, not {expected}"))
            }
            Kind::Symlink(expected) => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).at(&path)?;
                let differs = target.as_bytes() != expected.as_slice();
                self.ledger.link(&path, expected, !differs);
                differs.then(|| format!("it leads to {}, not to {}", printable(target.as_bytes()), printable(expected)))
            }
            _ => None,
        };
        let difference = match difference {
            None => self.difference(dir, name, kind, &attributes_of(entry)?, &found).at(&path)?,
            told => told,
        };
        if let Some(reason) = difference {
            self.suspect(path, false, reason);
        }
        Ok(())
    }

    /// Describes how the attributes differ.
    fn difference(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        kind: FileKind,
        expected: &Attributes,
        found: &Attributes,
    ) -> rustix::io::Result<Option<String>> {
        let is_symlink = kind == FileKind::Symlink;
        // Without privileges, a link cannot record its owner.
        let has_owner = !(is_symlink && self.recorded);
        if has_owner && (found.uid, found.gid) != (expected.uid, expected.gid) {
            let (uid, gid) = (expected.uid, expected.gid);
            return Ok(Some(format!("its owner is {}:{}, not {uid}:{gid}", found.uid, found.gid)));
        }
        // An ACL contains the permissions, and the kernel copies them into the mode.
        let has_acl = expected.xattrs.iter().any(|(name, _)| name.starts_with(ACL));
        let compared = if has_acl { 0o7000 } else { 0o7777 };
        if !is_symlink && (found.mode ^ expected.mode) & compared != 0 {
            return Ok(Some(format!("its mode is {:o}, not {:o}", found.mode, expected.mode)));
        }
        if !same_time(expected.mtime, found.mtime) {
            let (is, was) = (found.mtime.seconds, expected.mtime.seconds);
            return Ok(Some(format!("its time of modification is {is}, not {was}")));
        }
        let expected: BTreeMap<&[u8], &[u8]> =
            expected.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
        for (attribute, value) in &found.xattrs {
            match expected.get(attribute.as_slice()) {
                Some(expected) if same_value(attribute, expected, value, self.recorded) => {}
                Some(_) => return Ok(Some(format!("its attribute {} has another value", printable(attribute)))),
                None if must_be_kept(attribute, kind, false) => {
                    return Ok(Some(format!("it has an attribute {} that it had not", printable(attribute))));
                }
                None => {}
            }
        }
        for attribute in expected.keys().filter(|attribute| must_be_kept(attribute, kind, self.recorded)) {
            let is_there = found.xattrs.iter().any(|(name, _)| name == attribute);
            if !is_there && !is_override(attribute) && lacks_xattr(dir, name, attribute)? {
                return Ok(Some(format!("its attribute {} is gone", printable(attribute))));
            }
        }
        Ok(None)
    }

    /// An entry at `path` replaces the existing file; a directory keeps its entries. `directory_in_end` is true if a
    /// directory is there now.
    fn make_room(&mut self, path: &[u8], is_directory: bool, directory_in_end: bool) {
        self.ledger.replace(path, is_directory, directory_in_end);
        match is_directory {
            true => {
                self.suspects.remove(path);
                self.go_elsewhere(path);
            }
            false if self.suspects.is_empty() => {}
            false => self.suspects.retain(|suspect, _| !is_at_or_below(suspect, path)),
        }
    }

    /// Files that entries named before the directory at `path`, and that are missing, may have been made through a lower
    /// layer's link.
    fn go_elsewhere(&mut self, path: &[u8]) {
        if self.suspects.is_empty() {
            return;
        }
        let ledger = &mut self.ledger;
        self.suspects.retain(|suspect, found| {
            let elsewhere = found.missing && suspect != path && is_at_or_below(suspect, path);
            if elsewhere {
                ledger.stray(split(suspect).unwrap_or_default().1);
            }
            !elsewhere
        });
    }

    fn suspect(&mut self, path: Vec<u8>, missing: bool, reason: String) {
        self.suspects.insert(path, Suspect { reason, missing });
    }
}

/// The type of file that an entry makes.
fn file_kind(entry: &Entry) -> Result<FileKind> {
    let device = |major, minor| device_of(&entry.name, major, minor);
    Ok(match entry.kind {
        Kind::File { .. } | Kind::HardLink(_) => FileKind::Regular,
        Kind::Symlink(_) => FileKind::Symlink,
        Kind::CharDevice(major, minor) => device(major, minor).map(|(a, b)| FileKind::CharDevice(a, b))?,
        Kind::BlockDevice(major, minor) => device(major, minor).map(|(a, b)| FileKind::BlockDevice(a, b))?,
        Kind::Directory => FileKind::Directory,
        Kind::Fifo => FileKind::Fifo,
        Kind::Unknown(_) => return Err(LayerError::entry(&entry.name, "an entry that makes nothing")),
    })
}

/// True if a file system with coarser or more limited times would show `found`.
fn same_time(expected: Time, found: Time) -> bool {
    let everywhere = (0..1 << 31).contains(&expected.seconds);
    let stored_in = |unit: u32| expected.nanoseconds / unit * unit;
    let same = || [1, 100, 1000, 1_000_000_000].into_iter().any(|unit| stored_in(unit) == found.nanoseconds);
    !everywhere || found.seconds == expected.seconds && same()
}

/// Compares values as shown to this process. Capabilities are shown in the version for the reader's user namespace. The
/// kernel sorts ACLs, changes their unnamed entries with the mode, and shows numbers in the reader's user namespace.
fn same_value(attribute: &[u8], expected: &[u8], found: &[u8], recorded: bool) -> bool {
    match attribute {
        CAPABILITY => expected.get(4..20) == found.get(4..20),
        access if access.starts_with(ACL) => {
            recorded || acl::named(expected).is_none_or(|expected| Some(expected) == acl::named(found))
        }
        _ => expected == found,
    }
}

/// True for attributes that unpacking always keeps if the file system can; others may be missing.
fn must_be_kept(attribute: &[u8], kind: FileKind, recorded: bool) -> bool {
    let in_file = matches!(kind, FileKind::Regular | FileKind::Directory);
    match recorded {
        true => attribute.starts_with(b"user.") && in_file,
        false => attribute.starts_with(b"user.") || attribute.starts_with(b"trusted.") || attribute == CAPABILITY,
    }
}
