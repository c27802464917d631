//! Images from and to registries, by the OCI distribution specification 1.1 (docker's registry protocol V2 is the same).
//!
//! | module | what it is for |
//! |---|---|
//! | `http` | one exchange: what may be connected to, by which way, how long to wait. Names `ureq`, as few others do |
//! | `address` | where a `Location` leads; which addresses are one server |
//! | `certificates` | which certificates are trusted |
//! | `proxy`, `forward` | the environment's proxies |
//! | `challenge`, `auth`, `realm` | authentication: `WWW-Authenticate`, tokens, which hosts may get a password |
//! | [`credentials`] | docker's and podman's files of passwords, and credential helpers |
//! | `retry` | what is tried again, and after how long |
//! | `session` | requests to one repository: the one function that knows all of the above |
//! | `blob` | reading one blob, over cut connections, checked against its descriptor |
//! | `upload` | sending one blob, over cut connections |
//! | `spool` | a blob that is read while it is still arriving |
//! | `manifest`, `artifact` | the manifest for a platform; artifacts that are not images |
//! | `pull` | registry to store |
//! | `push` | store to registry |
//!
//! Nothing from a registry is trusted: documents have a maximum size, every byte is hashed and counted on arrival,
//! and a layer is unpacked and published in the same way as one from an archive.
//!
//! # Known peculiarities of registries
//!
//! Each row is a switch of the simulated registry in `tests/registry/quirks.rs`.
//!
//! | registry | what it does | what is done about it |
//! |---|---|---|
//! | Docker Hub | token server of another domain; `429` at the pull limit, with `Retry-After` | `realm`, `retry` |
//! | ECR | `429` and `503` when many push (containerd#10447); `Range` of an upload stands still (aws/containers-roadmap#2831) | `retry`; a `Range` is asked for only after a failure |
//! | GHCR | knows no `GET` of an upload; `405` | the upload begins anew |
//! | GitLab | token server beside it (`registry.` and `gitlab.` of one domain); grants less than is asked for | `realm`; a mount falls back to sending |
//! | Harbor | `401` or `403` for a token that covers a second project | the same |
//! | Artifactory | `access_token` beside an empty `token`; `Location` with `http://` behind a proxy that ends TLS | empty counts as absent; its own host is spoken to by TLS |
//! | Nexus | challenge only at `/v2/`; relative `Location` | the root is asked; resolved against the request |
//! | Quay | hides repositories from unauthenticated clients by `404` or `403` | the root is asked, if there is a password |
//! | S3, Azure, GCS behind any of them | signed addresses that refuse `HEAD` or a second secret with `403` | never answered with a secret; there is a blob where a registry redirects to |
//!
//! # Crates that were considered
//!
//! - Not used: `http-auth` parses challenges, but rejects a whole header because of one unquoted address, which docker and
//!   podman accept.
//! - Not used: `oci-spec`. Its structs drop unknown fields, but manifests must be passed on unchanged.
//! - Not used: `docker_credential`; see [`credentials`].
//! - Used: `httpdate` (the three forms of dates in `Retry-After`) and `psl` (the public suffix list).

mod address;
mod artifact;
mod auth;
mod blob;
mod certificates;
mod challenge;
pub mod credentials;
mod forward;
mod http;
mod manifest;
mod proxy;
mod pull;
mod push;
mod realm;
mod retry;
mod session;
mod spool;
mod upload;

use std::path::PathBuf;

use crate::image::digest::Digest;
use crate::image::spec::Descriptor;

pub use artifact::{Written, pull_artifact};
pub use pull::{Pulled, RemoteImage, pull};
pub use push::{PushOptions, Pushed, push};
pub use session::log_in;

/// How to connect to registries.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Use plain HTTP. Never used unless requested, not even on the loopback interface.
    pub plain_http: bool,
    /// A directory with further trusted certificates (`*.crt`, `*.pem`).
    pub certificates: Option<PathBuf>,
    /// The files with passwords.
    pub credentials: credentials::Files,
}

/// Receives progress. Calls for several layers may be interleaved.
pub trait Progress: Sync {
    /// A layer needs no transfer.
    fn skips(&self, layer: &Digest, why: &str);
    /// So many of this number of bytes of a layer were compressed for its transfer.
    fn compresses(&self, _layer: &Digest, _position: u64, _size: u64) {}
    /// The transfer of a layer of this size begins.
    fn begins(&self, layer: &Digest, size: u64);
    /// This many bytes of it have been transferred.
    fn reaches(&self, layer: &Digest, position: u64);
    /// The transfer is complete.
    fn ends(&self, layer: &Digest, how: &str);
    /// A request will be repeated after a pause; the text says why.
    fn waits(&self, why: &str);
}

/// Ignores all progress.
impl Progress for () {
    fn skips(&self, _: &Digest, _: &str) {}
    fn begins(&self, _: &Digest, _: u64) {}
    fn reaches(&self, _: &Digest, _: u64) {}
    fn ends(&self, _: &Digest, _: &str) {}
    fn waits(&self, _: &str) {}
}

/// Number of blobs that are transferred in parallel, the same as docker's.
const AT_ONCE: usize = 3;

/// The part of a blob's path after the repository.
fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/{}", descriptor.digest)
}
