//! Impossible operations on checkpoints fail with one line, and change nothing.

use std::fs;
use std::process::Command;

use super::checkpoint::{labs, left, shown};
use super::crashes::{SmallDisk, Victim, one_image};
use super::fixture::*;

#[test]
fn refused_in_one_line() {
    for lab in labs() {
        lab.create("web");
        lab.change("web", |at| fs::write(at.join("new"), "n").unwrap());
        lab.ok(&["checkpoint", "create", "web", "one"]);
        lab.ok(&["mount", "--name", "sealed", "--read-only", "base:1"]);
        lab.ok(&["umount", "sealed"]);
        let before = lab.scratch.listing();
        let long = "x".repeat(65);
        for (args, told) in [
            (&["checkpoint", "create", "web", "one"][..], "web@one: there is a checkpoint of that name already"),
            (&["checkpoint", "create", "web", "../one"], "a checkpoint's name is up to 64 letters"),
            (&["checkpoint", "create", "web", "a/b"], "a checkpoint's name is up to 64 letters"),
            (&["checkpoint", "create", "web", ".."], "a checkpoint's name is up to 64 letters"),
            (&["checkpoint", "create", "web", ""], "a checkpoint's name is up to 64 letters"),
            (&["checkpoint", "create", "web", &long], "a checkpoint's name is up to 64 letters"),
            (&["checkpoint", "create", "we", "two"], "we: no such container; did you mean web?"),
            (&["checkpoint", "create", "sealed", "two"], "sealed: is read-only and has no changes"),
            (&["checkpoint", "rm", "web", "oen"], "web@oen: no such checkpoint"),
            (&["checkpoint", "ls", "nothing"], "nothing: no such container"),
            (&["rollback", "web", "two"], "web@two: no such checkpoint"),
            (&["rollback", "--keep", "one", "web", "one"], "web@one: there is a checkpoint of that name already"),
            (&["rollback", "--keep", "/etc", "web", "one"], "a checkpoint's name is up to 64 letters"),
            (&["fork", "web@two", "web2"], "web@two: no such checkpoint"),
            (&["fork", "web@one", "sealed"], "sealed: there is a container of that name already"),
            (&["fork", "web@one", "../web2"], "a container's name is up to 64 letters"),
            (&["fork", "sealed", "web2"], "sealed: is read-only and has no changes"),
            (&["commit", "web@two", "x:1"], "web@two: no such checkpoint"),
            (&["diff", "web@two", "web"], "web@two: no such checkpoint"),
            (&["export", "-o", "/dev/null", "web@two"], "web@two: no such checkpoint"),
            (&["rmi", "base:1"], "is made of it; remove that first, or --force"),
        ] {
            let line = lab.refused(args, 1);
            assert!(line.contains(told), "{args:?}: {line}");
            assert_eq!(lab.scratch.listing(), before, "{}: {args:?}", lab.driver);
        }
        for usage in
            [&["checkpoint", "create", "web"][..], &["checkpoint"], &["checkpoint", "rm", "web"], &["fork", "web"]]
        {
            lab.refused(usage, 2);
        }
    }
}

