//! One layer in its two forms: a tar stream, as in images, and a directory that overlay file systems can mount.
//! This module holds what the modules for both directions share.
//!
//! # Map
//!
//! | module | what it is for |
//! |---|---|
//! | [`image::unpack`](mod@crate::image::unpack) | extracts a stream into a directory, confined to it |
//! | [`image::recipe`](mod@crate::image::recipe) | the recipe: written while unpacking; gives the same stream again, bit for bit |
//! | [`image::verify`](mod@crate::image::verify) | compares a layer directory with its recipe |
//! | [`image::snapshot`](mod@crate::image::snapshot) | the changes that an upper directory holds, as a stream or a list; what two stacks differ in |
//! | `attributes` | owner, mode, times and extended attributes of a file, and of what kind it is |
//! | `lower_view` | the layers below as one tree |
//! | `marks` | whiteouts and opaque directories in a layer directory |
//! | `path` | names and paths of bytes |
//! | `error` | why a layer is refused |
//!
//! # Rules
//!
//! Formats: OCI image specification, layer.md; tar dialects as Go's `archive/tar` reads them. If a rule leaves a
//! choice, the result is that of extracting the layer with `tar` over the flattened lower layers:
//!
//! * whiteouts delete from the lower layers only, whatever their place in the stream; a directory that the same
//!   layer also deletes is opaque;
//! * a parent that is a symbolic link, in this layer or in a lower one, is followed within the root; a parent that
//!   no entry names takes the lower layer's attributes;
//! * a hard link to a lower file copies that file into this layer first;
//! * the last of several entries with one name counts, and a directory over a directory keeps its children.
//!
//! [`Unpacked::depends_on_lower`](crate::image::unpack::Unpacked::depends_on_lower) tells whether the lower layers had any
//! influence: such a layer directory is only correct above these.

pub(crate) mod attributes;
pub(crate) mod error;
pub(crate) mod lower_view;
pub(crate) mod marks;
pub(crate) mod path;

pub use error::LayerError;
pub use marks::{MarkStyle, WhiteoutForm};
