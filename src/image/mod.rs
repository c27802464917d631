//! Container images: archives in and out, the store, and the way between a layer's tar and its directory.
//!
//! | module | what it is for |
//! |---|---|
//! | `document` | reads all JSON documents as moby reads them |
//! | [`digest`] | sha256 digests, hashing readers and writers |
//! | [`layer`] | what unpacking, recipes, snapshots and verifying share: attributes, marks, paths, errors |
//! | [`reference`](mod@reference) | image names: parse, normalise, show |
//! | [`spec`] | the OCI documents: descriptor, manifest, index, platform |
//! | [`platform`] | what an image runs on: names, choice, interpreters |
//! | [`config`] | an image's configuration: exact bytes, changes, history |
//! | [`time`] | RFC 3339 times |
//! | [`archive`] | what a docker-archive, OCI archive or OCI directory holds |
//! | [`unpack`](mod@unpack) | a layer's tar to a directory; an archive to plain layer directories, without a store |
//! | [`snapshot`](mod@snapshot) | an upper directory's changes as a layer's tar or a list; compared stacks |
//! | [`recipe`] | what a layer's tar is made again from |
//! | [`verify`](mod@verify) | a layer directory compared with its recipe |

pub mod archive;
pub mod config;
pub mod digest;
pub(crate) mod document;
pub(crate) mod error;
pub(crate) mod files;
pub mod layer;
pub mod platform;
pub mod recipe;
pub mod reference;
pub mod snapshot;
pub mod spec;
pub mod time;
pub mod unpack;
pub mod verify;

pub(crate) use error::nearest;
pub use error::{ImageError, IoContext, Result};
