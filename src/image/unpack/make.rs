//! Makes the file of one entry. An existing file of that name is removed, except if both are directories.

use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{Attributes, FileKind, MadeFile, kind_of};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::image::layer::lower_view::{LowerEntry, LowerFile};
use crate::image::layer::marks;
use crate::image::layer::path::{is_at_or_below, join, normalise, split};
use crate::image::recipe::RecipeWriter;
use crate::image::unpack::entry::{attributes_of, device_of};
use crate::image::unpack::resolve::Missing;
use crate::image::unpack::unpacking::{Destination, Reader, Unpacking};
use crate::tar::holes;
use crate::tar::read::{Entry, Kind};
use crate::tar::sparse::Segment;

/// Files of at least this length are written out early. Smaller ones are too many to be worth a call each.
const WORTH_WRITING_OUT: u64 = 256 << 10;

impl Unpacking<'_> {
    /// Makes the file of `entry` under `name` in the layer's directory `parent`.
    pub(crate) fn make<R: BufRead>(
        &mut self,
        reader: &mut Reader<'_, R>,
        parent: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<()> {
        let dest = Destination { dir: self.dirs.get(parent)?, name, path: join(parent, name) };
        let attributes = attributes_of(entry)?;
        match &entry.kind {
            Kind::Directory => self.directory(&dest, &attributes, reader.sink().as_mut()),
            Kind::File { size, segments } => self.file(reader, &dest, *size, segments, &attributes),
            Kind::Symlink(target) => {
                if target.is_empty() || target.contains(&0) {
                    return Err(LayerError::entry(&dest.path, "a symbolic link to nothing"));
                }
                self.symlink(&dest, target, &attributes, reader.sink().as_mut())
            }
            Kind::HardLink(target) => self.hard_link(&dest, target, reader.sink().as_mut()),
            Kind::CharDevice(0, 0) => {
                Err(LayerError::entry(&dest.path, "a character device 0:0, which would delete files of lower layers"))
            }
            Kind::CharDevice(major, minor) => {
                let (major, minor) = device_of(&dest.path, *major, *minor)?;
                self.special(&dest, FileKind::CharDevice(major, minor), &attributes, reader.sink().as_mut())
            }
            Kind::BlockDevice(major, minor) => {
                let (major, minor) = device_of(&dest.path, *major, *minor)?;
                self.special(&dest, FileKind::BlockDevice(major, minor), &attributes, reader.sink().as_mut())
            }
            Kind::Unknown(flag) => {
                Err(LayerError::entry(&dest.path, format!("unknown entry type {:?}", char::from(*flag))))
            }
            Kind::Fifo => self.special(&dest, FileKind::Fifo, &attributes, reader.sink().as_mut()),
        }
    }

    fn directory(
        &mut self,
        dest: &Destination<'_>,
        attributes: &Attributes,
        recipe: Option<&mut RecipeWriter>,
    ) -> Result<()> {
        match rustix::fs::mkdirat(dest.dir.as_fd(), dest.name, Mode::RWXU) {
            Ok(()) => self.finish_directory(dest, attributes),
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(dest.dir.as_fd(), dest.name, AtFlags::SYMLINK_NOFOLLOW).at(&dest.path)?;
                if kind_of(&stat) == FileKind::Directory {
                    return self.set_directory(&dest.path, attributes);
                }
                self.make_room(dest, &stat, recipe)?;
                rustix::fs::mkdirat(dest.dir.as_fd(), dest.name, Mode::RWXU).at(&dest.path)?;
                self.finish_directory(dest, attributes)
            }
            Err(error) => Err(LayerError::io(&dest.path, error)),
        }
    }

    fn file<R: BufRead>(
        &mut self,
        reader: &mut Reader<'_, R>,
        dest: &Destination<'_>,
        size: u64,
        segments: &[Segment],
        attributes: &Attributes,
    ) -> Result<()> {
        let file = self.create_file(dest, reader.sink().as_mut())?;
        let mut crc = reader.sink().as_mut().map(|_| flate2::Crc::new());
        let mut end = 0;
        for segment in segments {
            let mut offset = segment.offset;
            reader.content(segment.len, &mut |bytes| {
                if let Some(crc) = &mut crc {
                    crc.update(bytes);
                }
                let (written, reached) = holes::write(&file, offset, bytes).at(&dest.path)?;
                offset += bytes.len() as u64;
                end = end.max(reached);
                Ok::<_, LayerError>(self.growth.wrote(written)?)
            })?;
        }
        if end < size {
            file.set_len(size).at(&dest.path)?;
        }
        if let (Some(recipe), Some(crc)) = (reader.sink().as_mut(), crc) {
            recipe.contents(&dest.path, segments, crc.sum())?;
        }
        self.outcome.content_size += size;
        self.finish_file(dest, &file, attributes, FileKind::Regular)?;
        if let Some(to_write_out) = self.to_write_out.as_ref().filter(|_| end >= WORTH_WRITING_OUT) {
            // If the queue is full, the file waits for the sync.
            drop(to_write_out.try_send(file));
        }
        Ok(())
    }

    fn create_file(&mut self, dest: &Destination<'_>, recipe: Option<&mut RecipeWriter>) -> Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(dest.dir.as_fd(), dest.name, flags, Mode::RUSR | Mode::WUSR);
        Ok(self.create(dest, create, recipe)?.into())
    }

    /// Makes an entry by `make`; an existing one is removed first.
    fn create<T>(
        &mut self,
        dest: &Destination<'_>,
        make: impl Fn() -> rustix::io::Result<T>,
        recipe: Option<&mut RecipeWriter>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(dest.dir.as_fd(), dest.name, AtFlags::SYMLINK_NOFOLLOW).at(&dest.path)?;
                self.make_room(dest, &stat, recipe)?;
                make().at(&dest.path)
            }
            other => other.at(&dest.path),
        }
    }

    fn finish_file(
        &mut self,
        dest: &Destination<'_>,
        file: &File,
        attributes: &Attributes,
        kind: FileKind,
    ) -> Result<()> {
        let target = MadeFile { fd: Some(file.as_fd()), ..dest.file(kind) };
        let warnings = target.set(attributes, &self.put, dest.dir.gives_acl)?;
        target.set_times(attributes.mtime)?;
        self.warn(warnings);
        Ok(())
    }

    fn symlink(
        &mut self,
        dest: &Destination<'_>,
        link: &[u8],
        attributes: &Attributes,
        recipe: Option<&mut RecipeWriter>,
    ) -> Result<()> {
        self.create(dest, || rustix::fs::symlinkat(link, dest.dir.as_fd(), dest.name), recipe)?;
        let target = dest.file(FileKind::Symlink);
        let warnings = target.set(attributes, &self.put, false)?;
        target.set_times(attributes.mtime)?;
        self.warn(warnings);
        Ok(())
    }

    /// A device or FIFO; or a plain file with an attribute, if the user may not make them.
    fn special(
        &mut self,
        dest: &Destination<'_>,
        kind: FileKind,
        attributes: &Attributes,
        recipe: Option<&mut RecipeWriter>,
    ) -> Result<()> {
        if !self.put.keep_ownership {
            let file = self.create_file(dest, recipe)?;
            return self.finish_file(dest, &file, attributes, kind);
        }
        let (file_type, device) = match kind {
            FileKind::CharDevice(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            FileKind::BlockDevice(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        let make = || rustix::fs::mknodat(dest.dir.as_fd(), dest.name, file_type, Mode::RUSR | Mode::WUSR, device);
        self.create(dest, make, recipe)?;
        let target = dest.file(kind);
        let warnings = target.set(attributes, &self.put, dest.dir.gives_acl)?;
        target.set_times(attributes.mtime)?;
        self.warn(warnings);
        Ok(())
    }

    fn hard_link(&mut self, dest: &Destination<'_>, target: &[u8], recipe: Option<&mut RecipeWriter>) -> Result<()> {
        let refused =
            |reason: &str| LayerError::entry(&dest.path, format!("hard link to {}: {reason}", printable(target)));
        let target_path = normalise(target, self.options.limits.path).map_err(|error| refused(&error.to_string()))?;
        let Some((parent, name)) = split(&target_path) else { return Err(refused("a directory")) };
        let parent = self.resolve(parent, Missing::Leave)?.ok_or_else(|| refused("no such file"))?;
        let source_path = join(&parent, name);
        let in_layer = match confined::open_dir(self.root, &parent) {
            Ok(dir) => match confined::stat_entry(dir.as_fd(), name).at(&source_path)? {
                Some(stat) if marks::is_whiteout(dir.as_fd(), name, &stat).at(&source_path)? => {
                    return Err(refused("this layer deletes it"));
                }
                found => found,
            },
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(error) => return Err(LayerError::io(&parent, error)),
        };
        let source_stat = match in_layer {
            Some(stat) => stat,
            None => match self.found_below(&source_path)? {
                Some(LowerEntry::Other(file)) => self.copy_from_lower(&parent, name, &source_path, &file)?,
                Some(LowerEntry::Directory(_)) => return Err(refused("a directory")),
                None => return Err(refused("no such file")),
            },
        };
        if kind_of(&source_stat) == FileKind::Directory {
            return Err(refused("a directory"));
        }
        if let Some(stat) = confined::stat_entry(dest.dir.as_fd(), dest.name).at(&dest.path)? {
            if (stat.st_dev, stat.st_ino) == (source_stat.st_dev, source_stat.st_ino) {
                return Ok(());
            }
            if is_at_or_below(&source_path, &dest.path) {
                return Err(refused("it is in the directory that the link would replace"));
            }
            self.make_room(dest, &stat, recipe)?;
        }
        let source_dir = self.dirs.get(&parent)?;
        rustix::fs::linkat(source_dir.as_fd(), name, dest.dir.as_fd(), dest.name, AtFlags::empty())
            .map_err(|error| refused(&std::io::Error::from(error).to_string()))
    }

    /// Copies a lower file into this layer, at its own path, so that a hard link can be made to it.
    fn copy_from_lower(&mut self, parent: &[u8], name: &[u8], path: &[u8], lower: &LowerFile) -> Result<Stat> {
        let parent = self.resolve_or_make(parent)?;
        let dest = Destination { dir: self.dirs.get(&parent)?, name, path: path.to_vec() };
        let (lower_dir, lower_name) = self.lowers.open_parent(&lower.part)?;
        let (kind, attributes) = self.lowers.shown(lower_dir.as_fd(), lower_name, &lower.stat).at(path)?;
        match kind {
            FileKind::Regular => {
                let contents = File::from(self.lowers.open_contents(lower)?);
                let file = self.create_file(&dest, None)?;
                let size = u64::try_from(lower.stat.st_size).unwrap_or(0);
                confined::copy_extents(&contents, &file, 0, size).at(path)?;
                self.outcome.content_size += size;
                self.finish_file(&dest, &file, &attributes, FileKind::Regular)?;
            }
            FileKind::Symlink => {
                let link = rustix::fs::readlinkat(&lower_dir, lower_name, Vec::new()).at(path)?;
                self.symlink(&dest, link.as_bytes(), &attributes, None)?;
            }
            FileKind::CharDevice(..) | FileKind::BlockDevice(..) | FileKind::Fifo => {
                self.special(&dest, kind, &attributes, None)?;
            }
            FileKind::Directory | FileKind::Socket => {
                return Err(LayerError::entry(path, "a hard link to a lower file that is a socket or directory"));
            }
        }
        rustix::fs::statat(dest.dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).at(path)
    }

    /// Removes the existing file.
    fn make_room(&mut self, dest: &Destination<'_>, stat: &Stat, mut recipe: Option<&mut RecipeWriter>) -> Result<()> {
        if kind_of(stat) == FileKind::Directory {
            return self.remove_tree(&dest.path, recipe);
        }
        self.remove_file(dest.dir.as_fd(), dest.name, &dest.path, stat, &mut recipe)
    }

    fn remove_file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        recipe: &mut Option<&mut RecipeWriter>,
    ) -> Result<()> {
        if marks::is_whiteout(dir, name, stat).at(path)? {
            self.buried.push(path.to_vec());
        } else if let (FileKind::Regular, Some(recipe)) = (kind_of(stat), recipe) {
            let file = confined::beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK).at(path)?;
            recipe.save(self.root, path, &file.into())?;
        }
        rustix::fs::unlinkat(dir, name, AtFlags::empty()).at(path)
    }

    /// Removes the directory at `path` with everything in it, at any depth.
    fn remove_tree(&mut self, path: &[u8], mut recipe: Option<&mut RecipeWriter>) -> Result<()> {
        self.dirs.forget(path);
        let mut stack = vec![path.to_vec()];
        while let Some(top) = stack.last().cloned() {
            let dir = confined::open_dir(self.root, &top).at(&top)?;
            let depth = stack.len();
            for name in confined::sorted_names(dir.as_fd()).at(&top)? {
                let below = join(&top, &name);
                let stat = rustix::fs::statat(&dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).at(&below)?;
                if kind_of(&stat) == FileKind::Directory {
                    stack.push(below);
                } else {
                    self.remove_file(dir.as_fd(), &name, &below, &stat, &mut recipe)?;
                }
            }
            if stack.len() > depth {
                continue;
            }
            if marks::hides_lower(dir.as_fd()).at(&top)? {
                self.buried.push(top.clone());
            }
            stack.pop();
            let (parent, name) = split(&top).unwrap_or((b"", b"."));
            let parent = confined::open_dir(self.root, parent).at(&top)?;
            rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).at(&top)?;
        }
        Ok(())
    }
}
