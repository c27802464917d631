//! Images from and to registries, by the OCI distribution specification 1.1 (docker's registry protocol V2 is the same).
//!
//! | module | what it is for |
//! |---|---|
//! | [`http`] | one request: what may be connected to, how long to wait, where a redirect may lead. Alone names `ureq` |
//! | [`challenge`] | what a registry wants to see: `WWW-Authenticate` |
//! | [`credentials`] | docker's and podman's files of passwords, and credential helpers |
//! | [`session`] | requests to one repository, with what it wants to see |
//! | [`blob`] | reading one blob, over cut connections, checked against its descriptor |
//! | [`spool`] | a blob that is read while it is still arriving |
//! | [`pull`](mod@pull) | registry to store |
//! | [`push`](mod@push) | store to registry |
//!
//! Nothing that a registry says is trusted: documents are bounded, every byte is hashed and counted while it arrives,
//! and a layer goes through the same unpacking and publishing as one of an archive.

mod blob;
mod challenge;
pub mod credentials;
mod http;
mod pull;
mod push;
mod session;
mod spool;

use std::path::PathBuf;

use crate::image::digest::Digest;
use crate::image::spec::Descriptor;

pub use pull::{Pulled, Source, pull};
pub use push::{PushOptions, Pushed, push};
pub use session::log_in;

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Without TLS. Never done unless asked for, not even on the loopback interface.
    pub plain_http: bool,
    /// A directory of further certificates (`*.crt`, `*.pem`) to trust.
    pub certificates: Option<PathBuf>,
    /// Where passwords are kept.
    pub credentials: credentials::Files,
}

/// Who wants to know how far it is. Layers come and go at the same time.
pub trait Progress: Sync {
    /// Nothing is to be done for a layer.
    fn skips(&self, layer: &Digest, why: &str);
    /// A layer of so many bytes begins to be transferred.
    fn begins(&self, layer: &Digest, size: u64);
    /// This many bytes of it have been transferred.
    fn reaches(&self, layer: &Digest, position: u64);
    /// It is complete.
    fn ends(&self, layer: &Digest, how: &str);
}

/// Nobody does.
impl Progress for () {
    fn skips(&self, _: &Digest, _: &str) {}
    fn begins(&self, _: &Digest, _: u64) {}
    fn reaches(&self, _: &Digest, _: u64) {}
    fn ends(&self, _: &Digest, _: &str) {}
}

/// How many blobs are transferred at the same time, as docker does.
const AT_ONCE: usize = 3;

/// The part of a blob's path after the repository.
fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/{}", descriptor.digest)
}
