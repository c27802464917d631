//! New images: `import` of a root file system's tar, `commit` of a container's upper directory, `flatten` of an image.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::image::archive::check;
use crate::image::config::{ConfigChange, History, ImageConfig};
use crate::image::digest::Digest;
use crate::image::files::{make_dir, open_dir};
use crate::image::layer::LayerError;
use crate::image::reference::Reference;
use crate::image::snapshot::{self, Omitted, Snapshot, SnapshotOptions, XattrPermissions};
use crate::image::spec::Platform;
use crate::image::time::Timestamp;
use crate::image::unpack::UnpackOptions;
use crate::image::{ImageError, Result};
use crate::store::checkpoints::merge;
use crate::store::{AddedLayer, StoredLayer, Transaction, open_topmost_first};

/// The documents of a new image.
#[derive(Clone, Debug, Default)]
pub struct Authoring {
    /// Its names.
    pub names: Vec<Reference>,
    /// The message in its history.
    pub message: Option<String>,
    /// The author.
    pub author: Option<String>,
    /// The command for its history.
    pub created_by: Option<String>,
    /// Changes to its configuration.
    pub changes: Vec<ConfigChange>,
    /// Its time stamp; `None` for now. A snapshot sets later times to this one.
    pub source_date_epoch: Option<i64>,
    /// Paths of a container's upper that do not count as changes.
    pub omitted: Omitted,
    /// Where the files that are read have owner, mode and type stored.
    pub permissions: XattrPermissions,
}

impl Authoring {
    fn history(&self) -> History {
        History {
            created: Some(Timestamp::now_or(self.source_date_epoch).to_string()),
            author: self.author.clone(),
            created_by: self.created_by.clone(),
            comment: self.message.clone(),
            empty_layer: None,
        }
    }
}

/// Adds an image with one layer, the tar `input` of a root file system; the caller publishes. Returns its id.
///
/// # Errors
/// When the tar is malformed.
pub fn import(
    into: &mut Transaction<'_>,
    input: &mut dyn Read,
    name: &str,
    platform: &Platform,
    authoring: &Authoring,
    unpack: &UnpackOptions,
) -> Result<Digest> {
    let added = into.add_layer(name, &[], None, input, unpack)?;
    let base = ImageConfig::empty(platform, Timestamp::now_or(authoring.source_date_epoch))?;
    let config = base.with_layer(added.layer.record.diff_id, &authoring.history(), &authoring.changes)?;
    into.add_image(&config, &[added.layer], &authoring.names, None)?;
    Ok(config.id())
}

/// Adds an image that has one layer more than `parent`: the changes of `upper` on top of `stack`, the
/// parent's layers, the lowest first. The caller publishes. Returns its id.
///
/// # Errors
/// When the upper cannot be read, or holds something that a layer cannot.
pub fn commit(
    into: &mut Transaction<'_>,
    parent: &ImageConfig,
    stack: &[StoredLayer],
    upper: BorrowedFd<'_>,
    authoring: &Authoring,
    unpack: &UnpackOptions,
) -> Result<Digest> {
    commit_each(into, parent, stack, &[upper], authoring, unpack)
}

