//! Layers on other file systems, and layers that are mounts themselves.

use std::path::Path;
use std::process::Command;

use rustix::mount::MountFlags;

use crate::common::stack::Layers;
use crate::common::{Driver, Errno, Stack, sys, tree};
use crate::{on_both, on_stratafs};

pub(crate) fn tmpfs(path: &Path) {
    sys::mkdir(path, 0o755).unwrap();
    rustix::mount::mount("none", path, "tmpfs", MountFlags::empty(), Some(c"mode=755")).unwrap();
}

/// Makes a file system image and mounts it; false when the tool or the file system is not there.
pub(crate) fn loop_mount(directory: &Path, kind: &str, content: Option<&Path>) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.trim_start() == kind || line.ends_with(&format!("\t{kind}"))) {
        return false;
    }
    let image = directory.with_extension(kind);
    let mut make = match (kind, content) {
        ("squashfs", Some(content)) => {
            let mut command = Command::new("mksquashfs");
            command.arg(content).arg(&image).args(["-quiet", "-no-progress", "-noappend"]);
            command
        }
        ("erofs", Some(content)) => {
            let mut command = Command::new("mkfs.erofs");
            command.arg(&image).arg(content);
            command
        }
        _ => {
            std::fs::File::create(&image).unwrap().set_len(350 << 20).unwrap();
            let mut command = Command::new(format!("mkfs.{kind}"));
            command.arg(&image);
            command
        }
    };
    match make.output() {
        Ok(output) => assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => return false,
    }
    sys::mkdir(directory, 0o755).unwrap();
    let mounted = Command::new("mount").args(["-o", "loop", "-t", kind]).arg(&image).arg(directory).output().unwrap();
    assert!(mounted.status.success(), "{kind}: {}", String::from_utf8_lossy(&mounted.stderr));
    true
}

/// Puts upper and work on the file system at `place`.
pub(crate) fn upper_on(layers: &mut Layers, place: &Path) {
    for (path, name) in [(&mut layers.upper, "upper"), (&mut layers.work, "work")] {
        sys::mkdir(&place.join(name), 0o755).unwrap();
        *path = Some(place.join(name));
    }
}

/// A bit of everything, on any upper that has xattrs.
fn exercise(mount: crate::common::Mount, driver: Driver) {
    let ino = sys::ino(&mount.at("d/f"));
    sys::append(&mount.at("d/f"), b"+").unwrap();
    assert_eq!(sys::ino(&mount.at("d/f")), ino, "the number over copy-up");
    sys::unlink(&mount.at("gone")).unwrap();
    sys::rename(&mount.at("d/s"), &mount.at("t")).unwrap();
    std::fs::remove_dir_all(mount.at("e")).unwrap();
    sys::mkdir(&mount.at("e"), 0o700).unwrap();
    sys::link(&mount.at("d/f"), &mount.at("l")).unwrap();
    sys::create(&mount.at("new"), b"n").unwrap();
    let tree = "file d/f \"f+\"\nfile t/x \"x\"\ndir e mode=700\nfile l \"f+\"\nfile new \"n\"";
    mount.assert_tree(tree);
    let entries = sys::readdir(mount.root()).unwrap();
    for entry in entries {
        assert_eq!(entry.ino, sys::ino(&mount.root().join(&entry.name)), "{:?}", entry.name);
    }
    mount.remount(driver).assert_tree(tree);
}

const TREE: &str = "file d/f \"f\"\nfile d/s/x \"x\"\nfile gone \"g\"\nfile e/y \"y\"";

