//! Unpacks an archive to plain layer directories, without a store.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::image::archive::{Archive, check, size};
use crate::image::error::{ImageError, IoContext, Result};
use crate::image::files::{make_dir, open_dir};
use crate::image::spec::Platform;
use crate::image::unpack::{self, UnpackOptions};
use crate::inventory;

/// Unpacks the one image of an archive into `dir/1` (the lowest layer), `dir/2`, …, zero-padded to equal width,
/// each with its inventory, and writes its configuration as `dir/config.json`. Returns the layers, the topmost first.
///
/// # Errors
/// When the archive is malformed or holds several images, or `dir` exists and is not empty; `dir` is then unchanged.
pub fn unpack_archive(
    archive: &Archive,
    dir: &Path,
    platform: Option<&Platform>,
    options: &UnpackOptions,
) -> Result<Vec<PathBuf>> {
    let mut images = archive.images(platform, false)?;
    let image = images.swap_remove(0);
    if !images.is_empty() {
        let reason = format!("holds {} images; load it into a store, or save one of them alone", images.len() + 1);
        return Err(ImageError::archive(archive.name(), reason));
    }
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
        return Err(ImageError::refused(dir.display().to_string(), "exists and is not an empty directory"));
    }
    let beside = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stage = tempfile::Builder::new().prefix(".strata-").tempdir_in(beside).at(dir)?;
    let width = image.layers.len().to_string().len();
    let mut names: Vec<String> = Vec::new();
    let mut stack: Vec<OwnedFd> = Vec::new();
    for (number, found) in image.layers.iter().enumerate() {
        let name = format!("{:0width$}", number + 1);
        let path = stage.path().join(&name);
        make_dir(&path, 0o755)?;
        let dest = open_dir(&path)?;
        let lowers: Vec<BorrowedFd<'_>> = stack.iter().rev().map(AsFd::as_fd).collect();
        let location = archive.locate(&found.member);
        let mut member = archive.member(&found.member)?;
        let unpacked = unpack::unpack_layer(&mut member, dest.as_fd(), &lowers, None, options)
            .map_err(|source| ImageError::Layer { layer: location.clone(), source })?;
        check(&format!("{location}: uncompressed layer"), &found.diff_id, &unpacked.diff_id)?;
        if let Some(descriptor) = &found.descriptor {
            let (digest, bytes) = unpacked.compressed.unwrap_or((unpacked.diff_id, unpacked.size));
            check(&location, &descriptor.digest, &digest)?;
            check(&location, &size(descriptor.size), &size(bytes))?;
        }
        // A layer works without an inventory; `strata inventory` reports why one cannot be made.
        if let Err(error) = inventory::write(&path) {
            tracing::warn!("{location}: no inventory: {error}");
        }
        names.push(name);
        stack.push(dest);
    }
    let config = stage.path().join("config.json");
    fs::write(&config, image.config.bytes()).at(&config)?;
    fs::rename(stage.keep(), dir).at(dir)?;
    Ok(names.iter().rev().map(|name| dir.join(name)).collect())
}
