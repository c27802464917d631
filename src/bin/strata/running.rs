//! `run`, `create`, `start`, `attach` and `exec`.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Pid;
use stratafs::container::attach::{Attachment, Attendance, Ended};
use stratafs::container::bundle::RunOptions;
use stratafs::container::privileges::Privileges;
use stratafs::container::{
    Container, CreateOptions, Monitor, RunLock, Runtime, Status, Visit, finish, refuse_if_interrupted, rootless,
};
use stratafs::image::ImageError;
use stratafs::registry::RemoteImage;
use stratafs::store::{Image, Store};
use stratafs::sys::forward;
use stratafs::sys::session::start_in_new_session;

use super::args::{Attach, AttachArgs, ContainerArgs, Create, Exec, PullArg, Rm, Run, Start, StreamArg, Supervise};
use super::lifecycle::settle;
use super::options::{environment, keep_owners_of_volumes, options_of};
use super::output::{each, print_line, tell};
use super::registry::fetch;

/// A container that this process has made or mounted. When the process ends in any way, even by an error, the
/// container is unmounted, and removed if nothing of it may stay.
pub struct Stay<'s> {
    store: &'s Store,
    runtime: Runtime,
    /// `None` after it was ended or handed over.
    held: Option<(Container, Option<RunLock>)>,
    /// True if it never ran: nothing of it may stay.
    is_new: bool,
}

impl<'s> Stay<'s> {
    fn container(&mut self) -> Result<&mut Container> {
        self.held.as_mut().map(|(container, _)| container).context("the container has ended")
    }

    /// Mounts it and writes its configuration. A signal during this ends it.
    fn prepare(&mut self) -> Result<()> {
        let store = self.store;
        let container = self.container()?;
        refuse_if_interrupted()?;
        container.mount(store)?;
        refuse_if_interrupted()?;
        container.prepare_run(store)?;
        Ok(refuse_if_interrupted()?)
    }

    /// Starts this program again to watch the container. That process inherits the lock as its standard input, and
    /// one end of a connection as its standard output.
    fn launch(mut self, front: &Front) -> Result<Ended> {
        self.prepare()?;
        let (mut attachment, theirs) = Attachment::pair()?;
        let container = self.container()?.clone();
        if front.attached && container.record.options.terminal {
            attachment.announce_size()?;
        }
        let complaints = File::create(container.dir().join("monitor.log")).context("monitor.log")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.current_dir("/").arg("--root").arg(self.store.root()).arg("supervise").arg(container.name());
        command.args(front.attached.then_some("--attached")).args(self.is_new.then_some("--new"));
        command.arg("--runtime").arg(self.runtime.program());
        command.stdout(Stdio::from(theirs)).stderr(complaints);
        let lock = self.held.as_mut().and_then(|(_, lock)| lock.take()).and_then(RunLock::into_file);
        command.stdin(Stdio::from(lock.context("the container has ended")?));
        start_in_new_session(&mut command);
        let mut monitor = command.spawn()?;
        drop(command);
        let options = &container.record.options;
        let ended = attachment.attend(&Attendance {
            until_started: !front.attached,
            input: front.input,
            terminal: options.terminal && front.attached,
            detach_keys: front.detach_keys.clone(),
            hidden: front.hidden,
            signals_to: front.proxies.then(|| Pid::from_child(&monitor)),
        })?;
        match ended {
            Ended::Lost => {
                // It was killed, so its final steps are done here.
                monitor.wait()?;
                let held = self.held.take().map(|(container, _)| container).context("the container has ended")?;
                finish(self.store, &self.runtime, held, None, self.is_new)?;
                bail!("{}: the process that watched it was killed", container.name())
            }
            ended => {
                // The monitor owns it now.
                self.held = None;
                Ok(ended)
            }
        }
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        if let Some((container, lock)) = self.held.take() {
            let name = container.name().to_owned();
            if let Err(error) = finish(self.store, &self.runtime, container, lock, self.is_new) {
                tell(&format!("strata: {name}: {error:#}"));
            }
        }
    }
}

/// How this process is attached to a container that it starts.
pub struct Front {
    attached: bool,
    input: bool,
    detach_keys: stratafs::container::attach::DetachKeys,
    proxies: bool,
    /// Its output, and its error output, are not shown.
    hidden: [bool; 2],
}

impl Front {
    /// Detaches as soon as the container runs.
    pub fn none() -> Self {
        Self { attached: false, input: false, detach_keys: Default::default(), proxies: true, hidden: [false; 2] }
    }

    fn of(args: &AttachArgs, input: bool) -> Self {
        let detach_keys = args.detach_keys.clone();
        Self { attached: true, input, detach_keys, proxies: args.sig_proxy, hidden: [false; 2] }
    }

    /// Attaches only these streams; none: all.
    fn only(self, streams: &[StreamArg]) -> Self {
        let has = |stream| streams.is_empty() || streams.contains(&stream);
        let hidden = [!has(StreamArg::Stdout), !has(StreamArg::Stderr)];
        Self { input: self.input && has(StreamArg::Stdin), hidden, ..self }
    }
}

