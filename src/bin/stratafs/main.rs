//! `stratafs`: mounts a union of directories.
//!
//! Options and behaviour are those of fuse-overlayfs, so container engines can use it in its place. The started
//! process returns when the mount answers. A second process serves the mount, detached from the terminal.

mod daemon;

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use stratafs::config::error::OptionError;
use stratafs::config::manual;
use stratafs::config::options::MountOptions;
use stratafs::config::remount::Remount;
use stratafs::driver::Overlay;
use stratafs::fuse::{self, Target};
use stratafs::sys::descriptors::InheritedDescriptors;
use stratafs::sys::memory::share_pool;
use stratafs::sys::signals::SignalQueue;
use tracing_subscriber::EnvFilter;

/// Mounts a union of directories: read-only layers and a writable one appear as one tree.
#[derive(Parser, Debug)]
#[command(
    name = "stratafs",
    bin_name = "stratafs",
    version = concat!(env!("CARGO_PKG_VERSION"), "\nFUSE protocol 7.40"),
    after_help = format!("{}Default for root: allow_other,suid,dev\n\n{ENVIRONMENT}", manual::summary())
)]
struct Arguments {
    /// Stay in the foreground
    #[arg(short = 'f')]
    foreground: bool,

    /// Stay in the foreground and log every request (also -o debug)
    #[arg(short, long)]
    debug: bool,

    /// Mount options, separated by commas; can be given several times
    #[arg(short, value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<OsString>,

    /// Ignored: type of the file system, as mount(8) gives it to its helpers
    #[arg(short = 't', value_name = "TYPE", hide = true)]
    _kind: Option<OsString>,

    /// Ignored: do not write to /etc/mtab
    #[arg(short = 'n', hide = true)]
    _no_mtab: bool,

    /// Ignored: tolerate unknown options
    #[arg(short = 's', hide = true)]
    _sloppy: bool,

    /// Ignored: talk more
    #[arg(short = 'v', hide = true)]
    _verbose: bool,

    /// What to mount on; before it, a name for the mount (as mount(8) gives it)
    #[arg(value_name = "[SOURCE] MOUNTPOINT", required_unless_present = "generate", num_args = 1..=2)]
    places: Vec<OsString>,

    /// A command to run in the meantime: when it ends, the mount does, and the exit code is the command's
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["foreground", "debug"])]
    command: Vec<OsString>,

    /// Print the man page, the tables of docs/options.md, or a shell's completions
    #[arg(long, value_name = "WHAT", hide = true)]
    generate: Option<Text>,
}

const ENVIRONMENT: &str =
    "Environment: STRATAFS_LOG (a filter such as 'debug' or 'stratafs::fuse=trace'), STRATAFS_LOG_FILE.";

/// Text made from the options, for packages and documentation.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Text {
    Man,
    Markdown,
    Bash,
    Zsh,
    Fish,
}

impl Text {
    fn make(self) -> Vec<u8> {
        let by_clap = |shell: Shell| {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "stratafs", &mut text);
            text
        };
        match self {
            Self::Man => manual::man_page(env!("CARGO_PKG_VERSION")).into_bytes(),
            Self::Markdown => manual::markdown().into_bytes(),
            Self::Bash => manual::bash_completion().into_bytes(),
            Self::Zsh => by_clap(Shell::Zsh),
            Self::Fish => by_clap(Shell::Fish),
        }
    }
}

/// Why the program ends without a mount.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(message: impl ToString) -> Self {
        Self { code: 1, message: message.to_string() }
    }
}

impl From<OptionError> for Failure {
    fn from(error: OptionError) -> Self {
        match error {
            OptionError::Usage(message) => Self { code: 2, message },
            // Each option is valid, but they contradict each other.
            error => Self::new(error),
        }
    }
}

/// What to mount, and where.
struct Order {
    options: MountOptions,
    target: Target,
    /// A mount of stratafs is at the mountpoint already.
    covers: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => return explain(&told),
    };
    if let Some(text) = arguments.generate {
        return print(&text.make());
    }
    // mount(8) calls its helpers with -f for "everything except the mount".
    let as_mount_helper = program_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"mount."));
    if let Some(change) = Remount::parse(&arguments.options) {
        return exit_with(remount(&arguments, &change));
    }
    // Without /proc nothing is found here, and the daemon reports that.
    let mut inherited = InheritedDescriptors::find().unwrap_or_default();
    let outcome = Order::new(&arguments, &mut inherited).and_then(|order| {
        for warning in &order.options.warnings {
            tell(&format!("warning: {warning}"));
        }
        if as_mount_helper && arguments.foreground {
            Ok(())
        } else if arguments.foreground || order.options.mount.debug {
            order.serve(|| Ok(()))
        } else {
            let daemon = daemon::start(&order, inherited)?;
            match arguments.command.split_first() {
                Some((program, words)) => return daemon::attend(daemon, program, words),
                None => Ok(()),
            }
        }
        .map(|()| ExitCode::SUCCESS)
    });
    match outcome {
        Ok(code) => code,
        Err(failure) => exit_with(Err(failure)),
    }
}

