//! Trials, in a directory of their own beside the store, which is removed at the end.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stratafs::container::{Runtime, stratafs_program};
use stratafs::store::Store;

/// Time limit for each trial.
const PATIENCE: Duration = Duration::from_secs(30);

/// The image that is used.
const IMAGE: &str = "doctor:1";

/// Directories of the host that hold a program and the libraries it needs. Links among them are copied into the
/// image; directories are bind mounts in the container.
const SYSTEM: [&str; 6] = ["usr", "bin", "sbin", "lib", "lib64", "lib32"];

/// A store with one image, which has the host's programs.
pub struct Probe {
    dir: tempfile::TempDir,
    /// Why the image could not be made.
    image: Result<(), String>,
}

impl Probe {
    /// Makes the store beside the user's store, or if that directory is not writable, in the directory for temporary
    /// files.
    pub fn new(root: &Path) -> Result<Self, String> {
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        let place = root.ancestors().skip(1).find(|place| place.is_dir()).unwrap_or(Path::new("/"));
        let told = |error: std::io::Error| format!("{}: {error}", place.display());
        let make = |place: &Path| tempfile::Builder::new().prefix(".strata-doctor-").tempdir_in(place);
        // If there is no store yet, its place must be writable.
        let elsewhere = |error| if root.exists() { make(&std::env::temp_dir()) } else { Err(error) };
        let dir = make(place).or_else(elsewhere).map_err(told)?;
        let mut probe = Self { dir, image: Ok(()) };
        probe.prepare().map_err(told)?;
        probe.image = probe.import();
        Ok(probe)
    }

    /// The store used to try containers.
    pub fn root(&self) -> PathBuf {
        self.path("store")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn prepare(&self) -> std::io::Result<()> {
        for name in ["lower", "upper", "work", "merged", "image", "image/tmp"] {
            fs::DirBuilder::new().mode(0o755).create(self.path(name))?;
        }
        fs::write(self.path("lower/file"), "lower\n")?;
        for name in SYSTEM {
            let (host, inside) = (Path::new("/").join(name), self.path("image").join(name));
            match fs::read_link(&host) {
                Ok(target) => symlink(target, inside)?,
                Err(_) if host.is_dir() => fs::create_dir(inside)?,
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn import(&self) -> Result<(), String> {
        let (image, tar) = (self.path("image"), self.path("image.tar"));
        // A user who has only one id needs an image whose files all belong to root.
        let owners = ["--owner=0", "--group=0", "--numeric-owner"];
        finish(Command::new("tar").args(owners).arg("-C").arg(image).arg("-cf").arg(&tar).arg("."))?;
        finish(self.strata("import")?.arg(tar).arg(IMAGE))
    }

    fn strata(&self, verb: &str) -> Result<Command, String> {
        let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
        for name in ["STRATA_DRIVER", "STRATA_LOG"] {
            command.env_remove(name);
        }
        command.arg("--root").arg(self.root()).arg(verb);
        Ok(command)
    }

    /// Mounts a union, reads from it and writes to it.
    pub fn mount(&self) -> Result<(), String> {
        let mut command = Command::new(stratafs_program());
        command.current_dir(self.dir.path()).args(["-o", "lowerdir=lower,upperdir=upper,workdir=work", "merged", "--"]);
        finish(command.args(["sh", "-c", "cat merged/file && echo written >merged/file"]))?;
        let written = fs::read(self.path("upper/file")).unwrap_or_default();
        if written == b"written\n" {
            Ok(())
        } else {
            Err("a file that was written to a mount is not in the upper".to_owned())
        }
    }

    /// Mounts the image by the kernel's overlayfs.
    pub fn mount_overlay(&self) -> Result<(), String> {
        self.image.clone()?;
        finish(self.strata("mount")?.args(["--driver", "overlay", "--name", "overlay", IMAGE]))?;
        finish(self.strata("umount")?.args(["--rm", "overlay"]))
    }

    /// Runs a program in a container, with these flags.
    pub fn run(&self, flags: &[&str]) -> Result<(), String> {
        self.image.clone()?;
        let mut command = self.strata("run")?;
        command.args(["--rm", "--pull", "never", "--name", "doctor"]).args(flags);
        let host = SYSTEM.map(|name| format!("/{name}"));
        for dir in host.iter().filter(|dir| fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir())) {
            command.args(["-v", &format!("{dir}:{dir}:ro")]);
        }
        let program = ["/usr/bin/true", "/bin/true"].into_iter().find(|path| Path::new(path).exists());
        let ran = finish(command.args([IMAGE, program.unwrap_or("/bin/true")]));
        if ran.is_err() {
            // A trial that was killed may have left something behind.
            finish(self.strata("rm")?.args(["--force", "doctor"]))?;
        }
        ran
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Ok(store) = Store::open_for_reading(&self.root())
            && let Ok(runtime) = Runtime::find(&store, std::env::var("STRATA_RUNTIME").ok().as_deref())
            && let Err(error) = runtime.forget_store()
        {
            tracing::debug!("{error}");
        }
    }
}

/// Runs a program to its end; the error is what it wrote to its standard error.
fn finish(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().display().to_string();
    let told = |error: std::io::Error| format!("{program}: {error}");
    let complaints = tempfile::tempfile().map_err(told)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaints.try_clone().map_err(told)?);
    let mut child = command.spawn().map_err(told)?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().map_err(told)? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            None => {
                child.kill().and_then(|()| child.wait()).map_err(told)?;
                return Err(format!("did not end within {} s", PATIENCE.as_secs()));
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut text = vec![0; 4096];
    let length = complaints.read_at(&mut text, 0).map_err(told)?;
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let line = |line: &str| {
        ["strata: ", "stratafs: "].iter().fold(line.trim(), |line, start| line.trim_start_matches(start)).to_owned()
    };
    let lines: Vec<String> = text.lines().map(line).filter(|line| !line.is_empty()).collect();
    Err(if lines.is_empty() { format!("failed ({status})") } else { lines.join("; ") })
}