/// Adds an image with one layer more than `parent` for each directory of `changed`: its changes on top of the earlier
/// ones and of `stack`, the parent's layers. All lists have the lowest first. The caller publishes. Returns its id.
///
/// # Errors
/// As for [`commit`].
pub fn commit_each(
    into: &mut Transaction<'_>,
    parent: &ImageConfig,
    stack: &[StoredLayer],
    changed: &[BorrowedFd<'_>],
    authoring: &Authoring,
    unpack: &UnpackOptions,
) -> Result<Digest> {
    let image = open_topmost_first(stack)?;
    let mut lowers: Vec<BorrowedFd<'_>> = image.iter().map(AsFd::as_fd).collect();
    let (mut layers, mut config) = (stack.to_vec(), parent.clone());
    for (number, &upper) in changed.iter().enumerate() {
        let make = |out: &mut dyn Write, options: &_| {
            snapshot::snapshot_without(upper, &lowers, &authoring.omitted, out, options)
        };
        let added = add_made(into, &layers, make, authoring, unpack)?;
        let is_last = number + 1 == changed.len();
        let history = match is_last {
            true => authoring.history(),
            false => History { comment: Some("checkpoint".to_owned()), ..authoring.history() },
        };
        let changes = if is_last { authoring.changes.as_slice() } else { &[] };
        config = config.with_layer(added.layer.record.diff_id, &history, changes)?;
        layers.push(added.layer);
        lowers.insert(0, upper);
    }
    into.add_image(&config, &layers, &authoring.names, None)?;
    Ok(config.id())
}

/// Fills the directories `scratch/1`, … so that the last one holds all changes of `changed`, the topmost first, relative to
/// the layers below them; returns its path.
///
/// # Errors
/// When they hold something that cannot be merged.
pub fn squash(changed: &[BorrowedFd<'_>], scratch: &Path) -> Result<Option<PathBuf>> {
    let mut below: Option<PathBuf> = None;
    let mut layers = changed.iter().rev();
    let Some(lowest) = layers.next() else { return Ok(None) };
    for (number, upper) in layers.enumerate() {
        let place = scratch.join((number + 1).to_string());
        make_dir(&place, 0o700)?;
        let (held, into) = (below.as_deref().map(open_dir).transpose()?, open_dir(&place)?);
        let lower = held.as_ref().map_or(*lowest, AsFd::as_fd);
        merge(*upper, lower, into.as_fd()).map_err(|error| ImageError::refused("squash", error))?;
        below = Some(place);
    }
    Ok(below)
}

/// Adds an image with one layer that holds the merged tree of `stack`, the layers of `parent`, the lowest first. The
/// rest of its configuration is `parent`'s. The caller publishes. Returns its id.
///
/// # Errors
/// When a layer cannot be read.
pub fn flatten(
    into: &mut Transaction<'_>,
    parent: &ImageConfig,
    stack: &[StoredLayer],
    authoring: &Authoring,
    unpack: &UnpackOptions,
) -> Result<Digest> {
    let layers = open_topmost_first(stack)?;
    let layers: Vec<BorrowedFd<'_>> = layers.iter().map(AsFd::as_fd).collect();
    let make = |out: &mut dyn Write, options: &_| snapshot::flatten(&layers, out, options);
    let added = add_made(into, &[], make, authoring, unpack)?;
    let config = parent.with_only_layer(added.layer.record.diff_id, &authoring.history(), &authoring.changes)?;
    into.add_image(&config, &[added.layer], &authoring.names, None)?;
    Ok(config.id())
}

/// Pipes the new tar into the extractor, so the layer's directory is exactly what every later load of the image produces.
fn add_made(
    into: &mut Transaction<'_>,
    stack: &[StoredLayer],
    make: impl FnOnce(&mut dyn Write, &SnapshotOptions) -> std::result::Result<Snapshot, LayerError> + Send,
    authoring: &Authoring,
    unpack: &UnpackOptions,
) -> Result<AddedLayer> {
    const NAME: &str = "snapshot";
    let in_layer = |source: LayerError| ImageError::Layer { layer: NAME.to_owned(), source };
    let in_pipe = |source: io::Error| ImageError::Io { path: NAME.into(), source };
    let options =
        SnapshotOptions { source_date_epoch: authoring.source_date_epoch, permissions: authoring.permissions };
    let (reader, writer) = io::pipe().map_err(in_pipe)?;
    let (made, added) = std::thread::scope(|scope| {
        let maker = scope.spawn(|| -> Result<Snapshot> {
            let mut out = BufWriter::with_capacity(1 << 18, writer);
            let made = make(&mut out, &options).map_err(in_layer)?;
            out.flush().map_err(in_pipe)?;
            Ok(made)
        });
        let mut reader = BufReader::with_capacity(1 << 18, reader);
        let added = into.add_layer(NAME, stack, None, &mut reader, unpack);
        drop(reader);
        let made = maker.join().unwrap_or_else(|_| Err(ImageError::refused(NAME, "the thread that makes it panicked")));
        (made, added)
    });
    // If the snapshot failed, the extractor only saw a truncated stream, and vice versa.
    let added = match (made, added) {
        (Ok(made), Ok(added)) => {
            check(NAME, &made.diff_id, &added.layer.record.diff_id)?;
            made.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            added
        }
        (Err(error), Ok(_)) => return Err(error),
        (Ok(_), Err(error)) => return Err(error),
        (Err(made), Err(added)) => return Err(if is_broken_pipe(&made) { added } else { made }),
    };
    Ok(added)
}

fn is_broken_pipe(error: &ImageError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}
