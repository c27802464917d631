//! The mounted file system, verb by verb: every test runs on kernel overlayfs and on stratafs.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod attr;
mod create;
mod io;
mod link;
mod locks;
mod lookup;
mod opaque;
mod ownership;
mod readdir;
mod redirect;
mod remove;
mod rename;
mod special;
mod xattr;
