//! stratafs mounts a stack of directories as one tree, and turns container images into such stacks and back.
//!
//! An ordered stack of read-only *lower* layers and one writable *upper* directory appear as one tree. Reading goes to the
//! topmost layer that has a name. The first change of a lower file copies it to the upper directory; removing one
//! leaves a mark there (a *whiteout*). Layers never change. The union runs in user space, on FUSE, and takes the options and marks of the Linux
//! kernel's overlayfs, so that an upper directory can be used by either.
//!
//! ```no_run
//! use stratafs::Mount;
//!
//! let mount = Mount::builder().lower("top").lower("base").upper("upper", "work").mount("merged")?;
//! // ... use the files below `merged` ...
//! drop(mount); // unmounts; `mount.unmount()?` reports errors
//! # Ok::<(), stratafs::Error>(())
//! ```
//!
//! # Where to start
//!
//! | to | use |
//! |---|---|
//! | mount layers | [`Mount::builder`] |
//! | remember the state of a mount, or start others from it | [`Mount::checkpoint`] |
//! | unpack an image archive into layer directories | `image::unpack::unpack_archive` |
//! | list or save what an upper directory changes | `image::snapshot::changes`, `image::snapshot::snapshot` |
//! | keep images and containers in a directory | `store::Store`, `container::Container` |
//! | pull and push images | `registry` |
//! | make looking names up in a layer faster | [`inventory::write`] |
//!
//! `examples/` has a program for each of the first four. The programs `stratafs` and `strata` are built on this library.
//!
//! # Features
//!
//! All are on by default. A program that only mounts needs none: `default-features = false`.
//!
//! | feature | modules | brings |
//! |---|---|---|
//! | `image` | `image`, `store`, `tar`, `text` | compression, SHA-256, JSON |
//! | `registry` | `registry` | HTTP and TLS |
//! | `container` | `container` | |
//! | `snapshotter` | `snapshotter` | gRPC, an embedded database |
//! | `cli` | the programs | clap |
//!
//! # Stability
//!
//! Versions follow semantic versioning. Until 1.0 a minor version may change anything. These are meant to stay stable: the names
//! in the root of the crate ([`Mount`], [`Builder`], [`Checkpoint`], [`Error`] and the types of options), and the functions named
//! above. Other modules are public for the programs and tests of this repository, and change without notice.
//!
//! The structure of the code is described in `docs/architecture.md`.

#![warn(unreachable_pub)]
#![cfg_attr(
    not(all(
        feature = "image",
        feature = "registry",
        feature = "container",
        feature = "snapshotter",
        feature = "cli"
    )),
    allow(dead_code, unused_imports) // what only the other features use
)]

pub mod config;
pub mod confined;
#[cfg(feature = "container")]
pub mod container;
pub mod control;
pub mod driver;
pub mod fuse;
#[cfg(feature = "image")]
pub mod image;
pub mod inventory;
pub mod marks;
mod mount;
#[cfg(feature = "registry")]
pub mod registry;
#[cfg(feature = "snapshotter")]
pub mod snapshotter;
#[cfg(feature = "image")]
pub mod store;
pub mod sys;
#[cfg(feature = "image")]
pub mod tar;
#[cfg(feature = "image")]
pub mod text;
pub mod union;

pub use config::error::OptionError;
pub use config::options::Access;
pub use config::{IdRange, Inventories, Passthrough, RedirectDir, XattrPermissions, Xino};
pub use mount::{Builder, Checkpoint, Error, Mount};
