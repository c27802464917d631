//! Merged listing of a directory: one entry a name, in an order that never changes.
//!
//! Entries are sorted by a hash of their name, and the hash is the position that `readdir` hands out. So positions
//! stay valid whatever is created, removed or rebuilt in between, and a name is found by binary search.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;

use rustix::io::Errno;

use crate::inventory::{COLLISION_SPAN, DirNumber, Directory, Inventory};
pub use crate::inventory::{FIRST_POSITION, position as hash_position};
use crate::marks::{AufsName, decode_aufs_name};
use crate::union::layer::{Device, Dir, FileId, FileType, LayerDir, LowerRef, Stat};
use crate::union::merge::tell_of_content;

/// Where the file behind an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the upper layer.
    Upper,
    /// In the directory's lower part of this index.
    Lower(u16),
}

/// Source index of upper entries.
const UPPER: u16 = u16::MAX;

/// Inode number of an entry that must be looked up to know its own.
const UNKNOWN_INO: u64 = 0;

#[derive(Clone, Copy, Debug)]
struct Item {
    position: u64,
    ino: u64,
    name_at: u32,
    source: u16,
    kind: u8,
}

/// The lower parts of a directory that has several.
#[derive(Clone, Copy, Debug)]
struct Parts {
    /// Which item: its [`Item::name_at`].
    name_at: u32,
    /// Where in [`Merged::dirs`] they are.
    at: u32,
    len: u16,
}

/// A merged listing. Immutable.
#[derive(Debug)]
pub struct Listing(Form);

#[derive(Debug)]
enum Form {
    /// Made of the layers' directories.
    Merged(Merged),
    /// Of a directory that only one layer has, as it stands in the layer's inventory: takes no memory.
    Inventory(Arc<Inventory>, DirNumber),
}

#[derive(Debug, Default)]
struct Merged {
    /// Names, each ended by a NUL.
    names: Vec<u8>,
    items: Vec<Item>,
    /// For each directory that has several lower parts, in the order of `name_at`.
    parts: Vec<Parts>,
    /// Lower parts of those directories.
    dirs: Vec<u16>,
    /// The file system of each source.
    devices: Vec<(u16, Device)>,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// Name.
    pub name: &'a CStr,
    /// Position; unique in the directory.
    pub position: u64,
    /// The file of the topmost real entry. None if the layer does not say without a lookup: a directory there may be a
    /// subvolume, which has another number than its entry.
    pub id: Option<FileId>,
    /// `DT_*`.
    pub kind: u8,
    /// Where the topmost real entry is.
    pub source: Source,
}

/// Gathers the entries of a directory, topmost layer first.
#[derive(Debug, Default)]
struct Builder {
    names: Vec<u8>,
    entries: Vec<Building>,
    by_name: HashMap<Box<[u8]>, u32>,
    devices: Vec<(u16, Device)>,
}

#[derive(Debug)]
struct Building {
    name_at: u32,
    ino: u64,
    source: u16,
    kind: u8,
    /// A whiteout: hides what is below, is not shown.
    hidden: bool,
    /// Nothing further down belongs to this entry.
    closed: bool,
    /// Lower parts after the first, of a directory.
    more: Vec<u16>,
}

