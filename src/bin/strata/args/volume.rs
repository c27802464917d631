//! The command line of `volume`.

use clap::{Args, Subcommand};

use crate::filters::Filter;
use crate::format::Template;

/// Named volumes: directories that containers share and that outlive them
#[derive(Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  strata volume create cache && strata run -v cache:/var/cache debian:12\n  strata volume ls"
)]
pub struct VolumeArgs {
    #[command(subcommand)]
    pub verb: VolumeVerb,
}

#[derive(Subcommand)]
pub enum VolumeVerb {
    /// Make a volume and print its name
    Create {
        /// Add a label
        #[arg(short, long, value_name = "NAME[=VALUE]")]
        label: Vec<String>,
        /// The driver; only `local` exists
        #[arg(short, long, value_name = "DRIVER", value_parser = ["local"])]
        driver: Option<String>,
        /// The same as NAME
        #[arg(long = "name", id = "named", value_name = "NAME", hide = true, conflicts_with = "name")]
        named: Option<String>,
        /// Its name [default: made up]
        name: Option<String>,
    },
    /// List volumes
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  strata volume ls -q --filter dangling=true\n  strata volume ls --format '{{.Name}} {{.Mountpoint}}'\n\nFields: Name Driver Mountpoint Labels Scope CreatedAt Links\nFilters: name=PART label=KEY[=VALUE] dangling=true|false driver=local"
    )]
    Ls {
        /// Print only names
        #[arg(short, long, conflicts_with_all = ["json", "format"])]
        quiet: bool,
        /// Print with a Go template
        #[arg(long, value_name = "TEMPLATE", conflicts_with = "json")]
        format: Option<Template>,
        /// Only volumes for which this is true
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<Filter>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show everything known about volumes, as JSON
    Inspect {
        /// Print with a Go template, such as '{{.Mountpoint}}'
        #[arg(short, long, value_name = "TEMPLATE")]
        format: Option<Template>,
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
    },
    /// Remove volumes and their content
    #[command(visible_alias = "remove")]
    Rm {
        /// Do not fail if a volume does not exist
        #[arg(short, long)]
        force: bool,
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
    },
    /// Exit with 0 if there is such a volume, else with 1
    Exists {
        #[arg(value_name = "VOLUME")]
        name: String,
    },
    /// Remove all volumes that no container uses
    Prune {
        /// Accepted; named volumes are always removed too
        #[arg(short, long)]
        all: bool,
        /// Only volumes for which this is true: label=KEY[=VALUE]
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<Filter>,
        /// Accepted; this verb never asks
        #[arg(short, long)]
        force: bool,
    },
}
