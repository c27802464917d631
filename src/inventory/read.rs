//! Reading an inventory. Nothing is used before its checksum and its directory have been checked.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::position::candidate;
use zerocopy::FromBytes;

use super::record::{BadHeader, Header};
use super::{DirNumber, DirRecord, Record, Unusable};
use crate::confined;
use crate::sys::mapping::Mapping;

/// The inventory of a layer, mapped into memory.
#[derive(Debug)]
pub struct Inventory {
    map: Mapping,
    header: Header,
    path: PathBuf,
    device: (u32, u32),
    /// True if "no extended attributes" in it is valid for this process too.
    knows_xattrs: bool,
    /// For each directory, whether it is trusted.
    beliefs: Box<[AtomicU8]>,
    /// Number of directory lookups.
    uses: AtomicU32,
    /// True if the log already says that the inventory does not match the layer.
    told: AtomicBool,
}

/// After this many lookups, the process releases the pages that it has used. Otherwise it would come to hold the whole file, 100
/// MB for a million names. They stay in the page cache, where the next use finds them again; compared with 512 lookups, that
/// costs little.
const RELEASE: u32 = 512;

/// In [`Inventory::beliefs`]: not checked yet.
const UNKNOWN: u8 = 0;
const BELIEVED: u8 = 1;
const DISBELIEVED: u8 = 2;

/// A directory in an inventory.
#[derive(Clone, Copy, Debug)]
pub struct Directory<'a> {
    record: DirRecord,
    records: &'a [u8],
    names: &'a [u8],
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The name.
    pub name: &'a CStr,
    /// The file's record.
    pub record: Record,
}

/// The record of `path` below `root`, and its file system. No component of the path is a symbolic link.
pub(super) fn record_of(root: BorrowedFd<'_>, path: &CStr) -> Result<(Record, (u32, u32)), Errno> {
    let held;
    let (dir, path) = match path.to_bytes().iter().rposition(|&byte| byte == b'/') {
        None => (root, path),
        Some(slash) => {
            let (above, name) = path.to_bytes_with_nul().split_at_checked(slash).ok_or(Errno::INVAL)?;
            held = confined::beneath(root, above, OFlags::PATH | OFlags::DIRECTORY)?;
            let name = name.strip_prefix(b"/").and_then(|name| CStr::from_bytes_with_nul(name).ok());
            (held.as_fd(), name.ok_or(Errno::INVAL)?)
        }
    };
    let flags = if path.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(dir, path, flags | AtFlags::NO_AUTOMOUNT, mask)?;
    Ok((Record::of(&stat, true, false, false), (stat.stx_dev_major, stat.stx_dev_minor)))
}

