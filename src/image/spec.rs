//! The documents of the OCI image specification 1.1 ("Image Manifest", "Image Index", "Content Descriptors",
//! "Image Layout"), with unknown fields kept, and docker's media types for the same things.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::image::digest::Digest;
use crate::image::document;
use crate::image::{ImageError, Result};

/// Media type of an OCI manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed layer; `+gzip` and `+zstd` are appended for compressed ones.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of docker's manifest, schema 2.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of docker's manifest list.
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Annotation: the name of an entry in an image layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation: the full name of an image, as containerd and docker write it.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

/// Documents larger than this are refused; registries refuse manifests of more than 4 MiB.
pub(crate) const DOCUMENT_LIMIT: u64 = 8 << 20;

/// Annotations, in the order of their names.
pub type Annotations = BTreeMap<String, String>;

/// Points at a blob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Descriptor {
    /// The type of the blob; docker-archives and some indexes leave it out.
    #[serde(default)]
    pub media_type: String,
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
    /// In an entry of an index: the platform of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Unknown fields (`urls`, `artifactType`, …).
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Descriptor {
    /// A descriptor with only the three required fields.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        let media_type = media_type.into();
        Self { media_type, digest, size, platform: None, annotations: Annotations::new(), unknown: Map::new() }
    }

    /// Describes `blob`.
    pub fn of(media_type: &str, blob: &[u8]) -> Self {
        Self::new(media_type, Digest::of(blob), blob.len() as u64)
    }

    /// True for an index, OCI's or docker's.
    pub(crate) fn is_index(&self) -> bool {
        matches!(essence(&self.media_type).as_str(), INDEX | DOCKER_INDEX)
    }

    /// True for the manifest of an image, OCI's or docker's.
    pub(crate) fn is_manifest(&self) -> bool {
        matches!(essence(&self.media_type).as_str(), MANIFEST | DOCKER_MANIFEST)
    }

    /// True for a type that servers and old tools use for anything; the content then decides.
    pub(crate) fn is_of_any_type(&self) -> bool {
        is_unspecific(&essence(&self.media_type))
    }

    /// True for the provenance records that buildkit adds to an index; they are not images.
    pub(crate) fn is_attestation(&self) -> bool {
        self.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
            || self.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
    }
}

/// A platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, … in Go's names.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v8`, `v7`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// `os.version`, `os.features`, …
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// An image's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Manifest {
    /// Always 2.
    #[serde(default = "two")]
    pub schema_version: u32,
    /// [`MANIFEST`] or docker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image's config.
    pub config: Descriptor,
    /// The layers, the lowest first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Manifest {
    /// An OCI manifest with these parts.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: Some(MANIFEST.to_owned()), config, layers, unknown: Map::new() }
    }
}

/// An entry of an index. Foreign entries (other digest algorithms, other shapes) are kept unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IndexEntry {
    /// A descriptor that this program understands.
    Known(Box<Descriptor>),
    /// Anything else.
    Foreign(Value),
}

impl From<Descriptor> for IndexEntry {
    fn from(descriptor: Descriptor) -> Self {
        Self::Known(Box::new(descriptor))
    }
}

impl IndexEntry {
    /// The descriptor, if it is understood.
    pub fn descriptor(&self) -> Option<&Descriptor> {
        match self {
            Self::Known(descriptor) => Some(descriptor),
            Self::Foreign(_) => None,
        }
    }
}

/// An index: `index.json` of a layout, or the choice of platforms of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Index {
    /// Always 2.
    #[serde(default = "two")]
    pub schema_version: u32,
    /// [`INDEX`] or docker's manifest list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The entries.
    #[serde(default)]
    pub manifests: Vec<IndexEntry>,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Index {
    /// An OCI index of `manifests`.
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        let manifests = manifests.into_iter().map(IndexEntry::from).collect();
        Self { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests, unknown: Map::new() }
    }

    /// The entries that this program understands.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter_map(IndexEntry::descriptor)
    }
}

/// A media type without parameters, in lower case.
fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Types that registries and tools have used for want of a better one (moby, `distribution`, `ImageTypes`).
fn is_unspecific(essence: &str) -> bool {
    matches!(essence, "" | "application/octet-stream" | "application/json" | "text/html" | "text/plain")
}

/// True for media types of image configs; others belong to artifacts.
pub(crate) fn is_image_config(media_type: &str) -> bool {
    let docker = "application/vnd.docker.container.image.v1+json";
    let essence = essence(media_type);
    is_unspecific(&essence) || essence == CONFIG || essence == docker
}

/// The file `oci-layout`.
pub(crate) const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Reads one of the documents above.
///
/// # Errors
/// [`ImageError::Document`] naming `name`.
pub fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    let value = document::value(bytes).map_err(|error| ImageError::document(name, error))?;
    T::deserialize(value).map_err(|error| ImageError::document(name, error))
}

/// Writes one of the documents above, without white space.
///
/// # Errors
/// [`ImageError::Document`] naming `name`.
pub fn serialize(name: &str, document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|error| ImageError::document(name, error))
}

/// The only version of manifests and indexes.
fn two() -> u32 {
    2
}

/// Each of these is always read as by moby (see [`document`]), and written unchanged.
macro_rules! read_as_moby_reads {
    ($($name:ident: $shape:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let object = Map::deserialize(deserializer)?;
                let object = document::normal(object, document::$shape).map_err(D::Error::custom)?;
                Self::deserialize(Value::Object(object)).map_err(D::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                Self::serialize(self, serializer)
            }
        }
    )*};
}

read_as_moby_reads!(Descriptor: DESCRIPTOR, Manifest: MANIFEST, Index: INDEX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_foreign_entries_survive() {
        let text = concat!(
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"sha512:00","size":1},"#,
            r#"{"mediaType":"b","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","#,
            r#""size":0,"urls":["x"]}],"later":{"z":1,"a":2}}"#
        );
        let index: Index = parse("index", text.as_bytes()).expect("parse");
        assert_eq!(index.descriptors().count(), 1);
        assert_eq!(serialize("index", &index).expect("serialize"), text.as_bytes());
    }
}