fn exit_with(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// `-o remount`: changes the flags of a mount that another process serves.
fn remount(arguments: &Arguments, change: &Remount) -> Result<(), Failure> {
    let Some(mountpoint) = arguments.places.last() else {
        return Err(Failure { code: 2, message: "a mountpoint is needed".to_owned() });
    };
    let mountpoint = resolve_mountpoint(Path::new(mountpoint))?;
    fuse::remount(&mountpoint, change).map_err(Failure::new)
}

/// Prints `--help` and `--version` as clap does, and a usage error in one line.
fn explain(told: &clap::Error) -> ExitCode {
    if !told.use_stderr() {
        told.print().unwrap_or(());
        return ExitCode::SUCCESS;
    }
    let text = told.to_string();
    let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let words: Vec<&str> = first.split_whitespace().collect();
    tell(&format!("{} (see --help)", words.join(" ")));
    ExitCode::from(2)
}

fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&reason(&error));
            ExitCode::FAILURE
        }
    }
}

fn program_name() -> Option<OsString> {
    let path = std::env::args_os().next()?;
    Path::new(&path).file_name().map(OsStr::to_owned)
}

/// Prints one line on stderr.
fn tell(message: &str) {
    let line = message.trim().replace('\n', "; ");
    // Best effort: there is no other place for a message.
    writeln!(io::stderr(), "stratafs: {line}").unwrap_or(());
}

impl Order {
    fn new(arguments: &Arguments, inherited: &mut InheritedDescriptors) -> Result<Self, Failure> {
        let (source, mountpoint) = match arguments.places.as_slice() {
            [mountpoint] => (None, mountpoint),
            [source, mountpoint] => (Some(source), mountpoint),
            // clap has checked their number.
            _ => return Err(Failure { code: 2, message: "a mountpoint is needed".to_owned() }),
        };
        let mut options = MountOptions::parse(&arguments.options, rustix::process::geteuid().is_root())?;
        options.mount.debug |= arguments.debug;
        if let (None, Some(source)) = (&options.mount.fsname, source) {
            // Only displayed, so invalid UTF-8 may be replaced.
            options.mount.fsname = Some(source.to_string_lossy().into_owned());
        }
        check_delimiters(&arguments.options, &mut options)?;
        resolve_layers(&mut options)?;
        let target = match given_device(mountpoint, inherited)? {
            Some(device) => Target::Device(device),
            None => Target::Directory(resolve_mountpoint(Path::new(mountpoint))?),
        };
        let covers = matches!(&target, Target::Directory(path) if fuse::is_mounted_at(path));
        Ok(Self { options, target, covers })
    }

    /// If the union is mounted there already, its upper is in use.
    fn refusal(&self, error: &dyn std::fmt::Display) -> Failure {
        match &self.target {
            Target::Directory(path) if self.covers => {
                Failure::new(format!("mountpoint '{}' is already mounted: {error}", path.display()))
            }
            _ => Failure::new(error),
        }
    }

    /// Mounts, calls `ready`, and serves until the mount is unmounted.
    fn serve(&self, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        start_logging(self.options.mount.debug)?;
        let watcher = self.options.mount.auto_unmount.then(fuse::Watcher::start).transpose();
        let watcher = watcher.map_err(|error| Failure::new(format!("auto_unmount: {}", reason(&error))))?;
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        // This comes before the mount is made and before the first thread is started: from now on, a signal unmounts.
        let signals = take_signals().map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
        reduce_privileges();
        // The kernel sends every caller's umask with the request.
        rustix::process::umask(rustix::fs::Mode::empty());
        share_pool();
        fuse::handover::request(&self.options.overlay).map_err(Failure::new)?;
        let overlay = Overlay::open(self.options.overlay.clone()).map_err(|error| self.refusal(&error))?;
        let mut mounted = fuse::mount(overlay, &self.target, &self.options).map_err(Failure::new)?;
        if self.covers {
            tell("warning: the mountpoint is already mounted by stratafs; this mount covers that one");
        }
        let watched = watcher.map_or(Ok(()), |watcher| mounted.watch_by(watcher));
        match watched.map_err(|error| Failure::new(format!("auto_unmount: {}", reason(&error)))).and_then(|()| ready())
        {
            Ok(()) => finish(mounted.serve(&signals)),
            Err(failure) => finish(mounted.end()).and(Err(failure)),
        }
    }
}

fn finish(served: io::Result<()>) -> Result<(), Failure> {
    served.map_err(|error| Failure::new(format!("cannot unmount: {error}")))
}

