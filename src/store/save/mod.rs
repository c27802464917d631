//! Saves images of the store as an archive. The same images give the same bytes, on every run and machine.
//!
//! While layers are written, they are re-assembled from their directories and checked against their diff ids.
//! Small documents come first and layers last, so that a reader of a stream knows early what it needs.

mod sink;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::image::archive::{blob_member, check};
use crate::image::digest::{Digest, DigestWriter};
use crate::image::recipe;
use crate::image::reference::Reference;
use crate::image::spec::{self, Annotations, Descriptor, IMAGE_NAME, Index, Manifest, REF_NAME};
use crate::image::{ImageError, IoContext, Result};
use crate::store::{Image, Store, StoredLayer};
use crate::tar::compression::Compression;
pub use sink::Target;
use sink::{Directory, Sink, Tar};

/// The shape of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The format of `docker load`: `manifest.json`, and since docker 25 an OCI layout around the same blobs.
    DockerArchive,
    /// An OCI image layout in a tar.
    OciArchive,
    /// An OCI image layout in a directory.
    OciDirectory,
}

/// How to save.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// The shape of the archive.
    pub format: Format,
    /// The compression of its layers.
    pub compression: Compression,
}

/// An image to save, and its names in the archive.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The image.
    pub image: Image,
    /// Its names in the archive.
    pub names: Vec<Reference>,
}

/// The source of a blob's bytes.
enum Blob<'l> {
    Bytes(Vec<u8>),
    Tar(&'l StoredLayer),
    File(PathBuf),
}

/// Finds the images to save. An image given by name is saved under this name, one given by id without a name, as
/// by docker. An image given several times is saved once, with all the names.
///
/// # Errors
/// When there is no such image.
pub fn select(store: &Store, texts: &[String]) -> Result<Vec<Selected>> {
    let mut selection: Vec<Selected> = Vec::new();
    for text in texts {
        let image = store.find(text)?;
        let asked: Option<Reference> = text.split('@').next().and_then(|name| name.parse().ok());
        let local = asked.as_ref().and_then(Reference::at_localhost);
        let names: Vec<Reference> =
            [asked, local].into_iter().flatten().filter(|name| image.names.contains(name)).take(1).collect();
        match selection.iter_mut().find(|selected| selected.image.id() == image.id()) {
            Some(selected) => selected.names.extend(names),
            None => selection.push(Selected { image, names }),
        }
    }
    for selected in &mut selection {
        selected.names.sort();
        selected.names.dedup();
    }
    Ok(selection)
}

/// Writes an archive of the images.
///
/// # Errors
/// When a layer is damaged or missing, or the archive cannot be written; then no file or directory is made.
pub fn save(store: &Store, selection: &[Selected], target: Target<'_>, options: SaveOptions) -> Result<()> {
    save_watched(store, selection, target, options, &|_| {})
}

/// Number of bytes of the layers' tars that [`save_watched`] reads.
///
/// # Errors
/// When a layer is missing.
pub fn bytes(store: &Store, selection: &[Selected]) -> Result<u64> {
    let mut layers = BTreeMap::new();
    for selected in selection {
        layers.extend(store.layers_of(&selected.image)?.iter().map(|layer| (layer.record.diff_id, layer.record.size)));
    }
    Ok(layers.values().sum())
}

/// As [`save`]; `watch` is called with the number of bytes of the layers' tars that were written since its last call.
///
/// # Errors
/// As for [`save`].
pub fn save_watched(
    store: &Store,
    selection: &[Selected],
    target: Target<'_>,
    options: SaveOptions,
    watch: Watch<'_>,
) -> Result<()> {
    let transaction = store.begin()?;
    let mut stacks: Vec<Vec<StoredLayer>> = Vec::new();
    for selected in selection {
        stacks.push(store.layers_of(&selected.image)?);
    }
    let layers: BTreeMap<Digest, &StoredLayer> =
        stacks.iter().flatten().map(|layer| (layer.record.diff_id, layer)).collect();
    let packed = pack(&layers, options.compression, transaction.scratch(), watch)?;
    let contents = Contents::assemble(selection, &stacks, packed, options.format)?;
    match options.format {
        Format::OciDirectory => Directory::write(target, &mut |sink| contents.write(sink, watch)),
        Format::DockerArchive | Format::OciArchive => Tar::write(target, &mut |sink| contents.write(sink, watch)),
    }
}