/// The image, pulled if the policy demands it.
fn image_for(store: &Store, name: &str, args: &ContainerArgs) -> Result<Image> {
    let found = store.find(name);
    let misfit = match (&found, &args.platform) {
        (Ok(image), Some(wanted)) => image
            .config
            .platform()
            .filter(|own| !own.serves(wanted))
            .map(|own| format!("--platform {wanted}: {name} is here for {own}")),
        _ => None,
    };
    let wanted = match (&found, args.pull, misfit.is_some()) {
        (Ok(image), PullArg::Missing | PullArg::Never, false) => return Ok(image.clone()),
        (Err(ImageError::NoSuchImage { .. }), PullArg::Missing, _)
        | (_, PullArg::Always, _)
        | (_, PullArg::Missing, true) => name.parse::<RemoteImage>().ok(),
        _ => None,
    };
    // An id, or a text that is not a name, cannot be pulled.
    let Some(wanted) = wanted.filter(|_| !name.starts_with("sha256:")) else {
        return match misfit {
            Some(line) => Err(anyhow!(line)),
            None => Ok(found?),
        };
    };
    if let Err(error) = fetch(store, &wanted, args.platform.clone(), &args.registry, args.quiet) {
        return Err(match (found, misfit) {
            (Err(ImageError::NoSuchImage { near: Some(near), .. }), _) => {
                error.context(format!("{name}: no such image here (did you mean {near}?)"))
            }
            (_, Some(line)) => error.context(line),
            _ => error,
        });
    }
    Ok(store.find(name)?)
}

/// Makes the container that the arguments describe. It is removed when it is dropped, unless it was handed over.
fn create_container<'s>(store: &'s Store, args: ContainerArgs) -> Result<Stay<'s>> {
    let rootless = rootless::enter()?;
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    let (name, command) = args.words.split_first().context("an image is needed")?;
    let (name, command) = (name.clone(), command.to_vec());
    let image = image_for(store, &name, &args)?;
    if let Some(Err(reason)) = image.config.platform().map(|platform| platform.check_runs_here()) {
        return Err(ImageError::CannotRun { program: name, reason, missing: false }.into());
    }
    let (options, mut kept) = options_of(store, &args, command, rootless)?;
    if let Some(file) = args.keep.cidfile.as_ref().filter(|file| file.exists()) {
        bail!("{}: is there already; remove it first", file.display());
    }
    if let (true, Some(name)) = (args.keep.replace, &args.name) {
        replace(store, name)?;
    }
    // A container that is replaced could not be removed before.
    kept.extend(keep_owners_of_volumes(store, &args)?);
    let create = CreateOptions {
        name: args.name,
        image_name: name,
        driver: args.driver.into(),
        command: options.words(&image.config.process()),
        remove_at_exit: args.rm,
        rootless,
        run: options,
        runtime: Some(runtime.program().display().to_string()),
        ..CreateOptions::default()
    };
    let (container, lock) = Container::create_locked(store, &image, &create).map_err(|error| match error {
        ImageError::Malformed { .. } => anyhow!("--name {error}"),
        error => error.into(),
    })?;
    drop(kept);
    if let Some(file) = &args.keep.cidfile {
        std::fs::write(file, &container.record.id).with_context(|| file.display().to_string())?;
    }
    Ok(Stay { store, runtime, held: Some((container, Some(lock))), is_new: true })
}

/// Removes the container with this name, if there is one.
fn replace(store: &Store, name: &str) -> Result<()> {
    let rm = Rm { force: true, containers: vec![name.to_owned()], ..Rm::default() };
    super::containers::remove_each(store, &rm, |_| Ok(()))
}

pub fn run(store: &Store, args: Run) -> Result<ExitCode> {
    // From here on, a signal is recorded, and ends this process only after it has cleaned up.
    forward::hold().context("signals")?;
    let (interactive, tty) = (args.container.interactive, args.container.tty);
    if !args.detach && interactive && tty && !io::stdin().is_terminal() {
        bail!("-it needs a terminal as standard input; leave -t out");
    }
    let front = if args.detach { Front::none() } else { Front::of(&args.attach, interactive).only(&args.streams) };
    let mut stay = create_container(store, args.container)?;
    let id = stay.container()?.id();
    outcome(stay.launch(&front)?, &id)
}

/// The exit code after attaching to a container. If it only had to be started, prints `name`.
pub fn outcome(ended: Ended, name: &str) -> Result<ExitCode> {
    match ended {
        Ended::Started => {
            print_line(name)?;
            Ok(ExitCode::SUCCESS)
        }
        Ended::Detached => Ok(ExitCode::SUCCESS),
        Ended::Exited(code) => Ok(ExitCode::from(code)),
        Ended::Failed(code, message) => Err(ImageError::Told { code, message }.into()),
        Ended::Lost => bail!("{name}: the process that watches it was killed"),
    }
}

