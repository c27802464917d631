//! The command line of the verbs that list and show.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::filters::Filter;
use crate::format::Template;

/// How a list is printed.
#[derive(Args)]
pub struct StyleArgs {
    /// Print only ids
    #[arg(short, long, conflicts_with_all = ["json", "format"])]
    pub quiet: bool,
    /// Print with a Go template, '{{.ID}} {{json .}}', a table of such fields, 'table {{.ID}}\t{{.Image}}', or 'json'
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "json")]
    pub format: Option<Template>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// List images
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata images\n  strata images -q debian\n  strata images --filter dangling=true --format '{{.ID}} {{.Size}}'\n\nFields: ID Repository Tag Digest CreatedSince CreatedAt Size Containers SharedSize UniqueSize\nFilters: dangling=true|false label=KEY[=VALUE] reference=PATTERN before=IMAGE since=IMAGE until=TIME"
)]
pub struct Images {
    /// Only images of this repository or name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub name: Option<String>,
    /// Accepted for docker's sake: there are no intermediate images
    #[arg(short, long, hide = true)]
    pub all: bool,
    #[command(flatten)]
    pub style: StyleArgs,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print the digests of manifests too
    #[arg(long)]
    pub digests: bool,
    /// Only images that this is true of
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<Filter>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    Container,
    Image,
    Volume,
}

/// Show all there is to know of images or containers, as JSON
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata inspect debian:12\n  strata inspect --format '{{.State.Status}}' web\n  strata inspect --config debian:12 | jq .history"
)]
pub struct Inspect {
    /// Print the image's configuration, byte for byte
    #[arg(long, conflicts_with = "format")]
    pub config: bool,
    /// Print with a Go template, such as '{{.Config.Env}}'
    #[arg(short, long, value_name = "TEMPLATE")]
    pub format: Option<Template>,
    /// Only things of this kind [default: a container, else an image]
    #[arg(long, value_enum)]
    pub r#type: Option<KindArg>,
    /// Say how much a container has written
    #[arg(short, long)]
    pub size: bool,
    /// Images or containers
    #[arg(required = true, value_name = "IMAGE|CONTAINER")]
    pub names: Vec<String>,
}

/// Show how an image was made
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata history debian:12\n  strata history --json debian:12\n\nFields: ID CreatedSince CreatedAt CreatedBy Size Comment"
)]
pub struct History {
    /// Print commands whole
    #[arg(long)]
    pub no_trunc: bool,
    /// Print sizes and times for people (false: bytes and RFC 3339)
    #[arg(short = 'H', long, default_value_t = true, default_missing_value = "true", num_args = 0..=1,
        require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub human: bool,
    #[command(flatten)]
    pub style: StyleArgs,
    /// A name or an id, or the beginning of one
    pub image: String,
}

/// List containers
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata ps\n  strata ps -aq\n  strata ps --filter status=exited --format 'table {{.Names}}\\t{{.Status}}'\n\nFields: ID Image Command CreatedAt RunningFor Ports State Status Size Names Labels Mounts Networks\nFilters: id= name= label= status= exited= ancestor= before= since= volume= network= publish= expose= health="
)]
pub struct Ps {
    /// Also those that neither run nor are mounted
    #[arg(short, long)]
    pub all: bool,
    #[command(flatten)]
    pub style: StyleArgs,
    /// Print whole ids and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// The newest, this many of them, whatever their state
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub last: Option<usize>,
    /// The newest, whatever its state
    #[arg(short, long, conflicts_with = "last")]
    pub latest: bool,
    /// Say how much each has written
    #[arg(short, long)]
    pub size: bool,
    /// Only containers that this is true of
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<Filter>,
}

/// Show what the store takes, what is shared, and what can be reclaimed
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata df\n  strata df -v\n  strata df --json\n\nFields: Type TotalCount Active Size Reclaimable"
)]
pub struct Df {
    /// Print only bytes
    #[arg(short, long, conflicts_with_all = ["json", "format"])]
    pub quiet: bool,
    /// Print each image and container
    #[arg(short, long, conflicts_with_all = ["json", "format", "quiet"])]
    pub verbose: bool,
    /// Print with a Go template
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "json")]
    pub format: Option<Template>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Show the programs' versions
#[derive(Args)]
#[command(after_help = "Examples:\n  strata version\n  strata version --format '{{.Client.Version}}'")]
pub struct Version {
    /// Print with a Go template
    #[arg(short, long, value_name = "TEMPLATE")]
    pub format: Option<Template>,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

/// Show the store, what is in it, and the machine
#[derive(Args)]
#[command(after_help = "Examples:\n  strata info\n  strata info --format '{{.DockerRootDir}}'")]
pub struct Info {
    /// Print with a Go template
    #[arg(short, long, value_name = "TEMPLATE")]
    pub format: Option<Template>,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

/// Exit with 0 if there is one of this name or id, else with 1
#[derive(Args)]
#[command(after_help = "Examples:\n  strata container exists web || strata run -d --name web web:1")]
pub struct Exists {
    pub name: String,
}

#[derive(Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only what this is true of: until=TIME, label=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    pub filter: Vec<Filter>,
}

/// Remove images that have no name
#[derive(Args)]
#[command(after_help = "Examples:\n  strata image prune -f\n  strata image prune -af --filter until=240h")]
pub struct ImagePrune {
    /// All images that no container is made of
    #[arg(short, long)]
    pub all: bool,
    #[command(flatten)]
    pub prune: PruneArgs,
}

/// Remove containers that neither run nor are mounted, with their changes
#[derive(Args)]
#[command(after_help = "Examples:\n  strata container prune -f")]
pub struct ContainerPrune {
    #[command(flatten)]
    pub prune: PruneArgs,
}

/// Remove stopped containers, images without a name, and layers that nothing refers to
#[derive(Args)]
#[command(after_help = "Examples:\n  strata system prune -f\n  strata system prune -af")]
pub struct SystemPrune {
    /// All images that no container is made of
    #[arg(short, long)]
    pub all: bool,
    /// And all volumes that no container uses
    #[arg(long)]
    pub volumes: bool,
    #[command(flatten)]
    pub prune: PruneArgs,
}

/// Show what the mounts of stratafs on this machine do: requests, errors, memory
///
/// Without a mountpoint all of them that this mount namespace has, of this user (of everybody, for root). State: writable,
/// read-only, dead (its process has gone), no answer.
#[derive(Args)]
#[command(after_help = "Examples:\n  strata mounts\n  strata mounts --json /mnt/union")]
pub struct Mounts {
    /// Print only the mountpoints
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// This mount only, with its layers and its requests by kind
    pub mountpoint: Option<PathBuf>,
}

/// Show what running containers take: processor, memory, processes
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata stats\n  strata stats --no-stream --format '{{.Name}} {{.MemUsage}}' web\n\nFields: ID Name CPUPerc MemUsage MemPerc NetIO BlockIO PIDs"
)]
pub struct Stats {
    /// Also containers that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Once, instead of every second
    #[arg(long)]
    pub no_stream: bool,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print with a Go template
    #[arg(long, value_name = "TEMPLATE")]
    pub format: Option<Template>,
    /// Print JSON, once
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Containers [default: all that run]
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
}
