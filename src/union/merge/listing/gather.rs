//! Reads the directories of layers and combines their entries.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use crate::marks::{AufsName, decode_aufs_name};
use crate::union::layer::{Device, FileType, LayerDir, Stat};
use crate::union::merge::listing::name_at;
use crate::union::merge::{acts_by_name, tell_of_content};

/// Inode number of an entry whose own number needs a lookup.
pub(super) const UNKNOWN_INO: u64 = 0;

/// Gathers the entries of a directory, topmost layer first.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Names, each ended by a NUL.
    pub(super) names: Vec<u8>,
    pub(super) entries: Vec<Entry>,
    by_name: HashMap<Box<[u8]>, u32>,
    /// The file system of each source.
    pub(super) devices: Vec<(u16, Device)>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name_at: u32,
    pub(super) ino: u64,
    pub(super) source: u16,
    pub(super) kind: u8,
    /// A whiteout: it hides the entry in lower layers, and is not shown.
    pub(super) hidden: bool,
    /// Nothing in lower layers belongs to this entry.
    closed: bool,
    /// Like `closed`, after the layer has been read: `.wh.NAME` does not hide NAME of its own layer.
    closing: bool,
    /// For a directory: lower parts after the first.
    pub(super) more: Vec<u16>,
}

impl Gathered {
    pub(super) fn add(
        &mut self,
        name: &CStr,
        ino: u64,
        kind: u8,
        source: u16,
        hidden: bool,
        keep_index: bool,
    ) -> Result<(), Errno> {
        if let Some(&at) = self.by_name.get(name.to_bytes()) {
            let Some(existing) = self.entries.get_mut(at as usize) else { return Ok(()) };
            if existing.closed {
                return Ok(());
            }
            // A whiteout by name (`.wh.x`) does not hide `x` of its own layer, in whichever order they are listed. It closes
            // the entry for lower layers.
            if existing.hidden && existing.source == source && !hidden {
                (existing.kind, existing.ino, existing.hidden, existing.closed) = (kind, ino, false, true);
            } else if hidden {
                existing.closing = true;
            } else if kind == libc::DT_DIR && !existing.hidden {
                existing.more.push(source);
            } else {
                existing.closed = true;
            }
            return Ok(());
        }
        let at = u32::try_from(self.entries.len()).map_err(|_| Errno::NOMEM)?;
        let name_at = u32::try_from(self.names.len()).map_err(|_| Errno::NOMEM)?;
        self.names.extend_from_slice(name.to_bytes_with_nul());
        if keep_index {
            self.by_name.insert(name.to_bytes().into(), at);
        }
        let closed = kind != libc::DT_DIR && !hidden;
        self.entries.push(Entry { name_at, ino, source, kind, hidden, closed, closing: hidden, more: Vec::new() });
        Ok(())
    }

    pub(super) fn note_device(&mut self, source: u16, device: Device) {
        if self.devices.iter().all(|&(known, _)| known != source) {
            self.devices.push((source, device));
        }
    }

    /// A whiteout closes its entry after its own layer has been read.
    fn end_layer(&mut self) {
        for entry in self.entries.iter_mut().filter(|e| e.closing) {
            entry.closed = true;
        }
    }

    /// Reads one real directory; returns true if it is opaque (`.wh..wh..opq`).
    pub(super) fn read(
        &mut self,
        dir: &LayerDir<'_>,
        source: u16,
        xattr_whiteouts: bool,
        keep_index: bool,
    ) -> Result<bool, Errno> {
        self.note_device(source, dir.device()?);
        let mut dirs_may_be_subvolumes = None;
        let mut opaque = false;
        let mut unsure: Vec<(CString, u64)> = Vec::new();
        let mut named: Vec<CString> = Vec::new();
        dir.list(|entry| {
            match decode_aufs_name(OsStr::from_bytes(entry.name.to_bytes())) {
                AufsName::Opaque | AufsName::Bookkeeping | AufsName::Whiteout(_) => named.push(entry.name.to_owned()),
                AufsName::Plain => match entry.kind {
                    libc::DT_CHR | libc::DT_UNKNOWN => unsure.push((entry.name.to_owned(), entry.ino)),
                    libc::DT_REG if xattr_whiteouts => unsure.push((entry.name.to_owned(), entry.ino)),
                    kind => {
                        let mut ino = entry.ino;
                        if kind == libc::DT_DIR {
                            let ask = match dirs_may_be_subvolumes {
                                Some(known) => known,
                                None => *dirs_may_be_subvolumes.insert(dir.may_hold_subvolumes()?),
                            };
                            ino = if ask { UNKNOWN_INO } else { ino };
                        }
                        self.add(entry.name, ino, kind, source, false, keep_index)?;
                    }
                },
            }
            Ok(())
        })?;
        for name in named {
            let Some(stat) = dir.stat(&name)? else { continue };
            if !acts_by_name(dir, &name, &stat)? {
                unsure.push((name, UNKNOWN_INO));
                continue;
            }
            match decode_aufs_name(OsStr::from_bytes(name.to_bytes())) {
                AufsName::Opaque => opaque = true,
                AufsName::Whiteout(target) => {
                    let target = CString::new(target.as_bytes()).map_err(|_| Errno::INVAL)?;
                    self.add(&target, 0, libc::DT_UNKNOWN, source, true, true)?;
                }
                AufsName::Bookkeeping | AufsName::Plain => {}
            }
        }
        for (name, ino) in unsure {
            // The file vanished between listing and lookup.
            let Some(stat) = dir.stat(&name)? else { continue };
            let hidden = is_whiteout(dir, &name, &stat, xattr_whiteouts)?;
            self.add(&name, ino, dirent_type(&stat), source, hidden, true)?;
        }
        self.end_layer();
        Ok(opaque)
    }
}

/// Names in one directory of a layer, in the layer's order; for each, whether it is a whiteout.
///
/// # Errors
/// Those of listing.
pub fn entries_of(dir: &LayerDir<'_>, xattr_whiteouts: bool) -> Result<Vec<(CString, bool)>, Errno> {
    let mut gathered = Gathered::default();
    gathered.read(dir, 0, xattr_whiteouts, true)?;
    let entries = gathered.entries.iter();
    Ok(entries.map(|entry| (name_at(&gathered.names, entry.name_at).to_owned(), entry.hidden)).collect())
}

/// `DT_*` of a file.
pub fn dirent_type(stat: &Stat) -> u8 {
    // By definition, `S_IFMT >> 12` is `DT_*`.
    ((stat.mode & libc::S_IFMT) >> 12) as u8
}

/// True if `name` in `dir`, which has the attributes `stat`, is a whiteout. Where xattr whiteouts are allowed, every
/// file is asked for the mark; a whiteout with content is logged.
///
/// # Errors
/// Those of `getxattr(2)`.
pub fn is_whiteout(dir: &LayerDir<'_>, name: &CStr, stat: &Stat, xattr_whiteouts: bool) -> Result<bool, Errno> {
    if stat.is_whiteout_device() {
        return Ok(true);
    }
    if !xattr_whiteouts || stat.file_type() != FileType::Regular || !dir.marks(name)?.whiteout {
        return Ok(false);
    }
    let is_empty = stat.may_be_xattr_whiteout();
    if !is_empty {
        tell_of_content(dir.shown_path(name));
    }
    Ok(is_empty)
}
