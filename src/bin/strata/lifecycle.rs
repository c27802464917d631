//! Verbs that end containers, wait for them, and inspect their processes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use stratafs::container::attach::Attachment;
use stratafs::container::{Container, Phase, Runtime, Status, finish};
use stratafs::image::config::is_signal;
use stratafs::store::Store;

use super::args::{Kill, Pause, PortList, Rename, Restart, Stop, Top, Wait};
use super::output::{each, print_line};
use super::ps::listed;
use super::running::{Front, begin};

/// How long a container may take to end when asked, by default.
const STOP_PATIENCE: u32 = 10;

/// How long a killed process may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long the process that ran a container may take to finish: unmounting overlayfs writes everything to the disk,
/// which may be slow and busy.
const FINISH_PATIENCE: Duration = Duration::from_secs(600);

/// Does something where the container is mounted, which for a user without privilege is in a namespace.
pub fn in_its_namespace(container: &Container, work: impl FnOnce() -> Result<()>) -> Result<()> {
    container.in_its_namespace(|| work().map_err(|error| format!("{error:#}"))).map_err(anyhow::Error::msg)
}

/// The names, or the ids of all running containers.
fn chosen(store: &Store, all: bool, names: &[String]) -> Result<Vec<String>> {
    if !all {
        return Ok(names.to_vec());
    }
    let mut ids = Vec::new();
    for container in listed(store)? {
        if container.status()?.is_running() {
            ids.push(container.id());
        }
    }
    Ok(ids)
}

pub fn stop(store: &Store, args: &Stop) -> Result<()> {
    each(&chosen(store, args.all, &args.containers)?, |name| {
        stop_one(store, name, args)?;
        Ok(print_line(name)?)
    })
}

fn stop_one(store: &Store, name: &str, args: &Stop) -> Result<()> {
    let container = Container::open(store, name)?;
    let runtime = Runtime::of(store, &container, args.runtime.as_deref())?;
    if let Some(signal) = args.signal.as_ref().filter(|signal| !is_signal(signal)) {
        bail!("--signal {signal}: no such signal");
    }
    let options = &container.record.options;
    let signal = match args.signal.as_ref().or(options.stop_signal.as_ref()) {
        Some(signal) => signal.clone(),
        None => container.config(store)?.process().stop_signal.to_string(),
    };
    let patience = Duration::from_secs(args.time.or(options.stop_timeout).unwrap_or(STOP_PATIENCE).into());
    in_its_namespace(&container, || end(store, &runtime, &container, &signal, patience))
}

pub fn restart(store: &Store, args: &Restart) -> Result<ExitCode> {
    // All are stopped before the first one is started: a user without privilege enters a namespace for the start, and
    // cannot return.
    let mut stopped = Vec::new();
    let stops = each(&chosen(store, args.stop.all, &args.stop.containers)?, |name| {
        stop_one(store, name, &args.stop)?;
        stopped.push(name.clone());
        Ok(())
    });
    let starts = each(&stopped, |name| {
        begin(store, name, args.stop.runtime.as_deref(), &Front::none())
            .and_then(|ended| ended.map_or(Ok(()), |ended| super::running::outcome(ended, name).map(drop)))
    });
    stops.and(starts).map(|()| ExitCode::SUCCESS)
}

/// Sends the signal, then kills the processes that do not end in time. If the process that ran the container
/// is dead, its final steps are done here.
pub fn end(store: &Store, runtime: &Runtime, container: &Container, signal: &str, patience: Duration) -> Result<()> {
    let state = || runtime.state(container);
    let runs = || -> Result<bool> { Ok(state()?.is_some_and(|state| state.status != "stopped")) };
    if runs()? {
        // A frozen process would not react to the signal.
        if state()?.is_some_and(|state| state.status == "paused") {
            runtime.pause(container, false)?;
        }
        runtime.kill(container, signal)?;
        if !wait_until(patience, || Ok(!runs()?))? {
            runtime.kill(container, "KILL")?;
        }
    }
    if !wait_until(KILL_PATIENCE, || Ok(!runs()?))? {
        bail!("{}: does not end", container.name());
    }
    let gone = || !container.dir().exists();
    if !wait_until(FINISH_PATIENCE, || Ok(gone() || container.lock().is_ok()))? {
        bail!("{}: has ended, but is still being unmounted", container.name());
    }
    if gone() {
        return Ok(());
    }
    let lock = container.lock()?;
    if container.is_mounted()? {
        return Ok(finish(store, runtime, container.clone(), Some(lock), false)?);
    }
    if runtime.state(container)?.is_some() {
        runtime.delete(container, true)?;
    }
    Ok(())
}

