//! Rollback of mounted and running containers: the kernel's caches, open files, and mounts inside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FlockOperation, flock, inotify};

use super::checkpoint::{Lab, change_at_random, labs};
use super::container::worlds;
use super::layer_dirs::tree;

fn lab() -> Option<(Lab, PathBuf)> {
    let lab = labs().into_iter().find(|lab| lab.driver == "stratafs")?;
    let merged = PathBuf::from(lab.ok(&["mount", "--name", "web", "base:1"]).trim());
    Some((lab, merged))
}

/// The tree of a mount, read through the kernel, without the content of `volume`, which is another mount.
fn seen(merged: &Path) -> BTreeMap<String, String> {
    let mut seen = tree(merged);
    seen.retain(|path, _| !path.starts_with("volume"));
    seen
}

/// A process that works in a directory of the container and has a file of it mapped.
const WORKER: &str = r#"
import mmap, os, sys
os.chdir(sys.argv[1])
file = open("mapped", "r+b")
memory = mmap.mmap(file.fileno(), 5)
say = lambda *words: print(*words, flush=True)
say("ready")
for line in sys.stdin:
    try:
        listed = os.listdir(".")
    except FileNotFoundError:
        listed = "gone"
    try:
        open("fresh", "w")
        made = "made"
    except FileNotFoundError:
        made = "gone"
    try:
        where = os.getcwd()
    except FileNotFoundError:
        where = "gone"
    memory[0:5] = b"later"
    memory.flush()
    say(bytes(memory).decode(), os.fstat(file.fileno()).st_size, listed, made, where)
"#;

