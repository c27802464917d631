//! Merged listing of a directory: one entry for each name, in the order of positions.
//!
//! A position is a hash of the name ([`crate::inventory::position`]), so it stays valid whatever is created, removed or
//! rebuilt in between, and a name can be found by its position.

mod gather;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;

use rustix::io::Errno;

pub use crate::inventory::position::{FIRST_POSITION, Moved, candidate};
use crate::inventory::position::{allot, choose_position};
use crate::inventory::{DirNumber, Directory, Inventory};
use crate::union::layer::{Device, Dir, FileId, FileType, LayerDir, LowerRef};
use gather::{Gathered, UNKNOWN_INO};
pub use gather::{dirent_type, entries_of, is_whiteout};

/// Where the file behind an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the upper layer.
    Upper,
    /// In the directory's lower part with this index.
    Lower(u16),
}

/// Source index of upper entries.
const UPPER: u16 = u16::MAX;

/// Bytes of removed names that are kept without compaction.
const SPARE: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Item {
    ino: u64,
    name_at: u32,
    source: u16,
    kind: u8,
}

/// The lower parts of a directory, if it has several.
#[derive(Clone, Copy, Debug)]
struct Parts {
    /// Identifies the item by its [`Item::name_at`].
    name_at: u32,
    /// Index of the first in [`Merged::dirs`].
    at: u32,
    len: u16,
}

/// A merged listing.
#[derive(Clone, Debug)]
pub struct Listing(Form);

#[derive(Clone, Debug)]
enum Form {
    /// Made from the layers' directories.
    Merged(Merged),
    /// The listing of a directory of one layer, read from the layer's inventory; it takes no memory of its own.
    Inventory(Arc<Inventory>, DirNumber),
}

#[derive(Clone, Debug, Default)]
struct Merged {
    /// Names, each ended by a NUL.
    names: Vec<u8>,
    /// Number of bytes in it that belong to no item any more.
    spare: usize,
    /// Items by position.
    items: BTreeMap<u32, Item>,
    moved: Moved,
    /// The parts of each directory with several lower parts, in the order of `name_at`. Only in listings of lower parts.
    parts: Vec<Parts>,
    /// Lower parts of these directories.
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
    /// The file of the topmost real entry. `None` if a lookup is needed: a directory in the layer may be a subvolume,
    /// whose number differs from that of its entry.
    pub id: Option<FileId>,
    /// `DT_*`.
    pub kind: u8,
    /// Where the topmost real entry is.
    pub source: Source,
}

/// The name that starts at `at`.
fn name_at(names: &[u8], at: u32) -> &CStr {
    let tail = names.get(at as usize..).unwrap_or_default();
    CStr::from_bytes_until_nul(tail).unwrap_or_default()
}

/// A position as a key of [`Merged::items`]; positions fit into 32 bits.
fn key(position: u64) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

impl Merged {
    /// Makes a listing of the gathered entries without the hidden ones. `kept` has the names that were moved
    /// in the directory's last listing.
    fn new(gathered: Gathered, kept: &Moved) -> Self {
        let mut names = gathered.names;
        names.shrink_to_fit();
        let shown: Vec<_> = gathered.entries.iter().filter(|entry| !entry.hidden).collect();
        let bytes: Vec<&[u8]> = shown.iter().map(|entry| name_at(&names, entry.name_at).to_bytes()).collect();
        let (positions, moved) = allot(&bytes, kept);
        let mut merged = Self { moved, devices: gathered.devices, ..Self::default() };
        // In the order in which they were gathered, so that `name_at` only grows.
        for entry in shown.iter().filter(|entry| !entry.more.is_empty()) {
            let at = u32::try_from(merged.dirs.len()).unwrap_or(u32::MAX);
            let len = u16::try_from(entry.more.len() + 1).unwrap_or(u16::MAX);
            merged.parts.push(Parts { name_at: entry.name_at, at, len });
            merged.dirs.push(entry.source);
            merged.dirs.extend_from_slice(&entry.more);
        }
        merged.parts.shrink_to_fit();
        merged.dirs.shrink_to_fit();
        let item = |entry: &gather::Entry| Item {
            ino: entry.ino,
            name_at: entry.name_at,
            source: entry.source,
            kind: entry.kind,
        };
        merged.items =
            positions.iter().map(|&position| key(position)).zip(shown.iter().map(|entry| item(entry))).collect();
        merged.names = names;
        merged
    }

