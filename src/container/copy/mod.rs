//! Copying files between the host and containers, as `docker cp` does.
//!
//! | module | what it is for |
//! |---|---|
//! | `root` | a file tree, the host's or a container's, and paths in it |
//! | `open` | opens a container's tree: running, mounted or neither, with its volumes |
//! | `source` | what is copied, and the walk through it |
//! | `target` | where it goes: docker's rules |
//! | `write` | makes files in a directory |
//! | `given` | owner, mode, times and attributes |
//! | `archive` | tar streams instead of the host's files |
//!
//! Processes of a container may change its tree at any moment. A path is resolved from the held root with `openat2(2)`
//! (`RESOLVE_IN_ROOT`), as the container would resolve it. Each step after that takes one name and follows no link, and a
//! file is opened for its content only after its type was checked through the same descriptor. So neither a link nor a
//! directory exchanged for a link leads out of the tree, and no device is opened.

mod archive;
mod given;
mod open;
mod root;
mod source;
mod target;
mod write;

pub use open::OpenRoot;
pub use root::Root;
pub use source::Source;
pub use target::Target;

/// Most warnings that are kept.
const WARNINGS: usize = 100;

/// How files are copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// Files keep owner, group and ACLs, and existing directories get those of the source. Otherwise, new files belong to
    /// the user of this process, who is root in a container.
    pub archive: bool,
}

/// What was copied.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    /// Bytes of the contents of files.
    pub bytes: u64,
    /// What could not be kept, or was left out, one line each; at most 100.
    pub warnings: Vec<String>,
}

impl Copied {
    fn warn(&mut self, warning: String) {
        if self.warnings.len() < WARNINGS && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}
