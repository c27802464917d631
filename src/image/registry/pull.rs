//! Registry to store.
//!
//! Blobs arrive several at a time and are unpacked one after the other, the lowest layer first, each while it is still
//! arriving. Both its digests are known to be right before anything is published.

use std::io::{self, Read};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::http::Method;

use super::blob::{BlobReader, read_document};
use super::http::Request;
use super::session::{Access, Session};
use super::spool::Spool;
use super::{AT_ONCE, Options, Progress};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::load::LoadOptions;
use crate::image::reference::Reference;
use crate::image::spec::{self, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, Index, MANIFEST, Manifest, Platform};
use crate::image::store::{Layer, Transaction, blob_mark, read_limited};
use crate::image::{ImageError, IoContext, Result};

/// Indexes in indexes deeper than this are refused.
const INDEX_DEPTH: u32 = 4;

/// Bytes that are passed on at once.
const CHUNK: usize = 128 << 10;

/// What to pull: a tag, or what has a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Registry, repository and tag; the tag means nothing beside a digest.
    pub name: Reference,
    /// The digest of a manifest or index.
    pub digest: Option<Digest>,
}

/// `NAME[:TAG][@DIGEST]`
impl FromStr for Source {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|error| ImageError::malformed(text, error))?)),
            None => (text, None),
        };
        Ok(Self { name: name.parse()?, digest })
    }
}

impl Source {
    fn reference(&self) -> String {
        self.digest.map_or_else(|| self.name.tag().to_owned(), |digest| digest.to_string())
    }
}

/// What was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image's id.
    pub id: Digest,
    /// The digest by which the registry has it: of the index, if there is one.
    pub digest: Digest,
    /// The name that it got, unless it was pulled by its digest.
    pub name: Option<Reference>,
}

