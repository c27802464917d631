//! The command line of the verbs that end containers, wait for them and inspect their processes.

use clap::Args;

/// Stop running containers
#[derive(Args)]
#[command(after_help = "Examples:\n  strata stop web\n  strata stop -t 1 web db")]
pub struct Stop {
    /// Seconds until it is killed [default: what it was made with, else 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS")]
    pub time: Option<u32>,
    /// The signal that asks it to end [default: what it was made with, else the image's]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// All that run
    #[arg(short, long, conflicts_with = "containers")]
    pub all: bool,
    /// The OCI runtime [default: what it was started with]
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<String>,
    #[arg(required_unless_present = "all", value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Stop containers, if they run, and start them
#[derive(Args)]
#[command(after_help = "Examples:\n  strata restart web\n  strata restart -t 1 web db")]
pub struct Restart {
    #[command(flatten)]
    pub stop: Stop,
}

/// Send a signal to containers
#[derive(Args)]
#[command(after_help = "Examples:\n  strata kill web\n  strata kill -s HUP web")]
pub struct Kill {
    /// The signal, a name or a number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// All that run
    #[arg(short, long, conflicts_with = "containers")]
    pub all: bool,
    /// The OCI runtime [default: what it was started with]
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<String>,
    #[arg(required_unless_present = "all", value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Wait until containers have ended, and print their exit codes
#[derive(Args)]
#[command(after_help = "Examples:\n  strata wait job\n  exit \"$(strata wait job)\" # strata rm job")]
pub struct Wait {
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Give a container another name, even while it runs
#[derive(Args)]
#[command(after_help = "Examples:\n  strata rename web web-old\n  strata rename 4f1a db")]
pub struct Rename {
    /// The container's name
    pub container: String,
    /// The new name
    #[arg(value_name = "NAME")]
    pub new_name: String,
}

/// Freeze all processes of containers
#[derive(Args)]
#[command(after_help = "Examples:\n  strata pause web\n  strata pause web db")]
pub struct Pause {
    /// The OCI runtime [default: what it was started with]
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Let paused containers go on
#[derive(Args)]
#[command(after_help = "Examples:\n  strata unpause web\n  strata unpause web db")]
pub struct Unpause {
    #[command(flatten)]
    pub pause: Pause,
}

/// List the processes of a running container
#[derive(Args)]
#[command(after_help = "Examples:\n  strata top web\n  strata top web -o pid,rss,args")]
pub struct Top {
    /// A container's name, then options of ps(1)
    #[arg(required = true, trailing_var_arg = true, num_args = 1.., value_names = ["CONTAINER", "OPTION"])]
    pub words: Vec<String>,
}

/// List the ports of the host that lead into a running container
#[derive(Args)]
#[command(after_help = "Examples:\n  strata port web\n  strata port web 80/tcp")]
pub struct PortList {
    /// The container's name
    pub container: String,
    /// Only this one of the container's
    #[arg(value_name = "PORT[/udp]")]
    pub port: Option<String>,
}

/// Print what a container wrote
#[derive(Args)]
#[command(after_help = "Examples:\n  strata logs web\n  strata logs -f --tail 20 --since 10m web")]
pub struct Logs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last lines, this many of them, or `all`
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = crate::logs::parse_tail,
        allow_negative_numbers = true)]
    pub tail: crate::logs::Tail,
    /// Begin each line with the time when it was written
    #[arg(short, long)]
    pub timestamps: bool,
    /// Accepted: no log driver adds anything
    #[arg(long, hide = true)]
    pub details: bool,
    /// Only what was written since: a time (2026-01-31T12:00:00Z), a date, seconds since 1970, or how long ago (10m, 1h30m)
    #[arg(long, value_name = "TIME", value_parser = crate::logs::parse_time)]
    pub since: Option<stratafs::image::time::Timestamp>,
    /// Only what was written before
    #[arg(long, value_name = "TIME", value_parser = crate::logs::parse_time)]
    pub until: Option<stratafs::image::time::Timestamp>,
    /// The container's name
    pub container: String,
}
