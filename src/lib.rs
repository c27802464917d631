//! stratafs: a FUSE union file system, and the library behind the `stratafs` and `strata` programs.
//!
//! An ordered stack of read-only *lower* layer directories and one writable *upper* directory appear as one
//! tree. Upper directories are interchangeable with the Linux kernel's overlayfs in both directions.
//!
//! # Map of the code
//!
//! One direction of flow: a module uses only what stands below it in this table (`tests/tidy.rs` enforces it).
//!
//! | module | what it is for | may use |
//! |---|---|---|
//! | `bin/stratafs`, `bin/strata` | arguments, logging, exit codes | everything public |
//! | [`fuse`] | mount, read requests from `/dev/fuse`, decode, call, reply; threads; passthrough ids. The only module naming `fuser` | `overlay` `node` `config` `sys` |
//! | [`overlay`] | one file per verb group; takes the locks | `node` `merge` `copy_up` `layer` `whiteout` `config` `sys` |
//! | [`copy_up`] | stage in the work directory, fill, publish with one rename or link | `merge` `layer` `whiteout` `sys` |
//! | [`merge`] | resolve one name through the stack; merge one directory | `layer` `inventory` `whiteout` `sys` |
//! | [`node`] | inode table, dentries, lookup counts, open handles; no I/O | `layer` types, `merge` listings |
//! | [`layer`] | [`layer::Layer`] (reads only), [`layer::UpperLayer`] (alone can write), work directory, stack | `inventory` `sys` `whiteout` `config` |
//! | [`inventory`] | the file beside a layer that lists everything in it: format, writing, reading | `whiteout` `sys` |
//! | [`image`] | archives in and out, registries, the store, unpacking, diff, commit. Its `registry` is the only module naming `ureq` | `inventory` `whiteout` `sys` |
//! | [`container`] | OCI runtime bundles, running them | `image` `whiteout` `sys` |
//! | [`whiteout`] | codec of every on-disk mark: whiteouts, opaque, redirect, origin, metacopy; pure | nothing |
//! | [`config`] | mount options; pure | nothing |
//! | [`sys`] | system calls that rustix lacks; the only `unsafe` | nothing |
//!
//! # The path of one write
//!
//! A process opens a file of a lower layer for appending and writes to it.
//!
//! 1. `fuse/crew` reads the OPEN request from `/dev/fuse`, `fuse/wire` decodes it, `fuse/serve` calls
//!    `Overlay::open_file`.
//! 2. `overlay/io` sees that it is opened for writing and asks `overlay/copy_up` for the file in the upper: first the
//!    directories above it, from the root down, then the file, each under its `copy_up` lock.
//! 3. `copy_up` stages a nameless file in the work directory (`layer/work`), copies the content (`copy_up/content`),
//!    then owner, attributes, the origin mark, mode and times, and sees to it that the content reaches the disk no later
//!    than the name (`layer/order`).
//! 4. `overlay/copy_up` takes the directory's `names` lock and publishes the file with one link; the directory keeps
//!    its times.
//! 5. `overlay/io` opens the upper file and, where the kernel can, registers it for passthrough: then the write itself
//!    never comes here. Else it comes as a WRITE request and ends in `Overlay::write`, one `pwrite(2)`.
//!
//! `overlay` and everything below it runs without FUSE: unit and model tests drive it on temporary directories.

pub mod config;
pub mod container;
pub mod copy_up;
pub mod fuse;
pub mod image;
pub mod inventory;
pub mod layer;
pub mod merge;
pub mod node;
pub mod overlay;
pub mod sys;
pub mod whiteout;