/// The upper is in use by a mount that this program did not make: the kernel's overlayfs, or a driver that holds its lock.
#[test]
fn an_upper_in_use_stays() {
    let Some(lab) = labs().into_iter().find(|lab| lab.driver == "overlay") else { return };
    lab.create("web");
    lab.change("web", |at| fs::write(at.join("new"), "n").unwrap());
    lab.ok(&["checkpoint", "create", "web", "one"]);
    let dir = lab.store().root().join("containers/web");
    let told = |args: &[&str], expected: &str| {
        let before = lab.scratch.listing();
        let line = lab.refused(args, 1);
        assert!(line.contains(expected), "{args:?}: {line}");
        assert_eq!(lab.scratch.listing(), before, "{args:?}");
    };
    lab.ok(&["mount", "web"]);
    told(&["checkpoint", "create", "web", "two"], "web: is mounted by overlayfs");
    told(&["rollback", "web", "one"], "web: is mounted by overlayfs");
    lab.ok(&["umount", "web"]);
    let point = lab.scratch.dir.path().join("elsewhere");
    fs::create_dir(&point).unwrap();
    let options = format!("lowerdir=/etc,upperdir={0}/upper,workdir={0}/work", dir.display());
    let mut mount = Command::new("mount");
    assert!(mount.args(["-t", "overlay", "-o", &options, "x"]).arg(&point).status().unwrap().success());
    told(&["checkpoint", "create", "web", "two"], "is in use by overlayfs, which is mounted at");
    told(&["rollback", "web", "one"], "is in use by overlayfs");
    assert!(Command::new("umount").arg(&point).status().unwrap().success());
    // Other tests run in copies of this mount namespace, in which it stays mounted for a while.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !lab.run(&["checkpoint", "create", "web", "free"]).status.success() {
        assert!(std::time::Instant::now() < deadline, "it is unmounted");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let lock = fs::File::open(dir.join("upper")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    told(&["checkpoint", "create", "web", "two"], "is in use by another mount");
    drop(lock);
    fs::create_dir(dir.join("work/index")).unwrap();
    fs::write(dir.join("work/index/00fb"), "").unwrap();
    told(&["checkpoint", "create", "web", "two"], "holds hard links (index=on)");
    fs::remove_dir_all(dir.join("work/index")).unwrap();
    lab.ok(&["checkpoint", "create", "web", "two"]);
}

/// A lost layer is reported by every verb that needs it, and by `verify`.
#[test]
fn a_missing_layer_is_told() {
    let Some(lab) = labs().into_iter().next() else { return };
    lab.create("web");
    lab.change("web", |at| fs::write(at.join("new"), "n").unwrap());
    lab.ok(&["checkpoint", "create", "web", "one"]);
    let id = left(&lab).into_iter().find(|name| name.len() == 32).unwrap();
    let (place, away) = (lab.store().root().join("checkpoints").join(&id), lab.scratch.dir.path().join("away"));
    fs::rename(&place, &away).unwrap();
    let told = format!("web: checkpoint layer {id}, which its changes are based on, is not in this store");
    assert!(lab.refused(&["mount", "web"], 1).contains(&told));
    assert!(lab.refused(&["diff", "web"], 1).contains(&told));
    let output = lab.run(&["verify"]);
    let lines = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        lines.contains(&format!("container web: checkpoint layer {id}, which its changes are based on, is missing")),
        "{lines}"
    );
    assert!(lines.contains(&format!("checkpoint web@one: its layer {id} is missing")), "{lines}");
    lab.ok(&["gc"]);
    fs::rename(&away, &place).unwrap();
    lab.ok(&["verify"]);
    lab.change("web", |at| assert!(at.join("new").exists()));
}

#[test]
fn a_full_disk_makes_no_checkpoint() {
    let scratch = Scratch::new();
    let archive = scratch.dir.path().join("small.tar");
    fs::write(&archive, one_image("base:1", &[base_layer()])).unwrap();
    let disk = SmallDisk::new(1 << 20);
    let victim = Victim { dir: tempfile::tempdir().unwrap(), root: disk.path().join("store") };
    let run = |args: &[&str]| {
        let output = victim.strata(&[], args);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(run(&["load", "-q", "-i", archive.to_str().unwrap()]).0);
    let store = stratafs::store::Store::open(&victim.root).unwrap();
    let image = store.find("base:1").unwrap();
    let options = stratafs::container::CreateOptions { name: Some("web".to_owned()), ..Default::default() };
    stratafs::container::Container::create(&store, &image, &options).unwrap();
    fs::write(victim.root.join("containers/web/upper/new"), "n").unwrap();
    assert!(run(&["checkpoint", "create", "web", "zero"]).0);
    // The disk is full when it has too many files. Each round allows one file more, until the checkpoint succeeds.
    let used = {
        let stat = rustix::fs::statvfs(disk.path()).unwrap();
        stat.f_files - stat.f_ffree
    };
    let (mut refused, mut made) = (0, 0);
    for free in 0..20 {
        let option = format!("remount,nr_inodes={}", used + free);
        // The first number may be too small: attributes count too.
        if !Command::new("mount").args(["-o", &option]).arg(disk.path()).output().unwrap().status.success() {
            continue;
        }
        let before = (shown(&store, "web", None), names(&victim));
        for args in [
            &["checkpoint", "create", "web", "one"][..],
            &["rollback", "--keep", "kept", "web", "zero"],
            &["fork", "web@zero", "web2"],
        ] {
            let (done, told) = run(args);
            if done {
                made += 1;
                break;
            }
            assert!(told.contains("No space left on device") && told.lines().count() == 1, "{args:?}: {told}");
            assert_eq!((shown(&store, "web", None), names(&victim)), before, "{args:?}");
            refused += 1;
        }
        if made > 0 {
            break;
        }
    }
    assert!(refused > 3 && made > 0, "{refused} refused, {made} made");
}

fn names(victim: &Victim) -> String {
    String::from_utf8(victim.strata(&[], &["checkpoint", "ls", "-q", "web"]).stdout).unwrap()
}
