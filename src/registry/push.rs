//! Pushes an image of the store to a registry.
//!
//! A layer is not sent if the registry has its blob, here or in another repository. The possible blobs of a layer are
//! known from manifests of images that were pulled or pushed before. A layer without a known blob is compressed again,
//! always to the same bytes. If all layers match the image's own manifest, that manifest is sent unchanged, so the
//! image keeps its digest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ureq::http::Method;

use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::spec::{self, Descriptor, Manifest};
use crate::image::{ImageError, IoContext, Result};
use crate::registry::http::{Payload, Request};
use crate::registry::session::{Access, Session};
use crate::registry::upload::upload;
use crate::registry::{AT_ONCE, Options, Progress, blob_path};
use crate::store::save::compress;
use crate::store::{Image, Store, StoredLayer, blob_mark};
use crate::tar::compression::Compression;

/// How to push.
#[derive(Clone, Copy, Debug, Default)]
pub struct PushOptions {
    /// Compress every layer in this way, even if its blob is known. `None`: use known blobs, and gzip for other layers.
    pub compression: Option<Compression>,
}

/// The result of a push.
#[derive(Clone, Copy, Debug)]
pub struct Pushed {
    /// The digest of its manifest.
    pub digest: Digest,
    /// The size of its manifest.
    pub size: u64,
}

/// A known blob of a layer, and repositories of the registry that have it.
#[derive(Clone, Debug)]
struct Known {
    descriptor: Descriptor,
    repositories: Vec<String>,
}

type KnownBlobs = BTreeMap<Digest, Vec<Known>>;

/// Pushes an image to a registry as `name`.
///
/// # Errors
/// When a layer is missing or damaged, or the registry cannot be reached or refuses.
pub fn push(
    store: &Store,
    image: &Image,
    name: &Reference,
    registry: &Options,
    options: PushOptions,
    progress: &dyn Progress,
) -> Result<Pushed> {
    let mut transaction = store.begin()?;
    let layers = store.layers_of(image)?;
    let mut known = match options.compression {
        None => known_blobs(store, name)?,
        Some(_) => KnownBlobs::new(),
    };
    known.retain(|diff_id, _| image.config.diff_ids().contains(diff_id));
    let session = Session::open(name, Access::Push, registry, progress)?;
    let compression = options.compression.unwrap_or(Compression::Gzip);
    let sender = Sender { store, session: &session, known, compression, scratch: transaction.scratch(), progress };
    let descriptors = sender.send_layers(&layers)?;
    sender.send_config(image)?;
    let (manifest, media_type) = manifest(store, image, descriptors)?;
    let pushed = put_manifest(&session, name, &manifest, &media_type)?;
    transaction.remember(image, &manifest, &name.at_digest(&pushed.digest))?;
    transaction.publish()?;
    Ok(pushed)
}

/// The known blobs of layers, from the store's images. Only repositories in the registry of `name` are listed.
fn known_blobs(store: &Store, name: &Reference) -> Result<KnownBlobs> {
    let mut known = KnownBlobs::new();
    let verified = store.verified_blobs()?;
    for image in store.images()? {
        let Some((manifest, _)) = original(store, &image)? else { continue };
        let mut repositories: Vec<String> = Vec::new();
        for seen in image.repo_digests() {
            let seen: Option<Reference> = seen.split('@').next().and_then(|name| name.parse().ok());
            let seen = seen.filter(|seen| seen.domain() == name.domain() && seen.path() != name.path());
            repositories.extend(seen.map(|seen| seen.path().to_owned()));
        }
        repositories.dedup();
        let pairs = manifest.layers.into_iter().zip(image.config.diff_ids());
        for (descriptor, diff_id) in pairs.filter(|(blob, id)| verified.contains(&blob_mark(&blob.digest, id))) {
            let blobs = known.entry(*diff_id).or_default();
            match blobs.iter_mut().find(|blob| blob.descriptor.digest == descriptor.digest) {
                Some(blob) => blob.repositories.extend(repositories.iter().cloned()),
                None => blobs.push(Known { descriptor, repositories: repositories.clone() }),
            }
        }
    }
    Ok(known)
}

