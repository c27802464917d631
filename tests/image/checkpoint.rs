//! Checkpoints of containers that are not mounted: creation, rollback, forks, merges and commits.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use stratafs::container::Container;
use stratafs::image::snapshot::{self, SnapshotOptions};
use stratafs::store::Store;

use super::crashes::one_image;
use super::fixture::*;

/// A store with the image `base:1`.
pub(super) struct Lab {
    pub(super) scratch: Scratch,
    pub(super) driver: &'static str,
}

impl Lab {
    pub(super) fn new(driver: &'static str) -> Self {
        let scratch = Scratch::new();
        scratch.load(&one_image("base:1", &layers())).unwrap();
        Self { scratch, driver }
    }

    pub(super) fn store(&self) -> &Store {
        &self.scratch.store
    }

    pub(super) fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.env("STRATA_DRIVER", self.driver).arg("--root").arg(self.store().root());
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }

    pub(super) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{}: {args:?}: {}", self.driver, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line that a command fails with.
    pub(super) fn refused(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(code == 2 || told.lines().count() == 1, "{args:?}: {told}");
        told
    }

    /// Mounts a container during `act`.
    pub(super) fn change(&self, name: &str, change: impl FnOnce(&Path)) {
        let merged = self.ok(&["mount", name]);
        change(Path::new(merged.trim()));
        self.ok(&["umount", name]);
    }

    /// A new container, not mounted.
    pub(super) fn create(&self, name: &str) {
        self.ok(&["mount", "--name", name, "base:1"]);
        self.ok(&["umount", name]);
    }

    /// The files of a container, now or at a checkpoint: for every path, everything that a tar holds.
    pub(super) fn shows(&self, name: &str, checkpoint: Option<&str>) -> BTreeMap<String, String> {
        shown(self.store(), name, checkpoint)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for line in table.lines().filter(|line| line.contains(self.store().root().to_str().unwrap())) {
            drop(Command::new("umount").args(["-l", line.split(' ').nth(4).unwrap()]).status());
        }
    }
}

pub(super) fn shown(store: &Store, name: &str, checkpoint: Option<&str>) -> BTreeMap<String, String> {
    let stack = Container::open(store, name).unwrap().open_stack(store, checkpoint).unwrap();
    let layers: Vec<BorrowedFd<'_>> = stack.all().map(AsFd::as_fd).collect();
    let mut tar = Vec::new();
    snapshot::flatten(&layers, &mut tar, &SnapshotOptions::default()).unwrap();
    let mut shown = BTreeMap::new();
    let mut archive = tar::Archive::new(&tar[..]);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let header = entry.header();
        let kind = header.entry_type();
        let mut line = format!(
            "{kind:?} {:o} {}:{} @{} -> {:?}",
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            header.mtime().unwrap(),
            entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned())
        );
        for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
            let extension = extension.unwrap();
            line += &format!(" {}={}", extension.key().unwrap(), String::from_utf8_lossy(extension.value_bytes()));
        }
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap_or_default();
        shown.insert(path, format!("{line}: {content}"));
    }
    shown
}

/// One lab for each driver that this machine has.
pub(super) fn labs() -> Vec<Lab> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("checkpoint").to_owned();
    let overlay = super::overlayfs_for(&test).then_some("overlay");
    let stratafs = super::fuse_for(&test).then_some("stratafs");
    [overlay, stratafs].into_iter().flatten().map(Lab::new).collect()
}

fn names(lab: &Lab, container: &str) -> Vec<String> {
    lab.ok(&["checkpoint", "ls", "-q", container]).lines().map(str::to_owned).collect()
}