impl Inventory {
    /// Opens the inventory of the layer with the root `root`, which is the directory `dir`.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(root: BorrowedFd<'_>, dir: &Path) -> Result<Self, Unusable> {
        // The inventory is beside the directory itself, not beside a symbolic link to it.
        let dir = dir.canonicalize().map_err(|_| Unusable::Absent)?;
        let path = super::path_of(&dir).ok_or(Unusable::Absent)?;
        Self::open_at(root, &path)
    }

    fn open_at(root: BorrowedFd<'_>, path: &Path) -> Result<Self, Unusable> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            // An inventory that this user may not read counts as missing.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::PERM) => return Err(Unusable::Absent),
            Err(errno) => return Err(Unusable::Unreadable(errno)),
        };
        let unreadable =
            |error: std::io::Error| Unusable::Unreadable(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(Unusable::Damaged("not a regular file"));
        }
        let trusted = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
        if !trusted || metadata.mode() & 0o022 != 0 {
            return Err(Unusable::Untrusted);
        }
        let length = usize::try_from(metadata.len()).map_err(|_| Unusable::Damaged("too long"))?;
        if length < Header::SIZE {
            return Err(Unusable::Damaged("too short"));
        }
        let map = Mapping::new(file.as_fd(), length).map_err(Unusable::Unreadable)?;
        let header = Header::decode(map.bytes()).map_err(|bad| match bad {
            BadHeader::Version => Unusable::Version,
            BadHeader::Damaged => Unusable::Damaged("its header"),
        })?;
        let dirs_length = u64::from(header.dirs).checked_mul(DirRecord::SIZE as u64);
        let end = dirs_length.and_then(|length| header.dirs_at.checked_add(length));
        if header.length != metadata.len() || end != Some(header.length) {
            return Err(Unusable::Damaged("its length"));
        }
        if header.namespace != super::namespace() {
            return Err(Unusable::Namespace);
        }
        let (_, device) = record_of(root, c"").map_err(Unusable::Unreadable)?;
        let beliefs = (0..header.dirs).map(|_| AtomicU8::new(UNKNOWN)).collect();
        let knows_xattrs = header.saw_trusted() || !super::sees_trusted();
        let path = path.to_owned();
        let inventory = Self {
            map,
            header,
            path,
            device,
            knows_xattrs,
            beliefs,
            uses: AtomicU32::new(0),
            told: AtomicBool::new(false),
        };
        match inventory.judge(DirNumber::ROOT, root, c"") {
            Ok(()) => Ok(inventory),
            Err(why) => Err(why),
        }
    }

    /// The file system of the layer.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of directories, and of names in them.
    pub fn counts(&self) -> (u32, u64) {
        (self.header.dirs, self.header.entries)
    }

    /// True if its statements about missing extended attributes are valid for this process: its maker could
    /// see at least as much.
    pub(crate) fn knows_xattrs(&self) -> bool {
        self.knows_xattrs
    }

    /// Directory `number`, which is `path` below the layer's root `root`, if it can be trusted. The first call for
    /// a directory costs a system call.
    pub fn directory(&self, number: DirNumber, root: BorrowedFd<'_>, path: &CStr) -> Option<Directory<'_>> {
        let belief = self.beliefs.get(number.index())?;
        match belief.load(Ordering::Acquire) {
            _ if self.is_broken() => return None,
            BELIEVED => {}
            UNKNOWN => match self.judge(number, root, path) {
                Ok(()) => belief.store(BELIEVED, Ordering::Release),
                Err(why) => {
                    self.disbelieve(number, &why);
                    return None;
                }
            },
            _ => return None,
        }
        if self.uses.fetch_add(1, Ordering::Relaxed) % RELEASE == RELEASE - 1 {
            self.map.release();
        }
        self.raw(number).map(|(_, directory)| directory)
    }

    /// True if reading a part of the file has failed since it was opened. Check this after using the file:
    /// the bytes used may have been zeros.
    pub(crate) fn is_broken(&self) -> bool {
        let broken = self.map.is_broken();
        if broken && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("{}: cannot be read any more, and is not used from now on", self.path.display());
        }
        broken
    }

    /// A directory that was trusted before.
    pub fn believed(&self, number: DirNumber) -> Option<Directory<'_>> {
        self.raw(number).map(|(_, directory)| directory)
    }

    /// From now on, reads directory `number` from the layer, because of `why`.
    pub(crate) fn disbelieve(&self, number: DirNumber, why: &Unusable) {
        if let Some(belief) = self.beliefs.get(number.index()) {
            belief.store(DISBELIEVED, Ordering::Release);
        }
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("{}: not used for a part of its layer: {why}", self.path.display());
        }
    }

    pub(super) fn judge(&self, number: DirNumber, root: BorrowedFd<'_>, path: &CStr) -> Result<(), Unusable> {
        let (block, directory) = self.raw(number).ok_or(Unusable::Damaged("a directory"))?;
        if !directory.record.is_sound(number.get(), block) {
            return Err(Unusable::Damaged("a directory"));
        }
        let (found, device) = record_of(root, path).map_err(|_| Unusable::Stale)?;
        // Another file system may be mounted over it.
        if self.is_broken() {
            return Err(Unusable::Damaged("it cannot be read any more"));
        }
        let same = device == self.device && directory.record.own.is_unchanged(&found);
        if same { Ok(()) } else { Err(Unusable::Stale) }
    }

    /// The block of directory `number`, and the directory.
    fn raw(&self, number: DirNumber) -> Option<(&[u8], Directory<'_>)> {
        if number.index() >= self.beliefs.len() {
            return None;
        }
        let at = usize::try_from(self.header.dirs_at).ok()?.checked_add(number.index() * DirRecord::SIZE)?;
        let (record, _) = DirRecord::read_from_prefix(self.map.bytes().get(at..)?).ok()?;
        let block = record.block(self.map.bytes())?;
        let (records, names) = block.split_at_checked(record.entries as usize * Record::SIZE)?;
        Some((block, Directory { record, records, names }))
    }
}

