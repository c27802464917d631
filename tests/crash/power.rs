//! Power failures: the file system below is shut down without further writes (`FS_IOC_SHUTDOWN`, which xfstests
//! calls `godown`), and mounted again with the content of its journal and its disk.
//!
//! Device mapper (`dm-log-writes`, `dm-flakey`) is not used: kernels without `CONFIG_MD` lack it, for example those of the
//! machines where these tests run first, and the tests must run everywhere. The shutdown drops the same data: pages that
//! were not written, and changes that the journal has not committed. It is stricter, because nothing is written by chance.
//! It is weaker in two ways: it does not replay every single write of the journal, which is the file system's own concern
//! and the same with us above it; and it does not lose the disk's own cache, so a flush that the file system forgot is not
//! noticed. The image of the disk is not copied instead, because copying a mounted file system takes time, and the copy
//! would be inconsistent in ways that no power failure causes.
//!
//! At each call that changes a layer, the change must have happened or not, as after `kill -9`. Data
//! acknowledged by `fsync` must be there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use tempfile::TempDir;

use crate::common::stack::{Layers, Mount, Stack};
use crate::common::{Driver, Upper, run_test_within, sys, tree};
use crate::gate::{Act, Counted, Gate, Order, shut_down};
use crate::verbs::{ACKNOWLEDGED, VERBS, Verb, scenes};
use crate::{Tree, check_crashed, report, without_times};

/// A separate file system, on a loop device.
pub struct Disk {
    directory: TempDir,
}

/// Runs a program that must succeed.
#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    /// `kind`: `ext4` or `xfs`.
    pub fn new(kind: &str) -> Self {
        let directory =
            tempfile::Builder::new().prefix("stratafs-disk-").tempdir_in(crate::common::stack::base()).unwrap();
        let disk = Self { directory };
        let image = disk.path("image");
        std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        std::fs::create_dir(disk.path("mnt")).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", image.to_str().unwrap()]);
        disk.mount();
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("mnt")
    }

    pub fn open(&self) -> OwnedFd {
        sys::open(&self.root(), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap().into()
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", self.path("image").to_str().unwrap(), self.root().to_str().unwrap()]);
    }

    /// A killed driver may take a moment to close its files.
    fn unmount(&self) -> rustix::io::Result<()> {
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            match rustix::mount::unmount(self.root(), rustix::mount::UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                done => return done,
            }
        }
    }

    /// Mounts again with the content of the disk.
    pub fn start_again(&self) {
        self.unmount().unwrap();
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = self.unmount();
        assert!(std::thread::panicking() || unmounted.is_ok(), "unmount the disk: {unmounted:?}");
    }
}

fn layers(verb: &Verb, base: &Path) -> Layers {
    let stack = Stack::new().lower(&scenes(1));
    verb.options.iter().fold(stack, |stack, option| stack.option(option)).build_in(base)
}

/// Mounted and prepared, with everything on the disk.
fn ready(verb: &Verb, disk: &Disk, gate: &Gate) -> Mount {
    let mount = layers(verb, &disk.root()).mount_started_by(|command| gate.spawn(command));
    (verb.prepare)(&mount.at("0")).unwrap();
    rustix::fs::syncfs(disk.open()).unwrap();
    mount
}

fn look(mount: &Mount) -> Tree {
    without_times(&tree::snapshot(mount.root(), true))
}

fn before_and_after(verb: &Verb, disk: &Disk) -> (Tree, Tree) {
    let mount = ready(verb, disk, &Gate::default());
    let old = look(&mount);
    (verb.act)(&mount.at("0")).unwrap();
    (old, look(&mount))
}

/// The power fails at call number `at`. Returns false if the change has fewer calls.
fn cut_at(verb: &Verb, at: usize, disk: &Disk, (old, new): &(Tree, Tree)) -> bool {
    let gate = Gate::default();
    let mount = ready(verb, disk, &gate);
    let root = disk.open();
    gate.give(Order { at, act: Act::Shutdown(root.as_raw_fd()), counted: Counted::Changes });
    let acted = (verb.act)(&mount.at("0"));
    let Some(call) = gate.take() else {
        acted.unwrap();
        return false;
    };
    let layers = mount.crash();
    drop(root);
    disk.start_again();
    check_crashed(layers, verb, old, new, &format!("{}, power off at call {at}, {call}", verb.name));
    true
}

/// The power fails after the whole change was acknowledged.
fn cut_after(verb: &Verb, disk: &Disk, new: &Tree) {
    let mount = ready(verb, disk, &Gate::default());
    (verb.act)(&mount.at("0")).unwrap();
    shut_down(disk.open().as_raw_fd());
    let layers = mount.crash();
    disk.start_again();
    check_crashed(layers, verb, new, new, &format!("{} was acknowledged, then the power went off", verb.name));
}

