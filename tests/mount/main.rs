//! The mounted file system, verb by verb: every test runs on kernel overlayfs and on stratafs.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod applications;
mod attr;
mod caching;
mod create;
mod damaged;
mod fixtures;
mod index;
mod inventory;
mod io;
mod layers;
mod link;
mod locks;
mod lookup;
mod metacopy;
mod opaque;
mod options;
mod ownership;
mod passthrough;
mod peers;
mod permissions;
mod power;
mod readdir;
mod redirect;
mod remove;
mod rename;
mod security;
mod special;
mod xattr;
