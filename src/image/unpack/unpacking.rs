//! The state of unpacking one layer, and functions that all its parts use on the layer's directory.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{Attributes, FileKind, MadeFile, Put};
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::image::layer::lower_view::{LowerEntry, LowerView};
use crate::image::layer::marks::{self, MarkStyle};
use crate::image::layer::path::pop;
use crate::image::recipe::RecipeWriter;
use crate::image::unpack::dirs::{Dirs, HeldDir};
use crate::image::unpack::options::{Lowers, UnpackOptions};
use crate::tar::limits::Growth;
use crate::tar::read::TarReader;
use crate::union::layer::override_key;

/// The reader of a layer. The recipe, if one is written, receives everything except the contents of files.
pub(crate) type Reader<'a, R> = TarReader<'a, R, Option<RecipeWriter>>;

/// Maximum number of warnings that are kept.
const WARNINGS: usize = 100;

/// The result of extracting.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) depends_on_lower: bool,
    pub(crate) content_size: u64,
    pub(crate) warnings: Vec<String>,
}

/// The unpacking of one layer: the new directory, the layers below, and the result so far.
pub(crate) struct Unpacking<'a> {
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) dirs: Dirs<'a>,
    pub(crate) lowers: LowerView,
    pub(crate) options: &'a UnpackOptions,
    pub(crate) marks: MarkStyle,
    pub(crate) put: Put,
    pub(crate) outcome: Outcome,
    pub(crate) growth: Growth<'a>,
    /// Whiteouts and opaque directories that other entries of this layer replaced: they still apply to the layers
    /// below. Applied at the end.
    pub(crate) buried: Vec<Vec<u8>>,
    lowers_ready: &'a (dyn Fn() -> bool + Sync),
    /// The thread that writes large files out early.
    pub(crate) to_write_out: Option<SyncSender<File>>,
    pub(super) root_named: bool,
}

impl<'a> Unpacking<'a> {
    pub(crate) fn new(
        root: BorrowedFd<'a>,
        lowers: &'a Lowers<'a>,
        options: &'a UnpackOptions,
        compressed: &'a AtomicU64,
    ) -> Result<Self> {
        Ok(Self {
            root,
            dirs: Dirs::new(root),
            lowers: LowerView::of_unfinished(lowers.dirs, override_key(options.permissions(), []).at(b"")?)?,
            options,
            marks: options.marks,
            put: Put { keep_ownership: options.keep_ownership },
            outcome: Outcome::default(),
            growth: Growth::new(&options.limits, compressed),
            buried: Vec::new(),
            lowers_ready: lowers.ready,
            to_write_out: None,
            root_named: false,
        })
    }

    /// Must be called before the lower layers are used.
    pub(crate) fn wait_for_lowers(&self) -> Result<()> {
        match (self.lowers_ready)() {
            true => Ok(()),
            false => Err(LayerError::io(b"", std::io::Error::other("a layer below could not be unpacked"))),
        }
    }

    /// Replaces the attributes of the directory at `path`.
    pub(crate) fn set_directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<()> {
        let dir = self.dirs.get(path)?;
        let target = MadeFile { fd: Some(dir.as_fd()), dir: dir.as_fd(), name: b".", path, kind: FileKind::Directory };
        target.clear_xattrs()?;
        let warnings = target.set(attributes, &self.put, false)?;
        self.warn(warnings);
        self.dirs.changed(path, attributes.mtime)
    }

    pub(crate) fn warn(&mut self, warnings: Vec<String>) {
        let room = WARNINGS.saturating_sub(self.outcome.warnings.len());
        self.outcome.warnings.extend(warnings.into_iter().take(room));
    }

    pub(super) fn make_opaque(&mut self, path: &[u8]) -> Result<()> {
        let dir = self.dirs.get(path)?;
        self.marks.put_opaque(dir.as_fd(), path)
    }

    /// What the lower layers show at `path`, unless this layer hides it.
    pub(crate) fn found_below(&mut self, path: &[u8]) -> Result<Option<LowerEntry>> {
        self.outcome.depends_on_lower = true;
        if self.lowers.is_empty() {
            return Ok(None);
        }
        self.wait_for_lowers()?;
        let mut ancestor = path.to_vec();
        while !ancestor.is_empty() {
            pop(&mut ancestor);
            match confined::open_dir(self.root, &ancestor) {
                Ok(dir) if marks::hides_lower(dir.as_fd()).at(&ancestor)? => return Ok(None),
                Ok(_) | Err(Errno::NOENT) => {}
                // In this layer, something else has the directory's place.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(error) => return Err(LayerError::io(&ancestor, error)),
            }
        }
        self.lowers.lookup_path(path)
    }

    /// Sets the attributes of a directory that was just made.
    pub(super) fn finish_directory(&mut self, dest: &Destination<'_>, attributes: &Attributes) -> Result<()> {
        let dir = self.dirs.get(&dest.path)?;
        let target = MadeFile { fd: Some(dir.as_fd()), ..dest.file(FileKind::Directory) };
        let warnings = target.set(attributes, &self.put, dest.dir.gives_acl)?;
        self.warn(warnings);
        self.dirs.changed(&dest.path, attributes.mtime)
    }

    /// A directory that no entry names.
    pub(crate) fn make_implied(
        &mut self,
        parent: &[u8],
        name: &[u8],
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<()> {
        let dest = Destination { dir: self.dirs.get(parent)?, name, path: path.to_vec() };
        rustix::fs::mkdirat(dest.dir.as_fd(), name, Mode::RWXU).at(path)?;
        self.finish_directory(&dest, attributes)
    }

    /// Makes a directory that no entry names, where this layer deletes one: it does not get the lower directory's attributes.
    pub(crate) fn replace_whiteout(&mut self, parent: &[u8], name: &[u8], path: &[u8]) -> Result<()> {
        let dir = self.dirs.get(parent)?;
        rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::empty()).at(path)?;
        self.buried.push(path.to_vec());
        self.make_implied(parent, name, path, &Attributes::of_implied_directory())
    }
}

/// The destination of an entry.
pub(super) struct Destination<'p> {
    pub(super) dir: HeldDir,
    pub(super) name: &'p [u8],
    pub(super) path: Vec<u8>,
}

impl Destination<'_> {
    /// The target for a file without an open descriptor.
    pub(super) fn file(&self, kind: FileKind) -> MadeFile<'_> {
        MadeFile { fd: None, dir: self.dir.as_fd(), name: self.name, path: &self.path, kind }
    }
}
