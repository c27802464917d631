//! Verbs about containers.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use stratafs::container::{Container, CreateOptions, Damaged, Runtime, refuse_if_interrupted};
use stratafs::image::ImageError;
use stratafs::image::snapshot;
use stratafs::image::time::Timestamp;
use stratafs::store::Store;
use stratafs::sys::forward;
use stratafs::text::{shown_bytes, shown_path};

use super::args::{Diff, Logs, Mount, Ps, Rm, Stop, Umount};
use super::checkpoints;
use super::output::{each, print_json, print_line, print_path, print_table, shorten, tell};
use super::running::finish;

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
    forward::hold().context("signals")?;
    let container = Container::create(store, &store.find(image)?, &options)?;
    let mounted = container.mount(store).and_then(|mountpoint| refuse_if_interrupted().map(|()| mountpoint));
    match mounted {
        Ok(mountpoint) => Ok(print_path(mountpoint)?),
        Err(error) => {
            if container.is_mounted()? {
                container.unmount(false)?;
            }
            container.clone().remove(store)?;
            Err(error.into())
        }
    }
}

fn list_mounted(store: &Store, args: &Mount) -> Result<()> {
    let mut mounted = Vec::new();
    for container in listed(store)? {
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
    each(&args.names, |name| {
        let container = by_name_or_mountpoint(store, name)?;
        container.unmount(args.lazy)?;
        if args.rm {
            container.remove(store)?;
        }
        Ok(())
    })
}

/// All containers. Those that are damaged are told, and left out.
pub fn listed(store: &Store) -> Result<Vec<Container>> {
    let listed = Container::list(store)?;
    for Damaged { name, reason } in &listed.damaged {
        tell(&format!("strata: container {name} is damaged: {reason}; strata rm -f {name} removes it"));
    }
    Ok(listed.containers)
}

fn by_name_or_mountpoint(store: &Store, name: &str) -> Result<Container> {
    if name.contains('/') {
        let path = fs::canonicalize(name).unwrap_or_else(|_| name.into());
        let at = |container: &Container| container.record.mountpoint == path && container.is_mounted().unwrap_or(false);
        if let Some(container) = listed(store)?.into_iter().find(at) {
            return Ok(container);
        }
        bail!("{name}: no container is mounted there");
    }
    Ok(Container::open(store, name)?)
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
    for container in listed(store)? {
        let status = status(runtime.as_ref(), &container).unwrap_or_else(|error| {
            tell(&format!("strata: {}: {error:#}", container.name()));
            "unknown".to_owned()
        });
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
    each(&args.containers, |name| {
        let container = Container::open(store, name)?;
        let signal = container.config(store)?.process().stop_signal.to_string();
        let patience = Duration::from_secs(args.time.into());
        in_its_namespace(&container, || end(store, &runtime, &container, &signal, patience))?;
        Ok(print_line(name)?)
    })
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
    let lock = container.lock()?;
    if container.is_mounted()? {
        return finish(store, runtime, container.clone(), Some(lock), false);
    }
    if runtime.state(container)?.is_some() {
        runtime.delete(container, true)?;
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
    each(&args.containers, |name| {
        let container = match Container::open(store, name) {
            Ok(container) => container,
            Err(error @ (ImageError::NoSuchContainer { .. } | ImageError::Malformed { .. })) => {
                return Err(error.into());
            }
            Err(_) if args.force => return remove_damaged(store, name, args.runtime.as_deref()),
            Err(error) => return Err(error).with_context(|| format!("{name}: is damaged; --force removes it")),
        };
        if args.force {
            in_its_namespace(&container, || force_down(store, &container, args.runtime.as_deref()))?;
        }
        if container.dir().exists() {
            container.clone().remove(store)?;
        }
        forget_state(store, &container, args.runtime.as_deref())?;
        Ok(print_line(name)?)
    })
}

/// Kills what runs in a container whose record is lost, and removes what is left of it.
fn remove_damaged(store: &Store, name: &str, runtime: Option<&str>) -> Result<()> {
    let container = Container::without_record(store, name)?;
    if let Ok(runtime) = Runtime::find(store, runtime)
        && runtime.state(&container)?.is_some()
    {
        runtime.delete(&container, true)?;
    }
    container.remove_damaged(store)?;
    Ok(print_line(name)?)
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
    let changes = match &args.other {
        Some(other) => checkpoints::differences(store, &args.name, other)?,
        None => checkpoints::changes(store, &args.name)?,
    };
    if args.json {
        let path = |bytes: &[u8]| std::ffi::OsStr::from_bytes(bytes).display().to_string();
        let value = |change: &snapshot::Change| json!({"Kind": change.kind.to_string(), "Path": path(&change.path)});
        return Ok(print_json(&changes.iter().map(value).collect())?);
    }
    Ok(changes.iter().try_for_each(|change| match args.quiet {
        true => print_line(&shown_bytes(&change.path)),
        false => print_line(&format!("{} {}", change.kind, shown_bytes(&change.path))),
    })?)
}