/// Open files of the abandoned state behave like deleted ones, unchanged files stay the same, and mounts stay.
#[test]
fn a_mounted_container_is_rolled_back() {
    let Some((lab, merged)) = lab() else { return };
    let at = |path: &str| merged.join(path);
    fs::create_dir(at("volume")).unwrap();
    fs::create_dir(at("kept")).unwrap();
    fs::write(at("kept/file"), "first").unwrap();
    fs::write(at("kept/doomed"), "doomed").unwrap();
    fs::write(at("same"), "same").unwrap();
    fs::write(at("host"), "").unwrap();
    let outside = lab.scratch.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("o"), "outside").unwrap();
    let bind = |from: &Path, to: &Path| {
        assert!(Command::new("mount").arg("--bind").args([from, to]).status().unwrap().success());
    };
    bind(&outside, &at("volume"));
    bind(&outside.join("o"), &at("host"));
    lab.ok(&["checkpoint", "create", "web", "one"]);
    let first = seen(&merged);
    let same = File::open(at("same")).unwrap();
    flock(&same, FlockOperation::LockExclusive).unwrap();
    let number = same.metadata().unwrap().ino();

    let mut log = File::options().read(true).append(true).open(at("kept/file")).unwrap();
    log.write_all(b", second").unwrap();
    fs::remove_file(at("kept/doomed")).unwrap();
    assert!(!at("kept/doomed").exists() && !at("never").exists());
    fs::create_dir_all(at("work/deep")).unwrap();
    fs::write(at("work/deep/mapped"), "early").unwrap();
    fs::set_permissions(at("kept"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(at("volume/v"), "volume").unwrap();
    fs::rename(at("usr"), at("moved")).unwrap();
    let moved = File::open(at("moved/new")).unwrap();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, at("work/deep"), inotify::WatchFlags::DELETE_SELF).unwrap();
    let mut worker = Command::new("python3")
        .args(["-c", WORKER])
        .arg(at("work/deep"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(worker.stdout.take().unwrap()).lines();
    assert_eq!(told.next().unwrap().unwrap(), "ready");
    let second = seen(&merged);
    assert_ne!(first, second);

    lab.ok(&["rollback", "--keep", "two", "web", "one"]);
    assert_eq!(seen(&merged), first);
    assert_eq!(fs::read_to_string(at("kept/doomed")).unwrap(), "doomed");
    assert_eq!(fs::metadata(at("kept")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_to_string(at("volume/v")).unwrap(), "volume", "the volume is still mounted");
    assert_eq!(fs::read_to_string(at("host")).unwrap(), "outside", "and so is the file");
    // Unchanged and open: the same inode and lock.
    assert_eq!(fs::metadata(at("same")).unwrap().ino(), number);
    let other = File::open(at("same")).unwrap();
    assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err(), "the lock is held");
    // Changed and open: as deleted.
    let mut text = String::new();
    assert_eq!(log.read_at(&mut [0; 32], 0).unwrap(), 13);
    log.write_all(b", third").unwrap();
    File::open(at("kept/file")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "first");
    assert_eq!(moved.metadata().unwrap().len(), 4);
    worker.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(told.next().unwrap().unwrap(), "later 5 [] gone gone");
    drop(worker.stdin.take());
    worker.wait().unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
    let mut events = inotify::Reader::new(watch.as_fd(), &mut buffer);
    assert!(events.next().unwrap().events().contains(inotify::ReadFlags::DELETE_SELF));

    // The kept state is the state at the rollback, without later writes to its files.
    lab.ok(&["rollback", "web", "two"]);
    assert_eq!(seen(&merged), second);
    assert_eq!(fs::read_to_string(at("kept/file")).unwrap(), "first, second");
    // A fork and a checkpoint of what is there now.
    lab.ok(&["checkpoint", "create", "web", "three"]);
    let forked = PathBuf::from(lab.ok(&["fork", "--mount", "web@one", "web2"]).trim());
    assert_eq!(fs::read_to_string(forked.join("kept/file")).unwrap(), "first");
    lab.ok(&["umount", "web2"]);
    drop((log, moved, same, other));
    for path in ["volume", "host"] {
        assert!(Command::new("umount").arg(at(path)).status().unwrap().success());
    }
    lab.ok(&["umount", "web"]);
    lab.change("web", |at| assert_eq!(fs::read_to_string(at.join("kept/file")).unwrap(), "first, second"));
    lab.ok(&["verify"]);
    assert_eq!(fs::read_dir(lab.store().root().join("tmp")).unwrap().count(), 0);
}

/// The kernel's overlayfs shows the same on the layers of a container.
fn compare_with_overlayfs(lab: &Lab, expected: &BTreeMap<String, String>) {
    if !super::overlayfs_for("a_rollback_at_random_is_complete") {
        return;
    }
    let container = stratafs::container::Container::open(lab.store(), "web").unwrap();
    let mut dirs = vec![container.dir().join("upper")];
    dirs.extend(container.chain(lab.store()).unwrap().iter().map(|layer| layer.dir()));
    dirs.extend(container.layers(lab.store()).unwrap().iter().rev().map(|layer| layer.diff()));
    let lowers: Vec<&str> = dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let point = lab.scratch.dir.path().join("kernel");
    fs::create_dir_all(&point).unwrap();
    let options = format!("ro,lowerdir={},redirect_dir=follow", lowers.join(":"));
    let mounted = Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&point).status();
    assert!(mounted.unwrap().success(), "{options}");
    let shown = seen(&point);
    assert!(Command::new("umount").arg(&point).status().unwrap().success());
    assert_eq!(&shown, expected);
}

/// Every path, attribute and listing is that of the checkpoint, also where the kernel had cached a name or its absence.
#[test]
fn a_rollback_at_random_is_complete() {
    for seed in 1..=6u64 {
        let Some((lab, merged)) = lab() else { return };
        let mut state = seed;
        let mut known = BTreeMap::new();
        let mut dice = |most: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % most
        };
        for round in 0..8 {
            let mut changes = dice(1 << 30) as u64;
            change_at_random(&merged, &mut changes);
            if round < 3 || dice(2) == 0 {
                let name = format!("p{round}");
                lab.ok(&["checkpoint", "create", "web", &name]);
                known.insert(name, seen(&merged));
                change_at_random(&merged, &mut changes);
            }
            // Every name that exists in any of the states is looked up, so that the kernel caches it.
            for path in known.values().flat_map(BTreeMap::keys) {
                drop(fs::symlink_metadata(merged.join(path)));
            }
            let open: Vec<File> =
                known.values().flat_map(BTreeMap::keys).filter_map(|path| File::open(merged.join(path)).ok()).collect();
            let before = seen(&merged);
            let (target, expected) = known.iter().nth(dice(known.len())).unwrap();
            let (target, expected) = (target.clone(), expected.clone());
            let kept = (dice(2) == 0).then(|| format!("k{round}"));
            match &kept {
                Some(kept) => lab.ok(&["rollback", "--keep", kept, "web", &target]),
                None => lab.ok(&["rollback", "web", &target]),
            };
            assert_eq!(seen(&merged), expected, "seed {seed}, round {round}: back to {target}");
            if let Some(kept) = kept {
                known.insert(kept, before);
            }
            for file in &open {
                file.metadata().unwrap();
            }
            if dice(3) == 0 && known.len() > 2 {
                let name = known.keys().nth(dice(known.len())).unwrap().clone();
                lab.ok(&["checkpoint", "rm", "web", &name]);
                known.remove(&name);
                assert_eq!(seen(&merged), expected, "seed {seed}, round {round}: without {name}");
            }
        }
        let last = seen(&merged);
        lab.ok(&["umount", "web"]);
        lab.change("web", |at| assert_eq!(seen(at), last, "seed {seed}"));
        compare_with_overlayfs(&lab, &last);
        lab.ok(&["verify"]);
    }
}

