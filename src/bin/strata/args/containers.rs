//! The command line of the verbs about containers.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use stratafs::container::Driver;
use stratafs::image::reference::Reference;

use super::AuthoringArgs;

#[derive(Clone, Copy, ValueEnum)]
pub enum DriverArg {
    Stratafs,
    Overlay,
}

impl From<DriverArg> for Driver {
    fn from(driver: DriverArg) -> Self {
        match driver {
            DriverArg::Stratafs => Self::Stratafs,
            DriverArg::Overlay => Self::Overlay,
        }
    }
}

/// Mount an image with a new writable directory, or a container again, and print where
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata mount --name web debian:12\n  chroot \"$(strata mount web)\" apt-get update"
)]
pub struct Mount {
    /// The container's name [default: made from the image's name]
    #[arg(long)]
    pub name: Option<String>,
    /// List only names
    #[arg(short, long, conflicts_with_all = ["image", "json"])]
    pub quiet: bool,
    /// List as JSON
    #[arg(long, conflicts_with = "image")]
    pub json: bool,
    /// Without a writable directory
    #[arg(long)]
    pub read_only: bool,
    /// What mounts it: the stratafs program, or the kernel's overlayfs (needs root)
    #[arg(long, value_enum, env = "STRATA_DRIVER", default_value = "stratafs")]
    pub driver: DriverArg,
    /// An image, or a container to mount again; none: list what is mounted
    #[arg(value_name = "IMAGE|CONTAINER")]
    pub image: Option<String>,
    /// The mountpoint [default: in the store]
    pub mountpoint: Option<PathBuf>,
}

/// Unmount containers; their changes stay
#[derive(Args)]
#[command(visible_alias = "unmount", after_help = "Examples:\n  strata umount web\n  strata umount --rm /mnt")]
pub struct Umount {
    /// At once, even if in use
    #[arg(short, long)]
    pub lazy: bool,
    /// Remove the container with its changes too
    #[arg(long)]
    pub rm: bool,
    /// Containers or their mount points
    #[arg(required = true, value_name = "CONTAINER|MOUNTPOINT")]
    pub names: Vec<String>,
}

/// Remove containers with all their changes
#[derive(Args, Default)]
#[command(after_help = "Examples:\n  strata rm web\n  strata rm -f web db")]
pub struct Rm {
    /// Kill and unmount it first
    #[arg(short, long)]
    pub force: bool,
    /// Accepted: volumes of its own always go with a container, named ones stay
    #[arg(short, long)]
    pub volumes: bool,
    /// One that is not there is no error
    #[arg(short, long)]
    pub ignore: bool,
    /// All containers
    #[arg(short, long, conflicts_with = "containers")]
    pub all: bool,
    /// The OCI runtime [default: what it was started with]
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<String>,
    #[arg(required_unless_present = "all", value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// List what a container changed, or what differs between two containers, checkpoints or images: A added, C changed, D deleted
#[derive(Args)]
#[command(after_help = "Examples:\n  strata diff web@before-upgrade web\n  strata diff debian:11 debian:12")]
pub struct Diff {
    /// Print only paths
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Draw a tree, with the bytes of what is new or changed
    #[arg(long, conflicts_with_all = ["quiet", "json"])]
    pub tree: bool,
    /// How many directories deep the tree goes
    #[arg(long, value_name = "NUMBER", default_value_t = 20, requires = "tree")]
    pub depth: usize,
    /// A container, one of its checkpoints, or the image to begin with
    #[arg(value_name = "CONTAINER[@CHECKPOINT]|IMAGE")]
    pub name: String,
    /// What to compare that one with
    #[arg(value_name = "CONTAINER[@CHECKPOINT]|IMAGE")]
    pub other: Option<String>,
}

/// Copy files between a container, running or not, and this machine
///
/// A directory goes into an existing directory, under its own name, or becomes DESTINATION; SOURCE/. copies the content only. A
/// file becomes DESTINATION, or goes into it if that is a directory. Paths in containers begin at their root. `-` is a tar
/// stream. In the container the copies belong to root, on this machine to the user who runs the command.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata cp web:/etc/nginx/. ./nginx\n  strata cp index.html web:/srv/www/\n  strata cp web:/var/log - | tar -t\n  strata cp web@before-upgrade:/etc/passwd ."
)]
pub struct Cp {
    /// Keep owners, groups and ACLs, by number
    #[arg(short, long)]
    pub archive: bool,
    /// If SOURCE is a symbolic link, copy what it leads to
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Do not report on a terminal what was copied
    #[arg(short, long)]
    pub quiet: bool,
    /// A path of this machine (with a colon in it: begin with / or ./), or a tar stream on standard input
    #[arg(value_name = "CONTAINER[@CHECKPOINT]:PATH|PATH|-")]
    pub source: OsString,
    /// A path as above, or a tar stream on standard output
    #[arg(value_name = "CONTAINER:PATH|PATH|-")]
    pub destination: OsString,
}

/// Make an image of a container: one more layer for what it changed, and one for each checkpoint before that
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata commit --squash web@before-upgrade web:good\n  strata commit -m 'add curl' -a 'Me <me@example.org>' -c 'CMD [\"curl\"]' web web:2"
)]
pub struct Commit {
    /// Make one layer of a container with checkpoints
    #[arg(long)]
    pub squash: bool,
    /// The container's name, or one of its checkpoints
    #[arg(value_name = "CONTAINER[@CHECKPOINT]")]
    pub container: String,
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<Reference>,
    /// Who made it
    #[arg(short, long)]
    pub author: Option<String>,
    /// Accepted: a commit sees one moment of the files without a pause
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub pause: Option<bool>,
    #[command(flatten)]
    pub authoring: AuthoringArgs,
}