type Packed<'l> = BTreeMap<Digest, (Descriptor, Blob<'l>)>;

/// Compresses the layers, several in parallel; uncompressed layers are assembled while they are written.
fn pack<'l>(
    layers: &BTreeMap<Digest, &'l StoredLayer>,
    compression: Compression,
    scratch: &Path,
    watch: Watch<'_>,
) -> Result<Packed<'l>> {
    let suffix = match compression {
        Compression::None => {
            let tar = |(&diff_id, &layer): (&Digest, &&'l StoredLayer)| {
                (diff_id, (Descriptor::new(spec::LAYER, diff_id, layer.record.size), Blob::Tar(layer)))
            };
            return Ok(layers.iter().map(tar).collect());
        }
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    let queue: Vec<&StoredLayer> = layers.values().copied().collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(Digest, (Descriptor, Blob<'l>))>> {
        let mut done = Vec::new();
        while let Some(layer) = queue.get(next.fetch_add(1, Ordering::Relaxed)) {
            let path = scratch.join(format!("packed-{}", layer.record.diff_id.hex()));
            let (digest, size) = compress(layer, compression, &path, watch)?;
            let descriptor = Descriptor::new(format!("{}{suffix}", spec::LAYER), digest, size);
            done.push((layer.record.diff_id, (descriptor, Blob::File(path))));
        }
        Ok(done)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(queue.len());
    let done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
            worker.join().unwrap_or_else(|_| Err(ImageError::refused("save", "a compressing thread panicked")))
        };
        workers.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    Ok(done.into_iter().flatten().collect())
}

/// Writes a layer's tar, compressed, to a new file; the same layer always gives the same bytes.
pub(crate) fn compress(
    layer: &StoredLayer,
    compression: Compression,
    path: &Path,
    watch: Watch<'_>,
) -> Result<(Digest, u64)> {
    let file = BufWriter::with_capacity(1 << 18, File::create(path).at(path)?);
    let hashed = DigestWriter::new(file);
    let hashed = match compression {
        Compression::None => {
            let mut plain = hashed;
            reassemble_watched(layer, &mut plain, watch)?;
            plain
        }
        Compression::Gzip => {
            let mut encoder = flate2::GzBuilder::new().mtime(0).write(hashed, flate2::Compression::new(6));
            reassemble_watched(layer, &mut encoder, watch)?;
            encoder.finish().at(path)?
        }
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(hashed, 3).at(path)?;
            reassemble_watched(layer, &mut encoder, watch)?;
            encoder.finish().at(path)?
        }
    };
    let (mut file, digest, size) = hashed.finish();
    file.flush().at(path)?;
    Ok((digest, size))
}

/// Writes a layer's tar and checks that it equals the one that was unpacked.
///
/// # Errors
/// When the layer's directory was changed, or `out` fails.
pub fn reassemble(layer: &StoredLayer, out: &mut dyn Write) -> Result<()> {
    let name = format!("layer {}", layer.record.diff_id);
    let diff = layer.open_diff()?;
    let mut recipe = io::BufReader::new(layer.open_recipe()?);
    let (digest, _) = recipe::reassemble(&mut recipe, diff.as_fd(), out)
        .map_err(|source| ImageError::Layer { layer: name.clone(), source })?;
    check(&name, &layer.record.diff_id, &digest)
}

fn reassemble_watched(layer: &StoredLayer, out: &mut dyn Write, watch: Watch<'_>) -> Result<()> {
    reassemble(layer, &mut Watched { out, watch })
}

/// Called with the number of bytes since its last call.
pub type Watch<'w> = &'w (dyn Fn(u64) + Sync);

