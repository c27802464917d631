//! The same images with skopeo, umoci and podman: they accept what we save, we load what they save, and the file trees are equal.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use stratafs::image::archive::ArchiveInput;
use stratafs::store::load::LoadOptions;
use stratafs::store::save::{self, Format, SaveOptions, Target};
use stratafs::tar::compression::Compression;

use super::fixture::*;
use super::layer_dirs::tree;

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; scripts/test installs it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A store with `x:1`, and that image saved in every way: name, format, compression.
pub fn saved(scratch: &Scratch) -> Vec<(String, Format)> {
    scratch.load(&docker_old("docker.io/library/x:1")).unwrap();
    let selection = save::select(&scratch.store, &["x:1".to_owned()]).unwrap();
    let mut paths = Vec::new();
    for (name, format) in
        [("docker", Format::DockerArchive), ("archive", Format::OciArchive), ("dir", Format::OciDirectory)]
    {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let path = scratch.dir.path().join(format!("{name}-{compression:?}"));
            save::save(&scratch.store, &selection, Target::Path(&path), SaveOptions { format, compression }).unwrap();
            paths.push((path.to_str().unwrap().to_owned(), format));
        }
    }
    paths
}

pub fn transport(path: &str, format: Format) -> String {
    match format {
        Format::DockerArchive => format!("docker-archive:{path}"),
        Format::OciArchive => format!("oci-archive:{path}"),
        Format::OciDirectory => format!("oci:{path}"),
    }
}

/// A tree's lines without the forms of whiteouts and overlay attributes, and without the line of the root.
pub fn plain(tree: BTreeMap<String, String>) -> BTreeMap<String, String> {
    tree.into_iter().filter(|(path, _)| path != ".").collect()
}

/// The flattened tree as overlayfs shows it.
pub fn flattened(scratch: &Scratch, name: &str) -> BTreeMap<String, String> {
    use stratafs::container::{Container, CreateOptions, Driver};
    let image = scratch.store.find(name).unwrap();
    let options = CreateOptions { driver: Driver::Overlay, read_only: true, ..CreateOptions::default() };
    let container = Container::create(&scratch.store, &image, &options).unwrap();
    let found = plain(tree(container.mount(&scratch.store).unwrap()));
    // A program just started by another test holds this process' open files until its exec(2).
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = container.unmount(false) {
        assert!(error.to_string().contains("is in use") && Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(20));
    }
    container.remove(&scratch.store).unwrap();
    found
}

#[test]
fn skopeo_copies_what_we_save_and_we_load_its_copies() {
    if !super::overlayfs_for("skopeo_copies_what_we_save_and_we_load_its_copies") {
        return;
    }
    let scratch = Scratch::new();
    let id = scratch.save_id();
    let expected = flattened(&scratch, "x:1");
    for (path, format) in saved(&scratch) {
        let source = transport(&path, format);
        let config = run("skopeo", &["inspect", "--config", "--raw", &source]);
        assert_eq!(config.as_bytes(), config_bytes(), "{path}");
        for kind in ["oci", "docker-archive", "oci-archive"] {
            if kind == "docker-archive" && path.ends_with("Zstd") && format != Format::DockerArchive {
                continue; // skopeo cannot.
            }
            let copy = scratch.dir.path().join("copy");
            let destination = format!("{kind}:{}:x:2", copy.display());
            run("skopeo", &["copy", "--quiet", "--insecure-policy", &source, &destination]);
            let other = Scratch::new();
            let what = format!("{source} to {destination}");
            let loaded = other.load_with(ArchiveInput::Path(&copy), &LoadOptions::default(), &mut ()).expect(&what);
            // When skopeo converts from docker's format to OCI's, it rewrites the config.
            let converted = !kind.starts_with("docker") && format == Format::DockerArchive;
            assert_eq!(loaded[0].id == id, !converted, "{what}");
            assert_eq!(loaded[0].names[0].to_string(), "x:2", "{what}");
            assert_eq!(flattened(&other, "x:2"), expected, "{what}");
            if copy.is_dir() { std::fs::remove_dir_all(&copy).unwrap() } else { std::fs::remove_file(&copy).unwrap() }
        }
    }
}

fn config_bytes() -> Vec<u8> {
    config(&layers(), "old")
}

impl Scratch {
    fn save_id(&self) -> stratafs::image::digest::Digest {
        self.load(&docker_old("docker.io/library/x:1")).unwrap()[0].id
    }
}

#[test]
fn the_store_itself_is_a_layout_that_skopeo_reads() {
    let scratch = Scratch::new();
    scratch.save_id();
    let source = format!("oci:{}:x:1", scratch.store.root().display());
    assert_eq!(run("skopeo", &["inspect", "--config", "--raw", &source]).as_bytes(), config_bytes());
}