/// Adds an image of a registry; the caller publishes. Of a layer that is in the store nothing is transferred.
///
/// # Errors
/// When the registry cannot be reached, does not have it, or does not keep its word; nothing must then be published.
pub fn pull(
    into: &mut Transaction<'_>,
    source: &Source,
    registry: &Options,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<Pulled> {
    let session = Session::open(&source.name, Access::Pull, registry)?;
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let found = find_image(&session, source, &platform)?;
    let config = read_document(&session, &found.manifest.config)?;
    let config = ImageConfig::parse(&format!("config {}", found.manifest.config.digest), config)?;
    let descriptors = &found.manifest.layers;
    if descriptors.len() != config.diff_ids().len() {
        let (theirs, ours) = (config.diff_ids().len(), descriptors.len());
        return Err(session.error(format!("its config names {theirs} layers, its manifest {ours}")));
    }
    if let Some(large) = descriptors.iter().find(|layer| layer.size > options.unpack.limits.stream) {
        return Err(session.error(format!("layer {} of {} bytes is too large", large.digest, large.size)));
    }
    let layers: Vec<(Descriptor, Digest)> =
        descriptors.iter().cloned().zip(config.diff_ids().iter().copied()).collect();
    let (stack, mut marks) = Transfer { session: &session, layers: &layers, options, progress }.run(into)?;
    // A layer that was here was not compared with the blob that this manifest has for it, but perhaps before.
    let before = into.verified_blobs()?;
    let all = layers.iter().map(|(descriptor, diff_id)| blob_mark(&descriptor.digest, diff_id));
    marks.extend(all.filter(|mark| before.contains(mark)));
    let original = into.add_blob(&found.bytes)?;
    let name = source.digest.is_none().then(|| source.name.clone());
    let image = into.add_image(&config, &stack, name.as_slice(), Some(original))?;
    into.add_verified_blobs(&image, &marks);
    for digest in [found.digest, original] {
        into.add_repo_digest(&image, &source.name.at_digest(&digest));
    }
    Ok(Pulled { id: config.id(), digest: found.digest, name })
}

/// An image's manifest, and the digest of what was asked for.
struct Found {
    manifest: Box<Manifest>,
    bytes: Vec<u8>,
    digest: Digest,
}

enum Document {
    Manifest(Box<Manifest>),
    Index(Index),
}

fn find_image(session: &Session, source: &Source, platform: &Platform) -> Result<Found> {
    let (mut bytes, digest) = fetch(session, &source.reference(), source.digest)?;
    for _ in 0..INDEX_DEPTH {
        let index = match document(session, &bytes)? {
            Document::Manifest(manifest) => return Ok(Found { manifest, bytes, digest }),
            Document::Index(index) => index,
        };
        let chosen = index.choose(platform).ok_or_else(|| {
            let has: Vec<String> = index.platforms().map(Platform::to_string).collect();
            let has = if has.is_empty() { String::new() } else { format!("; it has {}", has.join(", ")) };
            session.error(format!("{} has no image for {platform}{has}", source.reference()))
        })?;
        bytes = fetch(session, &chosen.digest.to_string(), Some(chosen.digest))?.0;
        if bytes.len() as u64 != chosen.size {
            let (promised, found) = (chosen.size, bytes.len());
            return Err(session
                .error(format!("manifest {}: {promised} bytes were promised, but it has {found}", chosen.digest)));
        }
    }
    Err(session.error(format!("indexes are nested more than {INDEX_DEPTH} deep")))
}

/// A manifest or index. By its digest it is checked; by a tag, the registry's own word for its digest is.
fn fetch(session: &Session, reference: &str, pinned: Option<Digest>) -> Result<(Vec<u8>, Digest)> {
    let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
    let request = Request::new(Method::GET, session.uri(&format!("manifests/{reference}"))?).with("accept", accept);
    let mut response = session.send(request)?;
    if !response.is_success() {
        return Err(session.refused(reference, response));
    }
    let told = response.header("docker-content-digest").and_then(|digest| digest.parse().ok());
    let bytes = read_limited(&mut response.body, reference).map_err(|error| match error {
        ImageError::Io { source, .. } => session.error(format!("{reference}: {source}")),
        ImageError::Document { reason, .. } => session.error(format!("{reference}: {reason}")),
        other => other,
    })?;
    let digest = Digest::of(&bytes);
    match pinned.or(told) {
        Some(expected) if expected != digest => {
            Err(session.error(format!("{reference}: {expected} was promised, but it is {digest}")))
        }
        _ => Ok((bytes, digest)),
    }
}

/// By its fields: media types lie, and a document that can be read in two ways is refused (CVE-2021-41190).
fn document(session: &Session, bytes: &[u8]) -> Result<Document> {
    #[derive(Deserialize)]
    struct Shape {
        manifests: Option<IgnoredAny>,
        config: Option<IgnoredAny>,
        #[serde(rename = "fsLayers")]
        fs_layers: Option<IgnoredAny>,
    }
    let name = format!("{}/{}: manifest", session.registry, session.repository);
    let shape: Shape = spec::parse(&name, bytes)?;
    match (shape.manifests, shape.config, shape.fs_layers) {
        (Some(_), None, None) => Ok(Document::Index(spec::parse(&name, bytes)?)),
        (None, Some(_), None) => {
            let manifest: Manifest = spec::parse(&name, bytes)?;
            let kind = manifest.config.media_type.as_str();
            if !spec::is_image_config(kind) {
                return Err(session.error(format!("is no image, but an artifact with a config of type {kind}")));
            }
            Ok(Document::Manifest(Box::new(manifest)))
        }
        (None, None, Some(_)) => Err(session.error("has only a manifest of schema 1, which is too old")),
        _ => Err(session.error("its manifest is neither one of an image nor an index")),
    }
}

/// The layers of one image on their way.
struct Transfer<'t> {
    session: &'t Session,
    layers: &'t [(Descriptor, Digest)],
    options: &'t LoadOptions,
    progress: &'t dyn Progress,
}

/// A layer that is fetched: where it stands in the image, and where its bytes go.
struct Fetched {
    at: usize,
    spool: Spool,
}

