//! Running a container by an OCI runtime's command line (runc's, which crun shares).

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::Access;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::Deserialize;
use serde_json::Value;

use super::bundle::{Network, RunOptions, Setting, Volume, configuration, further_process};
use super::paths::View;
use super::users::Identity;
use super::{Container, program, rootless, stubs, users};
use crate::image::digest::Digest;
use crate::image::{ImageError, IoContext, Result, spec};
use crate::store::{Store, retry_interrupted};
use crate::sys::forward;

/// An OCI runtime, and where it keeps the state of this store's containers.
#[derive(Clone, Debug)]
pub struct Runtime {
    program: PathBuf,
    state: PathBuf,
}

/// What the runtime says of a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RuntimeState {
    /// `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// Its first process, as the host numbers it.
    #[serde(default)]
    pub pid: i32,
}

impl Runtime {
    /// The runtime of the user's choice, else runc, else crun.
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

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        // The caller's directory may be gone, and means nothing to a container.
        command.current_dir("/").arg("--root").arg(&self.state).arg(verb);
        command
    }

    /// What the runtime knows of a container; none if it does not know it.
    ///
    /// # Errors
    /// When the runtime cannot be started.
    pub fn state(&self, container: &Container) -> Result<Option<RuntimeState>> {
        let output = self.command("state").arg(container.name()).stderr(Stdio::null()).output().at(&self.program)?;
        if !output.status.success() {
            return Ok(None);
        }
        spec::parse("runtime state", &output.stdout).map(Some)
    }

    /// Runs a prepared container to its end and returns its exit code. Signals that reach this process are passed
    /// on to it, and with `input` its standard input.
    ///
    /// # Errors
    /// When the runtime cannot be started.
    pub fn run(&self, container: &Container, pid_file: Option<&Path>, input: bool) -> Result<u8> {
        fs::create_dir_all(&self.state).at(&self.state)?;
        let mut command = self.command("run");
        if let Some(file) = pid_file {
            command.arg("--pid-file").arg(file);
        }
        command.arg("--bundle").arg(container.dir()).arg(container.name());
        if !input {
            command.stdin(Stdio::null());
        }
        refuse_if_interrupted()?;
        let child = command.spawn().at(&self.program)?;
        waiting_for(child, true).at(&self.program).map(exit_code)
    }

    /// Runs one more process in a running container and returns its exit code: like its first one, but for what the
    /// options say. With `input` it gets this process's standard input.
    ///
    /// # Errors
    /// When the container does not run, the runtime cannot be started, or the image has no such user.
    pub fn exec(&self, container: &Container, options: &RunOptions, input: bool) -> Result<u8> {
        if self.state(container)?.is_none_or(|state| state.status != "running") {
            return Err(ImageError::refused(container.name(), "does not run"));
        }
        let path = container.dir().join("config.json");
        let document: Value = spec::parse(&path.display().to_string(), &fs::read(&path).at(&path)?)?;
        let view = self.inside(container)?;
        let user = options.user.as_ref().map(|user| users::resolve(view.as_fd(), user)).transpose()?;
        let process = further_process(&document["process"], options, user.as_ref());
        check_program(&View::new(view.as_fd(), std::iter::empty()).at("/")?, &process)?;
        let mut file = tempfile::NamedTempFile::new_in(container.dir()).at(container.dir())?;
        file.write_all(&spec::serialize("process", &process)?).at(file.path())?;
        let mut command = self.command("exec");
        command.arg("--process").arg(file.path()).arg(container.name());
        if !input {
            command.stdin(Stdio::null());
        }
        refuse_if_interrupted()?;
        let child = command.spawn().at(&self.program)?;
        waiting_for(child, true).at(&self.program).map(exit_code)
    }

    /// Opens a running container's root as its processes see it, with all that is mounted there.
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
        self.succeed(self.command("kill").arg(container.name()).arg(signal))
    }

    /// Forgets an ended container; with `force` a running one is killed.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn delete(&self, container: &Container, force: bool) -> Result<()> {
        self.succeed(self.command("delete").args(force.then_some("--force")).arg(container.name()))
    }

    fn succeed(&self, command: &mut Command) -> Result<()> {
        let output = command.output().at(&self.program)?;
        if output.status.success() {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        Err(ImageError::refused(self.program.display().to_string(), told))
    }
}

/// Waits for a child; signals sent to this process go on to it. With `shares_terminal` the child is in the terminal's
/// process group too.
///
/// # Errors
/// When it cannot be waited for.
pub(crate) fn waiting_for(mut child: Child, shares_terminal: bool) -> std::io::Result<ExitStatus> {
    let forwarding = forward::forward_to(child.id(), shares_terminal)?;
    let pid = Pid::from_child(&child);
    // While the child is not reaped its number is its own, and a signal reaches nobody else.
    retry_interrupted(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT))?;
    drop(forwarding);
    child.wait()
}

