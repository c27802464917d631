//! The command line of an OCI runtime (runc's, which crun shares).

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::Access;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::Deserialize;
use serde_json::Value;

use super::bundle::{RunOptions, further_process};
use super::paths::ContainerView;
use super::run::check_further;
use super::{Container, users};
use crate::image::digest::Digest;
use crate::image::{ImageError, IoContext, Result, spec};
use crate::store::{Store, retry_interrupted};
use crate::sys::forward;
use crate::sys::namespace::unshare_mounts;

/// An OCI runtime, and the directory with the state of this store's containers.
#[derive(Clone, Debug)]
pub struct Runtime {
    program: PathBuf,
    state: PathBuf,
}

/// What the runtime reports about a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RuntimeState {
    /// `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// Its first process, with the host's number.
    #[serde(default)]
    pub pid: i32,
}

impl Runtime {
    /// The runtime chosen by the user, or else runc, or else crun.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(store: &Store, wanted: Option<&str>) -> Result<Self> {
        let candidates = wanted.map_or_else(|| vec!["runc", "crun"], |program| vec![program]);
        let program = candidates.iter().find_map(|name| in_path(name));
        let program = program.ok_or_else(|| {
            ImageError::refused(candidates.join(", "), "not found; install an OCI runtime (runc or crun)")
        })?;
        let store_id = Digest::of(store.root().as_os_str().as_encoded_bytes()).hex();
        Ok(Self { program, state: state_base(store).join("strata").join(&store_id[..16]) })
    }

    /// The runtime chosen by the user, or else the one that started the container, if it is still installed.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(store: &Store, container: &Container, wanted: Option<&str>) -> Result<Self> {
        let recorded = container.record.runtime.as_deref().filter(|program| in_path(program).is_some());
        Self::find(store, wanted.or(recorded))
    }

    /// The directory with the state of this store's containers.
    pub(super) fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Removes the directory for the state of this store's containers, once the store has none.
    ///
    /// # Errors
    /// If the runtime still knows one.
    pub fn forget_store(&self) -> Result<()> {
        match fs::remove_dir(&self.state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at(&self.state),
            _ => Ok(()),
        }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        // The caller's directory may be gone, and has no meaning for a container.
        command.current_dir("/").arg("--root").arg(&self.state).arg(verb);
        command
    }

    /// What the runtime knows of a container; `None` if it does not know it.
    ///
    /// # Errors
    /// When the runtime cannot be started.
    pub fn state(&self, container: &Container) -> Result<Option<RuntimeState>> {
        let output =
            self.command("state").arg(container.runtime_id()).stderr(Stdio::null()).output().at(&self.program)?;
        if !output.status.success() {
            return Ok(None);
        }
        spec::parse("runtime state", &output.stdout).map(Some)
    }

    /// Has the runtime make the first process of a prepared container, which waits to be started. Its standard streams are
    /// `stdio`, or a terminal that the runtime sends to the socket `console`. The process becomes this one's child if this is a
    /// subreaper (prctl(2)). If the runtime failed, the inner result has its status; its message is on the error stream.
    ///
    /// # Errors
    /// When the runtime cannot be started.
    pub(super) fn create(
        &self,
        container: &Container,
        stdio: [Stdio; 3],
        console: Option<&Path>,
    ) -> Result<std::result::Result<Pid, ExitStatus>> {
        fs::create_dir_all(&self.state).at(&self.state)?;
        let pid_file = container.dir().join("pid");
        let mut command = self.command("create");
        command.arg("--pid-file").arg(&pid_file);
        if let Some(socket) = console {
            command.arg("--console-socket").arg(socket);
        }
        let [input, output, error] = stdio;
        command.arg("--bundle").arg(container.dir()).arg(container.runtime_id());
        command.stdin(input).stdout(output).stderr(error);
        refuse_if_interrupted()?;
        let status = command.status().at(&self.program)?;
        if !status.success() {
            return Ok(Err(status));
        }
        read_pid(&pid_file).map(Ok)
    }

    /// Lets the first process of a created container run.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub(super) fn start(&self, container: &Container) -> Result<()> {
        let output = self.command("start").arg(container.runtime_id()).output().at(&self.program)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(self.refusal(container, &output.stderr, output.status)),
        }
    }

    /// The error of a runtime that failed, from its output.
    pub(super) fn refusal(&self, container: &Container, told: &[u8], status: ExitStatus) -> ImageError {
        let told = plain(&String::from_utf8_lossy(told));
        let program = || container.record.command.first().cloned().unwrap_or_default();
        let is_about_the_program = told.contains("exec") && !told.contains("mount");
        let missing = ["executable file not found", "no such file or directory", "executable file `"];
        let denied = ["permission denied", "exec format error", "Permission denied"];
        let says = |reasons: &[&str]| is_about_the_program && reasons.iter().any(|reason| told.contains(reason));
        if says(&missing) || says(&denied) {
            return ImageError::CannotRun { program: program(), reason: told.clone(), missing: says(&missing) };
        }
        let reason = if told.is_empty() { format!("failed ({status})") } else { told };
        ImageError::refused(self.program.display().to_string(), reason)
    }

    /// Freezes or thaws a container's processes.
    ///
    /// # Errors
    /// When the container does not run, or its control group cannot be frozen.
    pub fn pause(&self, container: &Container, pause: bool) -> Result<()> {
        let verb = if pause { "pause" } else { "resume" };
        self.succeed(self.command(verb).arg(container.runtime_id()))
    }

    /// Runs one more process in a running container and returns its exit code. The process is like the first one, except for the
    /// changes in `options`. With `interactive` it gets this process's standard input. With `detached`, this does not wait for
    /// it.
    ///
    /// # Errors
    /// When the container does not run, the runtime cannot be started, or the image has no such user.
    pub fn exec(&self, container: &Container, options: &RunOptions, detached: bool) -> Result<u8> {
        let (mut command, _process) = self.exec_command(container, options)?;
        if detached {
            command.arg("--detach").stdout(Stdio::null());
        }
        command.arg(container.runtime_id());
        if detached || !options.interactive {
            command.stdin(Stdio::null());
        }
        refuse_if_interrupted()?;
        if detached {
            return self.succeed_quietly(command.stderr(Stdio::null())).map(|()| 0);
        }
        let child = command.spawn().at(&self.program)?;
        waiting_for(child, true).at(&self.program).map(exit_code)
    }

    /// The runtime's command that starts one more process, without the container's id, and the file that describes the process.
    fn exec_command(&self, container: &Container, options: &RunOptions) -> Result<(Command, tempfile::NamedTempFile)> {
        match self.state(container)?.map(|state| state.status).as_deref() {
            Some("running") => {}
            Some("paused") => return Err(ImageError::refused(container.name(), "is paused; strata unpause it first")),
            _ => return Err(ImageError::refused(container.name(), "does not run")),
        }
        let path = container.dir().join("config.json");
        let document: Value = spec::parse(&path.display().to_string(), &fs::read(&path).at(&path)?)?;
        let view = self.inside(container)?;
        let user = options.user.as_ref().map(|user| users::resolve(view.as_fd(), user)).transpose()?;
        let process = further_process(&document["process"], options, user.as_ref())?;
        let tree = ContainerView::new(view.as_fd(), std::iter::empty()).at("/")?;
        check_further(&tree, &process)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.state).at(&self.state)?;
        file.write_all(&spec::serialize("process", &process)?).at(file.path())?;
        if let Some(recorded) = document["root"]["path"].as_str().map(Path::new)
            && recorded != container.record.mountpoint
        {
            show_place(recorded)?;
        }
        let mut command = self.command("exec");
        command.arg("--process").arg(file.path());
        Ok((command, file))
    }

    /// Makes the runtime start one more process and send its terminal to the socket `console`. The process becomes a child of
    /// this one if this one is a subreaper. The inner error is the status of a runtime that failed; its messages are in `error`.
    ///
    /// # Errors
    /// As for [`exec`](Self::exec).
    pub(super) fn exec_in_terminal(
        &self,
        container: &Container,
        options: &RunOptions,
        error: Stdio,
        console: &Path,
    ) -> Result<std::result::Result<Pid, ExitStatus>> {
        let (mut command, process) = self.exec_command(container, options)?;
        let pid_file = process.path().with_extension("pid");
        command.args(["--detach", "--tty", "--console-socket"]).arg(console).arg("--pid-file").arg(&pid_file);
        command.arg(container.runtime_id()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(error);
        let status = command.status().at(&self.program)?;
        if !status.success() {
            return Ok(Err(status));
        }
        let pid = read_pid(&pid_file);
        fs::remove_file(&pid_file).at(&pid_file)?;
        pid.map(Ok)
    }

    /// Opens the root of a running container as its processes see it, with everything mounted there.
    fn inside(&self, container: &Container) -> Result<File> {
        let pid = self.state(container)?.map_or(0, |state| state.pid);
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        File::open(&root).or_else(|_| File::open(&container.record.mountpoint)).at(&container.record.mountpoint)
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// When the container does not run.
    pub fn kill(&self, container: &Container, signal: &str) -> Result<()> {
        self.succeed(self.command("kill").arg(container.runtime_id()).arg(signal))
    }

    /// Removes an ended container from the runtime; with `force`, kills a running one.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn delete(&self, container: &Container, force: bool) -> Result<()> {
        self.succeed(self.command("delete").args(force.then_some("--force")).arg(container.runtime_id()))
    }

    /// Runs a runtime command that leaves a process behind. That process keeps the streams open, so they are not read.
    fn succeed_quietly(&self, command: &mut Command) -> Result<()> {
        match command.status().at(&self.program)? {
            status if status.success() => Ok(()),
            status => Err(ImageError::refused(self.program.display().to_string(), format!("failed ({status})"))),
        }
    }

    fn succeed(&self, command: &mut Command) -> Result<()> {
        let output = command.output().at(&self.program)?;
        if output.status.success() {
            return Ok(());
        }
        Err(ImageError::refused(self.program.display().to_string(), plain(&String::from_utf8_lossy(&output.stderr))))
    }
}