impl<'a> Directory<'a> {
    /// Number of names.
    pub fn len(&self) -> usize {
        self.record.entries as usize
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.record.entries == 0
    }

    /// The directory's own record.
    pub fn own(&self) -> &Record {
        &self.record.own
    }

    /// True if no name is a whiteout by its device number, or refers to another name (`.wh.…`).
    pub(crate) fn is_plain(&self) -> bool {
        self.record.is_plain()
    }

    fn bytes_at(&self, index: usize) -> Option<&'a [u8]> {
        self.records.get(index.checked_mul(Record::SIZE)?..)?.get(..Record::SIZE)
    }

    /// The entry at `index`, in the order of positions.
    pub fn at(&self, index: usize) -> Option<Entry<'a>> {
        let record = Record::read_from_bytes(self.bytes_at(index)?).ok()?;
        let name = CStr::from_bytes_until_nul(self.names.get(record.name_at as usize..)?).ok()?;
        Some(Entry { name, record })
    }

    /// All entries, in the order of positions.
    pub fn iter(self) -> impl Iterator<Item = Entry<'a>> {
        (0..self.len()).map_while(move |index| self.at(index))
    }

    /// Index of the first entry at or after `position`.
    pub(crate) fn first_at(&self, position: u64) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self
                .bytes_at(middle)
                .and_then(|record| Record::read_from_bytes(record).ok())
                .map(|record| record.position)
            {
                Some(found) if found < position => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    /// The entry called `name`.
    pub fn find(&self, name: &CStr) -> Option<Entry<'a>> {
        // Each candidate taken by another name leaves one name fewer, so the search ends.
        for attempt in 0..=self.len() as u64 {
            let position = candidate(name.to_bytes(), attempt);
            let entry = self.at(self.first_at(position)).filter(|entry| entry.record.position == position)?;
            if entry.name == name {
                return Some(entry);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If a directory on the path becomes a symbolic link, the path leads nowhere, neither inside nor outside the layer.
    #[test]
    fn no_component_of_a_path_is_a_link() {
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        std::fs::create_dir_all(dir.path().join("a/b/c")).expect("made");
        for (target, name) in [("a", "inside"), ("/", "outside")] {
            std::os::unix::fs::symlink(target, dir.path().join(name)).expect("linked");
        }
        let root = std::fs::File::open(dir.path()).expect("opened");
        let found = |path: &CStr| record_of(root.as_fd(), path).map(|(record, _)| record.kind());
        assert_eq!((found(c""), found(c"a/b/c")), (Ok(libc::DT_DIR), Ok(libc::DT_DIR)));
        assert_eq!(found(c"inside"), Ok(libc::DT_LNK));
        for path in [c"inside/b", c"inside/b/c", c"outside/etc"] {
            assert!(matches!(found(path), Err(Errno::LOOP | Errno::NOTDIR)), "{path:?}: {:?}", found(path));
        }
    }
}
