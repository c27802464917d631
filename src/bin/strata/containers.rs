//! Verbs about containers.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use stratafs::container::bundle::{Network, RunOptions};
use stratafs::container::{Container, CreateOptions, Runtime, rootless};
use stratafs::image::ImageError;
use stratafs::image::layer;
use stratafs::image::time::Timestamp;
use stratafs::store::{Layer, Store};
use stratafs::text::{shown_bytes, shown_path};

use super::args::{Diff, Exec, Logs, Mount, NetworkArg, Ps, Rm, Run, Stop, Supervise, Umount};
use super::output::{print_json, print_line, print_path, print_table, shorten};

pub fn mount(store: &Store, args: &Mount) -> Result<()> {
    let Some(image) = &args.image else {
        return list_mounted(store, args);
    };
    let existing = match args.name.is_none() && args.mountpoint.is_none() {
        true => Container::open(store, image).ok(),
        false => None,
    };
    if let Some(container) = existing {
        return Ok(print_path(container.mount(store)?)?);
    }
    let options = CreateOptions {
        name: args.name.clone(),
        image_name: image.clone(),
        driver: args.driver.into(),
        read_only: args.read_only,
        mountpoint: args.mountpoint.clone(),
        rootless: !rustix::process::geteuid().is_root(),
        ..CreateOptions::default()
    };
    let container = Container::create(store, &store.find(image)?, &options)?;
    match container.mount(store) {
        Ok(mountpoint) => Ok(print_path(mountpoint)?),
        Err(error) => {
            container.clone().remove(store)?;
            Err(error.into())
        }
    }
}

fn list_mounted(store: &Store, args: &Mount) -> Result<()> {
    let mut mounted = Vec::new();
    for container in Container::list(store)? {
        if container.is_mounted()? {
            mounted.push(container);
        }
    }
    if args.json {
        let value = |container: &Container| {
            json!({"Name": container.name(), "Image": container.record.image_name,
                "Mountpoint": container.record.mountpoint})
        };
        return Ok(print_json(&mounted.iter().map(value).collect())?);
    }
    Ok(mounted.iter().try_for_each(|container| match args.quiet {
        true => print_line(container.name()),
        false => print_line(&format!("{}   {}", container.name(), shown_path(&container.record.mountpoint))),
    })?)
}

pub fn umount(store: &Store, args: &Umount) -> Result<()> {
    for name in &args.names {
        let container = by_name_or_mountpoint(store, name)?;
        container.unmount(args.lazy)?;
        if args.rm {
            container.remove(store)?;
        }
    }
    Ok(())
}

fn by_name_or_mountpoint(store: &Store, name: &str) -> Result<Container> {
    if name.contains('/') {
        let path = fs::canonicalize(name).unwrap_or_else(|_| name.into());
        let at = |container: &Container| container.record.mountpoint == path && container.is_mounted().unwrap_or(false);
        if let Some(container) = Container::list(store)?.into_iter().find(at) {
            return Ok(container);
        }
        bail!("{name}: no container is mounted there");
    }
    Ok(Container::open(store, name)?)
}

pub fn run(store: &Store, args: Run) -> Result<ExitCode> {
    let rootless = rootless::enter()?;
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    if args.tty && !io::stdin().is_terminal() {
        bail!("-t needs a terminal as standard input");
    }
    let image = store.find(&args.image)?;
    if let Some(Err(reason)) = image.config.platform().map(|platform| platform.check_runs_here()) {
        return Err(ImageError::CannotRun { program: args.image, reason, missing: false }.into());
    }
    let options = RunOptions {
        command: args.command,
        entrypoint: args.entrypoint,
        env: args.env,
        working_dir: args.workdir,
        user: args.user,
        volumes: args.volume,
        hostname: args.hostname,
        network: match args.network {
            NetworkArg::Host => Network::Host,
            NetworkArg::None => Network::None,
        },
        terminal: args.tty,
        read_only: args.read_only,
        memory: args.memory,
        pids: args.pids_limit,
    };
    let create = CreateOptions {
        name: args.name,
        image_name: args.image,
        driver: args.driver.into(),
        command: options.words(&image.config.process()),
        remove_at_exit: args.rm,
        rootless,
        ..CreateOptions::default()
    };
    let mut container = Container::create(store, &image, &create)?;
    let lock = container.lock()?;
    let prepared = match container.mount(store).map(drop) {
        Ok(()) => container.prepare_run(store, &options),
        Err(error) => Err(error),
    };
    if let Err(error) = prepared {
        if container.is_mounted()? {
            container.unmount(false)?;
        }
        container.remove(store)?;
        return Err(error.into());
    }
    if args.detach {
        drop(lock);
        return detach(store, &container, args.runtime.as_deref());
    }
    // Without -i the container must not eat the caller's input.
    let code = runtime.run(&container, None, args.interactive || args.tty)?;
    finish(store, container)?;
    Ok(ExitCode::from(code))
}

