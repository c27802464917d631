//! Writes the changes in an upper directory as an OCI layer tar. The same changes give the same bytes: names are
//! sorted, there are no user and group names and no access and change times, and no time is later than
//! `SOURCE_DATE_EPOCH`.

mod changes;
mod compare;
pub(crate) mod walk;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use crate::image::digest::{Digest, DigestWriter};
use crate::image::layer::attributes::{self, Attributes, FileKind, OverrideKey};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::image::layer::path::{join, split};
use crate::image::snapshot::walk::{Changed, Visit, walk, walk_whole};
use crate::marks::{AUFS_OPAQUE, AUFS_PREFIX};
use crate::tar::Time;
use crate::tar::write::{self, EntryType};
pub use crate::union::layer::XattrPermissions;
use crate::union::layer::override_key;
pub use changes::{Change, ChangeKind, changes, changes_without};
pub use compare::compare;
pub use walk::Omitted;

/// How a snapshot is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Times later than this, in seconds since the epoch, are set to it (<https://reproducible-builds.org/specs/source-date-epoch/>).
    pub source_date_epoch: Option<i64>,
    /// Where the union that wrote the upper stores owner, mode and type of files: its mount's `xattr_permissions`.
    pub permissions: XattrPermissions,
}

/// The result of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Digest of the tar stream, which is not compressed.
    pub diff_id: Digest,
    /// Bytes of the stream.
    pub size: u64,
    /// Entries in it.
    pub entries: u64,
    /// Entries that a layer cannot hold and that were left out (sockets), one line each.
    pub warnings: Vec<String>,
}

/// Writes the changes in the upper directory `upper` over `lowers` (topmost first) as an OCI layer tar.
/// Whiteouts of every form become `.wh.NAME`, opaque directories get a `.wh..wh..opq`, and renamed lower
/// directories are written in full under their new names.
///
/// # Errors
/// [`LayerError`], naming the file that cannot be read or written. The upper directory must not change in the meantime.
pub fn snapshot(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    out: &mut dyn Write,
    options: &SnapshotOptions,
) -> Result<Snapshot> {
    snapshot_without(upper, lowers, &Omitted::default(), out, options)
}

/// Like [`snapshot`], without some paths of the upper.
///
/// # Errors
/// As for [`snapshot`].
pub fn snapshot_without(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    omitted: &Omitted,
    out: &mut dyn Write,
    options: &SnapshotOptions,
) -> Result<Snapshot> {
    let key = key_of(options.permissions, Some(upper), lowers)?;
    let mut writer = Writer::new(out, options, root_differs(upper, lowers, key)?);
    walk(upper, lowers, omitted, key, &mut writer)?;
    writer.end()
}

/// Writes the merged tree of `layers` (topmost first) as a tar.
///
/// # Errors
/// As for [`snapshot`].
pub fn flatten(layers: &[BorrowedFd<'_>], out: &mut dyn Write, options: &SnapshotOptions) -> Result<Snapshot> {
    let mut writer = Writer::new(out, options, true);
    walk_whole(layers, key_of(options.permissions, None, layers)?, &mut writer)?;
    writer.end()
}

/// True if the root directory itself was changed: its owner, mode or attributes. Its time does not count, because
/// every new file in it changes the time.
fn root_differs(upper: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>], key: Option<OverrideKey>) -> Result<bool> {
    let root_of = |dir: BorrowedFd<'_>| {
        let stat = rustix::fs::fstat(dir).at(b"")?;
        let (_, attributes) = attributes::read(dir, b".", &stat, key).at(b"")?;
        Ok::<_, LayerError>(Attributes { mtime: Time::default(), ..attributes })
    };
    match lowers.first() {
        Some(lower) => Ok(root_of(upper)? != root_of(*lower)?),
        None => Ok(true),
    }
}

/// Where the union of these layers stores owner, mode and type of files, if not in the inodes.
fn key_of(
    permissions: XattrPermissions,
    upper: Option<BorrowedFd<'_>>,
    lowers: &[BorrowedFd<'_>],
) -> Result<Option<OverrideKey>> {
    override_key(permissions, upper.into_iter().chain(lowers.iter().copied())).at(b"")
}

struct Writer<'w> {
    out: DigestWriter<io::BufWriter<&'w mut dyn Write>>,
    options: &'w SnapshotOptions,
    root_shown: bool,
    /// First names of files that have several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
    warnings: Vec<String>,
    buffer: Vec<u8>,
}

fn out_error(source: io::Error) -> LayerError {
    LayerError::Io { place: "writing the layer tar".into(), source }
}