#[test]
fn umoci_unpacks_what_we_save_to_the_same_tree() {
    if !super::overlayfs_for("umoci_unpacks_what_we_save_to_the_same_tree") {
        return;
    }
    let scratch = Scratch::new();
    scratch.save_id();
    let expected = flattened(&scratch, "x:1");
    let path = scratch.dir.path().join("layout");
    let selection = save::select(&scratch.store, &["x:1".to_owned()]).unwrap();
    let options = SaveOptions { format: Format::OciDirectory, compression: Compression::Gzip };
    save::save(&scratch.store, &selection, Target::Path(&path), options).unwrap();
    let image = format!("{}:docker.io/library/x:1", path.display());
    let bundle = scratch.dir.path().join("bundle");
    run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    assert_eq!(without_directory_times(plain(tree(&bundle.join("rootfs")))), without_directory_times(expected));
    // umoci writes a layer of its own; we load it.
    std::fs::write(bundle.join("rootfs/etc/by-umoci"), "u").unwrap();
    run("touch", &["-d", "@1500000000", bundle.join("rootfs/etc/by-umoci").to_str().unwrap()]);
    std::fs::remove_file(bundle.join("rootfs/usr/new")).unwrap();
    run("umoci", &["repack", "--image", &image, bundle.to_str().unwrap()]);
    let other = Scratch::new();
    other.load_with(ArchiveInput::Path(&path), &LoadOptions::default(), &mut ()).unwrap();
    let ours = flattened(&other, "x:1");
    assert_eq!(without_directory_times(ours), without_directory_times(plain(tree(&bundle.join("rootfs")))));
}

/// Unpackers differ in whether deleting an entry of a lower directory changes the directory's time.
pub fn without_directory_times(tree: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let shorten = |line: String| match line.starts_with("dir ") {
        true => line.split(" @").next().unwrap_or_default().to_owned(),
        false => line,
    };
    tree.into_iter().map(|(path, line)| (path, shorten(line))).collect()
}

/// podman with a store of its own.
pub(super) struct Podman {
    root: String,
    run_root: String,
}

impl Podman {
    pub(super) fn new(dir: &Path) -> Self {
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        Self { root: at("podman"), run_root: at("podman-run") }
    }

    pub(super) fn run(&self, args: &[&str]) -> String {
        run("podman", &[&self.base()[..], args].concat())
    }

    /// [`Self::run`] for a command that may fail; returns `None` then.
    pub(super) fn try_run(&self, args: &[&str]) -> Option<String> {
        let output = Command::new("podman").args(self.base()).args(args).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn base(&self) -> [&str; 6] {
        ["--root", &self.root, "--runroot", &self.run_root, "--storage-driver", "vfs"]
    }
}

#[test]
fn podman_loads_what_we_save_and_we_load_what_it_saves() {
    if !super::overlayfs_for("podman_loads_what_we_save_and_we_load_what_it_saves") {
        return;
    }
    let scratch = Scratch::new();
    let id = scratch.save_id();
    let expected = flattened(&scratch, "x:1");
    let podman = Podman::new(scratch.dir.path());
    for (path, format) in saved(&scratch) {
        if format == Format::OciDirectory {
            continue;
        }
        podman.run(&["load", "--quiet", "-i", &path]);
        let listed = podman.run(&["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
        assert_eq!(listed, format!("{id} docker.io/library/x:1\n"), "{path}");
        let container = podman.run(&["create", "x:1"]);
        let mounted = podman.run(&["mount", container.trim()]);
        let theirs = plain(tree(Path::new(mounted.trim())));
        assert_eq!(without_directory_times(theirs), without_directory_times(expected.clone()), "{path}");
        podman.run(&["rm", "--force", container.trim()]);
        for kind in ["docker-archive", "oci-archive", "oci-dir"] {
            if kind == "docker-archive" && path.ends_with("Zstd") {
                continue; // podman cannot.
            }
            let copy = scratch.dir.path().join("podman-saved");
            podman.run(&["save", "--quiet", "--format", kind, "-o", copy.to_str().unwrap(), "x:1"]);
            let other = Scratch::new();
            let loaded = other.load_with(ArchiveInput::Path(&copy), &LoadOptions::default(), &mut ()).expect(kind);
            assert_eq!(loaded[0].id, id, "{path} {kind}");
            assert_eq!(flattened(&other, &loaded[0].id.hex()), expected, "{path} {kind}");
            if copy.is_dir() { std::fs::remove_dir_all(&copy).unwrap() } else { std::fs::remove_file(&copy).unwrap() }
        }
        podman.run(&["rmi", "--all", "--force"]);
    }
}