/// Waits until the process that watched an ended container has unmounted it.
pub fn settle(container: &Container) -> Result<()> {
    let is_being_unmounted = || -> Result<bool> {
        let state = container.state()?;
        Ok(state.phase == Phase::Exited && state.monitor.is_some_and(|monitor| monitor.is_alive()))
    };
    if !wait_until(FINISH_PATIENCE, || Ok(!container.dir().exists() || !is_being_unmounted()?))? {
        bail!("{}: has ended, but is still being unmounted", container.name());
    }
    Ok(())
}

/// Checks until it is true, or the time is over.
fn wait_until(patience: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
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

/// The runtime of a running container.
fn running(store: &Store, container: &Container, runtime: Option<&str>) -> Result<Runtime> {
    if !container.status()?.is_running() {
        bail!("{}: does not run", container.name());
    }
    Ok(Runtime::of(store, container, runtime)?)
}

pub fn kill(store: &Store, args: &Kill) -> Result<()> {
    if !is_signal(&args.signal) {
        bail!("--signal {}: no such signal", args.signal);
    }
    each(&chosen(store, args.all, &args.containers)?, |name| {
        let container = Container::open(store, name)?;
        let runtime = running(store, &container, args.runtime.as_deref())?;
        in_its_namespace(&container, || Ok(runtime.kill(&container, &args.signal)?))?;
        Ok(print_line(name)?)
    })
}

pub fn pause(store: &Store, args: &Pause, pauses: bool) -> Result<()> {
    each(&args.containers, |name| {
        let container = Container::open(store, name)?;
        let runtime = running(store, &container, args.runtime.as_deref())?;
        match (container.status()?, pauses) {
            (Status::Paused, true) => bail!("{name}: is paused already"),
            (Status::Running, false) => bail!("{name}: is not paused"),
            _ => {}
        }
        in_its_namespace(&container, || Ok(runtime.pause(&container, pauses)?))?;
        Ok(print_line(name)?)
    })
}

pub fn wait(store: &Store, args: &Wait) -> Result<()> {
    each(&args.containers, |name| {
        let container = Container::open(store, name)?;
        let code = match container.status()?.is_running() {
            true => match Attachment::to(&container).and_then(Attachment::wait) {
                Ok(Some(code)) => code,
                // It has ended in the meantime, or is not watched.
                Ok(None) | Err(_) => wait_for_end(&container)?,
            },
            false => code_of(&container)?,
        };
        Ok(print_line(&code.to_string())?)
    })
}

fn wait_for_end(container: &Container) -> Result<u8> {
    while container.status()?.is_running() {
        std::thread::sleep(Duration::from_millis(100));
    }
    code_of(container)
}

fn code_of(container: &Container) -> Result<u8> {
    container.state()?.exit_code.with_context(|| match container.status() {
        Ok(Status::Stopped) => format!("{}: its end was not recorded", container.name()),
        _ => format!("{}: never ran", container.name()),
    })
}

pub fn rename(store: &Store, args: &Rename) -> Result<()> {
    Ok(Container::open(store, &args.container)?.rename(store, &args.new_name)?)
}

pub fn port(store: &Store, args: &PortList) -> Result<()> {
    let container = Container::open(store, &args.container)?;
    let ports = container.state()?.ports;
    let wanted = args.port.as_ref().map(|port| if port.contains('/') { port.clone() } else { format!("{port}/tcp") });
    let mut found = false;
    for port in ports {
        let name = format!("{}/{}", port.container, port.protocol.word());
        let address = port.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let host = SocketAddr::new(address, port.host);
        match &wanted {
            None => print_line(&format!("{name} -> {host}"))?,
            Some(wanted) if *wanted == name => print_line(&host.to_string())?,
            Some(_) => continue,
        }
        found = true;
    }
    match wanted {
        Some(wanted) if !found => bail!("{}: no port of this host leads to {wanted}", args.container),
        _ => Ok(()),
    }
}

pub fn top(store: &Store, args: &Top) -> Result<ExitCode> {
    let (name, options) = args.words.split_first().context("a container is needed")?;
    let container = Container::open(store, name)?;
    let pids = container.processes()?;
    if pids.is_empty() {
        bail!("{name}: does not run");
    }
    let list = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new("ps");
    match options {
        [] => command.arg("-f"),
        options => command.args(options),
    };
    let output = command.arg("-p").arg(list).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("ps(1) is needed; apt-get install procps")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    print_line(heading)?;
    // Options such as `aux` select further processes.
    let column = heading.split_whitespace().position(|word| word == "PID");
    let is_inside = |line: &&str| {
        let pid = column.and_then(|column| line.split_whitespace().nth(column)?.parse().ok());
        pid.is_none_or(|pid| pids.contains(&pid))
    };
    lines.filter(is_inside).try_for_each(print_line)?;
    Ok(if output.status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
