//! The same images with docker, buildah and the specification's own validator.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stratafs::image::archive::ArchiveInput;
use stratafs::image::config::chain_ids;
use stratafs::image::digest::Digest;
use stratafs::store::load::LoadOptions;
use stratafs::store::save::{self, Format, SaveOptions, Target};
use stratafs::tar::compression::Compression;

use super::fixture::*;
use super::interop::{flattened, plain, run, saved, transport, without_directory_times};
use super::layer_dirs::tree;

/// How long a daemon may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(180);

fn wait_for(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// A Docker Engine with all its files below one directory.
struct Engine {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Engine {
    /// `None`, and the test is counted as skipped, if this machine cannot run one.
    fn start(test: &str) -> Option<Self> {
        // A socket's path is at most 107 bytes long.
        let dir = tempfile::Builder::new().prefix("strata-docker-").tempdir_in("/tmp").unwrap();
        let at = |name: &str| dir.path().join(name);
        let log = std::fs::File::create(at("log")).unwrap();
        let daemon = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"])
            .arg(format!("--host=unix://{}", at("socket").display()))
            .arg(format!("--data-root={}", at("data").display()))
            .arg(format!("--exec-root={}", at("exec").display()))
            .arg(format!("--pidfile={}", at("pid").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("dockerd; scripts/test installs it");
        let mut engine = Self { dir, daemon };
        let mut ended = false;
        let answers = wait_for(|| {
            ended = engine.daemon.try_wait().unwrap().is_some();
            ended || engine.command(&["version"]).output().unwrap().status.success()
        });
        if answers && !ended {
            return Some(engine);
        }
        let log = std::fs::read_to_string(engine.dir.path().join("log")).unwrap();
        assert!(ended, "dockerd does not answer: {log}");
        super::skip(test, &format!("dockerd: {}", log.lines().last().unwrap_or_default()));
        None
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_CONFIG", self.dir.path().join("client"));
        command.arg(format!("--host=unix://{}", self.dir.path().join("socket").display())).args(args);
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The flattened tree of an image, where docker unpacked it.
    fn tree(&self, image: &str) -> BTreeMap<String, String> {
        let diff_ids = self.ok(&["image", "inspect", "--format", "{{join .RootFS.Layers \" \"}}", image]);
        let diff_ids: Vec<Digest> = diff_ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let top = chain_ids(&diff_ids).pop().unwrap();
        let data = self.dir.path().join("data");
        let id = std::fs::read_to_string(data.join(format!("image/vfs/layerdb/sha256/{}/cache-id", top.hex())));
        plain(tree(&data.join("vfs/dir").join(id.unwrap())))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.daemon);
        // It ends its containerd. If it has ended already, the test does not fail.
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap_or(());
        if !wait_for(|| !matches!(self.daemon.try_wait(), Ok(None))) {
            drop(self.daemon.kill());
            drop(self.daemon.wait());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = self.dir.path().to_string_lossy().into_owned();
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&below));
        for at in ours.collect::<Vec<_>>().into_iter().rev() {
            drop(Command::new("umount").arg("--lazy").arg(at).status());
        }
    }
}

/// Loads one image from another program's archive into a new store; returns its id and its flattened tree.
fn loaded_tree(path: &Path, name: &str) -> (Digest, BTreeMap<String, String>) {
    let scratch = Scratch::new();
    let loaded = scratch.load_with(ArchiveInput::Path(path), &LoadOptions::default(), &mut ()).expect(name);
    let found = loaded.iter().find(|image| image.names.iter().any(|known| known.to_string() == name));
    let id = found.unwrap_or_else(|| panic!("no {name} in {loaded:?}")).id;
    (id, flattened(&scratch, name))
}

#[test]
fn docker_loads_what_we_save_and_we_load_what_it_saves() {
    const TEST: &str = "docker_loads_what_we_save_and_we_load_what_it_saves";
    if !super::overlayfs_for(TEST) {
        return;
    }
    let Some(docker) = Engine::start(TEST) else { return };
    let scratch = Scratch::new();
    let paths = saved(&scratch);
    let id = scratch.store.find("x:1").unwrap().id();
    let expected = without_directory_times(flattened(&scratch, "x:1"));
    // Docker 20.10 knows neither OCI archives nor zstd.
    for (path, _) in paths.iter().filter(|(path, format)| *format == Format::DockerArchive && !path.ends_with("Zstd")) {
        docker.ok(&["load", "--quiet", "--input", path]);
        let listed = docker.ok(&["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
        assert_eq!(listed, format!("{id} x:1\n"), "{path}");
        assert_eq!(without_directory_times(docker.tree("x:1")), expected, "{path}");
        let copy = scratch.dir.path().join("docker-saved");
        docker.ok(&["save", "--output", copy.to_str().unwrap(), "x:1"]);
        let (theirs, found) = loaded_tree(&copy, "x:1");
        assert_eq!((theirs, without_directory_times(found)), (id, expected.clone()), "{path}");
        docker.ok(&["rmi", "--force", "x:1"]);
    }
    docker.ok(&["load", "--quiet", "--input", &paths[0].0]);
    a_layer_of_docker(&docker, &scratch);
}

/// What docker commits on top of our image, in an archive of both.
fn a_layer_of_docker(docker: &Engine, scratch: &Scratch) {
    let file = scratch.dir.path().join("by-docker");
    std::fs::write(&file, "d\n").unwrap();
    docker.ok(&["create", "--name", "changed", "x:1"]);
    docker.ok(&["cp", file.to_str().unwrap(), "changed:/etc/by-docker"]);
    let id: Digest = docker.ok(&["commit", "changed", "x:2"]).trim().parse().unwrap();
    docker.ok(&["rm", "changed"]);
    let copy = scratch.dir.path().join("docker-committed");
    docker.ok(&["save", "--output", copy.to_str().unwrap(), "x:2", "x:1"]);
    let (ours, found) = loaded_tree(&copy, "x:2");
    assert_eq!(ours, id);
    assert!(found.contains_key("etc/by-docker"));
    assert_eq!(without_directory_times(found), without_directory_times(docker.tree("x:2")));
}

/// buildah with a store of its own.
struct Buildah {
    root: PathBuf,
    run_root: PathBuf,
}

impl Buildah {
    fn run(&self, args: &[&str]) -> String {
        let (root, run_root) = (self.root.to_str().unwrap(), self.run_root.to_str().unwrap());
        run("buildah", &[&["--root", root, "--runroot", run_root, "--storage-driver", "vfs"], args].concat())
    }
}

#[test]
fn buildah_takes_what_we_save_and_we_load_what_it_commits() {
    if !super::overlayfs_for("buildah_takes_what_we_save_and_we_load_what_it_commits") {
        return;
    }
    let scratch = Scratch::new();
    let buildah = Buildah { root: scratch.dir.path().join("buildah"), run_root: scratch.dir.path().join("run") };
    let paths = saved(&scratch);
    let id = scratch.store.find("x:1").unwrap().id();
    let expected = without_directory_times(flattened(&scratch, "x:1"));
    // It names an image from a directory after the path, which would have to be in lower case.
    for (path, format) in paths.iter().filter(|(_, format)| *format != Format::OciDirectory) {
        buildah.run(&["pull", "--quiet", &transport(path, *format)]);
        let container = buildah.run(&["from", "--pull-never", &id.hex()]);
        let listed = buildah.run(&["images", "--no-trunc", "--quiet"]);
        assert_eq!(listed.trim(), id.to_string(), "{path}");
        let mounted = PathBuf::from(buildah.run(&["mount", container.trim()]).trim());
        assert_eq!(without_directory_times(plain(tree(&mounted))), expected, "{path}");
        buildah.run(&["rm", container.trim()]);
        buildah.run(&["rmi", "--all", "--force"]);
    }
    let (path, format) = &paths[0];
    buildah.run(&["pull", "--quiet", &transport(path, *format)]);
    let container = buildah.run(&["from", "--pull-never", &id.hex()]);
    let mounted = PathBuf::from(buildah.run(&["mount", container.trim()]).trim());
    std::fs::write(mounted.join("etc/by-buildah"), "b\n").unwrap();
    std::fs::remove_file(mounted.join("usr/new")).unwrap();
    std::fs::rename(mounted.join("var/cache"), mounted.join("var/cache2")).unwrap();
    // It writes whole seconds.
    run("touch", &["-d", "@1500000000", mounted.join("etc/by-buildah").to_str().unwrap()]);
    let wanted = without_directory_times(plain(tree(&mounted)));
    for kind in ["oci", "docker"] {
        let committed: Digest =
            format!("sha256:{}", buildah.run(&["commit", "--quiet", "--format", kind, container.trim(), "x:2"]).trim())
                .parse()
                .unwrap();
        for destination in ["oci-archive", "docker-archive"] {
            let copy = scratch.dir.path().join(format!("{kind}-{destination}"));
            buildah.run(&["push", "--quiet", "x:2", &format!("{destination}:{}:x:2", copy.display())]);
            let (ours, found) = loaded_tree(&copy, "x:2");
            assert_eq!(without_directory_times(found), wanted, "{kind} {destination}");
            // The config may be rewritten for the other format.
            assert!(ours == committed || !destination.starts_with(kind), "{kind} {destination}");
        }
    }
    buildah.run(&["rm", container.trim()]);
}

#[test]
fn the_validator_of_the_specification_accepts_what_we_save() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("docker.io/library/x:1")).unwrap();
    let validate = |path: &Path| {
        let mut command = Command::new("oci-image-tool");
        command.args(["validate", "--type", "image", "--ref", "name=docker.io/library/x:1"]).arg(path);
        command.output().expect("oci-image-tool; scripts/test installs it")
    };
    // It is older than zstd layers.
    for compression in [Compression::None, Compression::Gzip] {
        let path = scratch.dir.path().join(format!("{compression}"));
        let selection = save::select(&scratch.store, &["x:1".to_owned()]).unwrap();
        let options = SaveOptions { format: Format::OciDirectory, compression };
        save::save(&scratch.store, &selection, Target::Path(&path), options).unwrap();
        let output = validate(&path);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("Validation succeeded"), "{output:?}");
        // The validator can refuse an image.
        let config = path.join("blobs/sha256").join(scratch.store.find("x:1").unwrap().id().hex());
        std::fs::write(config, "{}").unwrap();
        assert!(!validate(&path).status.success(), "a damaged layout passed");
    }
}
