//! Images as a whole: archives in and out, the store, new images, other tools. The rules of single layers are in
//! `tests/layer.rs`. Needs root (layers hold other users' files and devices), but no FUSE.

#![allow(clippy::unwrap_used)]

#[path = "../common/layer_dirs.rs"]
mod layer_dirs;
#[path = "../common/tar_build.rs"]
mod tar_build;

mod archives;
mod bad_input;
mod cli;
mod container;
mod create;
mod fixture;
mod interop;
mod store;
