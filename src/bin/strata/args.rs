//! The command line: verbs about images. Verbs about containers are in `containers`.

mod checkpoints;
mod containers;
mod flags;
mod foreign;
mod groups;
mod lifecycle;
mod listing;
mod registry;
mod run;
mod volume;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use stratafs::image::config::ConfigChange;
use stratafs::image::reference::Reference;
use stratafs::image::spec::Platform;
use stratafs::image::time::WRITABLE;
use stratafs::store::save::Format;
use stratafs::tar::compression::Compression;

pub use checkpoints::*;
pub use containers::*;
pub use flags::*;
pub use foreign::*;
pub use groups::*;
pub use lifecycle::*;
pub use listing::*;
pub use registry::*;
pub use run::*;
pub use volume::*;

/// Container images on stratafs: load, run, change and save them, without a daemon
#[derive(Parser)]
#[command(
    name = "strata",
    version,
    disable_version_flag = true,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage; run and exec: the container's own,\n127 if its program is not there, 126 if it cannot be run, 125 if anything else fails\n(exec: 1 if the container does not run).\n\nStart with:\n  strata pull debian:12\n  strata run --rm -it debian:12 bash"
)]
pub struct Cli {
    /// The store [default: /var/lib/strata for root, else $XDG_DATA_HOME/strata]
    #[arg(long, global = true, env = "STRATA_ROOT", value_name = "DIR", help_heading = "Global options")]
    pub root: Option<PathBuf>,
    /// Print version
    #[arg(short = 'v', long, short_alias = 'V', action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    Pull(Pull),
    Push(Push),
    Login(Login),
    Logout(Logout),
    Load(Load),
    Import(Import),
    Save(Save),
    Export(Export),
    Flatten(Flatten),
    Unpack(Unpack),
    Snapshot(Snapshot),
    Inventory(Inventory),
    #[command(visible_alias = "ls")]
    Images(Images),
    Inspect(Inspect),
    History(History),
    Tag(Tag),
    Rmi(Rmi),
    Layers(Layers),
    Report(Report),
    Mount(Mount),
    Umount(Umount),
    Run(Box<Run>),
    Create(Box<Create>),
    Start(Start),
    Attach(Attach),
    Exec(Exec),
    #[command(visible_alias = "list")]
    Ps(Ps),
    Stop(Stop),
    Restart(Restart),
    Kill(Kill),
    Wait(Wait),
    Rename(Rename),
    Pause(Pause),
    Unpause(Unpause),
    Top(Top),
    Volume(VolumeArgs),
    Port(PortList),
    Rm(Rm),
    Logs(Logs),
    Diff(Diff),
    Cp(Cp),
    Commit(Commit),
    Checkpoint(Checkpoint),
    Rollback(Rollback),
    Fork(Fork),
    Gc(Gc),
    Verify(Verify),
    Df(Df),
    Which(Which),
    Stats(Stats),
    Info(Info),
    Version(Version),
    Mounts(Mounts),
    Doctor(Doctor),
    Completions(Completions),
    Man(Man),
    #[command(subcommand)]
    Container(ContainerVerb),
    #[command(subcommand)]
    Image(ImageVerb),
    #[command(subcommand)]
    System(SystemVerb),
    #[command(hide = true)]
    Supervise(Supervise),
    #[cfg(feature = "snapshotter")]
    Snapshotter(crate::snapshotter::Arguments),
}

/// Load images from a docker-archive, an OCI archive or an OCI directory
#[derive(Args)]
#[command(after_help = "Examples:\n  strata load -i debian.tar\n  docker save debian:12 | strata load")]
pub struct Load {
    /// Read from this file or directory instead of standard input
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Which image of an index with several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Keep compressed layers and original manifests too
    #[arg(long)]
    pub keep_blobs: bool,
    /// Print nothing but the images
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON: ids and names of what was loaded
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub limits: LimitArgs,
}

#[derive(Args)]
pub struct LimitArgs {
    /// Accept layers of any size, for trusted archives
    #[arg(long)]
    pub unlimited: bool,
}

/// Make an image of a root file system's tar
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata import rootfs.tar debian:bookworm\n  mmdebstrap bookworm - | strata import -c 'CMD [\"/bin/bash\"]' - debian"
)]
pub struct Import {
    /// The tar, plain or compressed; `-`: standard input
    pub file: PathBuf,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<Reference>,
    #[command(flatten)]
    pub authoring: AuthoringArgs,
    /// What it runs on [default: this machine's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub limits: LimitArgs,
}