fn read_pid(file: &Path) -> Result<Pid> {
    let text = fs::read_to_string(file).at(file)?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| ImageError::refused(file.display().to_string(), "is no process id"))
}

/// Waits for a child and forwards signals to it. With `shares_terminal`, the child is in the terminal's process group too.
///
/// # Errors
/// When it cannot be waited for.
pub(crate) fn waiting_for(mut child: Child, shares_terminal: bool) -> std::io::Result<ExitStatus> {
    let forwarding = forward::forward_to(child.id(), shares_terminal)?;
    let pid = Pid::from_child(&child);
    // Until the child is reaped, its number stays its own, so signals reach no other process.
    retry_interrupted(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT))?;
    drop(forwarding);
    child.wait()
}

/// Called between the steps of work that a signal may end.
///
/// # Errors
/// [`ImageError::Interrupted`] if this process was asked to end by a signal since [`forward::hold`].
pub fn refuse_if_interrupted() -> Result<()> {
    forward::interrupted().map_or(Ok(()), |signal| Err(ImageError::Interrupted { signal }))
}

/// As shells count: 128 plus the signal's number.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// A directory for the runtime's state, which need not survive a reboot. Root of a user namespace does not count as root here.
fn state_base(store: &Store) -> PathBuf {
    let system = Path::new("/run");
    if rustix::fs::access(system, Access::WRITE_OK).is_ok() {
        return system.to_owned();
    }
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    of_user.unwrap_or_else(|| store.root().join("run"))
}

