//! Directories that an image keeps apart from the container's changes (`Volumes` of its configuration). Each gets a
//! directory beside the container's upper. It starts with the image's content, like docker's anonymous volumes, and is
//! removed with the container.

use std::fs::{self, File};
use std::io::Seek;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Container;
use super::bundle::Volume;
use crate::confined;
use crate::image::files::{make_dir, open_dir, remove_tree};
use crate::image::snapshot::{self, SnapshotOptions, XattrPermissions};
use crate::image::unpack::{self, UnpackOptions};
use crate::image::{ImageError, IoContext, Result};
use crate::store::Store;

impl Container {
    /// The volumes that the image or an option asks for without a name. If they are not there yet, it is mounted to make them.
    ///
    /// # Errors
    /// Those of mounting it; if the image names something that is not one of its directories.
    pub fn own_volumes(&self, store: &Store) -> Result<Vec<Volume>> {
        let image = self.config(store)?.process();
        let options = &self.record.options;
        let wanted: Vec<String> = image.volumes.iter().chain(&options.anonymous_volumes).cloned().collect();
        let volumes = self.image_volumes(&wanted, &options.volumes)?;
        if volumes.iter().any(|volume| !volume.source.exists()) {
            self.open_root(store, None)?.close()?;
        }
        Ok(volumes)
    }

    /// The directories for `wanted`, except those covered by the user's own volumes.
    fn image_volumes(&self, wanted: &[String], users: &[Volume]) -> Result<Vec<Volume>> {
        let mut found: Vec<Volume> = Vec::new();
        for text in wanted {
            let destination = normal(text).ok_or_else(|| {
                ImageError::refused(&self.record.image_name, format!("its volume {text:?} is no directory of its own"))
            })?;
            let is_here = |volume: &Volume| volume.destination.components().eq(destination.components());
            if !users.iter().chain(&found).any(is_here) {
                found.push(Volume::bind(self.dir.join("volumes").join(found.len().to_string()), destination));
            }
        }
        Ok(found)
    }

    /// Makes the directories for `wanted`, except those covered by the user's own volumes.
    ///
    /// # Errors
    /// When the image names something that is not one of its directories, or the content cannot be copied.
    pub(super) fn make_image_volumes(&self, root: &File, wanted: &[String], users: &[Volume]) -> Result<Vec<Volume>> {
        let volumes = self.image_volumes(wanted, users)?;
        // Those that exist are kept from the last start.
        for Volume { source, destination, .. } in volumes.iter().filter(|volume| !volume.source.exists()) {
            let parent = self.dir.join("volumes");
            make_dir(&parent, 0o700)?;
            let stage = parent.join("new");
            remove_tree(&stage)?;
            make_dir(&stage, 0o755)?;
            fill(root, destination, &stage, &self.dir)?;
            fs::rename(&stage, source).at(source)?;
        }
        Ok(volumes)
    }

    /// Copies the image's content into named volumes that are still empty, as docker does.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub(super) fn fill_named_volumes(&self, root: &File, volumes: &[Volume]) -> Result<()> {
        for volume in volumes.iter().filter(|volume| volume.volume.is_some()) {
            if fs::read_dir(&volume.source).at(&volume.source)?.next().is_none() {
                fill(root, &volume.destination, &volume.source, &self.dir)?;
            }
        }
        Ok(())
    }
}

/// An absolute path below the root, without `..`.
fn normal(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let below = path.strip_prefix("/").ok()?;
    let plain = below.components().all(|step| matches!(step, Component::Normal(_)));
    (plain && below.components().next().is_some()).then(|| Path::new("/").join(below))
}

/// Copies the image's content at `destination` through a tar, which keeps owners, attributes and links.
fn fill(root: &File, destination: &Path, source: &Path, scratch: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let from = match confined::in_root(root.as_fd(), destination.as_os_str().as_bytes(), flags) {
        Ok(from) => from,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).at(destination),
    };
    let named = |source| ImageError::Layer { layer: format!("volume {}", destination.display()), source };
    let mut tar = tempfile::tempfile_in(scratch).at(scratch)?;
    // The mount already shows the right owners and modes; what looks like a stored one is an ordinary attribute.
    let options = SnapshotOptions { permissions: XattrPermissions::Inode, ..SnapshotOptions::default() };
    snapshot::snapshot(from.as_fd(), &[], &mut tar, &options).map_err(named)?;
    tar.rewind().at(scratch)?;
    let options = match rustix::process::geteuid().is_root() {
        true => UnpackOptions::default(),
        false => UnpackOptions::unprivileged(),
    };
    unpack::unpack_layer(&mut tar, open_dir(source)?.as_fd(), &[], None, &options).map(drop).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_their_own() {
        for (text, path) in [("/a", "/a"), ("/a/b/", "/a/b"), ("//a", "/a"), ("/a/./b", "/a/b")] {
            assert_eq!(normal(text).as_deref(), Some(Path::new(path)), "{text}");
        }
        for bad in ["", "/", "a", "/a/../b", "/.."] {
            assert_eq!(normal(bad), None, "{bad}");
        }
    }
}
