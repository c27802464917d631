//! Pulls an image from a registry into the store.
//!
//! Several blobs are fetched in parallel, and several are unpacked in parallel, each while it still arrives. Nothing
//! is published before both digests of every layer are verified.
//!
//! Any number of threads may fetch and unpack. Fetching waits only for the network, because a blob goes to a file of any
//! length. Unpacking waits for its blob and for layers below it. Both start with the lowest layer, so the lowest
//! incomplete layer never waits for those above it.

use std::io::{self, Read};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::spec::{Descriptor, Platform};
use crate::image::{ImageError, IoContext, Result};
use crate::registry::blob::{BlobReader, read_document};
use crate::registry::session::{Access, Session};
use crate::registry::spool::Spool;
use crate::registry::{AT_ONCE, Options, Progress, manifest};
use crate::store::load::LoadOptions;
use crate::store::{AddedLayer, LayerEvent, NewLayer, Slot, StoredLayer, Transaction, blob_mark, rounds};

/// Number of bytes that are passed on at once.
const CHUNK: usize = 128 << 10;

/// The image to pull: a tag, or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteImage {
    /// Registry, repository and tag; with a digest, the tag has no meaning.
    pub name: Reference,
    /// The digest of a manifest or index.
    pub digest: Option<Digest>,
}

/// `NAME[:TAG][@DIGEST]`
impl FromStr for RemoteImage {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|error| ImageError::malformed(text, error))?)),
            None => (text, None),
        };
        Ok(Self { name: name.parse()?, digest })
    }
}

impl RemoteImage {
    pub(super) fn reference(&self) -> String {
        self.digest.map_or_else(|| self.name.tag().to_owned(), |digest| digest.to_string())
    }
}

/// What was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image's id.
    pub id: Digest,
    /// Its digest in the registry: that of the index, if there is one.
    pub digest: Digest,
    /// Its name, unless it was pulled by its digest.
    pub name: Option<Reference>,
}

/// Adds an image from a registry; the caller publishes. A layer that is in the store is not transferred.
///
/// # Errors
/// When the registry cannot be reached, does not have it, or breaks the protocol; nothing may be published then.
pub fn pull(
    into: &mut Transaction<'_>,
    source: &RemoteImage,
    registry: &Options,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<Pulled> {
    let session = Session::open(&source.name, Access::Pull, registry, progress)?;
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let found = manifest::find_image(&session, source, &platform)?;
    let config = read_document(&session, &found.manifest.config)?;
    let config = ImageConfig::parse(&format!("config {}", found.manifest.config.digest), config)?;
    if let Some(Err(reason)) = config.platform().map(|own| own.check_serves(&platform)) {
        return Err(session.error(format!("{} {reason}", source.reference())));
    }
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
    // A layer that was already here was not compared with this manifest's blob, but may have been earlier.
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

/// The layers of one image that are transferred.
struct Transfer<'t> {
    session: &'t Session<'t>,
    layers: &'t [(Descriptor, Digest)],
    options: &'t LoadOptions,
    progress: &'t dyn Progress,
}

/// A layer to fetch: its position in the image, and the file for its bytes.
struct Fetched {
    at: usize,
    spool: Spool,
}

impl Transfer<'_> {
    /// Returns the layers, the lowest first, and the marks of those that were unpacked from their blobs.
    fn run(&self, into: &mut Transaction<'_>) -> Result<(Vec<StoredLayer>, Vec<String>)> {
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
            let unpacked = self.unpack_all(into, &wanted, &cancelled);
            cancelled.store(true, Ordering::Relaxed);
            unpacked
        });
        match (unpacked, failure.into_inner()) {
            // The unpacker's error only means that its input ended.
            (Err(_), Some(failure)) => Err(failure),
            (unpacked, _) => unpacked,
        }
    }

    fn name_failure(&self, at: usize, error: &io::Error) -> ImageError {
        self.session.error(format!("blob {}: {error}", self.layers[at].0.digest))
    }

    /// Decides which layers must be fetched. A layer that depends on those below it can only be found once these
    /// are known, so one of those may be fetched in vain.
    fn plan(&self, into: &Transaction<'_>) -> Result<Vec<Fetched>> {
        let mut wanted: Vec<Fetched> = Vec::new();
        let mut below: Option<Vec<StoredLayer>> = Some(Vec::new());
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
        let mut blob = BlobReader::new(self.session, descriptor).unless(cancelled);
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

    fn unpack_all(
        &self,
        into: &mut Transaction<'_>,
        wanted: &[Fetched],
        cancelled: &AtomicBool,
    ) -> Result<(Vec<StoredLayer>, Vec<String>)> {
        let (mut stack, mut marks) = (Vec::new(), Vec::new());
        for now in rounds(self.layers, |(_, diff_id)| *diff_id, &self.options.unpack) {
            let round = Round { transfer: self, first: stack.len(), layers: now, wanted };
            let slots = round.slots(into, stack)?;
            let is_new: Vec<bool> = slots.iter().map(|slot| matches!(slot, Slot::New(_))).collect();
            stack = round.unpack(into, slots, cancelled)?.into_iter().map(|added| added.layer).collect();
            let new = self.layers.iter().zip(&is_new).filter(|(_, is_new)| **is_new);
            marks.extend(new.map(|((descriptor, diff_id), _)| blob_mark(&descriptor.digest, diff_id)));
            for (at, is_new) in is_new.iter().skip(round.first).enumerate() {
                round.last_use(at).map_or(Ok(()), |fetched| self.put_away(into, fetched, *is_new))?;
            }
        }
        Ok((stack, marks))
    }

    /// True if the blob stays in the store; an uncompressed one can be re-assembled.
    fn is_kept(&self, fetched: &Fetched) -> bool {
        let (descriptor, diff_id) = &self.layers[fetched.at];
        self.options.keep_blobs && descriptor.digest != *diff_id
    }

    /// Called after the round in which a blob was used last.
    fn put_away(&self, into: &mut Transaction<'_>, fetched: &Fetched, is_unpacked: bool) -> Result<()> {
        match self.is_kept(fetched) {
            true => {
                fetched.spool.wait().at(&fetched.spool.path)?;
                into.add_blob_file(self.layers[fetched.at].0.digest, &fetched.spool.path)
            }
            // The blob was removed when it was complete.
            false if is_unpacked => Ok(()),
            false => fetched.spool.remove(),
        }
    }
}

