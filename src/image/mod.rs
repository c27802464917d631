//! Container images: archives in and out, the store, and the way between a layer's tar and its directory.
//!
//! | module | what it is for |
//! |---|---|
//! | [`digest`] | sha256 digests, hashing readers and writers |
//! | [`layer`] | one layer's tar: unpack, re-assemble, snapshot, changes |
//! | [`reference`](mod@reference) | image names: parse, normalise, show |
//! | [`spec`] | the OCI documents: descriptor, manifest, index, platform |
//! | [`config`] | an image's configuration: exact bytes, changes, history |
//! | [`time`] | RFC 3339 times |
//! | [`archive`] | what a docker-archive, OCI archive or OCI directory holds |
//! | [`unpack`](mod@unpack) | archive to plain layer directories, without a store |

pub mod archive;
pub mod config;
pub mod digest;
mod error;
pub(crate) mod files;
pub mod layer;
pub mod reference;
pub mod spec;
pub mod time;
pub mod unpack;

pub(crate) use error::nearest;
pub use error::{ImageError, IoContext, Result};