#[derive(Args)]
pub struct AuthoringArgs {
    /// Apply a Dockerfile instruction: CMD ENTRYPOINT ENV EXPOSE LABEL STOPSIGNAL USER VOLUME WORKDIR
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    pub changes: Vec<ConfigChange>,
    /// A message for the history
    #[arg(short, long)]
    pub message: Option<String>,
    /// Stamp the image with this time in seconds since 1970, for the same bytes every time
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(WRITABLE))]
    pub source_date_epoch: Option<i64>,
}

/// Save images to an archive
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata save -o debian.tar debian:12\n  strata save --format oci-archive --compression gzip debian | ssh host podman load"
)]
pub struct Save {
    /// Write to this file or directory instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The shape of the archive
    #[arg(long, value_enum, default_value = "docker-archive")]
    pub format: FormatArg,
    /// Compression of the layers [default: none; gzip for OCI formats]
    #[arg(long, value_enum)]
    pub compression: Option<CompressionArg>,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum FormatArg {
    DockerArchive,
    OciArchive,
    OciDir,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::DockerArchive => Self::DockerArchive,
            FormatArg::OciArchive => Self::OciArchive,
            FormatArg::OciDir => Self::OciDirectory,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum CompressionArg {
    None,
    Gzip,
    Zstd,
}

impl From<CompressionArg> for Compression {
    fn from(compression: CompressionArg) -> Self {
        match compression {
            CompressionArg::None => Self::None,
            CompressionArg::Gzip => Self::Gzip,
            CompressionArg::Zstd => Self::Zstd,
        }
    }
}

/// Write the whole file tree of a container or an image as a tar
#[derive(Args)]
#[command(after_help = "Examples:\n  strata export -o rootfs.tar web\n  strata export debian:12 | tar -t")]
pub struct Export {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// A container, one of its checkpoints, or an image
    #[arg(value_name = "CONTAINER[@CHECKPOINT]|IMAGE")]
    pub name: String,
    #[arg(long, value_enum, default_value = "stratafs")]
    pub driver: DriverArg,
}

/// Make an image of one layer out of an image of several
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata flatten debian:12 debian:flat\n  strata flatten -m 'one layer' -c 'CMD [\"bash\"]' web:2 web:flat"
)]
pub struct Flatten {
    pub image: String,
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<Reference>,
    #[command(flatten)]
    pub authoring: AuthoringArgs,
}

/// Unpack an archive into plain layer directories and print the mount option for them; needs no store
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata unpack debian.tar layers\n  stratafs -o \"$(strata unpack debian.tar layers)\" /mnt"
)]
pub struct Unpack {
    /// A docker-archive, an OCI archive or an OCI directory; `-`: standard input
    pub archive: PathBuf,
    /// The directory to make; layers become DIR/1 (the lowest), DIR/2, …, with their inventories beside them
    pub dir: PathBuf,
    /// Which image of an index with several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Write what an upper directory changes as a layer's tar; needs no store
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata snapshot upper -o layer.tar --lower lower\n  strata snapshot upper --lower layers/2 --lower layers/1 -o layer.tar"
)]
pub struct Snapshot {
    /// The upper directory; not mounted, or mounted and idle
    pub upper: PathBuf,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// A layer below it, the topmost first; needed if directories were renamed
    #[arg(long = "lower", value_name = "DIR")]
    pub lowers: Vec<PathBuf>,
    /// Set times later than this (seconds since 1970) back to it
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(WRITABLE))]
    pub source_date_epoch: Option<i64>,
}

/// Write the inventory of layer directories, with which stratafs mounts need not look into them; needs no store
///
/// The inventory of DIR is the file DIR.inventory beside it. Layers of a store have theirs. Make it again when a layer was
/// changed, or remove it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata inventory layers/1 layers/2\n  strata inventory /srv/base && stratafs -o lowerdir=/srv/base /mnt"
)]
pub struct Inventory {
    /// Layer directories
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
}

/// Give an image one more name
#[derive(Args)]
#[command(after_help = "Examples:\n  strata tag debian:12 debian:stable\n  strata tag 4f1a registry.example/base:1")]
pub struct Tag {
    /// A name or an id, or the beginning of one
    pub image: String,
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Reference,
}

