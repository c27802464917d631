//! The record of a container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Driver;
use super::bundle::RunOptions;
use crate::image::digest::Digest;
use crate::image::snapshot::XattrPermissions;

/// `container.json`: the parts of a container, and how it runs. It is written when the container is made and when it is
/// started; later events are in [`State`](super::State).
///
/// The store's gc reads `image`, `layers` and `blobs`. The name is not in it, because it is the directory's: so a rename is
/// one system call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// 64 hexadecimal digits, which do not change when the container is renamed. The OCI runtime uses this id. Empty in
    /// records of version 0.1; the runtime knows those containers by name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The id of its image.
    pub image: Digest,
    /// The image's name as the user gave it.
    pub image_name: String,
    /// Ids of the image's layers in the store, the lowest first.
    pub layers: Vec<Digest>,
    /// The image's documents, which a commit needs.
    pub blobs: Vec<Digest>,
    /// Time of creation, in RFC 3339.
    pub created: String,
    /// The driver that mounts it.
    pub driver: Driver,
    /// It has no writable directory.
    #[serde(default)]
    pub read_only: bool,
    /// Its mountpoint.
    pub mountpoint: PathBuf,
    /// The command, entry point and arguments, if it was made to run one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Remove it when it ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remove_at_exit: bool,
    /// It runs without privilege: owners and modes are kept in attributes of the files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rootless: bool,
    /// Mountpoints that the image lacks and that were made for the runtime; they do not count as changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stubs: Vec<PathBuf>,
    /// The options with which it was made: environment, volumes, limits, labels, ports. Each start uses them again.
    #[serde(default)]
    pub options: RunOptions,
    /// The OCI runtime chosen by the user; `None` for the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

impl Record {
    /// Where its mounts store owner, mode and type of files. The content of a layer must not decide this.
    pub fn permissions(&self) -> XattrPermissions {
        if self.rootless { XattrPermissions::Containers } else { XattrPermissions::Inode }
    }
}