fn everywhere_on(kind: &'static str, name: &'static str) {
    run_test_within(Duration::from_secs(1800), name, Driver::Stratafs, move |_| {
        let verb = VERBS.iter().find(|verb| verb.name == name).unwrap();
        let disk = Disk::new(kind);
        let trees = before_and_after(verb, &disk);
        let points = (0..).take_while(|&at| cut_at(verb, at, &disk, &trees)).count();
        assert!(points > 1, "{name} has no calls");
        report("power", Upper::Plain, &format!("{name} {kind}"), points);
    });
}

fn acknowledged_on(kind: &'static str) {
    run_test_within(Duration::from_secs(600), "acknowledged", Driver::Stratafs, move |_| {
        let disk = Disk::new(kind);
        for verb in ACKNOWLEDGED {
            let (_, new) = before_and_after(verb, &disk);
            cut_after(verb, &disk, &new);
        }
        report("power", Upper::Plain, &format!("acknowledged {kind}"), ACKNOWLEDGED.len());
    });
}

#[test]
fn fsync_keeps_its_word_on_ext4() {
    acknowledged_on("ext4");
}

#[test]
fn fsync_keeps_its_word_on_xfs() {
    acknowledged_on("xfs");
}

macro_rules! cut {
    ($($test:ident $kind:literal $verb:literal;)*) => {$(
        #[test]
        fn $test() {
            everywhere_on($kind, $verb);
        }
    )*};
}

cut! {
    copy_up_on_ext4 "ext4" "append_in_lower_directories";
    copy_up_on_xfs "xfs" "append_big";
    directory_rename_on_ext4 "ext4" "rename_directory_over_emptied";
    rename_on_xfs "xfs" "rename_lower_over_lower";
    removal_on_ext4 "ext4" "rmdir_emptied";
    index_on_ext4 "ext4" "indexed_append";
    metacopy_on_xfs "xfs" "metacopy_append";
}

#[test]
#[ignore = "long: every verb on both file systems, in scripts/soak"]
fn every_verb_in_the_long_form() {
    for kind in ["ext4", "xfs"] {
        for verb in VERBS {
            everywhere_on(kind, verb.name);
        }
    }
}

/// The mark of a volatile mount, and the drivers that refuse it.
mod volatile {
    use super::*;

    const WORDS: &str = "volatile";

    fn stack() -> Stack {
        Stack::new().lower("file f \"lower\\n\"")
    }

    #[track_caller]
    fn assert_refused(layers: Layers, driver: Driver) -> Layers {
        match layers.try_mount(driver) {
            Ok(_) => panic!("{driver:?} mounts what a volatile mount left behind"),
            Err((message, layers)) => {
                assert!(driver == Driver::Overlayfs || message.contains(WORDS), "{message}");
                layers
            }
        }
    }

    fn forgive(layers: &Layers) {
        std::fs::remove_dir_all(layers.work.as_ref().unwrap().join("work/incompat")).unwrap();
    }

    #[test]
    fn crashed_mount_is_refused_by_both_until_the_mark_is_removed() {
        run_test_within(Duration::from_secs(300), "volatile::crashed", Driver::Stratafs, |_| {
            let mut layers = stack().option("volatile").build();
            let mount = layers.mount(Driver::Stratafs);
            sys::append(&mount.at("f"), b"more\n").unwrap();
            layers = mount.crash();
            layers.options.clear();
            layers = assert_refused(layers, Driver::Stratafs);
            layers = assert_refused(layers, Driver::Overlayfs);
            forgive(&layers);
            let mount = layers.mount(Driver::Stratafs);
            assert_eq!(sys::text(&mount.at("f")), "lower\nmore\n");
        });
    }

    #[test]
    fn mark_of_the_kernel_is_refused() {
        run_test_within(Duration::from_secs(300), "volatile::kernel", Driver::Overlayfs, |_| {
            // The kernel leaves its mark at every unmount.
            let mut layers = stack().option("volatile").mount(Driver::Overlayfs).unmount();
            layers = assert_refused(layers, Driver::Overlayfs);
            layers = assert_refused(layers, Driver::Stratafs);
            layers.options.clear();
            layers = assert_refused(layers, Driver::Stratafs);
            forgive(&layers);
            drop(layers.mount(Driver::Stratafs));
        });
    }

    #[test]
    fn unmounted_one_is_taken_by_both() {
        run_test_within(Duration::from_secs(300), "volatile::unmounted", Driver::Stratafs, |_| {
            let mut layers = stack().option("volatile").mount(Driver::Stratafs).unmount();
            layers.options.clear();
            let mount = layers.mount(Driver::Overlayfs);
            drop(mount.remount(Driver::Stratafs));
        });
    }

    /// The mark is on the disk before anything else is.
    #[test]
    fn power_loss_leaves_the_mark() {
        run_test_within(Duration::from_secs(300), "volatile::power", Driver::Stratafs, |_| {
            let disk = Disk::new("ext4");
            let layers = stack().option("volatile").build_in(&disk.root());
            rustix::fs::syncfs(disk.open()).unwrap();
            let mount = layers.mount(Driver::Stratafs);
            shut_down(disk.open().as_raw_fd());
            let layers = mount.crash();
            disk.start_again();
            assert_refused(layers, Driver::Stratafs);
        });
    }
}
