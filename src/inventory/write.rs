//! Makes an inventory.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::position::{Moved, allot};
use zerocopy::IntoBytes;

use super::record::Header;
use super::{DirRecord, Record};
use crate::confined::{self, Dir};
use crate::marks::{AufsName, Namespace, decode_aufs_name};
use crate::sys::xattr::{self, Target};

/// The result of writing an inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Number of directories in it.
    pub directories: u32,
    /// Number of names in them.
    pub entries: u64,
    /// Its size.
    pub bytes: u64,
}

/// Within this time, a kernel without fine-grained timestamps may give two changes the same time. A change
/// after the directory was read must not look like the previous one.
const TICK: Duration = Duration::from_millis(10);

/// Writes the inventory of the layer directory `dir` beside it, and replaces an old one. The layer must not change in
/// the meantime; if it does, the inventory will not be used. The file is not flushed to the disk: after a crash, an
/// incomplete one is recognized as damaged.
///
/// # Errors
/// When the layer cannot be read, or the file cannot be written; an old one is then kept.
pub fn write(dir: &Path) -> io::Result<Written> {
    match write_while(dir, &|| true)? {
        Some(written) => Ok(written),
        None => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// Like [`write`], but calls `wanted` between directories: if it returns false, nothing is written, and the result is `None`.
///
/// # Errors
/// Those of [`write`].
pub(crate) fn write_while(dir: &Path, wanted: &dyn Fn() -> bool) -> io::Result<Option<Written>> {
    let dir = dir.canonicalize()?;
    let path = super::path_of(&dir)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "this directory has no place beside it"))?;
    let beside = dir.parent().unwrap_or(Path::new("/"));
    std::thread::sleep(TICK);
    let root = Dir::open_root(&dir)?;
    // Readable by its owner only: it lists directories that others may not read.
    let stage = Stage::new(beside)?;
    let mut scan = Scan::new(root, BufWriter::with_capacity(1 << 18, stage.file()))?;
    if !scan.run(wanted)? {
        return Ok(None);
    }
    let (directories, entries, bytes) = scan.finish()?;
    stage.publish(&path)?;
    Ok(Some(Written { path, directories, entries, bytes }))
}

/// The file while it is being written.
enum Stage {
    /// Without a name, so a crash leaves nothing.
    Nameless(File),
    /// On a file system without `O_TMPFILE`.
    Named(tempfile::NamedTempFile),
}