on_both! {
    fn upper_on_tmpfs(driver) {
        let mut layers = Stack::new().lower(TREE).build();
        let place = layers.directory.path().join("disk");
        tmpfs(&place);
        upper_on(&mut layers, &place);
        exercise(layers.mount(driver), driver);
    }

    fn lowers_on_two_file_systems(driver) {
        let mut layers = Stack::new().lower("file low \"ext4\"\nfile d/g \"ext4\"").build();
        let place = layers.directory.path().join("disk");
        tmpfs(&place);
        sys::mkdir(&place.join("l"), 0o755).unwrap();
        tree::build(&place.join("l"), "file other \"tmpfs\"\nfile d/h \"tmpfs\"");
        layers.lowers.push(place.join("l"));
        layers.originals.push(tree::snapshot(&place.join("l"), true));
        let mount = layers.mount(driver);
        mount.assert_tree("file low \"ext4\"\nfile d/g \"ext4\"\nfile other \"tmpfs\"\nfile d/h \"tmpfs\"");
        let numbers = ["low", "other", "d", "d/g", "d/h"].map(|path| {
            let stat = sys::lstat(&mount.at(path)).unwrap();
            (stat.st_dev, stat.st_ino)
        });
        assert_eq!(numbers.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
        sys::append(&mount.at("other"), b"+").unwrap();
        sys::append(&mount.at("d/h"), b"+").unwrap();
        let after = ["low", "other", "d", "d/g", "d/h"].map(|path| {
            let stat = sys::lstat(&mount.at(path)).unwrap();
            (stat.st_dev, stat.st_ino)
        });
        assert_eq!(numbers, after);
        mount.assert_tree("file low \"ext4\"\nfile d/g \"ext4\"\nfile other \"tmpfs+\"\nfile d/h \"tmpfs+\"");
        drop(mount);
    }

    fn lower_on_squashfs_or_erofs(driver) {
        for kind in ["squashfs", "erofs"] {
            let mut layers = Stack::new().lower(TREE).build();
            let place = layers.directory.path().join("image");
            if !loop_mount(&place, kind, Some(&layers.lowers[0].clone())) {
                crate::common::skip(&format!("layers::{kind}"), "no such file system here");
                continue;
            }
            layers.lowers[0].clone_from(&place);
            layers.originals.clear();
            let mount = layers.mount(driver);
            let file = std::fs::File::open(mount.at("d/f")).unwrap();
            assert_eq!((rustix::fs::fsync(&file), rustix::fs::fdatasync(&file)), (Ok(()), Ok(())), "{kind}");
            drop(file);
            exercise(mount, driver);
        }
    }

    fn upper_on_xfs_or_btrfs(driver) {
        for kind in ["xfs", "btrfs"] {
            let mut layers = Stack::new().lower(TREE).build();
            let place = layers.directory.path().join("image");
            if !loop_mount(&place, kind, None) {
                crate::common::skip(&format!("layers::{kind}"), "no such file system here");
                continue;
            }
            upper_on(&mut layers, &place);
            // All layers there: copy-up can clone.
            sys::mkdir(&place.join("lower"), 0o755).unwrap();
            tree::build(&place.join("lower"), TREE);
            layers.lowers[0] = place.join("lower");
            layers.originals[0] = tree::snapshot(&place.join("lower"), true);
            exercise(layers.mount(driver), driver);
        }
    }

    /// xfs allows more attributes than listxattr(2) can list (64 KiB of names): the files are reachable, and their marks
    /// are read by name.
    fn more_attribute_names_than_can_be_listed(driver) {
        let mut layers = Stack::new().lower("dir d\nfile d/below \"b\"").upper("dir d\nfile d/above \"a\"\nfile f \"f\"").build();
        let place = layers.directory.path().join("image");
        if !loop_mount(&place, "xfs", None) {
            crate::common::skip("layers::xattr_names", "no xfs here");
            return;
        }
        upper_on(&mut layers, &place);
        let upper = place.join("upper");
        tree::build(&upper, "dir d\nfile d/above \"a\"\nfile f \"f\"");
        for path in [upper.join("d"), upper.join("f"), upper.clone()] {
            for number in 0..321 {
                sys::setxattr(&path, &format!("user.{number:0>215}"), b"").unwrap();
            }
        }
        sys::setxattr(&upper.join("d"), "trusted.overlay.opaque", b"y").unwrap();
        assert_eq!(sys::listxattr(&upper.join("f")), Err(Errno::TOOBIG));
        let mount = layers.mount(driver);
        assert_eq!(sys::names(&mount.at("d")), ["above"], "the opaque mark counts");
        assert_eq!(sys::text(&mount.at("f")), "f");
        assert_eq!(sys::getxattr(&mount.at("f"), &format!("user.{:0>215}", 320)), Ok(vec![]));
        sys::append(&mount.at("f"), b"+").unwrap();
        sys::rename(&mount.at("d/above"), &mount.at("moved")).unwrap();
        sys::rmdir(&mount.at("d")).unwrap();
        assert_eq!((sys::text(&mount.at("f")), sys::text(&mount.at("moved"))), ("f+".into(), "a".into()));
        drop(mount);
    }

    /// The same in a lower layer: the copy has all of them.
    fn copy_up_with_more_attribute_names_than_can_be_listed(driver) {
        let name = |number: usize| format!("user.{number:0>215}");
        for kind in ["xfs", "btrfs"] {
            let mut layers = Stack::new().lower("").build();
            let place = layers.directory.path().join("image");
            if !loop_mount(&place, kind, None) {
                crate::common::skip(&format!("layers::xattr_names_{kind}"), "no such file system here");
                continue;
            }
            upper_on(&mut layers, &place);
            let lower = place.join("lower");
            sys::mkdir(&lower, 0o755).unwrap();
            tree::build(&lower, "dir d\nfile d/below \"b\"\nfile f \"f\"\nfile moved \"m\"");
            for path in ["d", "f", "moved"] {
                for number in 0..700 {
                    sys::setxattr(&lower.join(path), &name(number), format!("{number}").as_bytes()).unwrap();
                }
                sys::setxattr(&lower.join(path), "trusted.t", b"t").unwrap();
                sys::setxattr(&lower.join(path), "security.s", b"s").unwrap();
            }
            layers.lowers[0].clone_from(&lower);
            layers.originals.clear();
            let mount = layers.mount(driver);
            sys::append(&mount.at("f"), b"+").unwrap();
            sys::chmod(&mount.at("d"), 0o700).unwrap();
            sys::rename(&mount.at("moved"), &mount.at("d/here")).unwrap();
            sys::append(&mount.at("d/below"), b"+").unwrap();
            for path in ["d", "f", "d/here"] {
                for number in 0..700 {
                    assert_eq!(sys::getxattr(&mount.upper(path), &name(number)), Ok(format!("{number}").into_bytes()));
                }
                assert_eq!(sys::getxattr(&mount.at(path), "trusted.t"), Ok(b"t".to_vec()), "{kind} {path}");
                assert_eq!(sys::getxattr(&mount.at(path), "security.s"), Ok(b"s".to_vec()), "{kind} {path}");
                assert_eq!(sys::listxattr(&mount.at(path)), Err(Errno::TOOBIG), "{kind} {path}");
            }
            assert_eq!((sys::text(&mount.at("f")), sys::text(&mount.at("d/below"))), ("f+".into(), "b+".into()));
            drop(mount);
        }
    }

    fn lower_is_an_overlay(driver) {
        let inner = Stack::new().lower("file d/inner \"i\"\nfile hidden").upper("whiteout hidden\nfile up \"u\"").mount(Driver::Overlayfs);
        let mut layers = Stack::new().lower("").build();
        layers.lowers[0] = inner.root().to_owned();
        layers.originals.clear();
        let mount = layers.mount(driver);
        mount.assert_tree("file d/inner \"i\"\nfile up \"u\"");
        sys::append(&mount.at("d/inner"), b"+").unwrap();
        mount.assert_tree("file d/inner \"i+\"\nfile up \"u\"");
        drop(mount);
    }
}

on_stratafs! {
    fn lower_is_a_stratafs(driver) {
        let inner = Stack::new().lower("file d/inner \"i\"\nfile hidden").upper("whiteout hidden\nfile up \"u\"").mount(driver);
        let mut layers = Stack::new().lower("").build();
        layers.lowers[0] = inner.root().to_owned();
        layers.originals.clear();
        let mount = layers.mount(driver);
        mount.assert_tree("file d/inner \"i\"\nfile up \"u\"");
        sys::append(&mount.at("d/inner"), b"+").unwrap();
        mount.assert_tree("file d/inner \"i+\"\nfile up \"u\"");
        drop(mount);
    }

    /// An upper on a file system that is read-only: so is the mount, and it says so. (The kernel refuses to mount.)
    fn upper_on_a_read_only_file_system(driver) {
        let mut layers = Stack::new().lower(TREE).build();
        let place = layers.directory.path().join("disk");
        tmpfs(&place);
        upper_on(&mut layers, &place);
        tree::build(&place.join("upper"), "file up \"u\"\nwhiteout gone");
        rustix::mount::mount_remount(&place, MountFlags::RDONLY, c"").unwrap();
        let Err((_, layers)) = layers.try_mount(Driver::Overlayfs) else { panic!("the kernel mounts it") };
        let mount = layers.mount(driver);
        assert!(mount.log().contains("read-only"), "{}", mount.log());
        mount.assert_tree("file d/f \"f\"\nfile d/s/x \"x\"\nfile e/y \"y\"\nfile up \"u\"");
        assert_eq!(sys::create(&mount.at("n"), b""), Err(Errno::ROFS));
        assert_eq!(sys::append(&mount.at("d/f"), b"+"), Err(Errno::ROFS));
        assert_eq!(sys::unlink(&mount.at("up")), Err(Errno::ROFS));
        assert!(rustix::fs::statvfs(mount.root()).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        drop(mount);
    }

    /// A mount that appears in its own layer never waits for itself, even with one thread.
    fn mounted_in_its_own_layer(driver) {
        let layers = Stack::new().lower("dir mp/inner\nfile f \"f\"").stratafs_option("threads=1").build();
        let place = layers.lowers[0].join("mp");
        let mount = layers.mount(driver);
        rustix::mount::mount_bind(mount.root(), &place).unwrap();
        let command = format!("ls -lR {0} && rmdir {0}/mp/inner {0}/mp && ls {0}", place.display());
        let output = Command::new("timeout").args(["20", "sh", "-c", &command]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("\nf\n"), "{output:?}");
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
        mount.assert_upper("whiteout mp");
    }

    fn two_hundred_layers(driver) {
        let mut stack = Stack::new();
        for layer in 0..220 {
            stack = stack.lower(&format!("file common \"{layer}\"\nfile d/own{layer} \"{layer}\""));
        }
        let mount = stack.mount(driver);
        assert_eq!(sys::names(&mount.at("d")).len(), 220);
        assert_eq!(sys::text(&mount.at("common")), "0");
        sys::append(&mount.at("d/own219"), b"!").unwrap();
        sys::unlink(&mount.at("d/own100")).unwrap();
        assert_eq!(sys::names(&mount.at("d")).len(), 219);
        mount.assert_upper("file d/own219 \"219!\"\nwhiteout d/own100");
    }
}
