//! Extracts entries into the layer directory: what an entry's name means, and the rules of whiteouts.

use std::ffi::OsStr;
use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;

use crate::confined;
use crate::image::layer::attributes;
use crate::image::layer::attributes::{Attributes, Put, Target};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::image::layer::lower_view::{Found, LowerView};
use crate::image::layer::marks::{self, Marks};
use crate::image::layer::path::{components, join, normalise, split};
use crate::image::recipe::RecipeWriter;
use crate::image::unpack::Lowers;
use crate::image::unpack::dirs::Dirs;
use crate::image::unpack::options::UnpackOptions;
use crate::image::unpack::resolve::Missing;
use crate::marks::{AUFS_PREFIX, AufsName, decode_aufs_name};
use crate::tar::limits::Growth;
use crate::tar::read::{Entry, Kind, TarReader};

/// Warnings kept; more of the same kind help nobody.
const WARNINGS: usize = 100;

/// The reader of a layer; the recipe, where one is kept, takes what is not contents.
pub(crate) type Reader<'a, R> = TarReader<'a, R, Option<RecipeWriter>>;

/// What came of extracting.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) depends_on_lower: bool,
    pub(crate) content_size: u64,
    pub(crate) warnings: Vec<String>,
}

/// One layer's extraction.
pub(crate) struct Extractor<'a> {
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) dirs: Dirs<'a>,
    pub(crate) lowers: LowerView<'a>,
    pub(crate) options: &'a UnpackOptions,
    pub(crate) marks: Marks,
    pub(crate) put: Put,
    pub(crate) outcome: Outcome,
    pub(crate) growth: Growth<'a>,
    /// Whiteouts and opaque directories that other entries of this layer replaced: they still hold for the layers
    /// below. Settled at the end.
    pub(crate) buried: Vec<Vec<u8>>,
    lowers_ready: &'a (dyn Fn() -> bool + Sync),
    /// Who writes large files out early.
    pub(crate) to_write_out: Option<SyncSender<File>>,
    root_named: bool,
}

impl<'a> Extractor<'a> {
    pub(crate) fn new(
        root: BorrowedFd<'a>,
        lowers: &'a Lowers<'a>,
        options: &'a UnpackOptions,
        compressed: &'a AtomicU64,
    ) -> Self {
        Self {
            root,
            dirs: Dirs::new(root),
            lowers: LowerView::new(lowers.dirs),
            options,
            marks: options.marks,
            put: Put { keep_ownership: options.keep_ownership },
            outcome: Outcome::default(),
            growth: Growth::new(&options.limits, compressed),
            buried: Vec::new(),
            lowers_ready: lowers.ready,
            to_write_out: None,
            root_named: false,
        }
    }

    /// Extracts all entries.
    pub(crate) fn run<R: BufRead>(mut self, reader: &mut Reader<'_, R>) -> Result<Outcome> {
        while let Some(entry) = reader.next()? {
            self.extract(reader, &entry)?;
        }
        reader.finish()?;
        if !self.root_named {
            self.imply_root()?;
        }
        self.hide_lower_root()?;
        self.settle_buried()?;
        self.dirs.close()?;
        Ok(self.outcome)
    }

    fn extract<R: BufRead>(&mut self, reader: &mut Reader<'_, R>, entry: &Entry) -> Result<()> {
        let path = normalise(&entry.name, self.options.limits.path)?;
        for (name, value) in &entry.xattrs {
            if value.len() > self.options.limits.xattr {
                let what =
                    format!("layer entry {}: attribute {} of {} bytes", printable(&path), printable(name), value.len());
                return Err(LayerError::Limit { what, limit: self.options.limits.xattr as u64, option: "xattr" });
            }
        }
        if entry.text_acl {
            let reason = "an ACL as text (SCHILY.acl) was not kept: it is none, or names users without their numbers";
            self.warn(vec![format!("{}: {reason}", printable(&path))]);
        }
        let Some((parent, name)) = split(&path) else { return self.root(entry) };
        match directory_names(parent, &path)? {
            Names::Bookkeeping => return Ok(()),
            Names::Plain => {}
        }
        match decode_aufs_name(OsStr::from_bytes(name)) {
            AufsName::Bookkeeping => Ok(()),
            AufsName::Opaque => {
                let dir = self.resolve_or_make(parent)?;
                self.make_opaque(&dir)
            }
            AufsName::Whiteout(deleted) => {
                let dir = self.resolve_or_make(parent)?;
                self.whiteout(&dir, deleted.as_bytes())
            }
            AufsName::Plain if name.starts_with(AUFS_PREFIX) => {
                Err(LayerError::entry(&path, "a whiteout that names no entry"))
            }
            AufsName::Plain => {
                let dir = self.resolve_or_make(parent)?;
                self.place(reader, &dir, name, entry)
            }
        }
    }

    pub(crate) fn resolve_or_make(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.resolve(path, Missing::Make)?.ok_or_else(|| LayerError::entry(path, "not a directory"))
    }

