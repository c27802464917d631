//! Verbs about containers.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use stratafs::container::{Container, CreateOptions, Runtime, refuse_if_interrupted};
use stratafs::image::ImageError;
use stratafs::image::snapshot;
use stratafs::store::Store;
use stratafs::sys::forward;
use stratafs::text::{shown_bytes, shown_path};

use super::args::{Diff, Mount, Rm, Umount};
use super::checkpoints;
use super::lifecycle::{end, in_its_namespace, settle};
use super::output::{each, print_json, print_line, print_path};
use super::ps::listed;

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

pub fn remove(store: &Store, args: &Rm) -> Result<()> {
    remove_each(store, args, |name| Ok(print_line(name)?))
}

/// In this order, a container that uses the volumes of another one comes before that.
pub fn newest_first<T>(mut containers: Vec<T>, container: impl Fn(&T) -> &Container) -> Vec<T> {
    containers.sort_by(|a, b| container(b).record.created.cmp(&container(a).record.created));
    containers
}

/// Removes containers and reports each one that was removed.
pub fn remove_each(store: &Store, args: &Rm, told: impl Fn(&str) -> Result<()>) -> Result<()> {
    let names: Vec<String> = match args.all {
        true => newest_first(listed(store)?, |one| one).iter().map(Container::id).collect(),
        false => args.containers.clone(),
    };
    each(&names, |name| {
        let container = match Container::open(store, name) {
            Ok(container) => container,
            // The container does not exist, as wanted.
            Err(ImageError::NoSuchContainer { .. }) if args.force || args.ignore => return Ok(()),
            Err(error @ (ImageError::NoSuchContainer { .. } | ImageError::Malformed { .. })) => {
                return Err(error.into());
            }
            Err(_) if args.force => {
                return remove_damaged(store, name, args.runtime.as_deref()).and_then(|()| told(name));
            }
            Err(error) => return Err(error).with_context(|| format!("{name}: is damaged; --force removes it")),
        };
        if args.force {
            in_its_namespace(&container, || force_down(store, &container, args.runtime.as_deref()))?;
        }
        settle(&container)?;
        // One that was ended by force may have removed itself. Otherwise another process was faster.
        if !args.force || container.dir().exists() {
            container.clone().remove(store)?;
        }
        forget_state(store, &container, args.runtime.as_deref())?;
        told(name)
    })
}

/// Kills the processes of a container whose record is lost, and removes the rest of it.
fn remove_damaged(store: &Store, name: &str, runtime: Option<&str>) -> Result<()> {
    let container = Container::without_record(store, name)?;
    if let Ok(runtime) = Runtime::find(store, runtime)
        && runtime.state(&container)?.is_some()
    {
        runtime.delete(&container, true)?;
    }
    Ok(container.remove_damaged(store)?)
}

/// State that a crash left with the runtime would block the next container of that name.
fn forget_state(store: &Store, container: &Container, runtime: Option<&str>) -> Result<()> {
    let Ok(runtime) = Runtime::of(store, container, runtime) else { return Ok(()) };
    match runtime.state(container)? {
        Some(state) if state.status == "stopped" => Ok(runtime.delete(container, true)?),
        _ => Ok(()),
    }
}

fn force_down(store: &Store, container: &Container, runtime: Option<&str>) -> Result<()> {
    if let Ok(runtime) = Runtime::of(store, container, runtime)
        && runtime.state(container)?.is_some()
    {
        end(store, &runtime, container, "KILL", Duration::from_secs(10))?;
    }
    if container.dir().exists() && container.is_mounted()? {
        container.unmount(true)?;
    }
    Ok(())
}

pub fn diff(store: &Store, args: &Diff) -> Result<()> {
    let changes = match &args.other {
        Some(other) => checkpoints::differences(store, &args.name, other)?,
        None => checkpoints::changes(store, &args.name)?,
    };
    if args.tree {
        let sizes = checkpoints::Sizes::open(store, args.other.as_deref().unwrap_or(&args.name))?;
        return super::pictures::diff(&changes, args.depth, |path| sizes.of(path));
    }
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
