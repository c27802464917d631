//! stratafs: a FUSE union file system, and the library behind the `stratafs` and `strata` programs.
//!
//! An ordered stack of read-only *lower* layer directories and one writable *upper* directory appear as one
//! tree. Upper directories are interchangeable with the Linux kernel's overlayfs in both directions.
//!
//! # Map of the code
//!
//! One direction of flow: a module uses only what its row names, and what is inside itself (`tests/tidy.rs` enforces
//! it). A row for a module inside another one stands for that module alone.
//!
//! | module | what it is for | may use |
//! |---|---|---|
//! | `bin/stratafs`, `bin/strata` | arguments, logging, exit codes | everything public |
//! | [`mount`] | [`Mount`]: a union mounted by this process, for programs that use the library | `fuse` `driver` `config` `sys` |
//! | [`fuse`] | mount, read requests from `/dev/fuse`, decode, call, reply; threads; passthrough ids. The only module naming `fuser` | `driver` `confined` `config` `sys` |
//! | [`driver`] | the mounted union: one file per verb group; takes the locks | `union` `confined` `marks` `config` `sys` |
//! | [`driver::node`] | where each file is, and every change of it; inode table, lookup counts, open handles, kept descriptors and listings; no I/O | `union` |
//! | [`container`] | OCI runtime bundles, running them | `store` `image` `confined` `marks` `sys` |
//! | [`registry`] | pull and push. The only module naming `ureq` | `store` `image` `tar` |
//! | [`store`] | the directory that holds images, layers and containers; loading, saving, committing | `image` `tar` `text` `union` `inventory` `confined` `marks` `sys` |
//! | [`image`] | archives in and out, unpacking, snapshots, diff | `tar` `text` `union` `inventory` `confined` `marks` `sys` |
//! | [`image::archive`] | what a docker-archive, OCI archive or OCI directory holds | `image::config` `image::digest` `image::document` `image::error` `image::files` `image::reference` `image::spec` `tar` `text` `confined` |
//! | [`image::unpack`](mod@image::unpack) | a layer's tar to a directory; an archive to plain layer directories | `image::archive` `image::recipe` `image::layer` `image::digest` `image::error` `image::files` `image::spec` `tar` `union` `inventory` `confined` `marks` `sys` |
//! | [`image::snapshot`](mod@image::snapshot) | an upper directory's changes as a layer's tar or a list | `image::layer` `image::digest` `tar` `union` `confined` `marks` |
//! | [`image::verify`](mod@image::verify) | a layer directory compared with its recipe | `image::recipe` `image::unpack` `image::layer` `image::digest` `tar` `confined` `marks` |
//! | [`image::recipe`] | what a layer's tar is made again from | `image::layer` `image::digest` `tar` `confined` |
//! | [`image::layer`] | what these share: attributes, marks, paths, errors | `tar` `text` `union` `confined` `marks` |
//! | [`tar`](mod@tar) | the tar format: one reader, one writer, compression | `text` |
//! | [`union`] | what a name means, given layers | `confined` `inventory` `marks` `config` `sys` |
//! | [`union::merge`] | resolve one name through the stack; merge one directory | `union::layer` `inventory` `marks` `sys` |
//! | [`union::view`] | layers looked at without a mount, by the same rules | `union::layer` `union::merge` `confined` `marks` |
//! | [`union::layer`] | [`union::layer::Layer`] (reads only), [`union::layer::UpperLayer`] (alone can write), work directory, stack | `confined` `inventory` `marks` `config` `sys` |
//! | [`inventory`] | the file beside a layer that lists everything in it: format, writing, reading | `confined` `marks` `sys` |
//! | [`confined`] | directories that nothing leads out of: opening, attributes, copying, removing; the table of mounts | `sys` |
//! | [`marks`] | codec of every on-disk mark: whiteouts, opaque, redirect, origin, metacopy; pure | nothing |
//! | [`text`] | escapes what others wrote, for terminals; pure | nothing |
//! | [`config`] | mount options; pure | nothing |
//! | [`sys`] | system calls that rustix lacks; the only `unsafe` | nothing |
//!
//! # The path of one write
//!
//! A process opens a file of a lower layer for appending and writes to it.
//!
//! 1. `fuse/transport` reads the OPEN request from `/dev/fuse`, `fuse/wire` decodes it, `fuse/serve` calls
//!    `Overlay::open_file`.
//! 2. `driver/verbs/io` sees that it is opened for writing and asks `driver/copy_up` for the file in the upper: first the
//!    directories above it, from the root down, then the file, each under its `copy_up` lock.
//! 3. `driver/copy_up/stage` makes a nameless file in the work directory (`union/layer/work`), copies the content
//!    (`confined/copy`), then owner, attributes, the origin mark, mode and times, and sees to it that the content reaches the disk no later
//!    than the name (`union/layer/order`).
//! 4. `driver/copy_up` holds the directory's names (`driver/node/guards`) while it publishes the file with one link and tells
//!    the node so (`driver/node/transitions`); the directory keeps its times.
//! 5. `driver/verbs/io` opens the upper file and, where the kernel can, registers it for passthrough: then the write itself
//!    never comes here. Else it comes as a WRITE request and ends in `Overlay::write`, one `pwrite(2)`.
//!
//! `driver` and everything below it runs without FUSE: unit and model tests drive it on temporary directories.

pub mod config;
pub mod confined;
pub mod container;
pub mod driver;
pub mod fuse;
pub mod image;
pub mod inventory;
pub mod marks;
mod mount;
pub mod registry;
pub mod store;
pub mod sys;
pub mod tar;
pub mod text;
pub mod union;

pub use config::error::OptionError;
pub use config::options::Access;
pub use config::{IdRange, Passthrough, RedirectDir, XattrPermissions, Xino};
pub use mount::{Builder, Error, Mount};