impl Visit for Writer<'_> {
    fn visit(&mut self, path: &[u8], change: &walk::Visited<'_>) -> Result<()> {
        let (parent, name) = split(path).unwrap_or_default();
        if name.starts_with(AUFS_PREFIX) {
            return Err(LayerError::entry(
                path,
                "a layer cannot hold or delete a file of this name: it would be a whiteout",
            ));
        }
        match change {
            walk::Visited::Directory { attributes, opaque, .. } => {
                if !path.is_empty() || self.root_shown {
                    let name = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
                    self.header(&name, EntryType::Directory, attributes)?;
                }
                if *opaque { self.mark(&join(path, AUFS_OPAQUE)) } else { Ok(()) }
            }
            walk::Visited::Whiteout => {
                let name = [AUFS_PREFIX, name].concat();
                if name.len() > crate::image::layer::path::NAME_MAX {
                    // The name would be refused as too long when the tar is read, so this format cannot
                    // express the deletion.
                    return Err(LayerError::entry(path, "its name is too long to be deleted by a layer"));
                }
                self.mark(&join(parent, &name))
            }
            walk::Visited::File(changed) => self.file(path, changed),
        }
    }
}

impl<'w> Writer<'w> {
    fn new(out: &'w mut dyn Write, options: &'w SnapshotOptions, root_shown: bool) -> Self {
        Self {
            out: DigestWriter::new(io::BufWriter::with_capacity(256 << 10, out)),
            options,
            root_shown,
            links: HashMap::new(),
            entries: 0,
            warnings: Vec::new(),
            buffer: vec![0; 256 << 10],
        }
    }

    fn end(mut self) -> Result<Snapshot> {
        write::end(&mut self.out).map_err(out_error)?;
        let (mut buffered, diff_id, size) = self.out.finish();
        buffered.flush().map_err(out_error)?;
        Ok(Snapshot { diff_id, size, entries: self.entries, warnings: self.warnings })
    }

    /// An empty file whose name is a mark.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        self.header(path, EntryType::File(0), &Attributes { mode: 0o600, ..Attributes::default() })
    }

    fn header(&mut self, name: &[u8], kind: EntryType<'_>, attributes: &Attributes) -> Result<()> {
        self.entries += 1;
        let mtime = match self.options.source_date_epoch {
            Some(epoch) if attributes.mtime.seconds >= epoch => Time { seconds: epoch, nanoseconds: 0 },
            _ => attributes.mtime,
        };
        let attributes = Attributes { mtime, ..attributes.clone() };
        write::header(&mut self.out, name, kind, &attributes).map_err(out_error)
    }

    fn file(&mut self, path: &[u8], changed: &Changed<'_>) -> Result<()> {
        if changed.kind == FileKind::Socket {
            self.warnings.push(format!("{}: a socket; left out", printable(path)));
            return Ok(());
        }
        if changed.stat.st_nlink > 1 {
            let identity = (changed.stat.st_dev, changed.stat.st_ino);
            if let Some(first) = self.links.get(&identity).cloned() {
                return self.header(path, EntryType::HardLink(&first), &changed.attributes);
            }
            self.links.insert(identity, path.to_vec());
        }
        match changed.kind {
            FileKind::Regular => self.contents(path, changed),
            FileKind::Symlink => {
                let link = changed.link().at(path)?;
                self.header(path, EntryType::Symlink(&link), &changed.attributes)
            }
            FileKind::CharDevice(0, 0) => {
                Err(LayerError::entry(path, "a layer cannot hold a character device 0:0: it would be a whiteout"))
            }
            FileKind::CharDevice(major, minor) => {
                self.header(path, EntryType::CharDevice(major, minor), &changed.attributes)
            }
            FileKind::BlockDevice(major, minor) => {
                self.header(path, EntryType::BlockDevice(major, minor), &changed.attributes)
            }
            FileKind::Fifo => self.header(path, EntryType::Fifo, &changed.attributes),
            FileKind::Directory | FileKind::Socket => Err(LayerError::entry(path, "not a file")),
        }
    }

    fn contents(&mut self, path: &[u8], changed: &Changed<'_>) -> Result<()> {
        let size = u64::try_from(changed.stat.st_size).unwrap_or(0);
        self.header(path, EntryType::File(size), &changed.attributes)?;
        if size == 0 {
            return Ok(());
        }
        let mut file = File::from(changed.open()?);
        let mut left = size;
        while left > 0 {
            let wanted = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let part = self.buffer.get_mut(..wanted).unwrap_or_default();
            let count = match file.read(part) {
                Ok(0) => return Err(LayerError::entry(path, "it shrank while it was read")),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LayerError::io(path, error)),
            };
            self.out.write_all(part.get(..count).unwrap_or_default()).map_err(out_error)?;
            left -= count as u64;
        }
        write::pad(&mut self.out, size).map_err(out_error)
    }
}
