//! The command line of the verbs about checkpoints.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

/// Remember the files of containers as they are; not their processes (which docker's verb of this name does)
#[derive(Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  strata checkpoint create web before-upgrade\n  strata checkpoint ls web"
)]
pub struct Checkpoint {
    #[command(subcommand)]
    pub verb: CheckpointVerb,
}

impl Checkpoint {
    /// The mountpoint and the directory, if it is a checkpoint of a mount without a store.
    pub fn of_mount(&self) -> Option<(&Path, &Path)> {
        match &self.verb {
            CheckpointVerb::Create(create) => Some((create.mount.as_deref()?, Path::new(&create.subject))),
            _ => None,
        }
    }
}

#[derive(Subcommand)]
pub enum CheckpointVerb {
    Create(CheckpointCreate),
    Ls(CheckpointLs),
    Rm(CheckpointRm),
}

/// Remember what a container's files are, at once and without stopping it
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata checkpoint create web before-upgrade\n  strata checkpoint create --mount /mnt /layers/monday"
)]
pub struct CheckpointCreate {
    /// Of a mount without a store: what was changed becomes the layer DIR, and the new lowerdir= is printed
    #[arg(long, value_name = "MOUNTPOINT", conflicts_with = "name")]
    pub mount: Option<PathBuf>,
    /// A container; with --mount, the directory to be made
    #[arg(value_name = "CONTAINER|DIR")]
    pub subject: String,
    /// The checkpoint's name
    #[arg(required_unless_present = "mount")]
    pub name: Option<String>,
}

/// List the checkpoints of a container
#[derive(Args)]
#[command(visible_alias = "list", after_help = "Examples:\n  strata checkpoint ls web")]
pub struct CheckpointLs {
    /// Print only names
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The container's name
    pub container: String,
}

/// Remove checkpoints of a container; its files stay as they are
#[derive(Args)]
#[command(after_help = "Examples:\n  strata checkpoint rm web before-upgrade")]
pub struct CheckpointRm {
    /// The container's name
    pub container: String,
    /// The checkpoints' names
    #[arg(required = true, value_name = "CHECKPOINT")]
    pub names: Vec<String>,
}

/// Make the files of a container those of a checkpoint again
///
/// The container may run. Files that its processes have open and that are not the same at the checkpoint behave as if they had
/// been deleted. What is mounted inside stays.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata rollback web before-upgrade\n  strata rollback --keep failed-upgrade web before-upgrade"
)]
pub struct Rollback {
    /// Keep what the files are now, under this name
    #[arg(long, value_name = "NAME")]
    pub keep: Option<String>,
    /// The container's name
    pub container: String,
    /// The checkpoint's name
    pub checkpoint: String,
}

/// Make another container that begins with the files of one, or of one of its checkpoints
#[derive(Args)]
#[command(after_help = "Examples:\n  strata fork web web2\n  strata fork --mount web@before-upgrade web2")]
pub struct Fork {
    /// Mount it and print where
    #[arg(long)]
    pub mount: bool,
    /// The container's name, or one of its checkpoints
    #[arg(value_name = "CONTAINER[@CHECKPOINT]")]
    pub from: String,
    /// The new container's name
    pub name: String,
}
