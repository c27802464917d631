//! Extracts entries into the layer directory: the meaning of names, and the rules of whiteouts.

use std::ffi::OsStr;
use std::io::BufRead;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use crate::confined;
use crate::image::layer::attributes::{Attributes, FileKind, kind_of};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::image::layer::lower_view::LowerEntry;
use crate::image::layer::marks;
use crate::image::layer::path::{components, join, normalise, split};
use crate::image::unpack::entry::attributes_of;
use crate::image::unpack::unpacking::{Outcome, Reader, Unpacking};
use crate::marks::{AUFS_PREFIX, AufsName, decode_aufs_name};
use crate::tar::read::{Entry, Kind};

impl Unpacking<'_> {
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
                self.make(reader, &dir, name, entry)
            }
        }
    }

    /// The entry for the layer's root itself.
    fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(LayerError::entry(&entry.name, "only a directory can be the root"));
        }
        self.root_named = true;
        let attributes = attributes_of(entry)?;
        self.set_directory(b"", &attributes)
    }

    /// Gives the root the attributes that it has in the layers below.
    fn imply_root(&mut self) -> Result<()> {
        let depended = self.outcome.depends_on_lower;
        let attributes = match self.found_below(b"")? {
            Some(LowerEntry::Directory(dir)) => match dir.parts.first() {
                Some(part) => self.lowers.shown_part(part, b"")?.1,
                None => Attributes::of_implied_directory(),
            },
            Some(LowerEntry::Other(_)) | None => Attributes::of_implied_directory(),
        };
        let usual = Attributes::of_implied_directory();
        let unusual = Attributes { mtime: usual.mtime, ..attributes.clone() } != usual;
        // Almost no layer names its root, and almost every root belongs to root with mode 0755: such a layer may be shared.
        self.outcome.depends_on_lower = depended || unusual;
        self.set_directory(b"", if unusual { &attributes } else { &usual })
    }

    /// An opaque root has no effect in overlay file systems (the kernel merges all roots), so every name of the
    /// lower root is hidden separately.
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

    /// `.wh.NAME`: deletes the name in the layers below, but not this layer's own entry of that name.
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

    /// Applies whiteouts that were replaced: a directory in the place of one becomes opaque; anything else hides
    /// the lower name anyway.
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
                Some(stat) if kind_of(&stat) == FileKind::Directory => self.make_opaque(&path)?,
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// The meaning of the directories in an entry's name.
enum Names {
    Plain,
    /// AUFS' own files.
    Bookkeeping,
}

fn directory_names(parent: &[u8], path: &[u8]) -> Result<Names> {
    match components(parent).find(|name| name.starts_with(AUFS_PREFIX)) {
        None => Ok(Names::Plain),
        Some(name) if decode_aufs_name(OsStr::from_bytes(name)) == AufsName::Bookkeeping => Ok(Names::Bookkeeping),
        Some(_) => Err(LayerError::entry(path, "an entry below a whiteout")),
    }
}