impl Transfer<'_> {
    /// The layers, the lowest first, and the marks of those that were unpacked from their blobs.
    fn run(&self, into: &mut Transaction<'_>) -> Result<(Vec<Layer>, Vec<String>)> {
        let wanted = self.plan(into)?;
        let (next, cancelled) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let fetch_some = || {
            while let Some(fetched) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = self.fetch(fetched, &cancelled);
                if let Err(error) = &outcome
                    && !cancelled.swap(true, Ordering::Relaxed)
                {
                    *failure.lock() = Some(self.name_failure(fetched.at, error));
                }
                fetched.spool.end(outcome.map_err(|error| error.to_string()));
            }
        };
        let unpacked = std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(wanted.len()) {
                scope.spawn(fetch_some);
            }
            let unpacked = self.unpack_all(into, &wanted);
            cancelled.store(true, Ordering::Relaxed);
            unpacked
        });
        match (unpacked, failure.into_inner()) {
            // What the unpacker then said is only that it got no more.
            (Err(_), Some(failure)) => Err(failure),
            (unpacked, _) => unpacked,
        }
    }

    fn name_failure(&self, at: usize, error: &io::Error) -> ImageError {
        self.session.error(format!("blob {}: {error}", self.layers[at].0.digest))
    }

    /// Which layers must be fetched. One that depends on those below it is looked for only once these are known, so one
    /// of those may be fetched in vain.
    fn plan(&self, into: &Transaction<'_>) -> Result<Vec<Fetched>> {
        let mut wanted: Vec<Fetched> = Vec::new();
        let mut below: Option<Vec<Layer>> = Some(Vec::new());
        for (at, (descriptor, diff_id)) in self.layers.iter().enumerate() {
            let known = into.find_layer(below.as_deref().unwrap_or_default(), diff_id)?;
            let keeps = self.options.keep_blobs && descriptor.digest != *diff_id && !into.has_blob(&descriptor.digest);
            let is_known = known.is_some();
            below = below.zip(known).map(|(mut below, layer)| {
                below.push(layer);
                below
            });
            let planned = wanted.iter().any(|fetched| self.layers[fetched.at].0.digest == descriptor.digest);
            if (!is_known || keeps) && !planned {
                wanted.push(Fetched { at, spool: Spool::create(&into.scratch().join(format!("fetched-{at}")))? });
            }
        }
        Ok(wanted)
    }

    /// Fetches one layer's blob.
    fn fetch(&self, fetched: &Fetched, cancelled: &AtomicBool) -> io::Result<()> {
        let (descriptor, diff_id) = &self.layers[fetched.at];
        self.progress.begins(diff_id, descriptor.size);
        let mut blob = BlobReader::new(self.session, descriptor);
        let mut buffer = vec![0; CHUNK];
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::other("given up, because another layer failed"));
            }
            match blob.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.progress.reaches(diff_id, fetched.spool.append(&buffer[..count])?),
            }
        }
    }

    fn unpack_all(&self, into: &mut Transaction<'_>, wanted: &[Fetched]) -> Result<(Vec<Layer>, Vec<String>)> {
        let mut stack: Vec<Layer> = Vec::new();
        let mut marks = Vec::new();
        for (at, (descriptor, diff_id)) in self.layers.iter().enumerate() {
            let fetched = wanted.iter().find(|fetched| self.layers[fetched.at].0.digest == descriptor.digest);
            let layer = match into.find_layer(&stack, diff_id)? {
                Some(layer) => {
                    self.progress.skips(diff_id, "Already exists");
                    layer
                }
                None => {
                    let fetched =
                        fetched.ok_or_else(|| self.session.error(format!("layer {diff_id} went away meanwhile")))?;
                    let name = format!("blob {}", descriptor.digest);
                    let mut reader = fetched.spool.reader();
                    let added = into.add_layer(&name, &stack, Some(diff_id), &mut reader, &self.options.unpack);
                    // Whether this or the blob's digest tells of a damaged blob depends on which thread comes first.
                    let added = added.map_err(|error| self.session.error(error.to_string()))?;
                    // The unpacker stops at the archive's end; the blob's digest is known at its own.
                    io::copy(&mut reader, &mut io::sink()).at(&fetched.spool.path)?;
                    marks.push(blob_mark(&descriptor.digest, diff_id));
                    self.progress.ends(diff_id, "Pull complete");
                    added.layer
                }
            };
            stack.push(layer);
            if let Some(fetched) = fetched
                && !self.layers[at + 1..].iter().any(|(later, _)| later.digest == descriptor.digest)
            {
                self.put_away(into, fetched)?;
            }
        }
        Ok((stack, marks))
    }

    /// After its last use: the blob is kept or removed.
    fn put_away(&self, into: &mut Transaction<'_>, fetched: &Fetched) -> Result<()> {
        let (descriptor, diff_id) = &self.layers[fetched.at];
        if !self.options.keep_blobs || descriptor.digest == *diff_id {
            return std::fs::remove_file(&fetched.spool.path).at(&fetched.spool.path);
        }
        io::copy(&mut fetched.spool.reader(), &mut io::sink()).at(&fetched.spool.path)?;
        into.add_blob_file(descriptor.digest, &fetched.spool.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let digest = Digest::of(b"x");
        for (text, name, pinned) in [
            ("debian", "docker.io/library/debian:latest", false),
            ("localhost:5000/a:1", "localhost:5000/a:1", false),
            ("debian@DIGEST", "docker.io/library/debian:latest", true),
            ("a.example/b:1@DIGEST", "a.example/b:1", true),
        ] {
            let source: Source = text.replace("DIGEST", &digest.to_string()).parse().expect(text);
            assert_eq!((source.name.full().as_str(), source.digest.is_some()), (name, pinned), "{text}");
        }
        for bad in ["", "@", "debian@", "debian@sha256:00", "Debian"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }
}