pub fn create(store: &Store, args: Create) -> Result<()> {
    forward::hold().context("signals")?;
    let mut stay = create_container(store, args.container)?;
    refuse_if_interrupted()?;
    print_line(&stay.container()?.id())?;
    // The container stays.
    stay.held = None;
    Ok(())
}

pub fn start(store: &Store, args: &Start) -> Result<ExitCode> {
    forward::hold().context("signals")?;
    if args.attach || args.interactive {
        let [name] = &args.containers[..] else { bail!("-a and -i are for one container") };
        let front = Front::of(&args.attachment, args.interactive);
        return match begin(store, name, args.runtime.as_deref(), &front)? {
            // The container already runs.
            None => join(store, name, &front),
            Some(ended) => outcome(ended, name),
        };
    }
    each(&args.containers, |name| {
        match begin(store, name, args.runtime.as_deref(), &Front::none())? {
            None => print_line(name)?,
            Some(ended) => drop(outcome(ended, name)?),
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a container unless it already runs.
pub fn begin(store: &Store, name: &str, runtime: Option<&str>, front: &Front) -> Result<Option<Ended>> {
    let container = Container::open(store, name)?;
    if container.status()?.is_running() {
        return Ok(None);
    }
    settle(&container)?;
    if container.record.rootless {
        rootless::enter()?;
    }
    let runtime = Runtime::of(store, &container, runtime)?;
    let lock = container.lock()?;
    // State that a crash left with the runtime would block the start.
    if runtime.state(&container)?.is_some() {
        runtime.delete(&container, true)?;
    }
    let mut stay = Stay { store, runtime, held: Some((container, Some(lock))), is_new: false };
    stay.container()?.give_id()?;
    stay.launch(front).map(Some)
}

pub fn attach(store: &Store, args: &Attach) -> Result<ExitCode> {
    forward::hold().context("signals")?;
    join(store, &args.container, &Front::of(&args.attachment, !args.no_stdin))
}

/// Attaches to a running container.
fn join(store: &Store, name: &str, front: &Front) -> Result<ExitCode> {
    let container = Container::open(store, name)?;
    let state = container.state()?;
    let options = &container.record.options;
    let ended = Attachment::to(&container)?.attend(&Attendance {
        until_started: false,
        input: front.input && options.interactive,
        terminal: options.terminal,
        detach_keys: front.detach_keys.clone(),
        hidden: front.hidden,
        signals_to: state.monitor.and_then(|monitor| monitor.alive()).filter(|_| front.proxies),
    })?;
    match (ended, container.state()?.exit_code) {
        // It ended just before this process attached.
        (Ended::Lost, Some(code)) => Ok(ExitCode::from(code)),
        (ended, _) => outcome(ended, name),
    }
}

pub fn supervise(store: &Store, args: &Supervise) -> Result<ExitCode> {
    forward::hold().context("signals")?;
    let client = UnixStream::from(rustix::io::dup(rustix::stdio::stdout()).context("standard output")?);
    let nothing = File::options().write(true).open("/dev/null").context("/dev/null")?;
    rustix::stdio::dup2_stdout(&nothing).context("standard output")?;
    let container = Container::open(store, &args.container)?;
    let lock = RunLock::handed_over(&container)?;
    let runtime = Runtime::find(store, args.runtime.as_deref())?;
    let (is_attached, is_new) = (args.attached, args.new);
    let monitor = Monitor { store, runtime: &runtime, container, lock, client, is_attached, is_new };
    Ok(ExitCode::from(monitor.run()?))
}

pub fn exec(store: &Store, args: Exec) -> Result<ExitCode> {
    forward::hold().context("signals")?;
    let (name, command) = args.words.split_first().context("a container is needed")?;
    // As in docker, exit code 125 is for wrong usage, and 1 for a container that is not there or does not run.
    let unfit = |message: String| Err::<ExitCode, _>(ImageError::Told { code: 1, message }.into());
    let container = match Container::open(store, name) {
        Ok(container) => container,
        Err(error) => return unfit(error.to_string()),
    };
    match container.status()? {
        Status::Running => {}
        Status::Paused => return unfit(format!("{name}: is paused; strata unpause it first")),
        _ => return unfit(format!("{name}: does not run")),
    }
    let runtime = Runtime::of(store, &container, args.runtime.as_deref())?;
    if args.tty && !io::stdin().is_terminal() {
        bail!("-t needs a terminal as standard input");
    }
    container.join()?;
    let mut options = RunOptions {
        command: command.to_vec(),
        env: environment(&args.env_file, &args.env)?,
        privileges: Privileges { privileged: args.privileged, ..Privileges::default() },
        working_dir: args.workdir,
        user: args.user,
        terminal: args.tty,
        interactive: args.interactive,
        ..RunOptions::default()
    };
    options.settle_environment();
    if args.tty {
        let visit = Visit { runtime: &runtime, container: &container, options: &options };
        return outcome(visit.run(args.detach_keys)?, name);
    }
    Ok(ExitCode::from(runtime.exec(&container, &options, args.detach)?))
}
