//! What is written down of a container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Driver;
use super::bundle::RunOptions;
use crate::image::digest::Digest;

/// `container.json`: what a container is made of and how it runs. It is written when the container is made and when it is
/// started; what became of the container since is in [`State`](super::State).
///
/// The store's gc reads `image`, `layers` and `blobs`. The name is the directory's and not in here, so that a rename is one
/// system call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// 64 hexadecimal digits that stay the container's when it is renamed. The OCI runtime knows it by this id. Empty in the
    /// records of version 0.1, whose containers the runtime knows by name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The id of its image.
    pub image: Digest,
    /// How the user called the image.
    pub image_name: String,
    /// Ids of the image's layers in the store, the lowest first.
    pub layers: Vec<Digest>,
    /// The image's documents, which a commit needs.
    pub blobs: Vec<Digest>,
    /// When it was made, in RFC 3339.
    pub created: String,
    /// What mounts it.
    pub driver: Driver,
    /// It has no writable directory.
    #[serde(default)]
    pub read_only: bool,
    /// Where it is to be mounted.
    pub mountpoint: PathBuf,
    /// What it runs, entry point and arguments, if it was made to run something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Remove it when it ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remove_at_exit: bool,
    /// A user without privilege runs it: owners and modes are kept beside the files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rootless: bool,
    /// Mount points that the image lacks and that were made for the runtime; they are no change of the container's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stubs: Vec<PathBuf>,
    /// What the user asked for when it was made: environment, volumes, limits, labels, ports. Each start obeys it again.
    #[serde(default)]
    pub options: RunOptions,
    /// The OCI runtime of the user's choice; none: the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}