/// If a directory is not found because its name has a comma or a colon, says how to write it.
fn check_delimiters(given: &[OsString], options: &mut MountOptions) -> Result<(), Failure> {
    for path in options.overlay.directories_mut().filter(|path| !path.exists()) {
        if let Some(meant) =
            given.iter().find_map(|text| longer_directory(text.as_bytes(), path.as_os_str().as_bytes()))
        {
            let written = meant.replace(',', "\\,").replace(':', "\\:");
            let message = format!("'{}': no such directory; write '{meant}' as '{written}'", path.display());
            return Err(Failure { code: 2, message });
        }
    }
    Ok(())
}

/// The directory that `text` names if the delimiter after `path` is part of the name.
fn longer_directory(text: &[u8], path: &[u8]) -> Option<String> {
    let is_end = |at: usize| text.get(at).is_none_or(|byte| b",:".contains(byte));
    (0..text.len()).filter(|&start| text[start..].starts_with(path)).find_map(|start| {
        let ends = (start + path.len() + 1..=text.len()).filter(|&end| is_end(end));
        let mut longer = ends.filter_map(|end| std::str::from_utf8(&text[start..end]).ok());
        longer.find(|name| Path::new(name).is_dir()).map(str::to_owned)
    })
}

/// The daemon works in `/`, so relative layers are resolved here, in the caller's directory.
fn resolve_layers(options: &mut MountOptions) -> Result<(), Failure> {
    for layer in options.overlay.directories_mut() {
        *layer = std::path::absolute(&*layer)
            .map_err(|error| Failure::new(format!("layer '{}': {error}", layer.display())))?;
    }
    Ok(())
}

/// A mountpoint `/dev/fd/N` stands for a descriptor of `/dev/fuse` that the caller has opened and mounted, as in
/// libfuse 3. Any other file there is an ordinary mountpoint.
fn given_device(mountpoint: &OsStr, inherited: &mut InheritedDescriptors) -> Result<Option<OwnedFd>, Failure> {
    /// `misc` devices, and the number of `/dev/fuse` among them (`FUSE_MINOR`).
    const FUSE: (u32, u32) = (10, 229);
    let number = mountpoint.to_str().and_then(|path| path.strip_prefix("/dev/fd/")).and_then(|n| n.parse().ok());
    let Some(number) = number else { return Ok(None) };
    let stat = std::fs::metadata(mountpoint)
        .map_err(|error| Failure::new(format!("mountpoint '{}': {}", mountpoint.display(), reason(&error))))?;
    let device = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    if !stat.file_type().is_char_device() || device != FUSE {
        return Ok(None);
    }
    let Some(device) = inherited.take(number) else { return Ok(None) };
    rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| Failure::new(format!("mountpoint '{}': {error}", mountpoint.display())))?;
    Ok(Some(device))
}

fn resolve_mountpoint(mountpoint: &Path) -> Result<PathBuf, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::new(format!("mountpoint '{}': {error}", mountpoint.display()));
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOTCONN) => wrong(&"the driver of the mount there has died; umount -l it first"),
        _ => wrong(&reason(&error)),
    };
    let resolved = mountpoint.canonicalize().map_err(failed)?;
    if resolved.metadata().map_err(failed)?.is_dir() { Ok(resolved) } else { Err(wrong(&"Not a directory")) }
}

/// The text of `strerror(3)`, without Rust's `(os error 2)`.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Drops the caller's limits, and queues the signals that this program handles.
fn take_signals() -> io::Result<SignalQueue> {
    fuse::inherited::shed()?;
    let mut signals = fuse::inherited::ending_signals()?;
    signals.push(libc::SIGUSR1);
    SignalQueue::new(&signals)
}

/// Best effort: neither failure is a reason not to mount.
fn reduce_privileges() {
    if let Err(error) = fuse::privileges::stay_when_memory_is_short() {
        tracing::debug!(%error, "not protected when memory runs out");
    }
    if let Err(error) = fuse::privileges::give_up() {
        tracing::warn!(%error, "privileges that are not needed are kept");
    }
}

/// Logs to `STRATAFS_LOG_FILE`, or else to stderr, which is the caller's until the mount is ready and the null
/// device afterwards.
fn start_logging(debug: bool) -> Result<(), Failure> {
    // fuser's message about a failed mount is part of our own message.
    let default = if debug { "stratafs=trace,fuser=debug" } else { "warn,fuser=off,stratafs::requests=info" };
    let filter = match std::env::var("STRATAFS_LOG") {
        Ok(given) => {
            EnvFilter::try_new(&given).map_err(|error| Failure::new(format!("STRATAFS_LOG '{given}': {error}")))?
        }
        Err(_) => EnvFilter::new(default),
    };
    // A line that cannot be written, for example on a full disk, is dropped: reporting that to stderr, which may be on
    // the same disk, would panic.
    let format = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    match std::env::var_os("STRATAFS_LOG_FILE") {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|error| {
                Failure::new(format!("STRATAFS_LOG_FILE '{}': {}", Path::new(&path).display(), reason(&error)))
            })?;
            format.with_ansi(false).with_writer(file).init();
        }
        None => format.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).init(),
    }
    Ok(())
}