/// Remove names of images, and images with their last name
#[derive(Args)]
#[command(after_help = "Examples:\n  strata rmi debian:stable\n  strata rmi --force 4f1a")]
pub struct Rmi {
    /// Even if it has several names, or a container is made of it
    #[arg(short, long)]
    pub force: bool,
    /// Accepted: there are no images between
    #[arg(long, hide = true)]
    pub no_prune: bool,
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// A share of all bytes, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Percent(pub f64);

impl std::str::FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: f64 = text.trim_end_matches('%').parse().map_err(|_| "a share reads NUMBER%".to_owned())?;
        if (0.0..=100.0).contains(&number) { Ok(Self(number)) } else { Err("between 0% and 100%".to_owned()) }
    }
}

/// Make a page for a browser: layers, sizes, waste, files and history of an image
///
/// The page is one file that needs nothing else.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata report -o debian.html debian:12\n  strata report web:2 | ssh host 'cat > /srv/www/web.html'"
)]
pub struct Report {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// A name or an id, or the beginning of one
    pub image: String,
}

/// List an image's layers and the images that share them; or the changes of each layer; or wasted bytes
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata layers debian:12\n  strata layers --tree --depth 3 web:2\n  strata layers --max-wasted 5% web:2"
)]
pub struct Layers {
    /// Show what each layer adds (A), replaces (C) and deletes (D), and the bytes of that
    #[arg(long, conflicts_with_all = ["quiet", "json", "wasted"])]
    pub tree: bool,
    /// How many directories deep the tree goes
    #[arg(long, value_name = "NUMBER", default_value_t = 2, requires = "tree")]
    pub depth: usize,
    /// List files that are in a layer and that a layer above deletes or replaces
    #[arg(long, conflicts_with = "quiet")]
    pub wasted: bool,
    /// The same, and exit with 1 if they are more than this share of the image
    #[arg(long, value_name = "NUMBER%", conflicts_with_all = ["quiet", "tree"])]
    pub max_wasted: Option<Percent>,
    /// List all wasted files, not only the largest
    #[arg(long)]
    pub all: bool,
    /// Print only diff ids, the topmost first
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// A name or an id, or the beginning of one
    pub image: String,
}

/// Remove layers and blobs that nothing refers to
#[derive(Args)]
#[command(after_help = "Examples:\n  strata gc\n  strata gc --untagged")]
pub struct Gc {
    /// Remove images without a name first
    #[arg(long)]
    pub untagged: bool,
}

/// Re-hash layers and documents and report damage
#[derive(Args)]
#[command(after_help = "Examples:\n  strata verify\n  strata verify --repair debian:12")]
pub struct Verify {
    /// Remove what is damaged, so that loading its image again brings it back; make inventories again that do not fit
    #[arg(long)]
    pub repair: bool,
    /// Print JSON: what is damaged, and how many layers are sound
    #[arg(long, conflicts_with = "repair")]
    pub json: bool,
    /// Only these images [default: the whole store]
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// Show which layer of an image a path comes from, and what lies below it
#[derive(Args)]
#[command(after_help = "Examples:\n  strata which debian:12 /etc/passwd\n  strata which --json web:2 /srv")]
pub struct Which {
    /// Print only the diff id of the layer that it comes from
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// A name or an id, or the beginning of one
    pub image: String,
    pub path: PathBuf,
}

/// Check what this machine has and lacks, by trying it
#[derive(Args)]
#[command(after_help = "Examples:\n  strata doctor\n  strata --root /srv/store doctor")]
pub struct Doctor {
    /// Print only what is missing
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Print completions for a shell
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata completions bash > /etc/bash_completion.d/strata\n  strata completions fish > ~/.config/fish/completions/strata.fish"
)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

/// Write man pages into a directory
#[derive(Args)]
#[command(after_help = "Examples:\n  strata man --install\n  strata man . && man ./strata-run.1")]
pub struct Man {
    #[arg(required_unless_present = "install")]
    pub dir: Option<PathBuf>,
    /// Write them, and the completions, where this user's man and shells look: below /usr/local/share, or $XDG_DATA_HOME
    #[arg(long, conflicts_with = "dir")]
    pub install: bool,
}
