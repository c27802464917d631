//! The library as other programs use it: `stratafs::Mount`, and the programs of `examples/`.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use stratafs::{Builder, Mount};
use tempfile::TempDir;

/// Ends the test unless mounts are to be tested; prints a line that can be counted.
macro_rules! needs_fuse {
    () => {
        if std::env::var_os("STRATAFS_TEST_NO_FUSE").is_some_and(|value| value == "1") {
            let thread = std::thread::current();
            return common::skip(thread.name().unwrap_or_default(), "STRATAFS_TEST_NO_FUSE=1");
        }
    };
}

/// A directory with layers and a mountpoint.
struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        for name in ["top", "base", "upper", "work", "merged"] {
            fs::create_dir(scene.path(name)).unwrap();
        }
        fs::write(scene.path("top/more"), "three\n").unwrap();
        fs::write(scene.path("base/file"), "one\n").unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn builder(&self) -> Builder {
        let [top, base, upper, work] = ["top", "base", "upper", "work"].map(|name| self.path(name));
        Mount::builder().lower(top).lower(base).upper(upper, work)
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let merged = self.path("merged");
        table.lines().any(|line| line.split(' ').nth(4).is_some_and(|path| Path::new(path) == merged))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.is_mounted() {
            Command::new("umount").arg("-l").arg(self.path("merged")).status().unwrap();
        }
    }
}

/// Bits that this process' umask takes away, without changing it.
fn own_umask() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap().trim().to_owned()
}