    /// The layer's root itself.
    fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(LayerError::entry(&entry.name, "only a directory can be the root"));
        }
        self.root_named = true;
        let attributes = attributes_of(entry)?;
        self.set_directory(b"", &attributes)
    }

    /// The root as the layers below have it.
    fn imply_root(&mut self) -> Result<()> {
        let depended = self.outcome.depends_on_lower;
        let attributes = match self.found_below(b"")? {
            Some(Found::Directory(dir)) => match dir.parts.first() {
                Some(part) => {
                    let (fd, name) = self.lowers.open_parent(part)?;
                    let stat = rustix::fs::fstat(&fd).at(b"")?;
                    attributes::read(fd.as_fd(), name, &stat).at(b"")?.1
                }
                None => Attributes::of_implied_directory(),
            },
            Some(Found::Other(_)) | None => Attributes::of_implied_directory(),
        };
        let usual = Attributes::of_implied_directory();
        let unusual = Attributes { mtime: usual.mtime, ..attributes.clone() } != usual;
        // Nearly no layer names its root, and nearly every root is root's, 0755: such a layer may be shared.
        self.outcome.depends_on_lower = depended || unusual;
        self.set_directory(b"", if unusual { &attributes } else { &usual })
    }

    /// To be called before the lower layers are looked at.
    pub(crate) fn wait_for_lowers(&self) -> Result<()> {
        match (self.lowers_ready)() {
            true => Ok(()),
            false => Err(LayerError::io(b"", std::io::Error::other("a layer below could not be unpacked"))),
        }
    }

    /// Puts attributes on the directory at `path`, in the place of those it has.
    pub(crate) fn set_directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<()> {
        let dir = self.dirs.get(path)?;
        let target = Target {
            fd: Some(dir.as_fd()),
            dir: dir.as_fd(),
            name: b".",
            path,
            override_type: "dir",
            is_symlink: false,
            is_directory: true,
        };
        target.clear_xattrs()?;
        let warnings = target.set(attributes, &self.put, false)?;
        self.warn(warnings);
        self.dirs.changed(path, attributes.mtime)
    }

    pub(crate) fn warn(&mut self, warnings: Vec<String>) {
        let room = WARNINGS.saturating_sub(self.outcome.warnings.len());
        self.outcome.warnings.extend(warnings.into_iter().take(room));
    }

    fn make_opaque(&mut self, path: &[u8]) -> Result<()> {
        let dir = self.dirs.get(path)?;
        self.marks.put_opaque(dir.as_fd(), path)
    }

    /// An opaque root says nothing to overlay file systems (the kernel merges all roots), so every name of the lower
    /// root is hidden by itself.
    fn hide_lower_root(&mut self) -> Result<()> {
        let root = self.dirs.get(b"")?;
        if !marks::hides_lower(root.as_fd()).at(b"")? {
            return Ok(());
        }
        self.outcome.depends_on_lower = true;
        if self.lowers.is_empty() {
            return Ok(());
        }
        self.wait_for_lowers()?;
        let lower = self.lowers.root()?;
        for name in self.lowers.names(&lower)? {
            self.whiteout(b"", &name)?;
        }
        Ok(())
    }

    /// `.wh.NAME`: deletes the name in the layers below, not what this layer itself has by that name.
    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        let path = join(parent, name);
        let dir = self.dirs.get(parent)?;
        match confined::stat_entry(dir.as_fd(), name).at(&path)? {
            None => self.marks.put_whiteout(dir.as_fd(), name, &path),
            Some(stat) if marks::is_whiteout(dir.as_fd(), name, &stat).at(&path)? => Ok(()),
            Some(_) => {
                self.buried.push(path);
                Ok(())
            }
        }
    }

    /// Gives the replaced whiteouts their effect: a directory in the place of one is opaque; anything else hides
    /// the lower name by being there.
    fn settle_buried(&mut self) -> Result<()> {
        for path in std::mem::take(&mut self.buried) {
            let Some((parent, name)) = split(&path) else {
                self.make_opaque(b"")?;
                continue;
            };
            if confined::open_dir(self.root, parent).is_err() {
                continue;
            }
            let dir = self.dirs.get(parent)?;
            match confined::stat_entry(dir.as_fd(), name).at(&path)? {
                None => self.marks.put_whiteout(dir.as_fd(), name, &path)?,
                Some(stat) if attributes::FileKind::of(&stat) == attributes::FileKind::Directory => {
                    self.make_opaque(&path)?
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// What the directories in an entry's name are.
enum Names {
    Plain,
    /// AUFS' own.
    Bookkeeping,
}

fn directory_names(parent: &[u8], path: &[u8]) -> Result<Names> {
    match components(parent).find(|name| name.starts_with(AUFS_PREFIX)) {
        None => Ok(Names::Plain),
        Some(name) if decode_aufs_name(OsStr::from_bytes(name)) == AufsName::Bookkeeping => Ok(Names::Bookkeeping),
        Some(_) => Err(LayerError::entry(path, "an entry below a whiteout")),
    }
}

/// The attributes that an entry gives its file.
///
/// # Errors
/// When it has an owner that Linux has not.
pub(crate) fn attributes_of(entry: &Entry) -> Result<Attributes> {
    // 4294967295 is no owner: chown(2) takes it as "leave".
    let id = |value: i128, what: &str| {
        let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| LayerError::entry(&entry.name, format!("its {what} {value} is out of range")))
    };
    let (uid, gid) = (id(entry.uid, "uid")?, id(entry.gid, "gid")?);
    Ok(Attributes { mode: entry.mode, uid, gid, mtime: entry.mtime, xattrs: entry.xattrs.clone() })
}

/// The device numbers of an entry that is a device.
///
/// # Errors
/// When they have more bits than Linux' `dev_t`; mknod(2) would cut them off.
pub(crate) fn device_of(name: &[u8], major: i128, minor: i128) -> Result<(u32, u32)> {
    let number = |part: i128, bits: u32| {
        let part = u32::try_from(part).ok().filter(|part| part >> bits == 0);
        part.ok_or_else(|| LayerError::entry(name, "its device number is out of range"))
    };
    Ok((number(major, 12)?, number(minor, 20)?))
}