/// After a container has ended: its mount goes, and with `--rm` all of it.
fn finish(store: &Store, container: Container) -> Result<()> {
    // Mounts again if the driver died.
    container.mount(store)?;
    container.remove_stubs()?;
    container.unmount(false)?;
    if container.record.remove_at_exit {
        container.remove(store)?;
    }
    Ok(())
}

/// Starts this program again to watch the container, and waits until it runs.
fn detach(store: &Store, container: &Container, runtime: Option<&str>) -> Result<ExitCode> {
    let log = File::create(container.dir().join("log")).context("log")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--root").arg(store.root()).arg("supervise");
    if let Some(runtime) = runtime {
        command.arg("--runtime").arg(runtime);
    }
    command.arg(container.name()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut supervisor = command.spawn()?;
    let (pid_file, exit_file) = (container.dir().join("pid"), container.dir().join("exit"));
    loop {
        if pid_file.exists() {
            print_line(container.name())?;
            return Ok(ExitCode::SUCCESS);
        }
        if supervisor.try_wait()?.is_some() {
            // A short-lived container may be gone already, which is no failure.
            if exit_file.exists() || !container.dir().exists() {
                print_line(container.name())?;
                return Ok(ExitCode::SUCCESS);
            }
            bail!("{}: {}", container.name(), last_line(&container.dir().join("log")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn last_line(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    text.lines().last().unwrap_or("the container did not start").to_owned()
}

pub fn supervise(store: &Store, args: &Supervise) -> Result<ExitCode> {
    rustix::process::setsid().context("setsid")?;
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    let container = Container::open(store, &args.container)?;
    let _lock = container.lock()?;
    let code = runtime.run(&container, Some(&container.dir().join("pid")), false)?;
    fs::write(container.dir().join("exit"), format!("{code}\n"))?;
    finish(store, container)?;
    Ok(ExitCode::from(code))
}

pub fn exec(store: &Store, args: Exec) -> Result<ExitCode> {
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    let container = Container::open(store, &args.container)?;
    container.join()?;
    let options = RunOptions {
        command: args.command,
        env: args.env,
        working_dir: args.workdir,
        user: args.user,
        terminal: args.tty,
        ..RunOptions::default()
    };
    Ok(ExitCode::from(runtime.exec(&container, &options, args.interactive || args.tty)?))
}

/// What `ps` says of a container.
fn status(runtime: Option<&Runtime>, container: &Container) -> Result<String> {
    let state = match runtime {
        Some(runtime) => runtime.state(container)?,
        None => None,
    };
    Ok(match state {
        // It ended with everything that watched it, and nobody has cleaned up yet.
        Some(state) => state.status,
        None if container.is_alive()? => "mounted".to_owned(),
        None => match fs::read_to_string(container.dir().join("exit")) {
            Ok(code) => format!("exited ({})", code.trim()),
            Err(_) => "stopped".to_owned(),
        },
    })
}

pub fn list(store: &Store, args: &Ps) -> Result<()> {
    let runtime = Runtime::find(store, args.runtime.as_deref()).ok();
    let now = Timestamp::now();
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for container in Container::list(store)? {
        let status = status(runtime.as_ref(), &container)?;
        if !args.all && (status == "stopped" || status.starts_with("exited")) {
            continue;
        }
        let record = &container.record;
        let created = Timestamp::parse(&record.created).map_or_else(|| "N/A".to_owned(), |created| created.ago(now));
        values.push(json!({"Name": container.name(), "Image": record.image_name, "ImageId": record.image,
            "Command": record.command, "Created": record.created, "Status": status, "Mountpoint": record.mountpoint}));
        let command = shorten(&record.command.join(" "), 30);
        rows.push(vec![container.name().to_owned(), record.image_name.clone(), command, created, status]);
    }
    if args.json {
        return Ok(print_json(&values.into())?);
    }
    if args.quiet {
        return Ok(rows.iter().try_for_each(|row| print_line(&row[0]))?);
    }
    Ok(print_table(&["NAME", "IMAGE", "COMMAND", "CREATED", "STATUS"], &rows)?)
}

pub fn stop(store: &Store, args: &Stop) -> Result<()> {
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    for name in &args.containers {
        let container = Container::open(store, name)?;
        let signal = container.config(store)?.process().stop_signal;
        let signal = if signal.is_empty() { "TERM" } else { signal.trim_start_matches("SIG") };
        let patience = Duration::from_secs(args.time.into());
        in_its_namespace(&container, || end(store, &runtime, &container, signal, patience))?;
        print_line(name)?;
    }
    Ok(())
}

/// Does something where the container is mounted, which a user without privilege has done in a namespace of its own.
fn in_its_namespace(container: &Container, work: impl FnOnce() -> Result<()>) -> Result<()> {
    container.in_its_namespace(|| work().map_err(|error| format!("{error:#}"))).map_err(anyhow::Error::msg)
}

/// How long a process that was killed may take to go.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long the process that ran a container may take to finish after it: unmounting overlayfs writes everything to the
/// disk, which may be slow and busy.
const FINISH_PATIENCE: Duration = Duration::from_secs(600);

/// Sends the signal, then kills what does not end in time. What the process that ran the container would do at its
/// end is done here if that process is dead.
fn end(store: &Store, runtime: &Runtime, container: &Container, signal: &str, patience: Duration) -> Result<()> {
    let runs = || -> Result<bool> { Ok(runtime.state(container)?.is_some_and(|state| state.status != "stopped")) };
    if runs()? {
        runtime.kill(container, signal)?;
        if !wait(patience, || Ok(!runs()?))? {
            runtime.kill(container, "KILL")?;
        }
    }
    if !wait(KILL_PATIENCE, || Ok(!runs()?))? {
        bail!("{}: does not end", container.name());
    }
    let gone = || !container.dir().exists();
    if !wait(FINISH_PATIENCE, || Ok(gone() || container.lock().is_ok()))? {
        bail!("{}: has ended, but is still being unmounted", container.name());
    }
    if gone() {
        return Ok(());
    }
    let _lock = container.lock()?;
    if runtime.state(container)?.is_some() {
        runtime.delete(container, true)?;
    }
    if container.is_mounted()? {
        finish(store, container.clone())?;
    }
    Ok(())
}

/// Asks until it is so, or the time is over.
fn wait(patience: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn remove(store: &Store, args: &Rm) -> Result<()> {
    for name in &args.containers {
        let container = Container::open(store, name)?;
        if args.force {
            in_its_namespace(&container, || force_down(store, &container, args.runtime.as_deref()))?;
        }
        if container.dir().exists() {
            container.clone().remove(store)?;
        }
        forget_state(store, &container, args.runtime.as_deref())?;
        print_line(name)?;
    }
    Ok(())
}

/// What a crash left with the runtime would be in the way of the next container of that name.
fn forget_state(store: &Store, container: &Container, runtime: Option<&str>) -> Result<()> {
    let Ok(runtime) = Runtime::find(store, runtime) else { return Ok(()) };
    match runtime.state(container)? {
        Some(state) if state.status == "stopped" => Ok(runtime.delete(container, true)?),
        _ => Ok(()),
    }
}

fn force_down(store: &Store, container: &Container, runtime: Option<&str>) -> Result<()> {
    if let Ok(runtime) = Runtime::find(store, runtime)
        && runtime.state(container)?.is_some()
    {
        end(store, &runtime, container, "KILL", Duration::from_secs(10))?;
    }
    if container.dir().exists() && container.is_mounted()? {
        container.unmount(true)?;
    }
    Ok(())
}

pub fn logs(store: &Store, args: &Logs) -> Result<()> {
    let container = Container::open(store, &args.container)?;
    let Ok(mut log) = File::open(container.dir().join("log")) else {
        bail!("{}: was not run detached and has no log", args.container);
    };
    if let Some(lines) = args.tail {
        seek_lines_from_end(&mut log, lines)?;
    }
    let mut out = io::stdout();
    loop {
        // Asked before the log is read: what it wrote before it ended must not be missed.
        let over = !args.follow || has_ended(&container);
        io::copy(&mut log, &mut out)?;
        out.flush()?;
        if over {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// True if a detached container has ended, or what watched it was killed. Its lock is tried only once the watcher has
/// been there, in whose way that would be.
fn has_ended(container: &Container) -> bool {
    let is_there = |name: &str| container.dir().join(name).exists();
    is_there("exit") || !container.dir().exists() || (is_there("pid") && container.lock().is_ok())
}

/// Goes to where the last `lines` lines begin, reading backwards.
fn seek_lines_from_end(log: &mut File, lines: usize) -> io::Result<()> {
    const BLOCK: u64 = 64 << 10;
    let end = log.seek(SeekFrom::End(0))?;
    let (mut position, mut newlines) = (end, 0);
    while position > 0 {
        let start = position.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(position - start).unwrap_or(0)];
        log.read_exact_at(&mut block, start)?;
        for (at, _) in block.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'\n') {
            let after = start + at as u64 + 1;
            // The newline that ends the last line begins none.
            newlines += usize::from(after != end);
            if newlines == lines || lines == 0 {
                return log.seek(SeekFrom::Start(if lines == 0 { end } else { after })).map(drop);
            }
        }
        position = start;
    }
    log.seek(SeekFrom::Start(if lines == 0 { end } else { 0 })).map(drop)
}

pub fn diff(store: &Store, args: &Diff) -> Result<()> {
    let changes = match &args.image {
        Some(image) => image_diff(store, &args.name, image)?,
        None => container_diff(store, &args.name)?,
    };
    if args.json {
        let path = |bytes: &[u8]| std::ffi::OsStr::from_bytes(bytes).display().to_string();
        let value = |change: &layer::Change| json!({"Kind": change.kind.to_string(), "Path": path(&change.path)});
        return Ok(print_json(&changes.iter().map(value).collect())?);
    }
    Ok(changes.iter().try_for_each(|change| match args.quiet {
        true => print_line(&shown_bytes(&change.path)),
        false => print_line(&format!("{} {}", change.kind, shown_bytes(&change.path))),
    })?)
}

fn container_diff(store: &Store, name: &str) -> Result<Vec<layer::Change>> {
    let container = Container::open(store, name)?;
    container.join()?;
    container.sync()?;
    let upper = container.open_upper()?;
    let lowers = open_topmost_first(&container.layers(store)?)?;
    let lowers: Vec<BorrowedFd<'_>> = lowers.iter().map(AsFd::as_fd).collect();
    Ok(layer::changes(upper.as_fd(), &lowers)?)
}

fn image_diff(store: &Store, old: &str, new: &str) -> Result<Vec<layer::Change>> {
    let _lock = store.lock_shared()?;
    let open = |name: &str| open_topmost_first(&store.layers_of(&store.find(name)?)?);
    let (old, new) = (open(old)?, open(new)?);
    let old: Vec<BorrowedFd<'_>> = old.iter().map(AsFd::as_fd).collect();
    let new: Vec<BorrowedFd<'_>> = new.iter().map(AsFd::as_fd).collect();
    Ok(layer::compare(&old, &new)?)
}

fn open_topmost_first(layers: &[Layer]) -> Result<Vec<OwnedFd>> {
    Ok(layers.iter().rev().map(Layer::open_diff).collect::<Result<_, _>>()?)
}