    fn listed(&self, position: u32, item: &Item) -> Listed<'_> {
        Listed {
            name: name_at(&self.names, item.name_at),
            position: u64::from(position),
            id: self.id(item),
            kind: item.kind,
            source: if item.source == UPPER { Source::Upper } else { Source::Lower(item.source) },
        }
    }

    fn id(&self, item: &Item) -> Option<FileId> {
        let device = self.devices.iter().find(|(source, _)| *source == item.source)?.1;
        (item.ino != UNKNOWN_INO).then_some(FileId { device, ino: item.ino })
    }

    fn find(&self, name: &CStr) -> Option<(u32, &Item)> {
        let position = key(self.moved.position(name.to_bytes()));
        let item = self.items.get(&position)?;
        (name_at(&self.names, item.name_at) == name).then_some((position, item))
    }

    fn lower_parts(&self, name: &CStr) -> &[u16] {
        let Some((_, item)) = self.find(name) else { return &[] };
        let found = self.parts.binary_search_by_key(&item.name_at, |parts| parts.name_at);
        let Some(parts) = found.ok().and_then(|index| self.parts.get(index)) else {
            return std::slice::from_ref(&item.source);
        };
        self.dirs.get(parts.at as usize..).and_then(|d| d.get(..usize::from(parts.len))).unwrap_or_default()
    }

    fn remove(&mut self, name: &CStr) {
        let Some((position, _)) = self.find(name) else { return };
        self.items.remove(&position);
        self.moved.remove(name.to_bytes());
        self.spare += name.to_bytes_with_nul().len();
        if self.spare > SPARE && self.spare > self.names.len() / 2 {
            self.drop_spare_names();
        }
    }

    fn drop_spare_names(&mut self) {
        let mut names = Vec::with_capacity(self.names.len().saturating_sub(self.spare));
        for item in self.items.values_mut() {
            let name = name_at(&self.names, item.name_at).to_bytes_with_nul();
            // The new length is not greater than the old one, which fits.
            item.name_at = names.len() as u32;
            names.extend_from_slice(name);
        }
        (self.names, self.spare) = (names, 0);
    }

    /// Returns false if the name cannot be added.
    fn add(&mut self, name: &CStr, id: Option<FileId>, kind: u8, source: u16) -> bool {
        self.remove(name);
        let Ok(name_at) = u32::try_from(self.names.len()) else { return false };
        let known = self.devices.iter().find(|(known, _)| *known == source).map(|(_, device)| *device);
        let ino = match (id, known) {
            (Some(id), Some(device)) if id.device == device => id.ino,
            (Some(id), None) => {
                self.devices.push((source, id.device));
                id.ino
            }
            _ => UNKNOWN_INO,
        };
        let items = &self.items;
        let position = choose_position(name.to_bytes(), &mut self.moved, |position| items.contains_key(&key(position)));
        self.names.extend_from_slice(name.to_bytes_with_nul());
        self.items.insert(key(position), Item { ino, name_at, source, kind });
        true
    }
}