#[test]
fn there_and_back() {
    for lab in labs() {
        lab.create("web");
        lab.change("web", |at| fs::write(at.join("etc/first"), "1").unwrap());
        let first = lab.shows("web", None);
        assert_eq!(lab.ok(&["checkpoint", "create", "web", "one"]), "one\n");
        assert_eq!(lab.shows("web", None), first, "{}: nothing changes", lab.driver);
        assert_eq!(lab.shows("web", Some("one")), first);
        lab.change("web", |at| {
            fs::remove_file(at.join("etc/first")).unwrap();
            fs::rename(at.join("usr"), at.join("moved")).unwrap();
            fs::write(at.join("moved/second"), "22").unwrap();
        });
        let second = lab.shows("web", None);
        assert_eq!(
            lab.ok(&["diff", "web@one", "web"]),
            "C /etc\nD /etc/first\nA /moved\nA /moved/new\nA /moved/second\nD /usr\n"
        );
        assert_eq!(lab.ok(&["diff", "web@one"]), "C /etc\nA /etc/first\n");
        lab.ok(&["checkpoint", "create", "web", "two"]);
        assert_eq!(names(&lab, "web"), ["one", "two"]);
        let listed = lab.ok(&["checkpoint", "ls", "web"]);
        let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["NAME", "CREATED", "SIZE", "PARENT"]);
        assert_eq!((rows[1].first(), rows[1].last()), (Some(&"one"), Some(&"-")));
        assert_eq!((rows[2].first(), rows[2].last()), (Some(&"two"), Some(&"one")));
        lab.change("web", |at| fs::write(at.join("third"), "3").unwrap());
        let third = lab.shows("web", None);
        lab.ok(&["rollback", "--keep", "three", "web", "one"]);
        assert_eq!(lab.shows("web", None), first, "{}: back", lab.driver);
        assert_eq!(lab.shows("web", Some("three")), third);
        lab.ok(&["rollback", "web", "two"]);
        assert_eq!(lab.shows("web", None), second, "{}: and forth", lab.driver);
        // A mount shows it too.
        lab.change("web", |at| {
            assert_eq!(fs::read_to_string(at.join("moved/second")).unwrap(), "22");
            assert!(!at.join("third").exists() && !at.join("etc/first").exists());
        });
        lab.ok(&["fork", "web@one", "web2"]);
        assert_eq!(lab.shows("web2", None), first);
        assert!(names(&lab, "web2").is_empty());
        lab.change("web2", |at| fs::write(at.join("etc/first"), "fork").unwrap());
        assert_eq!(lab.shows("web", Some("one")), first, "{}: a fork writes into its own", lab.driver);
        lab.ok(&["fork", "web", "web3"]);
        assert_eq!(lab.shows("web3", None), second);
        // Layers stay as long as a fork needs them.
        lab.ok(&["rm", "web"]);
        assert_eq!(lab.shows("web3", None), second);
        lab.change("web3", |at| assert_eq!(fs::read_to_string(at.join("moved/second")).unwrap(), "22"));
        lab.ok(&["verify"]);
        lab.ok(&["rm", "web2", "web3"]);
        lab.ok(&["gc"]);
        assert_eq!(left(&lab), ["lock"], "{}", lab.driver);
    }
}

/// Other entries beside the checkpoint layers.
pub(super) fn left(lab: &Lab) -> Vec<String> {
    let dir = lab.store().root().join("checkpoints");
    let mut left: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    left
}

fn layer_count(lab: &Lab) -> usize {
    left(lab).iter().filter(|name| *name != "lock").count()
}

/// A pseudo-random number below `most`.
fn dice(state: &mut u64, most: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % most
}

/// All directories of a tree, and all other files.
fn inventory_of(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut dirs, mut files, mut at) = (vec![root.to_owned()], Vec::new(), 0);
    while at < dirs.len() {
        let mut entries: Vec<PathBuf> = fs::read_dir(&dirs[at]).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            let is_dir = fs::symlink_metadata(&entry).unwrap().is_dir();
            if is_dir { &mut dirs } else { &mut files }.push(entry);
        }
        at += 1;
    }
    (dirs, files)
}

/// Changes a few things in a tree. Impossible changes (a directory into itself, an existing name) are skipped.
pub(super) fn change_at_random(root: &Path, state: &mut u64) {
    for step in 0..12 {
        let (dirs, files) = inventory_of(root);
        let dir = dirs[dice(state, dirs.len())].clone();
        let other = dirs[dice(state, dirs.len())].clone();
        let file = files.get(dice(state, files.len().max(1))).cloned().unwrap_or_else(|| root.join("none"));
        let fresh = dir.join(["a", "b", "c", "d", "e"][dice(state, 5)]);
        drop(match dice(state, 10) {
            0 => fs::write(&fresh, format!("{step}-{}", dice(state, 1000))),
            1 => fs::create_dir(&fresh),
            2 => fs::remove_file(&file),
            3 if dir != root => fs::remove_dir_all(&dir),
            4 | 5 if dir != root => fs::rename(&dir, other.join(["a", "b", "m", "n"][dice(state, 4)])),
            6 => fs::rename(&file, &fresh),
            7 => fs::hard_link(&file, &fresh),
            8 => symlink("target", &fresh),
            _ => fs::set_permissions(&dir, fs::Permissions::from_mode([0o755, 0o700, 0o750][dice(state, 3)])),
        });
    }
}