/// Removing checkpoints of a mounted container merges their layers below the mount, which shows the same and uses the
/// merged layers.
#[test]
fn layers_are_merged_below_a_mount() {
    for seed in 1..=4u64 {
        let Some((lab, merged)) = lab() else { return };
        let count = |dir: &str| fs::read_dir(lab.store().root().join(dir)).unwrap().count();
        let mut state = seed;
        let mut open = Vec::new();
        for round in 0..6 {
            change_at_random(&merged, &mut state);
            let name = format!("p{round}");
            fs::write(merged.join(&name), &name).unwrap();
            lab.ok(&["checkpoint", "create", "web", &name]);
            open.push(File::open(merged.join(&name)).unwrap());
            drop(seen(&merged));
        }
        change_at_random(&merged, &mut state);
        let before = seen(&merged);
        let numbers = |paths: &BTreeMap<String, String>| -> Vec<u64> {
            paths.keys().map(|path| fs::symlink_metadata(merged.join(path)).unwrap().ino()).collect()
        };
        let inodes = numbers(&before);
        assert_eq!(count("checkpoints"), 6);
        lab.ok(&["checkpoint", "rm", "web", "p1", "p2", "p4"]);
        assert_eq!((seen(&merged), numbers(&before)), (before.clone(), inodes), "seed {seed}");
        assert_eq!(count("checkpoints"), 4, "seed {seed}: three layers and a lock");
        for (round, file) in open.iter().enumerate() {
            let mut bytes = [0; 2];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, format!("p{round}").as_bytes());
        }
        // The container can still be changed, get a checkpoint and be rolled back.
        change_at_random(&merged, &mut state);
        let later = seen(&merged);
        lab.ok(&["checkpoint", "create", "web", "later"]);
        assert_eq!(seen(&merged), later);
        fs::write(merged.join("x"), "x").unwrap();
        lab.ok(&["rollback", "web", "p3"]);
        lab.ok(&["rollback", "web", "later"]);
        assert_eq!(seen(&merged), later, "seed {seed}");
        drop(open);
        lab.ok(&["umount", "web"]);
        lab.change("web", |at| assert_eq!(seen(at), later, "seed {seed}"));
        lab.ok(&["verify"]);
    }
}