impl Stage {
    fn new(beside: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(beside, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self::Nameless(file.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => Ok(Self::Named(Self::named(beside)?)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn named(beside: &Path) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix(".inventory-").tempfile_in(beside)
    }

    fn file(&self) -> &File {
        match self {
            Self::Nameless(file) => file,
            Self::Named(file) => file.as_file(),
        }
    }

    /// Gives the file its name; an old one is replaced.
    fn publish(self, path: &Path) -> io::Result<()> {
        let file = match self {
            Self::Named(file) => return file.persist(path).map(drop).map_err(|error| error.error),
            Self::Nameless(file) => file,
        };
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = |to: &Path| rustix::fs::linkat(CWD, own.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW);
        match link(path) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                // Only a rename can replace a file.
                let beside = path.parent().unwrap_or(Path::new("/"));
                let stage = Self::named(beside)?;
                let name = stage.into_temp_path();
                std::fs::remove_file(&name)?;
                link(&name)?;
                name.persist(path).map_err(|error| error.error)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

struct Scan<'f> {
    root: Dir,
    mount: u64,
    device: (u32, u32),
    out: BufWriter<&'f File>,
    /// Number of bytes written.
    length: u64,
    /// Finished records, in the order of their numbers.
    dirs: Vec<DirRecord>,
    /// Paths of the directories still to be read, in the order of their numbers.
    waiting: VecDeque<CString>,
    /// The last directory number that was given out.
    last: u32,
    entries: u64,
}

/// A name in the directory that is being read.
struct Scanned {
    name: CString,
    record: Record,
}

fn statx(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx, Errno> {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    rustix::fs::statx(dir, name, flags | AtFlags::NO_AUTOMOUNT, mask)
}

impl<'f> Scan<'f> {
    fn new(root: Dir, mut out: BufWriter<&'f File>) -> io::Result<Self> {
        let stat = statx(root.as_fd(), c"")?;
        out.write_all(&[0; Header::SIZE])?;
        Ok(Self {
            root,
            mount: stat.stx_mnt_id,
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            out,
            length: Header::SIZE as u64,
            dirs: Vec::new(),
            waiting: VecDeque::from([CString::default()]),
            last: 1,
            entries: 0,
        })
    }

    /// Reads every directory; returns false if the work is no longer wanted.
    fn run(&mut self, wanted: &dyn Fn() -> bool) -> io::Result<bool> {
        while let Some(path) = self.waiting.pop_front() {
            if !wanted() {
                return Ok(false);
            }
            self.directory(&path)?;
        }
        Ok(true)
    }

    /// Writes the directory records and the header; returns the number of directories, names and bytes.
    fn finish(mut self) -> io::Result<(u32, u64, u64)> {
        let length = self.length + (self.dirs.len() * DirRecord::SIZE) as u64;
        let header =
            Header::new(super::sees_trusted(), length, self.length, self.last, super::namespace(), self.entries);
        for record in &self.dirs {
            self.out.write_all(record.as_bytes())?;
        }
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(header.as_bytes())?;
        self.out.flush()?;
        Ok((self.last, self.entries, header.length))
    }

    fn open(&self, path: &CStr) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let open = |flags| confined::beneath(self.root.as_fd(), path.to_bytes(), flags);
        match open(flags | OFlags::NOATIME) {
            // Only the owner and CAP_FOWNER may use O_NOATIME.
            Err(Errno::PERM) => Ok(open(flags)?),
            opened => Ok(opened?),
        }
    }

    fn record(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Record> {
        let stat = statx(dir, name)?;
        // Anything mounted in the layer is not part of it.
        let same_device = (stat.stx_dev_major, stat.stx_dev_minor) == self.device && stat.stx_mnt_id == self.mount;
        let mut names = [0; 1024];
        let (no_xattrs, no_marks) = match xattr::list(Target { dir, name }, &mut names) {
            Ok(length) => {
                let listed = names.get(..length).unwrap_or_default();
                let is_mark = |key: &[u8]| Namespace::ALL.iter().any(|n| key.starts_with(n.prefix().as_bytes()));
                (length == 0, !listed.split(|&byte| byte == 0).any(is_mark))
            }
            Err(Errno::OPNOTSUPP) => (true, true),
            // They are too many or unreadable, so readers must ask the layer.
            Err(_) => (false, false),
        };
        Ok(Record::of(&stat, same_device, no_xattrs, no_marks))
    }

    fn directory(&mut self, path: &CStr) -> io::Result<()> {
        let dir = self.open(path).map_err(|error| naming(path, &error))?;
        // Taken before its names are read: a later change shows in its times.
        let own = self.record(dir.as_fd(), c"")?;
        let mut scanned = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let name = entry?.file_name().to_owned();
            if name.as_c_str() == c"." || name.as_c_str() == c".." {
                continue;
            }
            let record = self.record(dir.as_fd(), &name).map_err(|error| naming(&below(path, &name), &error))?;
            scanned.push(Scanned { name, record });
        }
        let names: Vec<&[u8]> = scanned.iter().map(|scanned| scanned.name.to_bytes()).collect();
        let (positions, _) = allot(&names, &Moved::default());
        for (scanned, position) in scanned.iter_mut().zip(positions) {
            scanned.record.position = position;
        }
        scanned.sort_unstable_by_key(|scanned| scanned.record.position);
        self.write_block(path, own, scanned)
    }

    fn write_block(&mut self, path: &CStr, own: Record, scanned: Vec<Scanned>) -> io::Result<()> {
        let too_many = |_| io::Error::new(io::ErrorKind::FileTooLarge, "too many names in one directory");
        let entries = u32::try_from(scanned.len()).map_err(too_many)?;
        let mut plain = true;
        let mut block = Vec::with_capacity(scanned.len() * (Record::SIZE + 16));
        let mut names = Vec::new();
        for Scanned { name, mut record } in scanned {
            record.name_at = u32::try_from(names.len()).map_err(too_many)?;
            names.extend_from_slice(name.to_bytes_with_nul());
            let is_whiteout = record.kind() == libc::DT_CHR && record.special == [0, 0];
            let is_special = decode_aufs_name(OsStr::from_bytes(name.to_bytes())) != AufsName::Plain;
            plain &= !is_whiteout && !is_special;
            if record.kind() == libc::DT_DIR {
                record.special = [self.number(path, &name, &record), 0];
            }
            block.extend_from_slice(record.as_bytes());
        }
        let length_of_names = u32::try_from(names.len()).map_err(too_many)?;
        block.extend_from_slice(&names);
        self.out.write_all(&block)?;
        let number = u32::try_from(self.dirs.len() + 1).map_err(too_many)?;
        self.dirs.push(DirRecord::new(own, plain, (number, entries, length_of_names), self.length, &block));
        self.length += block.len() as u64;
        self.entries += u64::from(entries);
        Ok(())
    }

    /// The number that the directory `name` in `parent` gets in the inventory; 0 if it is left out.
    fn number(&mut self, parent: &CStr, name: &CStr, record: &Record) -> u32 {
        /// Longer paths must be walked in steps.
        const LONGEST_PATH: usize = 3800;
        let path = below(parent, name);
        if record.must_ask() || path.count_bytes() > LONGEST_PATH || self.last == u32::MAX {
            return 0;
        }
        self.waiting.push_back(path);
        self.last += 1;
        self.last
    }
}

pub(super) fn below(parent: &CStr, name: &CStr) -> CString {
    let mut path = parent.to_bytes().to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
    // Neither part holds a NUL.
    CString::new(path).unwrap_or_default()
}

fn naming(path: &CStr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.to_string_lossy()))
}