/// Removing checkpoints merges their layers. The container and the other checkpoints stay the same, even if files were
/// renamed, deleted and made again between them.
#[test]
fn removed_checkpoints_change_nothing() {
    let mut merged = 0;
    for lab in labs() {
        for seed in 1..=4 {
            let mut state = seed;
            let name = format!("c{seed}");
            lab.create(&name);
            let mut known = BTreeMap::new();
            for round in 0..5 {
                lab.change(&name, |at| change_at_random(at, &mut state));
                let checkpoint = format!("p{round}");
                lab.ok(&["checkpoint", "create", &name, &checkpoint]);
                known.insert(checkpoint.clone(), lab.shows(&name, Some(&checkpoint)));
            }
            lab.change(&name, |at| change_at_random(at, &mut state));
            let now = lab.shows(&name, None);
            while !known.is_empty() {
                let count = known.len().min(1 + dice(&mut state, 2));
                let from = dice(&mut state, known.len() + 1 - count);
                let doomed: Vec<String> = known.keys().skip(from).take(count).cloned().collect();
                let before = layer_count(&lab);
                lab.ok(&[
                    &["checkpoint", "rm", &name],
                    doomed.iter().map(String::as_str).collect::<Vec<_>>().as_slice(),
                ]
                .concat());
                known.retain(|checkpoint, _| !doomed.contains(checkpoint));
                assert_eq!(before - layer_count(&lab), count, "{}: {doomed:?} are merged", lab.driver);
                merged += count;
                let what = format!("{} seed {seed}, without {doomed:?}", lab.driver);
                assert_eq!(lab.shows(&name, None), now, "{what}");
                for (checkpoint, tree) in &known {
                    assert_eq!(&lab.shows(&name, Some(checkpoint)), tree, "{what}: {checkpoint}");
                }
            }
            lab.change(&name, |at| assert!(at.join("pad").exists() || !now.contains_key("pad")));
            assert_eq!(left(&lab), ["lock"], "{}: all layers went into the upper", lab.driver);
        }
    }
    assert!(merged >= 20, "only {merged} layers were merged");
}

#[test]
fn a_checkpoint_becomes_an_image() {
    for lab in labs() {
        lab.create("web");
        for round in 1..=3 {
            lab.change("web", |at| {
                fs::write(at.join(format!("etc/{round}")), round.to_string()).unwrap();
                if round == 2 {
                    fs::rename(at.join("usr"), at.join("moved")).unwrap();
                    fs::remove_file(at.join("etc/1")).unwrap();
                }
            });
            if round < 3 {
                lab.ok(&["checkpoint", "create", "web", &format!("p{round}")]);
            }
        }
        let layers = |image: &str| lab.ok(&["layers", "-q", image]).lines().count();
        for (from, image, count) in [("web@p1", "one:1", 4), ("web@p2", "two:1", 5), ("web", "three:1", 6)] {
            lab.ok(&["commit", from, image]);
            assert_eq!(layers(image), count, "{from}");
            assert_eq!(lab.ok(&["diff", from, image]), "", "{}: {from}", lab.driver);
        }
        for (from, image) in [("web@p2", "two:flat"), ("web", "three:flat")] {
            lab.ok(&["commit", "--squash", from, image]);
            assert_eq!(layers(image), 4, "{from}");
            assert_eq!(lab.ok(&["diff", from, image]), "", "{}: {from}", lab.driver);
        }
        let tar = lab.scratch.dir.path().join("p1.tar");
        lab.ok(&["export", "-o", tar.to_str().unwrap(), "web@p1"]);
        let mut archive = tar::Archive::new(fs::File::open(&tar).unwrap());
        let paths: Vec<PathBuf> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert!(paths.contains(&"etc/1".into()) && paths.contains(&"usr/new".into()), "{paths:?}");
        let document: serde_json::Value = serde_json::from_str(&lab.ok(&["inspect", "web"])).unwrap();
        assert_eq!(document[0]["Checkpoints"][1]["Parent"], "p1");
        let usage: serde_json::Value = serde_json::from_str(&lab.ok(&["df", "--json"])).unwrap();
        assert_eq!((&usage["Checkpoints"], usage["CheckpointsSize"].as_u64() > Some(0)), (&2.into(), true));
        lab.ok(&["verify"]);
    }
}
