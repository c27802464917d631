//! The command line of the verbs about registries.

use std::path::PathBuf;

use clap::Args;
use stratafs::image::reference::Reference;
use stratafs::image::spec::Platform;
use stratafs::registry::RemoteImage;

use super::{CompressionArg, LimitArgs};

#[derive(Args)]
#[command(next_help_heading = "Registry")]
pub struct RegistryArgs {
    /// Use plain HTTP; anyone on the network path can read and change everything
    #[arg(long)]
    pub plain_http: bool,
    /// Trust the certificates (*.crt, *.pem) in this directory too
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Where passwords are kept [default: as docker and podman do]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

/// Get images from a registry; layers that are in the store are not transferred
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata pull debian:12 busybox\n  strata pull --platform linux/arm64 registry.example/base@sha256:4f1a…"
)]
pub struct Pull {
    /// Which image of an index with several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Keep the compressed layers too, so that the image can be pushed elsewhere unchanged
    #[arg(long)]
    pub keep_blobs: bool,
    /// Write the files of an artifact (a chart, an SBOM, a signature, ...) into a directory, instead of adding an image
    #[arg(long, requires = "output")]
    pub artifact: bool,
    /// The directory for the files of an artifact; it must be empty or not exist
    #[arg(short, long, value_name = "DIR", requires = "artifact")]
    pub output: Option<PathBuf>,
    /// Print nothing but the images' names
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON: ids, names and digests of what was pulled
    #[arg(long, conflicts_with_all = ["quiet", "artifact"])]
    pub json: bool,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Images; without a registry one is docker.io's, without a tag `latest`
    #[arg(required = true, value_name = "NAME[:TAG][@DIGEST]")]
    pub names: Vec<RemoteImage>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Send an image to a registry; layers that are there are not transferred
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata push registry.example/me/tool:1\n  strata push --plain-http debian:jq localhost:5000/debian:jq"
)]
pub struct Push {
    /// Compress every layer in this way [default: its known blob, else gzip]
    #[arg(long, value_enum)]
    pub compression: Option<CompressionArg>,
    /// Print nothing but the image's digest
    #[arg(short, long)]
    pub quiet: bool,
    /// A name or an id, or the beginning of one
    pub image: String,
    /// The name in the registry [default: the image's own]
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<Reference>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Keep a password for a registry, if the registry accepts it
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata login registry.example\n  pass registry | strata login -u me --password-stdin registry.example"
)]
pub struct Login {
    /// The name [default: asked for]
    #[arg(short, long, value_name = "NAME")]
    pub username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
    /// The registry's host, with a port if it has one of its own; with a path, for the repositories below it alone
    #[arg(default_value = "docker.io", value_name = "REGISTRY[/PATH]")]
    pub host: String,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Forget the password for a registry
#[derive(Args)]
#[command(after_help = "Examples:\n  strata logout registry.example\n  strata logout")]
pub struct Logout {
    /// Where passwords are kept [default: as docker and podman do]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// The registry's host, with a port if it has one of its own; with a path, for the repositories below it alone
    #[arg(default_value = "docker.io", value_name = "REGISTRY[/PATH]")]
    pub host: String,
}