/// The manifest with which an image was pulled or pushed, if any, and its bytes.
fn original(store: &Store, image: &Image) -> Result<Option<(Manifest, Vec<u8>)>> {
    let Some(digest) = image.original_manifest().filter(|digest| store.kept_blob(digest).is_some()) else {
        return Ok(None);
    };
    let bytes = store.read_blob(&digest)?;
    let manifest: Manifest = spec::parse(&format!("manifest {digest}"), &bytes)?;
    Ok((manifest.layers.len() == image.config.diff_ids().len()).then_some((manifest, bytes)))
}

/// The image's own manifest if it has these layers, otherwise a new one; and its type.
fn manifest(store: &Store, image: &Image, layers: Vec<Descriptor>) -> Result<(Vec<u8>, String)> {
    if let Some((manifest, bytes)) = original(store, image)? {
        let digests = |layers: &[Descriptor]| layers.iter().map(|layer| layer.digest).collect::<Vec<_>>();
        if digests(&manifest.layers) == digests(&layers) {
            return Ok((bytes, manifest.media_type.unwrap_or_else(|| spec::MANIFEST.to_owned())));
        }
    }
    let layers = layers.into_iter().map(in_oci_terms).collect();
    let config = Descriptor::of(spec::CONFIG, image.config.bytes());
    Ok((spec::serialize("manifest", &Manifest::new(config, layers))?, spec::MANIFEST.to_owned()))
}

/// Docker's media types of layers do not belong in an OCI manifest.
fn in_oci_terms(mut layer: Descriptor) -> Descriptor {
    let suffix = match layer.media_type.rsplit(['.', '+']).next() {
        Some("gzip") => "+gzip",
        Some("zstd") => "+zstd",
        _ => "",
    };
    layer.media_type = format!("{}{suffix}", spec::LAYER);
    layer
}

fn put_manifest(session: &Session<'_>, name: &Reference, manifest: &[u8], media_type: &str) -> Result<Pushed> {
    let mut request = Request::new(Method::PUT, session.uri(&format!("manifests/{}", name.tag()))?);
    request.payload = Payload::Bytes(manifest);
    let response = session.send(request.with("content-type", media_type))?;
    if !response.is_success() {
        return Err(session.refused(&format!("pushing {}", name.tag()), response));
    }
    let digest = Digest::of(manifest);
    match response.header("docker-content-digest").and_then(|told| told.parse::<Digest>().ok()) {
        Some(told) if told != digest => {
            Err(session.error(format!("{} was sent, but the registry took it for {told}", digest)))
        }
        _ => Ok(Pushed { digest, size: manifest.len() as u64 }),
    }
}

struct Sender<'s> {
    store: &'s Store,
    session: &'s Session<'s>,
    known: KnownBlobs,
    compression: Compression,
    scratch: &'s Path,
    progress: &'s dyn Progress,
}

