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
//! | [`tar`](mod@crate::tar) | the tar format: parser, writer, compression |
//! | [`image::unpack`](mod@crate::image::unpack) | a stream into a directory, confined to it |
//! | `image::recipe` | the recipe: written while unpacking, read by `reassemble` and `verify` |
//! | `image::verify` | a layer directory compared with its recipe |
//! | `image::snapshot` | the changes that an upper directory holds: as a stream, as a list; what two stacks differ in |
//! | `lower_view` | the layers below as one tree |
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

pub(crate) mod attributes;
pub(crate) mod error;
pub(crate) mod lower_view;
pub(crate) mod marks;
pub(crate) mod path;

pub use crate::image::recipe::reassemble;
pub use crate::image::snapshot::{Change, ChangeKind, Snapshot, SnapshotOptions, changes, compare, flatten, snapshot};
pub use crate::image::unpack::{Lowers, UnpackOptions, Unpacked, unpack, unpack_above};
pub use crate::image::verify::verify;
pub use crate::tar::compression::{Compression, Packing};
pub use crate::tar::{Limits, TarError};
pub use error::LayerError;
pub use marks::{Marks, WhiteoutForm};