#[test]
fn a_mount_lives_as_long_as_its_value() {
    needs_fuse!();
    let scene = Scene::new();
    let mount = scene.builder().fs_name("mine").mount(scene.path("merged")).unwrap();
    assert_eq!(mount.mountpoint(), scene.path("merged"));
    assert_eq!(fs::read_to_string(scene.path("merged/file")).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(scene.path("merged/more")).unwrap(), "three\n");
    fs::write(scene.path("merged/file"), "two\n").unwrap();
    fs::remove_file(scene.path("merged/more")).unwrap();
    let error = scene.builder().mount(scene.path("merged")).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    drop(mount);
    assert!(!scene.is_mounted());
    assert_eq!(fs::read_to_string(scene.path("upper/file")).unwrap(), "two\n");
    assert_eq!(fs::read_to_string(scene.path("base/file")).unwrap(), "one\n");

    let again = scene.builder().read_only(true).mount(scene.path("merged")).unwrap();
    assert_eq!(fs::read_dir(scene.path("merged")).unwrap().count(), 1);
    assert_eq!(fs::write(scene.path("merged/new"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    again.unmount().unwrap();
    assert!(!scene.is_mounted());
}

/// The driver needs a umask of 0. The process that uses the library keeps its own, and so do the files that it makes.
#[test]
fn mounting_leaves_the_umask_and_the_directory_of_the_process_alone() {
    needs_fuse!();
    let scene = Scene::new();
    let (umask, directory) = (own_umask(), std::env::current_dir().unwrap());
    assert_ne!(umask, "0000", "the test cannot tell");
    let mount = scene.builder().mount(scene.path("merged")).unwrap();
    fs::write(scene.path("merged/mine"), "").unwrap();
    let script = "umask 0; mkdir merged/open; touch merged/open/file; umask 077; touch merged/closed";
    assert!(Command::new("sh").args(["-ec", script]).current_dir(scene.0.path()).status().unwrap().success());
    assert_eq!((own_umask(), std::env::current_dir().unwrap()), (umask.clone(), directory));
    mount.unmount().unwrap();
    let mode = |name: &str| fs::metadata(scene.path("upper").join(name)).unwrap().mode() & 0o777;
    let masked = 0o666 & !u32::from_str_radix(&umask, 8).unwrap();
    assert_eq!(["mine", "open", "open/file", "closed"].map(mode), [masked, 0o777, 0o666, 0o600]);
}

#[test]
fn a_mount_in_use_is_detached_and_one_from_outside_ends_the_wait() {
    needs_fuse!();
    let scene = Scene::new();
    let mount = scene.builder().mount(scene.path("merged")).unwrap();
    let used = fs::File::open(scene.path("merged/file")).unwrap();
    mount.unmount().unwrap();
    assert!(!scene.is_mounted());
    drop(used);

    // By now, the old driver has released the upper.
    let mount = scene.builder().mount(scene.path("merged")).unwrap();
    let waiting = std::thread::spawn(move || mount.wait());
    assert!(Command::new("umount").arg(scene.path("merged")).status().unwrap().success());
    waiting.join().unwrap().unwrap();
}

/// Several mounts of one process are independent.
#[test]
fn a_process_has_many_mounts() {
    needs_fuse!();
    let scenes: Vec<Scene> = (0..8).map(|_| Scene::new()).collect();
    let mounts: Vec<Mount> = scenes.iter().map(|scene| scene.builder().mount(scene.path("merged")).unwrap()).collect();
    for (number, scene) in scenes.iter().enumerate() {
        fs::write(scene.path("merged/number"), number.to_string()).unwrap();
    }
    drop(mounts);
    for (number, scene) in scenes.iter().enumerate() {
        assert_eq!(fs::read_to_string(scene.path("upper/number")).unwrap(), number.to_string());
    }
}

/// The program of `examples/`, built if necessary.
fn example(name: &str) -> Command {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--example", name]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // target/debug/deps/library-… → target/debug/examples/NAME
    let own = std::env::current_exe().unwrap();
    Command::new(own.ancestors().nth(2).unwrap().join("examples").join(name))
}

fn told(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

#[test]
fn the_example_that_mounts() {
    needs_fuse!();
    let scene = Scene::new();
    let mut running = example("mount");
    running.args(["upper", "work", "merged", "top", "base"]).current_dir(scene.0.path());
    let mut running = running.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while !scene.is_mounted() {
        assert!(begun.elapsed() < Duration::from_secs(10), "not mounted");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::write(scene.path("merged/new"), "written\n").unwrap();
    assert!(Command::new("umount").arg(scene.path("merged")).status().unwrap().success());
    assert!(running.wait().unwrap().success());
    assert_eq!(fs::read_to_string(scene.path("upper/new")).unwrap(), "written\n");
}

#[test]
fn the_example_that_makes_a_checkpoint() {
    needs_fuse!();
    let scene = Scene::new();
    fs::create_dir(scene.path("old")).unwrap();
    let arguments = ["upper", "work", "merged", "before", "old", "top", "base"];
    let printed = told(&example("checkpoint").args(arguments).current_dir(scene.0.path()).output().unwrap());
    assert_eq!(printed, "3 layers, 0 files copied\nthen: before\nnow: after\n");
    assert_eq!(fs::read_to_string(scene.path("before/file")).unwrap(), "before\n");
    assert_eq!(fs::read_to_string(scene.path("upper/file")).unwrap(), "after\n");
    assert!(!scene.is_mounted());
}

/// The mount goes on, other mounts can use its layers, and a later mount of the upper needs them.
#[test]
fn a_checkpoint_leaves_the_mount_in_use() {
    needs_fuse!();
    let scene = Scene::new();
    let mount = scene.builder().mount(scene.path("merged")).unwrap();
    fs::write(scene.path("merged/file"), "first\n").unwrap();
    fs::hard_link(scene.path("merged/file"), scene.path("merged/link")).unwrap();
    let mut open = fs::OpenOptions::new().append(true).open(scene.path("merged/file")).unwrap();
    let first = mount.checkpoint(scene.path("first")).unwrap();
    assert_eq!(first.layers, ["first", "top", "base"].map(|name| scene.path(name)));
    assert_eq!(first.copied_files, 1);
    open.write_all(b"second\n").unwrap();
    let second = mount.checkpoint(scene.path("second")).unwrap();
    assert_eq!(second.layers, ["second", "first", "top", "base"].map(|name| scene.path(name)));

    mount.share(&first.layers).unwrap();
    fs::create_dir(scene.path("old")).unwrap();
    let old = Mount::builder().lowers(&first.layers).mount(scene.path("old")).unwrap();
    assert_eq!(fs::read_to_string(scene.path("old/link")).unwrap(), "first\n");
    assert_eq!(fs::read_to_string(scene.path("merged/link")).unwrap(), "first\nsecond\n");
    old.unmount().unwrap();

    let error = mount.checkpoint(scene.path("first")).unwrap_err();
    let expected = format!("checkpoint '{}': ", scene.path("first").display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    drop(open);
    mount.unmount().unwrap();
    let error = scene.builder().mount(scene.path("merged")).unwrap_err();
    assert!(error.to_string().contains("layer"), "{error}");
    let [_, _, upper, work] = ["top", "base", "upper", "work"].map(|name| scene.path(name));
    let again = Mount::builder().lowers(&second.layers).upper(upper, work).mount(scene.path("merged")).unwrap();
    assert_eq!(fs::read_to_string(scene.path("merged/file")).unwrap(), "first\nsecond\n");
    again.unmount().unwrap();

    let read_only = Mount::builder().lowers(&second.layers).mount(scene.path("merged")).unwrap();
    let error = read_only.checkpoint(scene.path("third")).unwrap_err();
    assert!(error.to_string().ends_with("the mount is read-only"), "{error}");
}

#[test]
fn the_examples_that_snapshot_and_unpack() {
    needs_fuse!();
    let scene = Scene::new();
    let run = |name: &str, arguments: &[&str]| {
        told(&example(name).args(arguments).current_dir(scene.0.path()).output().unwrap())
    };
    let mount = scene.builder().mount(scene.path("merged")).unwrap();
    fs::write(scene.path("merged/new"), "new\n").unwrap();
    fs::set_permissions(scene.path("merged/file"), Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(scene.path("merged/more")).unwrap();
    mount.unmount().unwrap();
    let listed = run("snapshot", &["upper", "layer.tar", "top", "base"]);
    let expected = "C /file\nD /more\nA /new\nsha256:";
    assert!(listed.starts_with(expected) && listed.contains(": 3 entries, "), "{listed}");

    // An archive of that one layer.
    let store = scene.path("store");
    let strata = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        told(&command.arg("--root").arg(&store).args(arguments).current_dir(scene.0.path()).output().unwrap())
    };
    strata(&["import", "layer.tar", "one:layer"]);
    strata(&["save", "-o", "image.tar", "one:layer"]);
    let listed = run("unpack", &["image.tar", "layers", "merged"]);
    let mut lines: Vec<&str> = listed.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["/file", "/new", "1 layers"]);
    assert!(!scene.is_mounted());
    assert_eq!(fs::metadata(scene.path("layers/1/file")).unwrap().mode() & 0o777, 0o600);
}
