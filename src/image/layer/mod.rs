//! One layer between its two forms: a tar stream, as images carry it, and a directory that overlay file systems
//! mount as it is.
//!
//! * [`unpack`] extracts a stream into a directory and records what is needed to give the same stream again;
//! * [`reassemble`] gives it, bit for bit; [`verify`] compares a layer directory with its recipe;
//! * [`snapshot`] writes the changes held by an upper directory as a stream; [`changes`] lists them;
//! * [`compare`] lists what differs between two stacks.
//!
//! # Map
//!
//! | module | what it is for |
//! |---|---|
//! | `unpack` | the pipeline: inflate, hash and extract at the same time |
//! | `compression` | gzip and zstd by magic number |
//! | `read`, `header`, `pax`, `acl`, `sparse` | the tar parser |
//! | `extract`, `dirs`, `resolve`, `place` | entries into the directory, confined to it |
//! | `recipe` | the recipe: written while unpacking, read by `reassemble` and `verify` |
//! | `verify`, `expect` | a layer directory compared with its recipe |
//! | `lower_view` | the layers below as one tree |
//! | `walk` | the changes that an upper directory holds |
//! | `snapshot`, `write` | these changes as a tar stream |
//! | `changes` | these changes as a list |
//! | `compare` | the differences of two stacks as such a list |
//! | `attributes`, `marks`, `path`, `confined` | what all of them share |
//!
//! # Rules
//!
//! Formats: OCI image specification, layer.md; tar dialects as Go's `archive/tar` reads them. Where a rule leaves
//! a choice, a layer means what extracting it with `tar` over the flattened lower layers would give:
//!
//! * whiteouts delete from the lower layers only, whatever their place in the stream; a directory that the same
//!   layer also deletes is opaque;
//! * a parent that is a symbolic link, in this layer or in a lower one, is followed within the root; a parent that
//!   is nowhere named takes the lower layer's attributes;
//! * a hard link to a lower file copies that file into this layer first;
//! * the last of several entries of one name wins, and a directory over a directory keeps its children.
//!
//! [`Unpacked::depends_on_lower`] tells whether any of this looked at the lower layers: such a layer directory is
//! right only above these.

mod acl;
mod attributes;
mod changes;
mod compare;
pub mod compression;
mod confined;
mod dirs;
mod error;
mod expect;
mod extract;
mod header;
mod lower_view;
mod marks;
mod options;
mod path;
mod pax;
mod place;
mod places;
mod read;
mod recipe;
mod resolve;
mod snapshot;
mod sparse;
mod unpack;
mod verify;
mod walk;
mod write;

pub use changes::{Change, ChangeKind, changes};
pub use compare::compare;
pub use compression::Compression;
pub use error::LayerError;
pub use marks::{Marks, WhiteoutForm};
pub use options::{Limits, UnpackOptions};
pub use recipe::reassemble;
pub use snapshot::{Snapshot, SnapshotOptions, flatten, snapshot};
pub use unpack::{Lowers, Unpacked, unpack, unpack_above};
pub use verify::verify;
