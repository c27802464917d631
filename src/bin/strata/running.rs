//! `run` and `exec`, and what ends a container.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use stratafs::container::bundle::{Network, RunOptions};
use stratafs::container::{Container, CreateOptions, RunLock, Runtime, refuse_if_interrupted, rootless};
use stratafs::image::ImageError;
use stratafs::store::Store;
use stratafs::sys::forward;

use super::args::{Exec, NetworkArg, Run, Supervise};
use super::output::{print_line, tell};

/// A container that this process has in its hands. However the process leaves it, by an error too, the container is
/// unmounted, and removed if nothing of it is to stay.
struct Stay<'s> {
    store: &'s Store,
    runtime: &'s Runtime,
    /// None once it was ended or handed over.
    held: Option<(Container, Option<RunLock>)>,
    /// It never ran: nothing of it is to stay.
    is_new: bool,
}

impl<'s> Stay<'s> {
    fn end(mut self) -> Result<()> {
        self.held
            .take()
            .map_or(Ok(()), |(container, lock)| finish(self.store, self.runtime, container, lock, self.is_new))
    }

    fn container(&mut self) -> Result<&mut Container> {
        self.held.as_mut().map(|(container, _)| container).context("the container has ended")
    }

    /// Mounts it and writes its configuration. A signal in between ends it.
    fn prepare(&mut self, options: &RunOptions) -> Result<()> {
        let store = self.store;
        let container = self.container()?;
        refuse_if_interrupted()?;
        container.mount(store)?;
        refuse_if_interrupted()?;
        container.prepare_run(store, options)?;
        Ok(refuse_if_interrupted()?)
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        if let Some((container, lock)) = self.held.take() {
            let name = container.name().to_owned();
            if let Err(error) = finish(self.store, self.runtime, container, lock, self.is_new) {
                tell(&format!("strata: {name}: {error:#}"));
            }
        }
    }
}

/// After a container has ended: the runtime forgets it, its mount goes, and with `--rm`, or if it `is_new`, all of it.
/// Every step is tried, whatever became of those before; the first error is returned.
pub fn finish(
    store: &Store,
    runtime: &Runtime,
    container: Container,
    lock: Option<RunLock>,
    is_new: bool,
) -> Result<()> {
    let forgotten = match runtime.state(&container) {
        Ok(Some(_)) => runtime.delete(&container, true),
        // It was never asked to run it, or has forgotten it by itself.
        Ok(None) | Err(_) => Ok(()),
    };
    let removes = is_new || container.record.remove_at_exit;
    let unmounted = unmount(store, &container, is_new, removes);
    let removed = match lock {
        _ if !removes => Ok(()),
        Some(lock) => container.remove_locked(store, &lock),
        None => container.remove(store),
    };
    Ok(forgotten.and(unmounted).and(removed)?)
}

fn unmount(store: &Store, container: &Container, is_new: bool, removes: bool) -> stratafs::image::Result<()> {
    let cleaned = match is_new {
        true => Ok(()),
        // Mounts again if the driver died.
        false if !removes => container.mount(store).map(drop).and_then(|()| container.remove_stubs()),
        false => Ok(()),
    };
    let unmounted = match container.is_mounted()? {
        false => Ok(()),
        // Where nothing of it stays, what uses it keeps no one from removing it.
        true if removes => container.unmount(false).or_else(|_| container.unmount(true)),
        true => container.unmount(false),
    };
    cleaned.and(unmounted)
}

pub fn run(store: &Store, args: Run) -> Result<ExitCode> {
    // From here on a signal is recorded, and ends this process only where it has cleaned up.
    forward::hold().context("signals")?;
    let rootless = rootless::enter()?;
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    if args.tty && !io::stdin().is_terminal() {
        bail!("-t needs a terminal as standard input");
    }
    let (name, command) = args.words.split_first().context("an image is needed")?;
    let image = store.find(name)?;
    if let Some(Err(reason)) = image.config.platform().map(|platform| platform.check_runs_here()) {
        return Err(ImageError::CannotRun { program: name.clone(), reason, missing: false }.into());
    }
    let options = RunOptions {
        command: command.to_vec(),
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
        image_name: name.clone(),
        driver: args.driver.into(),
        command: options.words(&image.config.process()),
        remove_at_exit: args.rm,
        rootless,
        ..CreateOptions::default()
    };
    let (container, lock) = Container::create_locked(store, &image, &create)?;
    let mut stay = Stay { store, runtime: &runtime, held: Some((container, Some(lock))), is_new: true };
    stay.prepare(&options)?;
    if args.detach {
        return detach(stay, args.runtime.as_deref());
    }
    // Without -i the container must not eat the caller's input.
    let code = runtime.run(stay.container()?, None, args.interactive || args.tty)?;
    stay.is_new = false;
    stay.end()?;
    Ok(ExitCode::from(code))
}

/// Starts this program again to watch the container, and waits until it runs. The lock goes over to the supervisor as its
/// standard input.
fn detach(mut stay: Stay<'_>, runtime: Option<&str>) -> Result<ExitCode> {
    let store = stay.store;
    let container = stay.container()?.clone();
    let log = File::create(container.dir().join("log")).context("log")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.current_dir("/").arg("--root").arg(store.root()).arg("supervise");
    if let Some(runtime) = runtime {
        command.arg("--runtime").arg(runtime);
    }
    command.arg(container.name()).stdout(log.try_clone()?).stderr(log);
    let lock = stay.held.as_mut().and_then(|(_, lock)| lock.take()).and_then(RunLock::into_file);
    command.stdin(Stdio::from(lock.context("the container has ended")?));
    let mut supervisor = command.spawn()?;
    // The supervisor has it now.
    stay.held = None;
    drop(command);
    let _forwarding = forward::forward_to(supervisor.id(), false)?;
    let (pid_file, exit_file) = (container.dir().join("pid"), container.dir().join("exit"));
    loop {
        if pid_file.exists() {
            print_line(container.name())?;
            return Ok(ExitCode::SUCCESS);
        }
        if supervisor.try_wait()?.is_some() {
            refuse_if_interrupted()?;
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
    forward::hold().context("signals")?;
    rustix::process::setsid().context("setsid")?;
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    let container = Container::open(store, &args.container)?;
    let lock = RunLock::handed_over(&container)?;
    let mut stay = Stay { store, runtime: &runtime, held: Some((container.clone(), Some(lock))), is_new: false };
    let code = runtime.run(stay.container()?, Some(&container.dir().join("pid")), false)?;
    fs::write(container.dir().join("exit"), format!("{code}\n"))?;
    stay.end()?;
    Ok(ExitCode::from(code))
}

pub fn exec(store: &Store, args: Exec) -> Result<ExitCode> {
    forward::hold().context("signals")?;
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    let (name, command) = args.words.split_first().context("a container is needed")?;
    let container = Container::open(store, name)?;
    container.join()?;
    let options = RunOptions {
        command: command.to_vec(),
        env: args.env,
        working_dir: args.workdir,
        user: args.user,
        terminal: args.tty,
        ..RunOptions::default()
    };
    Ok(ExitCode::from(runtime.exec(&container, &options, args.interactive || args.tty)?))
}