impl Builder {
    fn add(
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
            // A whiteout by name (`.wh.x`) does not hide `x` of its own layer, and closes it to what is below.
            let same_layer = existing.source == source || existing.more.last() == Some(&source);
            if existing.hidden && same_layer && !hidden {
                (existing.kind, existing.ino, existing.hidden, existing.closed) = (kind, ino, false, true);
            } else if hidden && same_layer {
                existing.closed = true;
            } else if kind == libc::DT_DIR && !hidden && !existing.hidden {
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
        self.entries.push(Building { name_at, ino, source, kind, hidden, closed, more: Vec::new() });
        Ok(())
    }

    fn note_device(&mut self, source: u16, device: Device) {
        if self.devices.iter().all(|&(known, _)| known != source) {
            self.devices.push((source, device));
        }
    }

    /// A hidden entry closes once its own layer has been read.
    fn end_layer(&mut self) {
        for entry in self.entries.iter_mut().filter(|e| e.hidden) {
            entry.closed = true;
        }
    }

    /// Reads one real directory; true if it turned out to be opaque (`.wh..wh..opq`).
    fn read(
        &mut self,
        dir: &LayerDir<'_>,
        source: u16,
        xattr_whiteouts: bool,
        keep_index: bool,
    ) -> Result<bool, Errno> {
        self.note_device(source, dir.device()?);
        let mut dirs_may_be_subvolumes = None;
        let mut opaque = false;
        let mut unsure: Vec<(std::ffi::CString, u64)> = Vec::new();
        dir.list(|entry| {
            let name = std::os::unix::ffi::OsStrExt::from_bytes(entry.name.to_bytes());
            match decode_aufs_name(name) {
                AufsName::Opaque => opaque = true,
                AufsName::Bookkeeping => {}
                AufsName::Whiteout(target) => {
                    let target = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(target));
                    if let Ok(target) = target {
                        self.add(&target, 0, libc::DT_UNKNOWN, source, true, true)?;
                    }
                }
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
        for (name, ino) in unsure {
            // Gone between listing and looking: not there.
            let Some(stat) = dir.stat(&name)? else { continue };
            let hidden = is_whiteout(dir, &name, &stat, xattr_whiteouts)?;
            self.add(&name, ino, dirent_type(&stat), source, hidden, true)?;
        }
        self.end_layer();
        Ok(opaque)
    }

    fn finish(mut self, keep: impl Fn(&Building) -> bool) -> Listing {
        self.names.shrink_to_fit();
        let items = Vec::with_capacity(self.entries.len());
        let mut listing = Merged { names: self.names, items, devices: self.devices, ..Merged::default() };
        // In the order in which they came, so that `name_at` only grows.
        for entry in self.entries.iter().filter(|e| keep(e)) {
            let Building { name_at, ino, source, kind, .. } = *entry;
            if !entry.more.is_empty() {
                let at = u32::try_from(listing.dirs.len()).unwrap_or(u32::MAX);
                let len = u16::try_from(entry.more.len() + 1).unwrap_or(u16::MAX);
                listing.parts.push(Parts { name_at, at, len });
                listing.dirs.push(source);
                listing.dirs.extend_from_slice(&entry.more);
            }
            let position = hash_position(self::name_at(&listing.names, name_at).to_bytes());
            listing.items.push(Item { position, ino, name_at, source, kind });
        }
        listing.sort();
        listing.parts.shrink_to_fit();
        listing.dirs.shrink_to_fit();
        Listing(Form::Merged(listing))
    }
}

/// The name that starts at `at`.
fn name_at(names: &[u8], at: u32) -> &CStr {
    let tail = names.get(at as usize..).unwrap_or_default();
    CStr::from_bytes_until_nul(tail).unwrap_or_default()
}

/// `DT_*` of a file.
pub fn dirent_type(stat: &Stat) -> u8 {
    // S_IFMT >> 12 is DT_*, by design of both.
    ((stat.mode & libc::S_IFMT) >> 12) as u8
}

/// True if `name` in `dir`, whose attributes are `stat`, is a whiteout. Among whiteouts by attribute every file is asked
/// for the mark: the log tells of one that has content.
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
        tell_of_content(dir.place(name));
    }
    Ok(is_empty)
}

impl Merged {
    fn sort(&mut self) {
        let names = &self.names;
        self.items.sort_unstable_by(|a, b| {
            (a.position, name_at(names, a.name_at)).cmp(&(b.position, name_at(names, b.name_at)))
        });
        let mut last = 0;
        for item in &mut self.items {
            item.position = item.position.max(last + 1);
            last = item.position;
        }
    }

    fn listed(&self, item: &Item) -> Listed<'_> {
        Listed {
            name: name_at(&self.names, item.name_at),
            position: item.position,
            id: self.id(item),
            kind: item.kind,
            source: if item.source == UPPER { Source::Upper } else { Source::Lower(item.source) },
        }
    }

    fn id(&self, item: &Item) -> Option<FileId> {
        let device = self.devices.iter().find(|(source, _)| *source == item.source)?.1;
        (item.ino != UNKNOWN_INO).then_some(FileId { device, ino: item.ino })
    }

