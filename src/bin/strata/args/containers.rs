//! The command line of the verbs about containers.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use stratafs::container::Driver;
use stratafs::container::bundle::Volume;

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
    /// What to call the container [default: made of the image's name]
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
    /// Where [default: in the store]
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

#[derive(Clone, Copy, ValueEnum)]
pub enum NetworkArg {
    Host,
    None,
}

/// Run a command in a new container of an image
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata run --rm -it debian:12 bash\n  strata run --name web -d -v /srv:/srv:ro web:1"
)]
pub struct Run {
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// What to call the container [default: made of the image's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Leave it running and print its name
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
    /// Set a variable; NAME alone passes yours on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Where it starts
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// As whom, by the image's own names, or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Show it a file or directory of the host
    #[arg(short, long, value_name = "SOURCE:DESTINATION[:ro]")]
    pub volume: Vec<Volume>,
    /// Instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Its host name [default: its name]
    #[arg(long)]
    pub hostname: Option<String>,
    /// The host's network, or none
    #[arg(long, value_enum, default_value = "host")]
    pub network: NetworkArg,
    /// It cannot change its root file system
    #[arg(long)]
    pub read_only: bool,
    /// Bytes of memory it may use
    #[arg(short, long, value_name = "BYTES", value_parser = crate::output::parse_size)]
    pub memory: Option<i64>,
    /// Number of processes it may have
    #[arg(long, value_name = "NUMBER")]
    pub pids_limit: Option<i64>,
    /// What mounts it: the stratafs program, or the kernel's overlayfs (needs root)
    #[arg(long, value_enum, env = "STRATA_DRIVER", default_value = "stratafs")]
    pub driver: DriverArg,
    /// The OCI runtime [default: runc, else crun]
    #[arg(long, env = "STRATA_RUNTIME", value_name = "PROGRAM")]
    pub runtime: Option<String>,
    /// An image (a name or an id, or the beginning of one), then the command or the arguments of the entry point. Options
    /// come before the image; all words after it are the container's
    #[arg(required = true, trailing_var_arg = true, num_args = 1.., value_names = ["IMAGE", "COMMAND"])]
    pub words: Vec<String>,
}

/// Run one more command in a running container
#[derive(Args)]
#[command(after_help = "Examples:\n  strata exec web ps\n  strata exec -it web bash")]
pub struct Exec {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Where it starts
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// As whom
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The OCI runtime [default: runc, else crun]
    #[arg(long, env = "STRATA_RUNTIME", value_name = "PROGRAM")]
    pub runtime: Option<String>,
    /// A container's name, then the command. Options come before the name; all words after it are the container's
    #[arg(required = true, trailing_var_arg = true, num_args = 2.., value_names = ["CONTAINER", "COMMAND"])]
    pub words: Vec<String>,
}

/// List containers
#[derive(Args)]
#[command(after_help = "Examples:\n  strata ps\n  strata ps -aq")]
pub struct Ps {
    /// Also those that neither run nor are mounted
    #[arg(short, long)]
    pub all: bool,
    /// Print only names
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The OCI runtime [default: runc, else crun]
    #[arg(long, env = "STRATA_RUNTIME", value_name = "PROGRAM")]
    pub runtime: Option<String>,
}

/// Stop running containers
#[derive(Args)]
#[command(after_help = "Examples:\n  strata stop web\n  strata stop -t 1 web db")]
pub struct Stop {
    /// Seconds until it is killed
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    pub time: u32,
    /// The OCI runtime [default: runc, else crun]
    #[arg(long, env = "STRATA_RUNTIME", value_name = "PROGRAM")]
    pub runtime: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Remove containers with all their changes
#[derive(Args)]
#[command(after_help = "Examples:\n  strata rm web\n  strata rm -f web db")]
pub struct Rm {
    /// Kill and unmount it first
    #[arg(short, long)]
    pub force: bool,
    /// The OCI runtime [default: runc, else crun]
    #[arg(long, env = "STRATA_RUNTIME", value_name = "PROGRAM")]
    pub runtime: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Print what a detached container wrote
#[derive(Args)]
#[command(after_help = "Examples:\n  strata logs web\n  strata logs -f --tail 20 web")]
pub struct Logs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last lines, this many of them [default: all]
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// The container's name
    pub container: String,
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
    /// A container, one of its checkpoints, or the image to begin with
    #[arg(value_name = "CONTAINER[@CHECKPOINT]|IMAGE")]
    pub name: String,
    /// What to compare that one with
    #[arg(value_name = "CONTAINER[@CHECKPOINT]|IMAGE")]
    pub other: Option<String>,
}

#[derive(Args)]
pub struct Supervise {
    #[arg(long)]
    pub runtime: Option<String>,
    /// The container's name
    pub container: String,
}