/// Layers that are unpacked in parallel.
struct Round<'t> {
    transfer: &'t Transfer<'t>,
    /// The position of the first one in the image.
    first: usize,
    layers: &'t [(Descriptor, Digest)],
    wanted: &'t [Fetched],
}

impl<'t> Round<'t> {
    fn fetched(&self, at: usize) -> Option<&'t Fetched> {
        let digest = self.layers[at].0.digest;
        self.wanted.iter().find(|fetched| self.transfer.layers[fetched.at].0.digest == digest)
    }

    /// The blob of this layer, if no later layer needs it.
    fn last_use(&self, at: usize) -> Option<&'t Fetched> {
        let digest = self.layers[at].0.digest;
        let is_used_later =
            self.transfer.layers.iter().skip(self.first + at + 1).any(|(later, _)| later.digest == digest);
        self.fetched(at).filter(|_| !is_used_later)
    }

    /// The layers below, and these layers on top.
    fn slots(&self, into: &Transaction<'_>, below: Vec<StoredLayer>) -> Result<Vec<Slot<'t>>> {
        let mut diff_ids: Vec<Digest> = below.iter().map(|layer| layer.record.diff_id).collect();
        let mut slots: Vec<Slot<'t>> = below.into_iter().map(Slot::There).collect();
        for (at, (descriptor, diff_id)) in self.layers.iter().enumerate() {
            if let Some(layer) = into.find_layer_on(&diff_ids, diff_id)? {
                self.transfer.progress.skips(diff_id, "Already exists");
                slots.push(Slot::There(layer));
            } else {
                let gone = || self.transfer.session.error(format!("layer {diff_id} went away meanwhile"));
                let input = Box::new(self.fetched(at).ok_or_else(gone)?.spool.reader());
                slots.push(Slot::New(NewLayer {
                    name: format!("blob {}", descriptor.digest),
                    expected: *diff_id,
                    input,
                }));
            }
            diff_ids.push(*diff_id);
        }
        Ok(slots)
    }

    fn unpack(
        &self,
        into: &mut Transaction<'_>,
        slots: Vec<Slot<'_>>,
        cancelled: &AtomicBool,
    ) -> Result<Vec<AddedLayer>> {
        let mut trouble = Ok(());
        let added = into.add_layers(slots, &self.transfer.options.unpack, &mut |slot, step| match step {
            LayerEvent::Begins | LayerEvent::Advances(_) => {}
            LayerEvent::Ends if trouble.is_ok() => trouble = self.complete(slot - self.first),
            LayerEvent::Ends => {}
            // Wakes readers that wait for blobs that are no longer needed.
            LayerEvent::Fails => cancelled.store(true, Ordering::Relaxed),
        });
        // If a blob is damaged, it depends on the threads whether this or the blob's digest reports it.
        let added = added.map_err(|error| self.transfer.session.error(error.to_string()))?;
        trouble.map(|()| added)
    }

    /// Called when a layer was unpacked. The unpacker stops at the archive's end, but the blob's digest needs all of the blob.
    fn complete(&self, at: usize) -> Result<()> {
        if let Some(fetched) = self.fetched(at) {
            fetched.spool.wait().at(&fetched.spool.path)?;
        }
        self.transfer.progress.ends(&self.layers[at].1, "Pull complete");
        match self.last_use(at).filter(|fetched| !self.transfer.is_kept(fetched)) {
            Some(fetched) => fetched.spool.remove(),
            None => Ok(()),
        }
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
            let source: RemoteImage = text.replace("DIGEST", &digest.to_string()).parse().expect(text);
            assert_eq!((source.name.full().as_str(), source.digest.is_some()), (name, pinned), "{text}");
        }
        for bad in ["", "@", "debian@", "debian@sha256:00", "Debian"] {
            assert!(bad.parse::<RemoteImage>().is_err(), "{bad}");
        }
    }
}