    fn find(&self, name: &CStr) -> Option<&Item> {
        let position = hash_position(name.to_bytes());
        let start = self.items.partition_point(|item| item.position < position);
        let candidates = self.items.get(start..)?.iter();
        candidates
            .take_while(|item| item.position < position + COLLISION_SPAN)
            .find(|item| name_at(&self.names, item.name_at) == name)
    }

    fn lower_parts(&self, name: &CStr) -> &[u16] {
        let Some(item) = self.find(name) else { return &[] };
        let found = self.parts.binary_search_by_key(&item.name_at, |parts| parts.name_at);
        let Some(parts) = found.ok().and_then(|index| self.parts.get(index)) else {
            return std::slice::from_ref(&item.source);
        };
        self.dirs.get(parts.at as usize..).and_then(|d| d.get(..usize::from(parts.len))).unwrap_or_default()
    }
}

/// An entry of an inventory as one of a listing.
fn listed_in_inventory(device: Device, entry: crate::inventory::Entry<'_>) -> Listed<'_> {
    let record = &entry.record;
    Listed {
        name: entry.name,
        position: entry.record.position,
        id: (!record.must_ask()).then_some(FileId { device, ino: record.ino }),
        kind: entry.record.kind(),
        source: Source::Lower(0),
    }
}

impl Default for Listing {
    fn default() -> Self {
        Self(Form::Merged(Merged::default()))
    }
}

impl Listing {
    /// Merges the lower parts of a directory, topmost first. What is whited out is left out.
    ///
    /// # Errors
    /// Those of listing; an unreadable layer fails the whole, rather than showing what it may hide.
    pub fn of_lowers(parts: &[(&LowerRef, LayerDir<'_>)]) -> Result<Self, Errno> {
        if let [(part, dir)] = parts
            && !part.xattr_whiteouts
            && let Some((inventory, number)) = dir.shown_by_inventory()
        {
            return Ok(Self(Form::Inventory(inventory, number)));
        }
        let mut builder = Builder::default();
        for (index, (part, dir)) in parts.iter().enumerate() {
            let source = u16::try_from(index).map_err(|_| Errno::OVERFLOW)?;
            // With one layer, no name is met twice.
            if builder.read(dir, source, part.xattr_whiteouts, parts.len() > 1)? {
                break;
            }
        }
        Ok(builder.finish(|entry| !entry.hidden))
    }

    /// Merges the upper part of a directory with the listing of its lower parts.
    ///
    /// # Errors
    /// Those of listing.
    pub fn with_upper(upper: &Dir, xattr_whiteouts: bool, lowers: Option<&Self>) -> Result<Self, Errno> {
        let mut builder = Builder::default();
        let opaque = builder.read(&LayerDir::Held(upper.clone()), UPPER, xattr_whiteouts, lowers.is_some())?;
        for listed in lowers.filter(|_| !opaque).into_iter().flat_map(Self::iter) {
            let Source::Lower(source) = listed.source else { continue };
            let ino = listed.id.map_or(UNKNOWN_INO, |id| id.ino);
            if let Some(id) = listed.id {
                builder.note_device(source, id.device);
            }
            builder.add(listed.name, ino, listed.kind, source, false, false)?;
        }
        Ok(builder.finish(|entry| !entry.hidden))
    }

    /// Names of an upper directory that are no entries: whiteouts and marks, to be removed with it; and whether
    /// it holds anything else.
    ///
    /// # Errors
    /// Those of listing.
    pub fn has_entries(upper: &Dir, xattr_whiteouts: bool) -> Result<bool, Errno> {
        let mut builder = Builder::default();
        builder.read(&LayerDir::Held(upper.clone()), UPPER, xattr_whiteouts, true)?;
        Ok(builder.entries.iter().any(|e| !e.hidden))
    }

    /// The part of the inventory, if the listing is one.
    fn directory(&self) -> Option<(Device, Directory<'_>)> {
        match &self.0 {
            Form::Merged(_) => None,
            Form::Inventory(inventory, number) => Some((inventory.device(), inventory.believed(*number)?)),
        }
    }

    /// True if it can be used no longer, and what it gave may have lacked names: the inventory behind it cannot be
    /// read any more.
    pub fn is_broken(&self) -> bool {
        matches!(&self.0, Form::Inventory(inventory, _) if inventory.is_broken())
    }

    /// The merged items behind `position`; none if the listing is an inventory's.
    fn items(&self, position: u64) -> impl Iterator<Item = Listed<'_>> {
        let merged = match &self.0 {
            Form::Merged(merged) => Some(merged),
            Form::Inventory(..) => None,
        };
        merged.into_iter().flat_map(move |merged| {
            let start = merged.items.partition_point(|item| item.position <= position);
            merged.items.get(start..).unwrap_or_default().iter().map(|item| merged.listed(item))
        })
    }

    /// All entries, in order of position.
    pub fn iter(&self) -> impl Iterator<Item = Listed<'_>> {
        self.after(0)
    }

    /// The entries behind `position`.
    pub fn after(&self, position: u64) -> impl Iterator<Item = Listed<'_>> {
        let directory = self.directory();
        let known = directory.into_iter().flat_map(move |(device, directory)| {
            let start = directory.first_at(position.saturating_add(1));
            (start..directory.len())
                .map_while(move |at| directory.at(at))
                .map(move |entry| listed_in_inventory(device, entry))
        });
        self.items(position).chain(known)
    }

    /// The entry called `name`.
    pub fn get(&self, name: &CStr) -> Option<Listed<'_>> {
        match &self.0 {
            Form::Merged(merged) => merged.find(name).map(|item| merged.listed(item)),
            Form::Inventory(..) => {
                let (device, directory) = self.directory()?;
                directory.find(name).map(|entry| listed_in_inventory(device, entry))
            }
        }
    }

    /// The lower parts that make up the directory `name`, as indices into those of its parent, topmost first.
    pub fn lower_parts(&self, name: &CStr) -> &[u16] {
        match &self.0 {
            Form::Merged(merged) => merged.lower_parts(name),
            Form::Inventory(..) if self.get(name).is_some() => &[0],
            Form::Inventory(..) => &[],
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::Merged(merged) => merged.items.len(),
            Form::Inventory(..) => self.directory().map_or(0, |(_, directory)| directory.len()),
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory held, in bytes.
    pub fn memory(&self) -> usize {
        let Form::Merged(merged) = &self.0 else { return 0 };
        let lists = merged.items.capacity() * size_of::<Item>() + merged.parts.capacity() * size_of::<Parts>();
        merged.names.capacity() + lists + merged.dirs.capacity() * 2
    }
}

/// File type of a `DT_*`; `None` if it is unknown.
pub fn file_type(kind: u8) -> Option<FileType> {
    match kind {
        libc::DT_REG => Some(FileType::Regular),
        libc::DT_DIR => Some(FileType::Directory),
        libc::DT_LNK => Some(FileType::Symlink),
        libc::DT_CHR | libc::DT_BLK | libc::DT_FIFO | libc::DT_SOCK => Some(FileType::Special),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let mut builder = Builder::default();
        for name in names {
            let name = std::ffi::CString::new(*name).expect("no NUL");
            builder.add(&name, 1, libc::DT_REG, 0, false, true).expect("added");
        }
        builder.finish(|_| true)
    }

    #[test]
    fn positions_do_not_depend_on_other_names() {
        let many: Vec<String> = (0..5000).map(|n| format!("file-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (all, half) = (listing(&many), listing(&many[..2500]));
        let mut last = FIRST_POSITION - 1;
        for listed in all.iter() {
            assert!(listed.position > last && listed.position < 1 << 62);
            last = listed.position;
        }
        for name in &many[..2500] {
            let name = std::ffi::CString::new(*name).expect("no NUL");
            assert_eq!(
                all.get(&name).map(|l| l.position),
                half.get(&name).map(|l| l.position),
                "{name:?} moved when others were added"
            );
        }
        assert!(all.get(c"absent").is_none());
    }

    #[test]
    fn reading_on_after_a_position_misses_and_repeats_nothing() {
        let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
        let all = listing(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut seen = Vec::new();
        let mut position = 0;
        while let Some(listed) = all.after(position).next() {
            seen.push(listed.name.to_owned());
            position = listed.position;
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 300);
    }
}