/// A file that is read during rollbacks has the content of one state, and so does a directory that was made together with
/// it.
#[test]
fn readers_beside_rollbacks_see_whole_states() {
    const SIZE: usize = 300_000;
    let Some((lab, merged)) = lab() else { return };
    for (name, letter) in [("a", b'a'), ("b", b'b')] {
        fs::write(merged.join("file"), vec![letter; SIZE]).unwrap();
        drop(fs::remove_dir_all(merged.join("dir")));
        fs::create_dir(merged.join("dir")).unwrap();
        fs::write(merged.join("dir/name"), name).unwrap();
        fs::write(merged.join(format!("only-{name}")), name).unwrap();
        lab.ok(&["checkpoint", "create", "web", name]);
        fs::remove_file(merged.join(format!("only-{name}"))).unwrap();
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|number| {
                let (over, merged) = (&over, &merged);
                scope.spawn(move || {
                    let mut rounds = 0;
                    while !over.load(Ordering::Relaxed) {
                        let content = fs::read(merged.join("file")).unwrap();
                        assert!(content.len() == SIZE && content.iter().all(|&byte| byte == content[0]));
                        match fs::read_to_string(merged.join("dir/name")) {
                            Ok(name) => assert!(name == "a" || name == "b", "{name:?}"),
                            Err(error) => panic!("dir/name: {error}"),
                        }
                        let scratch = merged.join(format!("scratch-{number}"));
                        fs::write(&scratch, "x").unwrap();
                        drop(fs::remove_file(&scratch));
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for round in 0..20 {
            let (name, other) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
            lab.ok(&["rollback", "web", name]);
            // After the rollback, nothing of the other state is visible.
            assert_eq!(fs::read(merged.join("file")).unwrap(), vec![name.as_bytes()[0]; SIZE], "round {round}");
            assert_eq!(fs::read_to_string(merged.join("dir/name")).unwrap(), name);
            assert!(merged.join(format!("only-{name}")).exists() && !merged.join(format!("only-{other}")).exists());
        }
        over.store(true, Ordering::Relaxed);
        let rounds: usize = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(rounds > 20, "{rounds}");
    });
    lab.ok(&["umount", "web"]);
    lab.ok(&["verify"]);
}

/// A running container continues with its mounts and sees the files of the checkpoint.
#[test]
fn a_running_container_is_rolled_back() {
    let Some(world) = worlds().into_iter().find(|world| world.driver == "stratafs") else { return };
    let volume = world.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let mapping = format!("{}:/vol", volume.display());
    let script = "while :; do echo tick >>/vol/ticks; sleep 0.05; done";
    world.ok(&["create", "--name", "early", "tool:1", "sleep 1000"]);
    world.ok(&["checkpoint", "create", "early", "none"]);
    world.ok(&["run", "-d", "--name", "web", "-v", &mapping, "tool:1", script]);
    world.ok(&["exec", "web", "/bin/sh", "-c", "echo one >/data/state; mkdir /data/d; echo v >/vol/v"]);
    world.ok(&["checkpoint", "create", "web", "one"]);
    world.ok(&[
        "exec",
        "web",
        "/bin/sh",
        "-c",
        "echo two >/data/state; rm -r /data/d /data/lower; mkdir /new; echo w >/vol/w",
    ]);
    let show = "cat /data/state; ls -d /data/* /new 2>/dev/null; ls /vol; cat /proc/sys/kernel/ostype; ls -d /dev/null /sys/fs";
    let ticks = || fs::metadata(volume.join("ticks")).unwrap().len();
    world.ok(&["rollback", "--keep", "two", "web", "one"]);
    let shown = world.ok(&["exec", "web", "/bin/sh", "-c", show]);
    assert_eq!(shown, "one\n/data/d\n/data/lower\n/data/state\nticks\nv\nw\nLinux\n/dev/null\n/sys/fs\n");
    let before = ticks();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(ticks() > before, "its process goes on");
    world.ok(&["rollback", "web", "two"]);
    let shown = world.ok(&["exec", "web", "/bin/sh", "-c", show]);
    assert_eq!(shown, "two\n/data/state\n/new\nticks\nv\nw\nLinux\n/dev/null\n/sys/fs\n");
    // Removing checkpoints changes nothing of it.
    world.ok(&["checkpoint", "rm", "web", "one"]);
    assert_eq!(world.ok(&["exec", "web", "/bin/sh", "-c", show]), shown);
    world.ok(&["rollback", "web", "two"]);
    assert_eq!(world.ok(&["exec", "web", "/bin/sh", "-c", show]), shown);
    world.ok(&["rm", "-f", "web"]);
    // A checkpoint from before the first start lacks the mount points.
    world.ok(&["start", "early"]);
    let output = world.run(&["rollback", "early", "none"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("early@none: has no /") && told.contains("stop it first"), "{told}");
    assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1));
    world.ok(&["rm", "-f", "early"]);
}
