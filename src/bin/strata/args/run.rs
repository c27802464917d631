//! The command line of the verbs that make and start containers.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use stratafs::container::attach::DetachKeys;
use stratafs::image::spec::Platform;

use super::{DriverArg, ForeignArgs, KeepArgs, LimitArgsOfContainer, PrivilegeArgs, RegistryArgs, StorageArgs};

/// The value of `--network`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkArg {
    Host,
    None,
    Pasta,
    /// Another container's.
    Of(String),
}

fn parse_network(text: &str) -> Result<NetworkArg, String> {
    match text {
        "host" => Ok(NetworkArg::Host),
        "none" => Ok(NetworkArg::None),
        "pasta" | "bridge" | "default" | "private" => Ok(NetworkArg::Pasta),
        _ => match text.strip_prefix("container:") {
            Some(name) if !name.is_empty() => Ok(NetworkArg::Of(name.to_owned())),
            _ => Err("host, none, pasta or container:NAME".to_owned()),
        },
    }
}

/// When an image is pulled.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PullArg {
    /// If the store does not have it
    Missing,
    /// Even if the store has it
    Always,
    /// Never
    Never,
}

/// How a container is made: options shared by `run` and `create`.
#[derive(Args)]
pub struct ContainerArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::HelpShort)]
    pub help: Option<bool>,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// The container's name [default: made from the image's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Keep its standard input open, and pass on this one
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable; NAME alone passes yours on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The user: a name in the image, or a number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Set the variables listed in a file, one NAME=VALUE on each line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Replace the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Add a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Add the labels listed in a file, one NAME=VALUE on each line
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Add an annotation for the OCI runtime
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
    /// The signal that asks it to end [default: the image's]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds that it may take to end when it is asked to [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,
    /// When to pull the image
    #[arg(long, value_enum, default_value = "missing")]
    pub pull: PullArg,
    /// Say nothing while an image is pulled
    #[arg(short, long)]
    pub quiet: bool,
    /// Which image of an index with several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
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
    // Groups with headings of their own come last: a heading goes on to what follows.
    #[command(flatten)]
    pub storage: StorageArgs,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub privileges: PrivilegeArgs,
    #[command(flatten)]
    pub limits: LimitArgsOfContainer,
    #[command(flatten)]
    pub keep: KeepArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
    #[command(flatten)]
    pub foreign: ForeignArgs,
}

/// The network of a container.
#[derive(Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Its host name [default: its name]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Its domain name
    #[arg(long, value_name = "NAME")]
    pub domainname: Option<String>,
    /// Its network: host; none: nothing but lo; pasta: one of its own, joined with the host's by pasta; container:NAME: that
    /// container's [default: host; with -p or -P: pasta]
    #[arg(long, visible_alias = "net", value_name = "NETWORK", value_parser = parse_network)]
    pub network: Option<NetworkArg>,
    /// Publish a port of the container on the host
    #[arg(short, long, value_name = "[ADDRESS:][HOST:]CONTAINER[/udp]")]
    pub publish: Vec<String>,
    /// Publish every port that the image exposes
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Another port for -P to publish
    #[arg(long, value_name = "PORT")]
    pub expose: Vec<String>,
    /// A name server's address, instead of the host's
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<String>,
    /// A domain to look for names in, instead of the host's; `.`: none
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// An option for resolv.conf
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// A line for /etc/hosts; host-gateway is this host's address
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
}

/// A standard stream.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StreamArg {
    Stdin,
    Stdout,
    Stderr,
}

/// How to attach to a container.
#[derive(Args)]
pub struct AttachArgs {
    /// The keys that detach from a terminal and leave the container running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: DetachKeys,
    /// Pass signals on to the container
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true)]
    pub sig_proxy: bool,
}

/// Run a command in a new container of an image
#[derive(Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  strata run --rm -it debian:12 bash\n  strata run --name web -d -v /srv:/srv:ro web:1"
)]
pub struct Run {
    /// Run it in the background and print its id
    #[arg(short, long)]
    pub detach: bool,
    /// Attach only these streams
    #[arg(
        short = 'a',
        long = "attach",
        value_enum,
        ignore_case = true,
        value_name = "STREAM",
        conflicts_with = "detach"
    )]
    pub streams: Vec<StreamArg>,
    #[command(flatten)]
    pub attach: AttachArgs,
    #[command(flatten)]
    pub container: ContainerArgs,
}

/// Make a container of an image without running it, and print its id
#[derive(Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  strata create --name web web:1\n  strata create -it --name shell debian:12 bash && strata start -ai shell"
)]
pub struct Create {
    #[command(flatten)]
    pub container: ContainerArgs,
}

/// Start containers that were made, or that have ended, with all their changes
#[derive(Args)]
#[command(after_help = "Examples:\n  strata start web db\n  strata start -ai shell")]
pub struct Start {
    /// Show its output, wait for its end and exit with its code
    #[arg(short, long)]
    pub attach: bool,
    /// Pass standard input on too
    #[arg(short, long)]
    pub interactive: bool,
    #[command(flatten)]
    pub attachment: AttachArgs,
    /// The OCI runtime [default: what it was made with]
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Attach the terminal to a running container
#[derive(Args)]
#[command(after_help = "Examples:\n  strata attach shell\n  strata attach --no-stdin web")]
pub struct Attach {
    /// Only show its output
    #[arg(long)]
    pub no_stdin: bool,
    #[command(flatten)]
    pub attachment: AttachArgs,
    /// The container's name
    pub container: String,
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
    /// Do not wait for it
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
    /// The keys that detach from a terminal and leave the command running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: DetachKeys,
    /// Set a variable; NAME alone passes yours on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set the variables listed in a file, one NAME=VALUE on each line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Give it every capability
    #[arg(long)]
    pub privileged: bool,
    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The OCI runtime [default: what it was started with]
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<String>,
    /// A container's name, then the command. Options come before the name; all words after it are the container's
    #[arg(required = true, trailing_var_arg = true, num_args = 2.., value_names = ["CONTAINER", "COMMAND"])]
    pub words: Vec<String>,
}

#[derive(Args)]
pub struct Supervise {
    #[arg(long)]
    pub runtime: Option<String>,
    /// The client that started it stays
    #[arg(long)]
    pub attached: bool,
    /// It never ran
    #[arg(long)]
    pub new: bool,
    /// The container's name
    pub container: String,
}
