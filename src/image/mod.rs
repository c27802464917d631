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
//! | [`registry`] | images from and to registries |
//! | [`store`] | the directory that holds images, layers and containers |
//! | [`archive`] | what a docker-archive, OCI archive or OCI directory holds |
//! | [`load`](mod@load) | archive to store |
//! | [`save`](mod@save) | store to archive |
//! | [`create`] | new images: import of a root file system, commit of an upper directory |
//! | [`trace`](mod@trace) | which layer a path comes from |
//! | [`unpack`](mod@unpack) | archive to plain layer directories, without a store |

pub mod archive;
pub mod config;
pub mod create;
pub mod digest;
mod error;
pub mod layer;
pub mod load;
pub mod reference;
pub mod registry;
pub mod save;
pub mod spec;
pub mod store;
pub mod time;
pub mod trace;
pub mod unpack;

pub(crate) use error::nearest;
pub use error::{ImageError, IoContext, Result};