struct Watched<'w> {
    out: &'w mut dyn Write,
    watch: Watch<'w>,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        (self.watch)(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// All files of an archive, in their order.
struct Contents<'l> {
    documents: Vec<(String, Vec<u8>)>,
    blobs: Vec<(Digest, u64, Blob<'l>)>,
}

impl<'l> Contents<'l> {
    fn assemble(
        selection: &[Selected],
        stacks: &[Vec<StoredLayer>],
        mut packed: Packed<'l>,
        format: Format,
    ) -> Result<Self> {
        let mut documents = vec![("oci-layout".to_owned(), spec::OCI_LAYOUT.as_bytes().to_vec())];
        let mut blobs: Vec<(Digest, u64, Blob<'l>)> = Vec::new();
        let mut entries = Vec::new();
        let mut items = Vec::new();
        for (selected, stack) in selection.iter().zip(stacks) {
            let config = &selected.image.config;
            let layers: Vec<Descriptor> =
                stack.iter().filter_map(|layer| packed.get(&layer.record.diff_id)).map(|(d, _)| d.clone()).collect();
            let members: Vec<String> = layers.iter().map(|layer| blob_member(&layer.digest)).collect();
            // Full names: docker accepts both forms, but podman takes a short one for `localhost/…`.
            let tags: Vec<String> = selected.names.iter().map(Reference::full).collect();
            items.push(json!({"Config": blob_member(&config.id()), "RepoTags": tags, "Layers": members}));
            let manifest = Manifest::new(Descriptor::of(spec::CONFIG, config.bytes()), layers);
            let manifest = spec::serialize("manifest", &manifest)?;
            let mut entry = Descriptor::of(spec::MANIFEST, &manifest);
            entry.platform = config.platform();
            entries.extend(entries_of(&entry, &selected.names, format));
            blobs.push((entry.digest, entry.size, Blob::Bytes(manifest)));
            blobs.push((config.id(), config.bytes().len() as u64, Blob::Bytes(config.bytes().to_vec())));
        }
        documents.push(("index.json".to_owned(), spec::serialize("index.json", &Index::new(entries))?));
        if format == Format::DockerArchive {
            documents.push(("manifest.json".to_owned(), spec::serialize("manifest.json", &items)?));
        }
        for diff_id in stacks.iter().flatten().map(|layer| layer.record.diff_id) {
            if let Some((descriptor, blob)) = packed.remove(&diff_id) {
                blobs.push((descriptor.digest, descriptor.size, blob));
            }
        }
        Ok(Self { documents, blobs })
    }

    fn write(&self, sink: &mut dyn Sink, watch: Watch<'_>) -> Result<()> {
        for (name, bytes) in &self.documents {
            sink.file(name, bytes.len() as u64, &mut |out| out.write_all(bytes).at(name))?;
        }
        sink.directory("blobs")?;
        sink.directory("blobs/sha256")?;
        for (digest, size, blob) in &self.blobs {
            sink.file(&blob_member(digest), *size, &mut |out| match blob {
                Blob::Bytes(bytes) => out.write_all(bytes).at(blob_member(digest)),
                Blob::Tar(layer) => reassemble_watched(layer, out, watch),
                Blob::File(path) => io::copy(&mut File::open(path).at(path)?.take(*size), out).map(drop).at(path),
            })?;
        }
        Ok(())
    }
}

/// One entry for each name. In a docker-archive, the reference is the tag alone, as docker writes it. Elsewhere
/// it is the full name, by which skopeo, umoci and podman choose.
fn entries_of(entry: &Descriptor, names: &[Reference], format: Format) -> Vec<Descriptor> {
    if names.is_empty() {
        return vec![entry.clone()];
    }
    let named = |name: &Reference| {
        let reference = if format == Format::DockerArchive { name.tag().to_owned() } else { name.full() };
        let annotations = [(IMAGE_NAME.to_owned(), name.full()), (REF_NAME.to_owned(), reference)];
        Descriptor { annotations: Annotations::from(annotations), ..entry.clone() }
    };
    names.iter().map(named).collect()
}
