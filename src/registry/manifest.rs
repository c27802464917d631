//! Manifests and indexes of a registry: chooses the one for a platform, and explains why others are not images.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::image::Result;
use crate::image::digest::Digest;
use crate::image::spec::{self, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, Index, MANIFEST, Manifest, Platform};
use crate::registry::artifact;
use crate::registry::pull::RemoteImage;
use crate::registry::session::Session;

/// More deeply nested indexes are refused.
const INDEX_DEPTH: u32 = 4;

/// The manifest that was requested.
pub(super) struct FetchedManifest {
    pub(super) manifest: Box<Manifest>,
    pub(super) bytes: Vec<u8>,
    /// Its digest in the registry: that of the index, if there is one.
    pub(super) digest: Digest,
}

enum Document {
    Manifest(Box<Manifest>),
    Index(Index),
}

/// The manifest of the image for a platform.
///
/// # Errors
/// When there is none; the message says what is there instead.
pub(super) fn find_image(session: &Session<'_>, source: &RemoteImage, platform: &Platform) -> Result<FetchedManifest> {
    let found = find(session, source, platform)?;
    match artifact::kind_of(&found.manifest) {
        None => Ok(found),
        Some(kind) => Err(session.error(format!("{} is no image, but {kind}", source.reference()))),
    }
}

/// The manifest for a platform, of any kind.
pub(super) fn find(session: &Session<'_>, source: &RemoteImage, platform: &Platform) -> Result<FetchedManifest> {
    let (mut bytes, digest) = fetch(session, &source.reference(), source.digest)?;
    for _ in 0..INDEX_DEPTH {
        let index = match document(session, &bytes)? {
            Document::Manifest(manifest) => return Ok(FetchedManifest { manifest, bytes, digest }),
            Document::Index(index) => index,
        };
        let chosen = match index.choose(platform).or_else(|| only_artifact(&index)) {
            Some(chosen) => chosen,
            None => return Err(session.error(format!("{} {}", source.reference(), why_none(&index, platform)))),
        };
        bytes = fetch(session, &chosen.digest.to_string(), Some(chosen.digest))?.0;
        if bytes.len() as u64 != chosen.size {
            let (promised, found) = (chosen.size, bytes.len());
            return Err(session
                .error(format!("manifest {}: {promised} bytes were promised, but it has {found}", chosen.digest)));
        }
    }
    Err(session.error(format!("indexes are nested more than {INDEX_DEPTH} deep")))
}

/// The only entry of an index.
fn only_artifact(index: &Index) -> Option<&Descriptor> {
    let mut entries = index.descriptors();
    let first = entries.next().filter(|entry| entry.platform.as_ref().is_none_or(Platform::is_unnamed))?;
    entries.next().is_none().then_some(first)
}

/// Says what an index has instead of an image for a platform.
fn why_none(index: &Index, platform: &Platform) -> String {
    let has: Vec<String> =
        index.platforms().filter(|platform| !platform.is_unnamed()).map(Platform::to_string).collect();
    if !has.is_empty() {
        return format!("has no image for {platform}; it has {}", has.join(", "));
    }
    let attestations = index.descriptors().filter(|entry| entry.is_attestation()).count();
    let kinds: Vec<&str> =
        index.descriptors().filter_map(|entry| entry.unknown.get("artifactType")?.as_str()).collect();
    match (attestations, index.manifests.len()) {
        (_, 0) => format!("has no image for {platform}: it is an empty index"),
        (some, all) if some == all => format!("is no image, but {all} attestations of one"),
        (_, all) if !kinds.is_empty() => {
            format!("is no image, but an index of {all} artifacts ({}); pull one by its digest", kinds.join(", "))
        }
        _ => format!("has no image for {platform}"),
    }
}

/// Fetches a manifest or index. One requested by digest is verified; for one requested by tag, the registry's
/// statement of its digest is.
fn fetch(session: &Session<'_>, reference: &str, pinned: Option<Digest>) -> Result<(Vec<u8>, Digest)> {
    let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX, artifact::MANIFEST].join(", ");
    let (response, bytes) = session.document(&format!("manifests/{reference}"), &accept, reference)?;
    let told = response.header("docker-content-digest").and_then(|digest| digest.parse().ok());
    let digest = Digest::of(&bytes);
    match pinned.or(told) {
        Some(expected) if expected != digest => {
            Err(session.error(format!("{reference}: {expected} was promised, but it is {digest}")))
        }
        _ => Ok((bytes, digest)),
    }
}

/// The fields decide: media types may be wrong, and a document that can be read in two ways is refused (CVE-2021-41190).
fn document(session: &Session<'_>, bytes: &[u8]) -> Result<Document> {
    #[derive(Deserialize)]
    struct Shape {
        manifests: Option<IgnoredAny>,
        config: Option<IgnoredAny>,
        #[serde(rename = "fsLayers")]
        fs_layers: Option<IgnoredAny>,
        blobs: Option<Vec<Descriptor>>,
        #[serde(rename = "artifactType")]
        artifact_type: Option<String>,
    }
    let name = format!("{}/{}: manifest", session.registry, session.repository);
    let shape: Shape = spec::parse(&name, bytes)?;
    match (shape.manifests, shape.config, shape.fs_layers) {
        (Some(_), None, None) => Ok(Document::Index(spec::parse(&name, bytes)?)),
        (None, Some(_), None) => Ok(Document::Manifest(spec::parse(&name, bytes)?)),
        (None, None, Some(_)) => Err(session.error("has only a manifest of schema 1, which is too old")),
        // The artifact manifest of the specification's release candidates.
        (None, None, None) if shape.artifact_type.is_some() => {
            Ok(Document::Manifest(Box::new(artifact::manifest(shape.artifact_type, shape.blobs.unwrap_or_default()))))
        }
        _ => Err(session.error("its manifest is neither one of an image nor an index")),
    }
}
