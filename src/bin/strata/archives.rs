//! Verbs that read or write archives.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::json;
use stratafs::container::checkpoint::{self, split_name};
use stratafs::container::{Container, CreateOptions, escaped_option, refuse_if_interrupted, rootless};
use stratafs::image::archive::{Archive, ArchiveInput, Spooling};
use stratafs::image::reference::Reference;
use stratafs::image::snapshot::{self, Omitted, SnapshotOptions};
use stratafs::image::spec::Platform;
use stratafs::image::unpack::UnpackOptions;
use stratafs::store::Store;
use stratafs::store::create::{self, Authoring};
use stratafs::store::load::{self, LoadOptions};
use stratafs::store::save::{self, Format, SaveOptions, Target};
use stratafs::sys::forward;
use stratafs::tar::Limits;
use stratafs::tar::compression::Compression;

use super::args::{AuthoringArgs, Commit, Export, Flatten, Import, Inventory, LimitArgs, Load, Save, Snapshot, Unpack};
use super::checkpoints;
use super::output::{print_json, print_line, print_path, size, tell};
use super::progress::{Meter, Report};

pub fn unpack_options(limits: &LimitArgs) -> UnpackOptions {
    let base = match rustix::process::geteuid().is_root() {
        true => UnpackOptions::default(),
        false => UnpackOptions::unprivileged(),
    };
    if limits.unlimited { UnpackOptions { limits: Limits::unlimited(), ..base } } else { base }
}

pub fn load(store: &Store, args: &Load) -> Result<()> {
    let options = LoadOptions {
        platform: args.platform.clone(),
        keep_blobs: args.keep_blobs,
        unpack: unpack_options(&args.limits),
    };
    let mut transaction = store.begin()?;
    let mut stdin = io::stdin();
    let source = match &args.input {
        Some(path) => ArchiveInput::Path(path),
        None if stdin.is_terminal() => bail!("nothing to load: give -i FILE, or an archive on standard input"),
        None => ArchiveInput::Stream(&mut stdin, "standard input"),
    };
    let archive = load::open(&transaction, source, &options)?;
    let loaded = load::load(&mut transaction, &archive, &options, &mut Report::new(args.quiet))?;
    transaction.publish()?;
    if args.json {
        let names = |image: &load::Loaded| image.names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let document = |image: &load::Loaded| json!({"Id": image.id, "RepoTags": names(image)});
        return Ok(print_json(&loaded.iter().map(document).collect())?);
    }
    for image in loaded {
        if image.names.is_empty() {
            print_line(&format!("Loaded image ID: {}", image.id))?;
        }
        for name in image.names {
            print_line(&format!("Loaded image: {name}"))?;
        }
    }
    Ok(())
}

fn authoring(args: &AuthoringArgs, name: &Option<Reference>) -> Authoring {
    Authoring {
        names: name.iter().cloned().collect(),
        message: args.message.clone(),
        changes: args.changes.clone(),
        source_date_epoch: args.source_date_epoch,
        ..Authoring::default()
    }
}

pub fn import(store: &Store, args: &Import) -> Result<()> {
    let mut authoring = authoring(&args.authoring, &args.name);
    let name = args.file.display().to_string();
    authoring.message.get_or_insert_with(|| format!("Imported from {name}"));
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let options = unpack_options(&args.limits);
    let size = std::fs::metadata(&args.file).ok().filter(std::fs::Metadata::is_file).map(|found| found.len());
    let meter = Meter::new("Importing", size);
    let mut transaction = store.begin()?;
    transaction.watch(meter.advance());
    let id = if name == "-" {
        create::import(&mut transaction, &mut io::stdin(), "standard input", &platform, &authoring, &options)?
    } else {
        let mut file = File::open(&args.file).with_context(|| name.clone())?;
        create::import(&mut transaction, &mut file, &name, &platform, &authoring, &options)?
    };
    transaction.publish()?;
    // Otherwise the id would be beside the bar, and removed with it.
    drop(meter);
    Ok(print_line(&id.to_string())?)
}

