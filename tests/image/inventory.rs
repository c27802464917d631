//! Inventories of a store's layers: made when layers are unpacked, made again if they do not match, never required.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::fixture::*;

struct World {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("strata-test-").tempdir().unwrap();
        let root = dir.path().join("store");
        fs::write(dir.path().join("in.tar"), docker_old("x:1")).unwrap();
        let world = Self { dir, root };
        world.ok(&["load", "-q", "-i", world.dir.path().join("in.tar").to_str().unwrap()]);
        world
    }

    fn strata(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command that must succeed; returns its output and its messages.
    fn ok(&self, args: &[&str]) -> (String, String) {
        let output = self.strata(args);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {told}");
        (String::from_utf8(output.stdout).unwrap(), told)
    }

    fn inventories(&self) -> Vec<PathBuf> {
        let layers = fs::read_dir(self.root.join("layers")).unwrap();
        let mut paths: Vec<_> = layers.map(|layer| layer.unwrap().path().join("diff.inventory")).collect();
        paths.sort();
        paths
    }

    /// Mounts the image read-only, passes the mountpoint on and unmounts.
    fn mounted(&self, look: impl FnOnce(&Path)) {
        let (point, _) = self.ok(&["mount", "--name", "c", "x:1"]);
        look(Path::new(point.trim()));
        self.ok(&["umount", "c"]);
        self.ok(&["rm", "c"]);
    }
}

#[test]
fn they_come_with_the_layers_and_go_with_them() {
    let world = World::new();
    let paths = world.inventories();
    assert_eq!(paths.len(), 3);
    let mut bytes = 0;
    for path in &paths {
        let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        bytes += metadata.len();
    }
    let (usage, _) = world.ok(&["df", "--json"]);
    let usage: serde_json::Value = serde_json::from_str(&usage).unwrap();
    assert_eq!(usage["Inventories"].as_u64(), Some(bytes));
    assert_eq!(world.ok(&["verify"]), ("3 layers are sound\n".to_owned(), String::new()));
    // Saved archives do not contain them.
    world.ok(&["save", "-o", world.dir.path().join("out.tar").to_str().unwrap(), "x:1"]);
    world.ok(&["rmi", "x:1"]);
    assert!(paths.iter().all(|path| !path.exists()));
}

fn first_file(dir: &Path) -> Option<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().find_map(|path| match fs::symlink_metadata(path).unwrap().file_type() {
        kind if kind.is_dir() => first_file(path),
        kind => kind.is_file().then(|| path.clone()),
    })
}

#[test]
fn what_does_not_fit_is_told_and_made_again() {
    let world = World::new();
    let paths = world.inventories();
    let sound = fs::read(&paths[0]).unwrap();
    fs::write(&paths[0], &sound[..sound.len() - 1]).unwrap();
    fs::remove_file(&paths[1]).unwrap();
    // A file with changed attributes only, which a mount would not notice before it is opened.
    let file = first_file(&paths[2].with_file_name("diff")).expect("a regular file");
    let times = fs::FileTimes::new().set_accessed(std::time::SystemTime::now());
    fs::File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
    let (_, told) = world.ok(&["verify"]);
    assert_eq!(told.lines().count(), 3, "{told}");
    assert!(told.contains("damaged") && told.contains("there is none") && told.contains("changed"), "{told}");
    world.ok(&["verify", "--repair"]);
    assert_eq!(world.ok(&["verify"]).1, "");
}

/// A store of an earlier version, a copied one, and one whose inventories cannot be written.
#[test]
fn a_mount_makes_them_where_it_can_and_needs_none() {
    if !super::fuse_for("image::inventory::mount") || !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    let paths = world.inventories();
    paths.iter().for_each(|path| fs::remove_file(path).unwrap());
    let mut names = Vec::new();
    world.mounted(|root| names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect());
    assert!(!names.is_empty() && paths.iter().all(|path| path.exists()));
    for path in &paths {
        fs::remove_file(path).unwrap();
        fs::create_dir_all(path.join("in the way")).unwrap();
    }
    world.mounted(|root| assert_eq!(fs::read_dir(root).unwrap().count(), names.len()));
    paths.iter().for_each(|path| fs::remove_dir_all(path).unwrap());
    world.ok(&["verify", "--repair"]);
    let copied = World { root: world.dir.path().join("copy"), dir: tempfile::tempdir().unwrap() };
    assert!(Command::new("cp").arg("-a").arg(&world.root).arg(&copied.root).status().unwrap().success());
    assert_eq!(copied.ok(&["verify"]).1.lines().filter(|line| line.contains("another")).count(), 3);
    copied.mounted(|root| assert_eq!(fs::read_dir(root).unwrap().count(), names.len()));
    assert_eq!(copied.ok(&["verify"]).1, "");
}

#[test]
fn made_by_hand() {
    let world = World::new();
    let layer = world.dir.path().join("layer");
    fs::create_dir_all(layer.join("d")).unwrap();
    fs::write(layer.join("d/f"), "f").unwrap();
    let (told, _) = world.ok(&["inventory", layer.to_str().unwrap()]);
    assert!(told.starts_with(&format!("{}.inventory: 2 names in 2 directories, ", layer.display())), "{told}");
    assert!(world.dir.path().join("layer.inventory").is_file());
    let missing = world.strata(&["inventory", "/nonexistent/layer"]);
    let message = String::from_utf8(missing.stderr).unwrap();
    assert_eq!((missing.status.code(), message.lines().count()), (Some(1), 1), "{message}");
    assert!(message.contains("/nonexistent/layer"), "{message}");
    assert_eq!(world.strata(&["inventory"]).status.code(), Some(2));
    assert_eq!(world.strata(&["inventory", "/"]).status.code(), Some(1), "nothing is beside it");
    let unpacked = world.dir.path().join("unpacked");
    world.ok(&["unpack", world.dir.path().join("in.tar").to_str().unwrap(), unpacked.to_str().unwrap()]);
    for layer in ["1", "2", "3"] {
        assert!(unpacked.join(format!("{layer}.inventory")).is_file());
    }
}