impl Sender<'_> {
    /// Makes sure that the registry has every layer; returns their descriptors.
    fn send_layers(&self, layers: &[StoredLayer]) -> Result<Vec<Descriptor>> {
        let mut distinct: Vec<&StoredLayer> = Vec::new();
        for layer in layers {
            if !distinct.iter().any(|known| known.record.diff_id == layer.record.diff_id) {
                distinct.push(layer);
            }
        }
        let next = AtomicUsize::new(0);
        let work = || -> Result<BTreeMap<Digest, Descriptor>> {
            let mut sent = BTreeMap::new();
            while let Some(layer) = distinct.get(next.fetch_add(1, Ordering::Relaxed)) {
                let descriptor = self.send_layer(layer);
                if descriptor.is_err() {
                    next.store(distinct.len(), Ordering::Relaxed);
                }
                sent.insert(layer.record.diff_id, descriptor?);
            }
            Ok(sent)
        };
        let sent = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE.min(distinct.len())).map(|_| scope.spawn(work)).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|_| Err(ImageError::refused("push", "a sending thread panicked")))
            };
            workers.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let sent: BTreeMap<Digest, Descriptor> = sent.into_iter().flatten().collect();
        Ok(layers.iter().filter_map(|layer| sent.get(&layer.record.diff_id).cloned()).collect())
    }

    fn send_layer(&self, layer: &StoredLayer) -> Result<Descriptor> {
        let diff_id = &layer.record.diff_id;
        let known = self.known.get(diff_id).map(Vec::as_slice).unwrap_or_default();
        for blob in known {
            if self.has(&blob.descriptor)? {
                self.progress.skips(diff_id, "Layer already exists");
                return Ok(blob.descriptor.clone());
            }
        }
        for blob in known {
            for repository in &blob.repositories {
                if self.mount(&blob.descriptor, repository)? {
                    self.progress.skips(diff_id, &format!("Mounted from {repository}"));
                    return Ok(blob.descriptor.clone());
                }
            }
        }
        if let Some(kept) = known.iter().find(|blob| self.store.kept_blob(&blob.descriptor.digest).is_some())
            && let Some(path) = self.store.kept_blob(&kept.descriptor.digest)
        {
            self.upload_file(&kept.descriptor, &path, diff_id)?;
            return Ok(kept.descriptor.clone());
        }
        // A layer that was not compressed there need not be compressed here, and then has the same digest.
        let plain = known.iter().any(|blob| blob.descriptor.digest == *diff_id);
        let compression = if plain { Compression::None } else { self.compression };
        let path = self.scratch.join(format!("sent-{}", diff_id.hex()));
        let done = AtomicU64::new(0);
        let watch = |bytes| {
            let position = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            self.progress.compresses(diff_id, position, layer.record.size);
        };
        let (digest, size) = compress(layer, compression, &path, &watch)?;
        let suffix = match compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        let descriptor = Descriptor::new(format!("{}{suffix}", spec::LAYER), digest, size);
        if self.has(&descriptor)? {
            self.progress.skips(diff_id, "Layer already exists");
        } else {
            self.upload_file(&descriptor, &path, diff_id)?;
        }
        std::fs::remove_file(&path).at(&path)?;
        Ok(descriptor)
    }

    fn send_config(&self, image: &Image) -> Result<()> {
        let descriptor = Descriptor::of(spec::CONFIG, image.config.bytes());
        if self.has(&descriptor)? {
            return Ok(());
        }
        upload(self.session, &descriptor, &mut io::Cursor::new(image.config.bytes()), &|_| {})
    }

    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let response = self.session.send(Request::new(Method::HEAD, self.session.uri(&blob_path(descriptor))?))?;
        match response.status {
            200 => Ok(true),
            // The registry keeps it on another server, whose address is signed for GET only.
            403 | 405 if !response.is_own => Ok(true),
            404 => Ok(false),
            _ => Err(self.session.refused("asking for a layer", response)),
        }
    }

    /// Asks the registry to take a blob from another of its repositories. If the registry refuses, or this user may
    /// not read there, the blob must be sent. If the registry has opened an upload instead, that is cancelled.
    fn mount(&self, descriptor: &Descriptor, repository: &str) -> Result<bool> {
        let path = format!("blobs/uploads/?mount={}&from={repository}", descriptor.digest);
        let mut request = Request::new(Method::POST, self.session.uri(&path)?);
        request.reads = Some(repository.to_owned());
        let response = match self.session.send_patiently(request, &mut self.session.patience()) {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!("{repository} cannot be read from: {error}");
                return Ok(false);
            }
        };
        if response.status == 202
            && let Ok(upload) = self.session.location(&response)
            && let Err(error) = self.session.send(Request::new(Method::DELETE, upload).once())
        {
            tracing::debug!("upload is left to the registry to clean up: {error}");
        }
        Ok(response.status == 201)
    }

    fn upload_file(&self, descriptor: &Descriptor, path: &PathBuf, diff_id: &Digest) -> Result<()> {
        self.progress.begins(diff_id, descriptor.size);
        let mut file = File::open(path).at(path)?;
        upload(self.session, descriptor, &mut file, &|position| self.progress.reaches(diff_id, position))?;
        self.progress.ends(diff_id, "Pushed");
        Ok(())
    }
}