pub(super) fn in_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Makes the directory `path` visible to this process and its children only. runc starts each further process of a
/// container in the directory of its root, by the name that this had when the container was started.
fn show_place(path: &Path) -> Result<()> {
    let Some(containers) = path.parent().and_then(Path::parent) else { return Ok(()) };
    unshare_mounts().at(containers)?;
    mount("none", containers, "tmpfs", MountFlags::empty(), None).at(containers)?;
    fs::create_dir_all(path).at(path)
}

/// A runtime's message in one line, without the format of a log: `time="..." level=error msg="..."`.
fn plain(told: &str) -> String {
    let line = |line: &str| match line.split_once(" msg=\"") {
        Some((_, message)) => message.trim_end().trim_end_matches('"').replace("\\\"", "\""),
        None => line.trim().to_owned(),
    };
    let mut lines: Vec<String> = told.lines().map(line).filter(|line| !line.is_empty()).collect();
    // runc writes its error both to the log and to standard error.
    lines.dedup();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_wrote_becomes_one_line() {
        let runc = "time=\"2026-01-01T00:00:00Z\" level=error msg=\"runc create failed: exec: \\\"x\\\": not found\"\n";
        assert_eq!(plain(runc), "runc create failed: exec: \"x\": not found");
        assert_eq!(plain("one\n\ntwo \ntwo\n"), "one; two");
        assert_eq!(plain(""), "");
    }
}