/// Converts an entry of an inventory.
fn listed_in_inventory(device: Device, entry: crate::inventory::Entry<'_>) -> Listed<'_> {
    let record = &entry.record;
    Listed {
        name: entry.name,
        position: record.position,
        id: (!record.must_ask()).then_some(FileId { device, ino: record.ino }),
        kind: record.kind(),
        source: Source::Lower(0),
    }
}

impl Default for Listing {
    fn default() -> Self {
        Self(Form::Merged(Merged::default()))
    }
}

impl Listing {
    /// Merges the lower parts of a directory, topmost first. Whited-out names are left out. `kept` is
    /// [`Self::moved`] of the directory's last listing.
    ///
    /// # Errors
    /// Those of listing. If a layer cannot be read, the whole listing fails, because that layer may hide
    /// entries of others.
    pub(crate) fn of_lowers(parts: &[(&LowerRef, LayerDir<'_>)], kept: &Moved) -> Result<Self, Errno> {
        if let [(part, dir)] = parts
            && !part.xattr_whiteouts
            && let Some((inventory, number)) = dir.shown_by_inventory()
        {
            return Ok(Self(Form::Inventory(inventory, number)));
        }
        let mut gathered = Gathered::default();
        for (index, (part, dir)) in parts.iter().enumerate() {
            let source = u16::try_from(index).map_err(|_| Errno::OVERFLOW)?;
            // With one layer, no name occurs twice.
            if gathered.read(dir, source, part.xattr_whiteouts, parts.len() > 1)? {
                break;
            }
        }
        Ok(Self(Form::Merged(Merged::new(gathered, kept))))
    }

    /// Merges the upper part of a directory with the listing of its lower parts. `kept` is [`Self::moved`] of the
    /// directory's last listing.
    ///
    /// # Errors
    /// Those of listing.
    pub(crate) fn with_upper(
        upper: &Dir,
        xattr_whiteouts: bool,
        lowers: Option<&Self>,
        kept: &Moved,
    ) -> Result<Self, Errno> {
        let mut gathered = Gathered::default();
        let opaque = gathered.read(&LayerDir::Held(upper.clone()), UPPER, xattr_whiteouts, lowers.is_some())?;
        let mut kept = kept.clone();
        for listed in lowers.filter(|_| !opaque).into_iter().flat_map(Self::iter) {
            let Source::Lower(source) = listed.source else { continue };
            let ino = listed.id.map_or(UNKNOWN_INO, |id| id.ino);
            if let Some(id) = listed.id {
                gathered.note_device(source, id.device);
            }
            // The last listing may have been that of the lower parts alone.
            if listed.position != candidate(listed.name.to_bytes(), 0) {
                kept.insert(listed.name.to_bytes(), listed.position);
            }
            gathered.add(listed.name, ino, listed.kind, source, false, false)?;
        }
        Ok(Self(Form::Merged(Merged::new(gathered, &kept))))
    }

    /// True if an upper directory holds anything except whiteouts and marks, which are removed with it.
    ///
    /// # Errors
    /// Those of listing.
    pub(crate) fn has_entries(upper: &Dir, xattr_whiteouts: bool) -> Result<bool, Errno> {
        let mut gathered = Gathered::default();
        gathered.read(&LayerDir::Held(upper.clone()), UPPER, xattr_whiteouts, true)?;
        Ok(gathered.entries.iter().any(|e| !e.hidden))
    }

    /// Names that are not at their first position. While a directory is in use, each listing gets those of the previous
    /// one: otherwise a name could be listed twice or not at all.
    pub fn moved(&self) -> Moved {
        match &self.0 {
            Form::Merged(merged) => merged.moved.clone(),
            // Positions in an inventory depend on its names alone.
            Form::Inventory(..) => Moved::default(),
        }
    }

    /// Removes `name`, as if the listing were made again; the cost is logarithmic in the number of entries. Returns
    /// false if the listing cannot be changed and must be made again.
    pub fn remove(&mut self, name: &CStr) -> bool {
        match &mut self.0 {
            Form::Merged(merged) if merged.parts.is_empty() => {
                merged.remove(name);
                true
            }
            _ => false,
        }
    }

    /// Adds `name`, or replaces the entry of that name; the cost is logarithmic in the number of entries. Without `id`, the
    /// number is looked up when the entry is listed. Returns false if the listing cannot be changed and must be made again.
    pub fn add(&mut self, name: &CStr, id: Option<FileId>, kind: u8, source: Source) -> bool {
        let source = match source {
            Source::Upper => UPPER,
            Source::Lower(index) => index,
        };
        match &mut self.0 {
            Form::Merged(merged) if merged.parts.is_empty() => merged.add(name, id, kind, source),
            _ => false,
        }
    }

    /// The directory in the inventory, if the listing is read from one.
    fn directory(&self) -> Option<(Device, Directory<'_>)> {
        match &self.0 {
            Form::Merged(_) => None,
            Form::Inventory(inventory, number) => Some((inventory.device(), inventory.believed(*number)?)),
        }
    }

    /// True if the listing must not be used any more: its inventory can no longer be read, and entries may already
    /// have been missing.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(&self.0, Form::Inventory(inventory, _) if inventory.is_broken())
    }

    /// The merged items after `position`; none if the listing is read from an inventory.
    fn items(&self, position: u64) -> impl Iterator<Item = Listed<'_>> {
        let merged = match &self.0 {
            Form::Merged(merged) => Some(merged),
            Form::Inventory(..) => None,
        };
        merged.into_iter().flat_map(move |merged| {
            let from = key(position.saturating_add(1));
            merged.items.range(from..).map(|(&position, item)| merged.listed(position, item))
        })
    }

    /// All entries, in order of position.
    pub fn iter(&self) -> impl Iterator<Item = Listed<'_>> {
        self.after(0)
    }

    /// The entries after `position`.
    pub fn after(&self, position: u64) -> impl Iterator<Item = Listed<'_>> {
        let directory = self.directory();
        let known = directory.into_iter().flat_map(move |(device, directory)| {
            let start = directory.first_at(position.saturating_add(1));
            let entries = (start..directory.len()).map_while(move |at| directory.at(at));
            entries.map(move |entry| listed_in_inventory(device, entry))
        });
        self.items(position).chain(known)
    }

    /// The entry called `name`.
    pub fn get(&self, name: &CStr) -> Option<Listed<'_>> {
        match &self.0 {
            Form::Merged(merged) => merged.find(name).map(|(position, item)| merged.listed(position, item)),
            Form::Inventory(..) => {
                let (device, directory) = self.directory()?;
                directory.find(name).map(|entry| listed_in_inventory(device, entry))
            }
        }
    }

    /// The lower parts of the directory `name`, as indices into its parent's, topmost first.
    pub(crate) fn lower_parts(&self, name: &CStr) -> &[u16] {
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

    /// Approximate memory use in bytes.
    pub fn memory(&self) -> usize {
        let Form::Merged(merged) = &self.0 else { return 0 };
        // A full leaf of the tree has 11 entries and 16 further bytes.
        let items = merged.items.len() * (size_of::<u32>() + size_of::<Item>() + 2);
        merged.names.capacity() + items + merged.parts.capacity() * size_of::<Parts>() + merged.dirs.capacity() * 2
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
