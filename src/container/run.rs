//! Running a container by an OCI runtime's command line (runc's, which crun shares).

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::Access;
use serde::Deserialize;
use serde_json::Value;

use super::bundle::{Network, RunOptions, Setting, Volume, configuration, further_process};
use super::{Container, program, rootless, stubs, users};
use crate::image::digest::Digest;
use crate::image::{ImageError, IoContext, Result, spec};
use crate::store::Store;
use crate::sys::forward;

/// An OCI runtime, and where it keeps the state of this store's containers.
#[derive(Clone, Debug)]
pub struct Runtime {
    program: PathBuf,
    state: PathBuf,
}

/// What the runtime says of a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct State {
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
        command.arg("--root").arg(&self.state).arg(verb);
        command
    }

    /// What the runtime knows of a container; none if it does not know it.
    ///
    /// # Errors
    /// When the runtime cannot be started.
    pub fn state(&self, container: &Container) -> Result<Option<State>> {
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
        forwarding_signals(command).at(&self.program).map(exit_code)
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
        let root = File::open(&container.record.mountpoint).at(&container.record.mountpoint)?;
        let identity = options.user.as_ref().map(|user| users::resolve(root.as_fd(), user)).transpose()?;
        let process = further_process(&document["process"], options, identity.as_ref());
        let mut file = tempfile::NamedTempFile::new_in(container.dir()).at(container.dir())?;
        file.write_all(&spec::serialize("process", &process)?).at(file.path())?;
        let mut command = self.command("exec");
        command.arg("--process").arg(file.path()).arg(container.name());
        if !input {
            command.stdin(Stdio::null());
        }
        forwarding_signals(command).at(&self.program).map(exit_code)
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

/// Runs a command to its end with this process's input and output; signals sent to this process go on to it.
///
/// # Errors
/// When it cannot be started.
pub fn forwarding_signals(mut command: Command) -> std::io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    let _forwarding = forward::forward_to(child.id())?;
    child.wait()
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

fn in_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
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
        self.check_startable(&root, options, &document)?;
        let path = self.dir.join("config.json");
        fs::write(&path, spec::serialize("config.json", &document)?).at(&path)?;
        let mounts = document["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.record.stubs = stubs::make(&root, mounts).at(mountpoint)?;
        self.save_record()
    }

    fn check_startable(&self, root: &File, options: &RunOptions, document: &Value) -> Result<()> {
        for volume in &options.volumes {
            fs::symlink_metadata(&volume.source).at(&volume.source)?;
        }
        let process = &document["process"];
        let working_dir = process["cwd"].as_str().unwrap_or("/");
        let env = process["env"].as_array().map(Vec::as_slice).unwrap_or_default();
        let path = env.iter().filter_map(|line| line.as_str()?.strip_prefix("PATH=")).next_back().unwrap_or_default();
        let volumes: Vec<PathBuf> = options.volumes.iter().map(|volume| volume.destination.clone()).collect();
        program::check_working_dir(root.as_fd(), working_dir)?;
        program::check(root.as_fd(), process["args"][0].as_str().unwrap_or_default(), path, working_dir, &volumes)
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
