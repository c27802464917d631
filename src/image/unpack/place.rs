//! Puts one entry in its place: what stands there makes room, except a directory for a directory.

use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{self, Attributes, FileKind, Target};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::image::layer::lower_view::{Found, LowerFile};
use crate::image::layer::marks;
use crate::image::layer::path::{is_at_or_below, join, normalise, split};
use crate::image::recipe::RecipeWriter;
use crate::image::unpack::dirs::Dir;
use crate::image::unpack::extract::{Extractor, Reader, attributes_of, device_of};
use crate::image::unpack::resolve::Missing;
use crate::tar::holes;
use crate::tar::read::{Entry, Kind};
use crate::tar::sparse::Segment;

/// Files from this length on are written out early. Others are too many to be worth a call each.
const WORTH_WRITING_OUT: u64 = 256 << 10;

/// Where an entry goes.
struct Place<'p> {
    dir: Dir,
    name: &'p [u8],
    path: Vec<u8>,
}

impl Extractor<'_> {
    /// Makes what `entry` says, by `name` in the layer's directory `parent`.
    pub(crate) fn place<R: BufRead>(
        &mut self,
        reader: &mut Reader<'_, R>,
        parent: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<()> {
        let place = Place { dir: self.dirs.get(parent)?, name, path: join(parent, name) };
        let attributes = attributes_of(entry)?;
        match &entry.kind {
            Kind::Directory => self.directory(&place, &attributes, reader.sink().as_mut()),
            Kind::File { size, segments } => self.file(reader, &place, *size, segments, &attributes),
            Kind::Symlink(target) => {
                if target.is_empty() || target.contains(&0) {
                    return Err(LayerError::entry(&place.path, "a symbolic link to nothing"));
                }
                self.symlink(&place, target, &attributes, reader.sink().as_mut())
            }
            Kind::HardLink(target) => self.hard_link(&place, target, reader.sink().as_mut()),
            Kind::CharDevice(0, 0) => {
                Err(LayerError::entry(&place.path, "a character device 0:0, which would delete files of lower layers"))
            }
            Kind::CharDevice(major, minor) => {
                let (major, minor) = device_of(&place.path, *major, *minor)?;
                self.special(&place, FileKind::CharDevice(major, minor), &attributes, reader.sink().as_mut())
            }
            Kind::BlockDevice(major, minor) => {
                let (major, minor) = device_of(&place.path, *major, *minor)?;
                self.special(&place, FileKind::BlockDevice(major, minor), &attributes, reader.sink().as_mut())
            }
            Kind::Unknown(flag) => {
                Err(LayerError::entry(&place.path, format!("unknown entry type {:?}", char::from(*flag))))
            }
            Kind::Fifo => self.special(&place, FileKind::Fifo, &attributes, reader.sink().as_mut()),
        }
    }

    fn directory(
        &mut self,
        place: &Place<'_>,
        attributes: &Attributes,
        recipe: Option<&mut RecipeWriter>,
    ) -> Result<()> {
        match rustix::fs::mkdirat(place.dir.as_fd(), place.name, Mode::RWXU) {
            Ok(()) => self.finish_directory(place, attributes),
            Err(Errno::EXIST) => {
                let stat =
                    rustix::fs::statat(place.dir.as_fd(), place.name, AtFlags::SYMLINK_NOFOLLOW).at(&place.path)?;
                if FileKind::of(&stat) == FileKind::Directory {
                    return self.set_directory(&place.path, attributes);
                }
                self.make_room(place, &stat, recipe)?;
                rustix::fs::mkdirat(place.dir.as_fd(), place.name, Mode::RWXU).at(&place.path)?;
                self.finish_directory(place, attributes)
            }
            Err(error) => Err(LayerError::io(&place.path, error)),
        }
    }

    /// Attributes of a directory that was just made.
    fn finish_directory(&mut self, place: &Place<'_>, attributes: &Attributes) -> Result<()> {
        let dir = self.dirs.get(&place.path)?;
        let target = Target { fd: Some(dir.as_fd()), override_type: "dir", is_directory: true, ..place.target() };
        let warnings = target.set(attributes, &self.put, place.dir.gives_acl)?;
        self.warn(warnings);
        self.dirs.changed(&place.path, attributes.mtime)
    }

    /// A directory that no entry names.
    pub(crate) fn make_implied(
        &mut self,
        parent: &[u8],
        name: &[u8],
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<()> {
        let place = Place { dir: self.dirs.get(parent)?, name, path: path.to_vec() };
        rustix::fs::mkdirat(place.dir.as_fd(), name, Mode::RWXU).at(path)?;
        self.finish_directory(&place, attributes)
    }

    /// A directory that no entry names, where this layer deletes one: the lower one's attributes are gone with it.
    pub(crate) fn replace_whiteout(&mut self, parent: &[u8], name: &[u8], path: &[u8]) -> Result<()> {
        let dir = self.dirs.get(parent)?;
        rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::empty()).at(path)?;
        self.buried.push(path.to_vec());
        self.make_implied(parent, name, path, &Attributes::of_implied_directory())
    }

    fn file<R: BufRead>(
        &mut self,
        reader: &mut Reader<'_, R>,
        place: &Place<'_>,
        size: u64,
        segments: &[Segment],
        attributes: &Attributes,
    ) -> Result<()> {
        let file = self.create_file(place, reader.sink().as_mut())?;
        let mut crc = reader.sink().as_mut().map(|_| flate2::Crc::new());
        let mut end = 0;
        for segment in segments {
            let mut offset = segment.offset;
            reader.content(segment.len, &mut |bytes| {
                if let Some(crc) = &mut crc {
                    crc.update(bytes);
                }
                let (written, reached) = holes::write(&file, offset, bytes).at(&place.path)?;
                offset += bytes.len() as u64;
                end = end.max(reached);
                Ok::<_, LayerError>(self.growth.wrote(written)?)
            })?;
        }
        if end < size {
            file.set_len(size).at(&place.path)?;
        }
        if let (Some(recipe), Some(crc)) = (reader.sink().as_mut(), crc) {
            recipe.contents(&place.path, segments, crc.sum())?;
        }
        self.outcome.content_size += size;
        self.finish_file(place, &file, attributes, "file")?;
        if let Some(to_write_out) = self.to_write_out.as_ref().filter(|_| end >= WORTH_WRITING_OUT) {
            // One that finds no room waits for the sync.
            drop(to_write_out.try_send(file));
        }
        Ok(())
    }

    fn create_file(&mut self, place: &Place<'_>, recipe: Option<&mut RecipeWriter>) -> Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(place.dir.as_fd(), place.name, flags, Mode::RUSR | Mode::WUSR);
        Ok(self.create(place, create, recipe)?.into())
    }

    /// Makes an entry by `make`; if one is there, it makes room first.
    fn create<T>(
        &mut self,
        place: &Place<'_>,
        make: impl Fn() -> rustix::io::Result<T>,
        recipe: Option<&mut RecipeWriter>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                let stat =
                    rustix::fs::statat(place.dir.as_fd(), place.name, AtFlags::SYMLINK_NOFOLLOW).at(&place.path)?;
                self.make_room(place, &stat, recipe)?;
                make().at(&place.path)
            }
            other => other.at(&place.path),
        }
    }

    fn finish_file(
        &mut self,
        place: &Place<'_>,
        file: &File,
        attributes: &Attributes,
        override_type: &str,
    ) -> Result<()> {
        let target = Target { fd: Some(file.as_fd()), override_type, ..place.target() };
        let warnings = target.set(attributes, &self.put, place.dir.gives_acl)?;
        target.set_times(attributes.mtime)?;
        self.warn(warnings);
        Ok(())
    }

    fn symlink(
        &mut self,
        place: &Place<'_>,
        link: &[u8],
        attributes: &Attributes,
        recipe: Option<&mut RecipeWriter>,
    ) -> Result<()> {
        self.create(place, || rustix::fs::symlinkat(link, place.dir.as_fd(), place.name), recipe)?;
        let target = Target { is_symlink: true, override_type: "symlink", ..place.target() };
        let warnings = target.set(attributes, &self.put, false)?;
        target.set_times(attributes.mtime)?;
        self.warn(warnings);
        Ok(())
    }

    /// A device or FIFO; a plain file that says so where the user may not make them.
    fn special(
        &mut self,
        place: &Place<'_>,
        kind: FileKind,
        attributes: &Attributes,
        recipe: Option<&mut RecipeWriter>,
    ) -> Result<()> {
        if !self.put.keep_ownership {
            let file = self.create_file(place, recipe)?;
            return self.finish_file(place, &file, attributes, &kind.override_type());
        }
        let (file_type, device) = match kind {
            FileKind::CharDevice(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            FileKind::BlockDevice(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        let make = || rustix::fs::mknodat(place.dir.as_fd(), place.name, file_type, Mode::RUSR | Mode::WUSR, device);
        self.create(place, make, recipe)?;
        let target = place.target();
        let warnings = target.set(attributes, &self.put, place.dir.gives_acl)?;
        target.set_times(attributes.mtime)?;
        self.warn(warnings);
        Ok(())
    }

    fn hard_link(&mut self, place: &Place<'_>, target: &[u8], recipe: Option<&mut RecipeWriter>) -> Result<()> {
        let refused =
            |reason: &str| LayerError::entry(&place.path, format!("hard link to {}: {reason}", printable(target)));
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
                Some(Found::Other(file)) => self.copy_from_lower(&parent, name, &source_path, &file)?,
                Some(Found::Directory(_)) => return Err(refused("a directory")),
                None => return Err(refused("no such file")),
            },
        };
        if FileKind::of(&source_stat) == FileKind::Directory {
            return Err(refused("a directory"));
        }
        if let Some(stat) = confined::stat_entry(place.dir.as_fd(), place.name).at(&place.path)? {
            if (stat.st_dev, stat.st_ino) == (source_stat.st_dev, source_stat.st_ino) {
                return Ok(());
            }
            if is_at_or_below(&source_path, &place.path) {
                return Err(refused("it is in the directory that the link would replace"));
            }
            self.make_room(place, &stat, recipe)?;
        }
        let source_dir = self.dirs.get(&parent)?;
        rustix::fs::linkat(source_dir.as_fd(), name, place.dir.as_fd(), place.name, AtFlags::empty())
            .map_err(|error| refused(&std::io::Error::from(error).to_string()))
    }

    /// Copies a lower file into this layer, at its own path, so that it can be linked to.
    fn copy_from_lower(&mut self, parent: &[u8], name: &[u8], path: &[u8], lower: &LowerFile) -> Result<Stat> {
        let parent = self.resolve_or_make(parent)?;
        let place = Place { dir: self.dirs.get(&parent)?, name, path: path.to_vec() };
        let (lower_dir, lower_name) = self.lowers.open_parent(&lower.part)?;
        let (kind, attributes) = attributes::read(lower_dir.as_fd(), lower_name, &lower.stat).at(path)?;
        match kind {
            FileKind::Regular => {
                let contents = File::from(self.lowers.open_contents(lower)?);
                let file = self.create_file(&place, None)?;
                let size = u64::try_from(lower.stat.st_size).unwrap_or(0);
                confined::copy_extents(&contents, &file, 0, size).at(path)?;
                self.outcome.content_size += size;
                self.finish_file(&place, &file, &attributes, "file")?;
            }
            FileKind::Symlink => {
                let link = rustix::fs::readlinkat(&lower_dir, lower_name, Vec::new()).at(path)?;
                self.symlink(&place, link.as_bytes(), &attributes, None)?;
            }
            FileKind::CharDevice(..) | FileKind::BlockDevice(..) | FileKind::Fifo => {
                self.special(&place, kind, &attributes, None)?;
            }
            FileKind::Directory | FileKind::Socket => {
                return Err(LayerError::entry(path, "a hard link to a lower file that is a socket or directory"));
            }
        }
        rustix::fs::statat(place.dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).at(path)
    }

    /// Removes what is there.
    fn make_room(&mut self, place: &Place<'_>, stat: &Stat, mut recipe: Option<&mut RecipeWriter>) -> Result<()> {
        if FileKind::of(stat) == FileKind::Directory {
            return self.remove_tree(&place.path, recipe);
        }
        self.remove_file(place.dir.as_fd(), place.name, &place.path, stat, &mut recipe)
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
        } else if let (FileKind::Regular, Some(recipe)) = (FileKind::of(stat), recipe) {
            let file = confined::beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK).at(path)?;
            recipe.save(self.root, path, &file.into())?;
        }
        rustix::fs::unlinkat(dir, name, AtFlags::empty()).at(path)
    }

    /// Removes the directory at `path` with all that is in it, whatever its depth.
    fn remove_tree(&mut self, path: &[u8], mut recipe: Option<&mut RecipeWriter>) -> Result<()> {
        self.dirs.forget(path);
        let mut stack = vec![path.to_vec()];
        while let Some(top) = stack.last().cloned() {
            let dir = confined::open_dir(self.root, &top).at(&top)?;
            let depth = stack.len();
            for name in confined::sorted_names(dir.as_fd()).at(&top)? {
                let below = join(&top, &name);
                let stat = rustix::fs::statat(&dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).at(&below)?;
                if FileKind::of(&stat) == FileKind::Directory {
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

impl Place<'_> {
    /// For a file of which no descriptor is held.
    fn target(&self) -> Target<'_> {
        Target {
            fd: None,
            dir: self.dir.as_fd(),
            name: self.name,
            path: &self.path,
            override_type: "file",
            is_symlink: false,
            is_directory: false,
        }
    }
}