/// For work that a signal may end, between its steps.
///
/// # Errors
/// [`ImageError::Interrupted`] if a signal asked this process to end since [`forward::hold`].
pub fn refuse_if_interrupted() -> Result<()> {
    forward::interrupted().map_or(Ok(()), |signal| Err(ImageError::Interrupted { signal }))
}

/// As shells count: 128 and the signal's number.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// Where the runtime may keep what need not survive a restart of the machine. Root of a user namespace is no root here.
fn state_base(store: &Store) -> PathBuf {
    let system = Path::new("/run");
    if rustix::fs::access(system, Access::WRITE_OK).is_ok() {
        return system.to_owned();
    }
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    of_user.unwrap_or_else(|| store.root().join("run"))
}

/// Checks that the program of a runtime's configuration can be started.
fn check_program(view: &View<'_>, process: &Value) -> Result<()> {
    let working_dir = process["cwd"].as_str().unwrap_or("/");
    let env = process["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let path = env.iter().filter_map(|line| line.as_str()?.strip_prefix("PATH=")).next_back().unwrap_or_default();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let user = &process["user"];
    let identity = Identity {
        uid: id(&user["uid"]).unwrap_or(0),
        gid: id(&user["gid"]).unwrap_or(0),
        additional_gids: user["additionalGids"].as_array().into_iter().flatten().filter_map(id).collect(),
        home: String::new(),
    };
    program::check_working_dir(view, working_dir)?;
    program::check(view, process["args"][0].as_str().unwrap_or_default(), path, working_dir, &identity)
}

fn in_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

impl Container {
    /// Writes the bundle's `config.json` for a mounted container.
    ///
    /// # Errors
    /// When the image names a user that it does not have, or nothing is to be run, or that is no program.
    pub fn prepare_run(&mut self, store: &Store, options: &RunOptions) -> Result<()> {
        let image = self.config(store)?.process();
        if options.words(&image).is_empty() {
            return Err(ImageError::refused(&self.record.image_name, "the image says not what to run; give a command"));
        }
        let mountpoint = &self.record.mountpoint;
        let root = File::open(mountpoint).at(mountpoint)?;
        let identity = users::resolve(root.as_fd(), options.user.as_deref().unwrap_or(&image.user))?;
        stubs::check(&root, &self.record.image_name)?;
        let mut volumes = self.network_files(options.network)?;
        volumes.extend(self.make_image_volumes(&root, &image.volumes, &options.volumes)?);
        let dir_id = Digest::of(self.dir.as_os_str().as_encoded_bytes()).hex();
        let cgroup = format!("/strata-{}-{}", &dir_id[..8], self.name);
        let setting = Setting {
            name: &self.name,
            root: mountpoint,
            cgroup: &cgroup,
            image: &image,
            identity: &identity,
            volumes: &volumes,
        };
        let mut document = configuration(options, &setting);
        if self.record.rootless {
            rootless::adapt(&mut document);
        }
        self.check_startable(&root, options, &volumes, &document)?;
        let path = self.dir.join("config.json");
        fs::write(&path, spec::serialize("config.json", &document)?).at(&path)?;
        let mounts = document["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.record.stubs = stubs::make(&root, mounts).at(mountpoint)?;
        self.save_record()
    }

    fn check_startable(&self, root: &File, options: &RunOptions, own: &[Volume], document: &Value) -> Result<()> {
        for volume in &options.volumes {
            fs::symlink_metadata(&volume.source).at(&volume.source)?;
        }
        let volumes = own.iter().chain(&options.volumes);
        let view = View::new(root.as_fd(), volumes.map(|volume| (&*volume.source, &*volume.destination)));
        check_program(&view.at(&self.record.mountpoint)?, &document["process"])
    }

    /// The host's name resolution, for a container on the host's network: copies, so that a change in the container
    /// is not one of the host.
    fn network_files(&self, network: Network) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        if network == Network::None {
            return Ok(volumes);
        }
        for name in ["resolv.conf", "hosts"] {
            let (from, copy) = (Path::new("/etc").join(name), self.dir.join(name));
            if from.exists() {
                fs::copy(&from, &copy).at(&from)?;
                volumes.push(Volume { source: copy, destination: from, read_only: false });
            }
        }
        Ok(volumes)
    }

    /// Removes the mount points that were made for the runtime and that are still empty.
    ///
    /// # Errors
    /// When the mount does not answer.
    pub fn remove_stubs(&self) -> Result<()> {
        let mountpoint = &self.record.mountpoint;
        let root = File::open(mountpoint).at(mountpoint)?;
        stubs::remove(&root, &self.record.stubs).at(mountpoint)
    }
}