pub fn save(store: &Store, args: &Save) -> Result<()> {
    let format: Format = args.format.into();
    let default = if format == Format::DockerArchive { Compression::None } else { Compression::Gzip };
    let options = SaveOptions { format, compression: args.compression.map_or(default, Into::into) };
    let selection = save::select(store, &args.images)?;
    let (mut out, target) = (None, args.output.as_deref());
    let target = match target {
        Some(path) => Target::Path(path),
        None => Target::Stream(out.insert(stdout()?), "standard output"),
    };
    let meter = Meter::new("Saving", Some(save::bytes(store, &selection)?));
    Ok(save::save_watched(store, &selection, target, options, &meter.advance())?)
}

/// Returns standard output, unless it is a terminal.
fn stdout() -> Result<io::Stdout> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        bail!("standard output is a terminal; give -o FILE, or redirect it");
    }
    Ok(stdout)
}

/// Output whose writes fail once a signal has asked this process to end.
struct UntilInterrupted<'w> {
    file: File,
    watch: &'w dyn Fn(u64),
}

impl Write for UntilInterrupted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Waits here, where a signal is noticed: a write to a full pipe would continue after a signal.
        let mut waiting = [PollFd::new(&self.file, PollFlags::OUT)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        loop {
            refuse_if_interrupted().map_err(io::Error::other)?;
            match poll(&mut waiting, Some(&moment)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => {
                    let count = self.file.write(bytes)?;
                    (self.watch)(count as u64);
                    return Ok(count);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `write` on a file that appears when it is complete, or on standard output.
pub fn write_to(output: Option<&Path>, write: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
    forward::hold().context("signals")?;
    let meter = Meter::new("Writing", None);
    let watch = meter.advance();
    let Some(path) = output else {
        // Unbuffered: the buffer of `Stdout` would be written again after a signal.
        let stdout = File::from(stdout()?.as_fd().try_clone_to_owned()?);
        let mut out = BufWriter::with_capacity(1 << 18, UntilInterrupted { file: stdout, watch: &watch });
        write(&mut out)?;
        return Ok(out.flush()?);
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = || path.display().to_string();
    std::fs::metadata(dir).with_context(|| format!("cannot write {}: directory {}", name(), dir.display()))?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let file =
        tempfile::Builder::new().prefix(".strata-").permissions(permissions).tempfile_in(dir).with_context(name)?;
    let mut out =
        BufWriter::with_capacity(1 << 18, UntilInterrupted { file: file.as_file().try_clone()?, watch: &watch });
    write(&mut out)?;
    out.flush().with_context(name)?;
    refuse_if_interrupted()?;
    file.as_file().sync_all().with_context(name)?;
    file.persist(path).map_err(|error| error.error).with_context(name)?;
    Ok(())
}

/// Writes bytes to a file, or to standard output.
pub fn write_bytes(output: Option<&Path>, bytes: &[u8]) -> Result<()> {
    write_to(output, &mut |out| Ok(out.write_all(bytes)?))
}

/// Root reads the file tree through a mount, so that it is exactly what a container sees. Without privilege it is
/// read from the layers, because the mount does not show owners for which this user has no ids.
pub fn export(store: &Store, args: &Export) -> Result<()> {
    // A checkpoint is not mounted anywhere.
    if !rustix::process::geteuid().is_root() || checkpoints::container_at(store, &args.name).is_some() {
        return export_layers(store, args);
    }
    let write = |tree: BorrowedFd<'_>| {
        write_to(args.output.as_deref(), &mut |out| write_snapshot(tree, &[], out, None).map(drop))
    };
    forward::hold().context("signals")?;
    let (container, is_new) = match Container::open(store, &args.name) {
        Ok(container) => (container, false),
        Err(_) => {
            let image = store.find(&args.name)?;
            let driver = args.driver.into();
            let options =
                CreateOptions { image_name: image.label(), driver, read_only: true, ..CreateOptions::default() };
            (Container::create(store, &image, &options)?, true)
        }
    };
    let unmounts = !container.is_mounted()?;
    let borrowed = Borrowed { store, container: Some(container), unmounts, is_new };
    let outcome = borrowed.read(write);
    let ended = borrowed.end();
    // A failure caused by an interrupt is reported as an interrupt.
    outcome.and(ended).map_err(|error| refuse_if_interrupted().err().map_or(error, Into::into))
}

/// A container whose file tree is read. When this process ends in any way, the container is unmounted if it was not
/// mounted before, and removed if it is new.
struct Borrowed<'s> {
    store: &'s Store,
    /// `None` after it was ended.
    container: Option<Container>,
    unmounts: bool,
    is_new: bool,
}

impl Borrowed<'_> {
    fn read(&self, read: impl FnOnce(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
        let container = self.container.as_ref().context("the container has ended")?;
        refuse_if_interrupted()?;
        let mountpoint = container.mount(self.store)?;
        refuse_if_interrupted()?;
        read(File::open(mountpoint)?.as_fd())
    }

    fn end(mut self) -> Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> Result<()> {
        let Some(container) = self.container.take() else { return Ok(()) };
        let unmounted = match self.unmounts && container.is_mounted()? {
            // A new one is unknown to others, so it does not matter what still uses it.
            true => container.unmount(false).or_else(|error| match self.is_new {
                true => container.unmount(true),
                false => Err(error),
            }),
            false => Ok(()),
        };
        let removed = if self.is_new { container.remove(self.store) } else { Ok(()) };
        Ok(unmounted.and(removed)?)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            tell(&format!("strata: {error:#}"));
        }
    }
}

pub fn flatten(store: &Store, args: &Flatten) -> Result<()> {
    let image = store.find(&args.image)?;
    let mut authoring = authoring(&args.authoring, &args.name);
    authoring.message.get_or_insert_with(|| format!("Flattened from {}", image.label()));
    let options = unpack_options(&LimitArgs { unlimited: true });
    authoring.permissions = options.permissions();
    rootless::enter()?;
    let meter = Meter::new("Flattening", None);
    let mut transaction = store.begin()?;
    transaction.watch(meter.advance());
    let id = create::flatten(&mut transaction, &image.config, &store.layers_of(&image)?, &authoring, &options)?;
    transaction.publish()?;
    // Otherwise the id would be beside the bar, and removed with it.
    drop(meter);
    Ok(print_line(&id.to_string())?)
}

fn export_layers(store: &Store, args: &Export) -> Result<()> {
    let stack = checkpoints::Side::open(store, &args.name)?;
    let layers: Vec<BorrowedFd<'_>> = stack.all().map(AsFd::as_fd).collect();
    write_to(args.output.as_deref(), &mut |out| {
        let options = SnapshotOptions { permissions: stack.permissions(), ..SnapshotOptions::default() };
        let written = snapshot::flatten(&layers, out, &options)?;
        written.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(())
    })
}

/// Symbolic links cannot record their owner: it must be read in a namespace with the same ids.
pub fn enter_namespace_of(container: &Container) -> Result<()> {
    if !container.join()? {
        rootless::enter()?;
    }
    Ok(())
}

fn write_snapshot(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    out: &mut dyn Write,
    source_date_epoch: Option<i64>,
) -> Result<snapshot::Snapshot> {
    let snapshot =
        snapshot::snapshot(upper, lowers, out, &SnapshotOptions { source_date_epoch, ..SnapshotOptions::default() })?;
    snapshot.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(snapshot)
}

pub fn unpack(args: &Unpack) -> Result<()> {
    let mut stdin = io::stdin();
    let source = match args.archive.as_os_str() == "-" {
        true => ArchiveInput::Stream(&mut stdin, "standard input"),
        false => ArchiveInput::Path(&args.archive),
    };
    let dir = std::path::absolute(&args.dir)?;
    let scratch = dir.parent().unwrap_or(Path::new("/"));
    let options = unpack_options(&args.limits);
    let archive = Archive::open(source, &Spooling { scratch, skip: &|_| false, limits: &options.limits })?;
    let layers = stratafs::image::unpack::unpack_archive(&archive, &dir, args.platform.as_ref(), &options)?;
    let mut option = OsString::from("lowerdir=");
    for (number, path) in layers.iter().enumerate() {
        option.push(if number > 0 { ":" } else { "" });
        option.push(escaped_option(path));
    }
    Ok(print_path(Path::new(&option))?)
}

pub fn snapshot(args: &Snapshot) -> Result<()> {
    let open = |path: &PathBuf| -> Result<File> {
        let dir = File::open(path).with_context(|| path.display().to_string())?;
        if !dir.metadata()?.is_dir() {
            bail!("{}: not a directory", path.display());
        }
        Ok(dir)
    };
    let upper = open(&args.upper)?;
    let lowers = args.lowers.iter().map(open).collect::<Result<Vec<_>>>()?;
    let lowers: Vec<BorrowedFd<'_>> = lowers.iter().map(AsFd::as_fd).collect();
    let mut diff_id = None;
    write_to(args.output.as_deref(), &mut |out| {
        diff_id = Some(write_snapshot(upper.as_fd(), &lowers, out, args.source_date_epoch)?.diff_id);
        Ok(())
    })?;
    match diff_id.filter(|_| args.output.is_some()) {
        Some(diff_id) => Ok(print_line(&diff_id.to_string())?),
        None => Ok(()),
    }
}

pub fn inventory(args: &Inventory) -> Result<()> {
    for dir in &args.dirs {
        let written = stratafs::inventory::write(dir).with_context(|| dir.display().to_string())?;
        let (path, bytes) = (written.path.display(), size(written.bytes));
        print_line(&format!("{path}: {} names in {} directories, {bytes}", written.entries, written.directories))?;
    }
    Ok(())
}

pub fn commit(store: &Store, args: &Commit) -> Result<()> {
    let (name, checkpoint) = split_name(&args.container);
    let container = Container::open(store, name)?;
    let mut authoring = authoring(&args.authoring, &args.name);
    authoring.author.clone_from(&args.author);
    authoring.created_by = Some(container.record.command.join(" ")).filter(|command| !command.is_empty());
    authoring.permissions = container.record.permissions();
    authoring.omitted = Omitted::new(container.record.stubs.iter().map(PathBuf::as_path));
    let options = unpack_options(&LimitArgs { unlimited: true });
    if container.record.read_only {
        container.open_upper()?;
    }
    enter_namespace_of(&container)?;
    let mut transaction = store.begin()?;
    // If a change vanished during the reading, the layer would be incomplete.
    let open = container.open_stack(store, checkpoint)?;
    if args.squash {
        checkpoint::share(store, &open.layers)?;
    }
    let parent = container.config(store)?;
    let stack = container.layers(store)?;
    let mut changed: Vec<BorrowedFd<'_>> = open.changed.iter().map(AsFd::as_fd).collect();
    let squashed = match args.squash {
        true => create::squash(&changed, &transaction.scratch_dir("squashed")?)?.map(File::open).transpose()?,
        false => None,
    };
    if let Some(squashed) = &squashed {
        changed = vec![squashed.as_fd()];
    }
    changed.reverse();
    let meter = Meter::new("Committing", None);
    transaction.watch(meter.advance());
    let id = create::commit_each(&mut transaction, &parent, &stack, &changed, &authoring, &options)?;
    transaction.publish()?;
    // Otherwise the id would be beside the bar, and removed with it.
    drop(meter);
    Ok(print_line(&id.to_string())?)
}
