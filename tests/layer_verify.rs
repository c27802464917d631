//! Layer directories compared with their recipes: each kind of damage is reported with its file, and undamaged files are
//! not reported.

#![allow(clippy::unwrap_used)]

#[path = "common/dice.rs"]
mod dice;
#[path = "common/layer_dirs.rs"]
mod layer_dirs;
#[path = "common/tar_build.rs"]
mod tar_build;

use dice::Dice;
use layer_dirs::*;
use stratafs::image::unpack;
use stratafs::image::verify;
use tar_build::*;

/// The result of `verify` for the layer, one line each.
fn damages(layer: &Layer) -> Vec<String> {
    let mut found = Vec::new();
    let sound = verify::verify(&mut layer.recipe.as_slice(), layer.as_fd(), &mut |damage| {
        found.push(damage.to_string());
        Ok(())
    });
    assert_eq!(sound.unwrap(), found.is_empty(), "{found:?}");
    found
}

const ACL: &str = "user::rw-,group::r--,group:5:r--,user:4:r-x,mask::r-x,other::---";

/// A tar with one entry of each kind.
fn one_of_each() -> Tar {
    let capability = [0x01, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Tar::new()
        .entry(spec("d", b'5').mode(0o1750).owner(3, 4))
        .entry(spec("d/empty", b'0').mode(0o4711).owner(1, 2))
        .entry(spec("d/full", b'0').content("full").pax("mtime", "1234567890.123456789"))
        .entry(spec("x", b'0').pax("SCHILY.xattr.user.x", "value"))
        .entry(spec("cap", b'0').content("x").pax("SCHILY.xattr.security.capability", capability))
        .entry(spec("acl", b'0').mode(0o650).pax("SCHILY.acl.access", ACL))
        .symlink("l", "d/full")
        .hardlink("h", "d/full")
        .entry(spec("null", b'3').device(1, 3).mode(0o666))
        .entry(spec("fifo", b'6'))
        .file("d/.wh.gone", "")
        .dir("o")
        .file("o/.wh..wh..opq", "")
}

#[test]
fn damage_to_anything_that_an_entry_made_is_found() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    type Harm = fn(&std::path::Path);
    let table: [(&str, Harm, &str); 19] = [
        (
            "mode",
            |l| std::fs::set_permissions(l.join("d/empty"), PermissionsExt::from_mode(0o711)).unwrap(),
            "layer file d/empty: its mode is 711, not 4711",
        ),
        ("owner", |l| chown(l.join("d"), Some(0), None).unwrap(), "layer file d: its owner is 0:4, not 3:4"),
        (
            "owner of a link",
            |l| std::os::unix::fs::lchown(l.join("l"), Some(9), None).unwrap(),
            "layer file l: its owner is 9:0, not 0:0",
        ),
        (
            "target",
            |l| {
                std::fs::remove_file(l.join("l")).unwrap();
                symlink("elsewhere", l.join("l")).unwrap()
            },
            "layer file l: it leads to elsewhere, not to d/full",
        ),
        ("empty file gone", |l| std::fs::remove_file(l.join("d/empty")).unwrap(), "layer file d/empty: it is gone"),
        (
            "empty file filled",
            |l| std::fs::write(l.join("d/empty"), "x").unwrap(),
            "layer file d/empty: it is of 1 bytes, not 0",
        ),
        (
            "file longer",
            |l| std::fs::write(l.join("d/full"), "full and more").unwrap(),
            "layer file d/full: it is of 13 bytes, not 4",
        ),
        ("link gone", |l| std::fs::remove_file(l.join("l")).unwrap(), "layer file l: it is gone"),
        ("hard link gone", |l| std::fs::remove_file(l.join("h")).unwrap(), "layer file h: it is gone"),
        ("directory gone", |l| std::fs::remove_dir_all(l.join("o")).unwrap(), "layer file o: it is gone"),
        ("device gone", |l| std::fs::remove_file(l.join("null")).unwrap(), "layer file null: it is gone"),
        (
            "FIFO became a file",
            |l| {
                std::fs::remove_file(l.join("fifo")).unwrap();
                std::fs::write(l.join("fifo"), "").unwrap()
            },
            "layer file fifo: it is file, not pipe",
        ),
        (
            "attribute",
            |l| setfattr(&l.join("x"), &["-n", "user.x", "-v", "other"]),
            "layer file x: its attribute user.x has another value",
        ),
        ("attribute gone", |l| setfattr(&l.join("x"), &["-x", "user.x"]), "layer file x: its attribute user.x is gone"),
        (
            "attribute added",
            |l| setfattr(&l.join("x"), &["-n", "user.y", "-v", "1"]),
            "layer file x: it has an attribute user.y that it had not",
        ),
        (
            "capability gone",
            |l| setfattr(&l.join("cap"), &["-x", "security.capability"]),
            "layer file cap: its attribute security.capability is gone",
        ),
        (
            "more in an ACL",
            |l| setfacl(&l.join("acl"), &["-m", "user:4:rwx,mask::r-x"]),
            "layer file acl: its attribute system.posix_acl_access has another value",
        ),
        (
            "one more in an ACL",
            |l| setfacl(&l.join("acl"), &["-m", "user:77:r--,mask::r-x"]),
            "layer file acl: its attribute system.posix_acl_access has another value",
        ),
        (
            "whiteout gone",
            |l| std::fs::remove_file(l.join("d/gone")).unwrap(),
            "layer file d/gone: its whiteout is gone",
        ),
    ];
    for (name, harm, expected) in table {
        let layer = unpack(&one_of_each().end());
        assert_eq!(damages(&layer), [""; 0], "{name}");
        harm(&layer.path());
        // A change in a directory changes its time as well.
        let told = damages(&layer).into_iter().filter(|line| !line.contains("its time of modification"));
        assert_eq!(told.collect::<Vec<_>>(), [expected], "{name}");
    }
    let layer = unpack(&one_of_each().end());
    setfattr(&layer.path().join("o"), &["-x", "trusted.overlay.opaque"]);
    assert_eq!(damages(&layer), ["layer file o/.wh..wh..opq: the directory is no longer opaque"]);
    let layer = unpack(&one_of_each().end());
    std::fs::File::open(layer.path().join("d/full")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(damages(&layer), ["layer file d/full: its time of modification is 0, not 1234567890"]);
    let layer = unpack(&one_of_each().end());
    std::fs::write(layer.path().join("d/added"), "").unwrap();
    assert!(damages(&layer)[0].starts_with("layer file d: its time of modification is "));
}

fn setfacl(path: &std::path::Path, args: &[&str]) {
    let done = std::process::Command::new("setfacl").args(args).arg(path).status();
    assert!(done.expect("setfacl; scripts/test installs it").success(), "{args:?}");
}

fn setfattr(path: &std::path::Path, args: &[&str]) {
    let done = std::process::Command::new("setfattr").args(args).arg(path).status();
    assert!(done.expect("setfattr; scripts/test installs it").success(), "{args:?}");
}

#[test]
fn damage_to_a_layer_of_a_user_is_found() {
    let unprivileged = unpack::UnpackOptions::unprivileged();
    let unpack = || unpack_with(&one_of_each().end(), &[], &unprivileged).unwrap();
    let layer = unpack();
    assert_eq!(damages(&layer), [""; 0]);
    setfattr(&layer.path().join("d/empty"), &["-n", "user.containers.override_stat", "-v", "0:0:4711:file"]);
    assert_eq!(damages(&layer), ["layer file d/empty: its owner is 0:0, not 1:2"]);
    let layer = unpack();
    setfattr(&layer.path().join("null"), &["-x", "user.containers.override_stat"]);
    assert_eq!(damages(&layer), ["layer file null: it is file, not char-1-3"]);
    let layer = unpack();
    setfattr(&layer.path().join("x"), &["-x", "user.x"]);
    assert_eq!(damages(&layer), ["layer file x: its attribute user.x is gone"]);
}

/// Archives in which one entry replaces another, or in which names lead elsewhere. All of them are undamaged.
#[test]
fn no_false_alarms() {
    let lower = unpack(&Tar::new().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").file("base", "b").end());
    let twice = |first: Tar, then: Tar| Tar { bytes: [first.bytes, then.bytes].concat() };
    let tars = [
        Tar::new().file("f", "").entry(spec("f", b'0').mode(0o600)).symlink("f", "x").file("f", "last"),
        Tar::new().dir("d").file("d/a", "").dir("d/e").symlink("d/l", "a").file("d", "a file now"),
        Tar::new().dir("d").file("d/a", "").symlink("d", "other").dir("other").file("d/b", ""),
        Tar::new().symlink("d", "other").file("d/a", "").dir("d").file("d/b", ""),
        Tar::new().symlink("d", "other").file("d/a", "").file("d", "a file now"),
        Tar::new().file("lib/x", "").dir("lib/y").dir("lib").file("lib/z", ""),
        Tar::new().file("lib/x", "").symlink("lib/l", "x"),
        Tar::new().file(".wh.usr", "").file("usr/x", "").file("usr/.wh.y", ""),
        Tar::new().dir("usr").file("usr/.wh..wh..opq", "").file("usr/.wh.lib", "").file("usr/.wh.x", ""),
        Tar::new().file("usr/.wh.lib", "").dir("usr/lib").file("usr/lib/new", ""),
        Tar::new().hardlink("h", "base").file("base", "other").file("h", ""),
        Tar::new().file("a", "").hardlink("h", "a").file("a", "x").dir("a").file("a/b", ""),
        Tar::new().file(".wh..wh.plnk/1.2", "x").file(".wh..wh.aufs", "").file("a", ""),
        Tar::new().entry(spec("./", b'5').mode(0o700).owner(5, 6)).file("a", ""),
        Tar::new().file("./a//b", "").file("/c", "").dir("e/./f/"),
        Tar::new().entry(spec("early", b'0').mtime(-5)).entry(spec("late", b'0').mtime(1 << 35)),
        Tar::new().dir("d").entry(spec("d", b'5').mode(0o700).pax("SCHILY.xattr.user.a", "1")).dir("d"),
        twice(everything_but_the_end(), one_of_each()),
        Tar::new().symlink("d", "e").dir("e").file("d/a", "").symlink("e/a2", "a").hardlink("d/h", "d/a"),
        Tar::new().symlink("d", "e").file("d/a", "").symlink("d", "f").file("d/b", "").dir("d").file("d/c", ""),
        Tar::new().dir("d").file("d/a", "").dir("e").symlink("d", "e").file("d/b", "").symlink("d", "/f/../e"),
        Tar::new().dir("d").symlink("d/l", "/e").file("d/l/a", "").file("d", "").dir("d").symlink("d/l", "/e"),
        Tar::new().symlink("a", "lib").file("a/x", "").file("a/y", "y").file("lib/.wh..wh..opq", "").dir("a/z"),
        Tar::new().file("lib/n/.wh..wh..opq", ""),
        Tar::new().file("lib/x", "").file(".wh.lib", "").file("lib/y", ""),
        Tar::new().file("lib/x", "full").file("lib/x", "").hardlink("lib/h", "lib/x").dir("q/r/s"),
        Tar::new().hardlink("n/h", "base").hardlink("lib/h", "n/h"),
        Tar::new().hardlink("ll", "lib").file("ll/x", "").file("ll/y", "y"),
        Tar::new().file(".wh..wh..opq", "").file("a", ""),
        Tar::new().dir("o").file("o/.wh.x", "").file("o/.wh..wh..opq", "").file("o/x", "").dir("o/x"),
        Tar::new().file("p/q/.wh.x", "").file("p/r/.wh..wh..opq", "").file("p/.wh.q", ""),
    ];
    for (number, tar) in tars.into_iter().enumerate() {
        let tar = tar.end();
        for options in [unpack::UnpackOptions::default(), unpack::UnpackOptions::unprivileged()] {
            let layer = unpack_with(&tar, &[&lower], &options).unwrap_or_else(|error| panic!("{number}: {error}"));
            assert_eq!(damages(&layer), [""; 0], "{number}, {options:?}");
        }
    }
}

fn everything_but_the_end() -> Tar {
    let bytes = everything();
    Tar { bytes: bytes[..bytes.len() - 1024].to_vec() }
}

/// Restores a directory's time after `harm`, so that nothing else shows it.
fn unseen(dir: &std::path::Path, harm: impl FnOnce()) {
    let before = std::fs::metadata(dir).unwrap().modified().unwrap();
    harm();
    std::fs::File::open(dir).unwrap().set_modified(before).unwrap();
}

#[test]
fn what_was_added_is_found() {
    use std::os::unix::fs::symlink;
    type Harm = fn(&std::path::Path);
    let table: [(&str, Harm, &[&str]); 7] = [
        ("d", |l| std::fs::write(l.join("d/new"), "x").unwrap(), &["d/new"]),
        ("d", |l| symlink("x", l.join("d/new")).unwrap(), &["d/new"]),
        ("d", |l| std::fs::hard_link(l.join("d/full"), l.join("d/linked")).unwrap(), &["d/linked"]),
        ("o", |l| std::fs::create_dir_all(l.join("o/a/b")).unwrap(), &["o/a", "o/a/b"]),
        (
            "d",
            |l| {
                std::fs::create_dir(l.join("d/a")).unwrap();
                std::fs::write(l.join("d/a/.wh.full"), "").unwrap()
            },
            &["d/a", "d/a/.wh.full"],
        ),
        // A whiteout that became a file, and an additional one.
        (
            "d",
            |l| {
                std::fs::remove_file(l.join("d/gone")).unwrap();
                std::fs::write(l.join("d/gone"), "back").unwrap()
            },
            &["d/gone"],
        ),
        (
            "d",
            |l| {
                let mknod = std::process::Command::new("mknod").arg(l.join("d/less")).args(["c", "0", "0"]).status();
                assert!(mknod.unwrap().success());
            },
            &["d/less"],
        ),
    ];
    for (dir, harm, added) in table {
        let layer = unpack(&one_of_each().end());
        unseen(&layer.path().join(dir), || harm(&layer.path()));
        let expected: Vec<String> = added.iter().map(|path| format!("layer file {path}: it was added")).collect();
        assert_eq!(damages(&layer), expected);
    }
    let root = unpack(&Tar::new().dir("./").file("a", "").end());
    unseen(&root.path(), || std::fs::write(root.path().join("b"), "").unwrap());
    assert_eq!(damages(&root), ["layer file b: it was added"]);
}

/// A file that the archive named through a symbolic link is checked at its real place: by the links of this layer,
/// and by the recipe if a lower layer's link was used.
#[test]
fn damage_behind_symbolic_links_is_found() {
    use std::os::unix::fs::PermissionsExt;
    let lower = unpack(&Tar::new().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").end());
    let tar = Tar::new()
        .dir("v")
        .dir("v/w")
        .symlink("link", "v/x/../w")
        .dir("v/x")
        .symlink("abs", "/link")
        .entry(spec("link/empty", b'0').mode(0o600))
        .dir("abs/dir")
        .symlink("abs/dir/l", "a")
        .file("link/.wh.gone", "")
        .file("lib/full", "full");
    type Harm = fn(&std::path::Path);
    let table: [(&str, Harm, &str); 6] = [
        ("v/w", |l| std::fs::remove_file(l.join("v/w/empty")).unwrap(), "v/w/empty: it is gone"),
        (
            "v/w",
            |l| std::fs::set_permissions(l.join("v/w/empty"), PermissionsExt::from_mode(0o644)).unwrap(),
            "v/w/empty: its mode is 644, not 600",
        ),
        ("v/w/dir", |l| std::fs::remove_file(l.join("v/w/dir/l")).unwrap(), "v/w/dir/l: it is gone"),
        ("v/w", |l| std::fs::remove_file(l.join("v/w/gone")).unwrap(), "v/w/gone: its whiteout is gone"),
        (
            "usr/lib",
            |l| std::fs::set_permissions(l.join("usr/lib/full"), PermissionsExt::from_mode(0o600)).unwrap(),
            "usr/lib/full: its mode is 600, not 644",
        ),
        ("usr/lib", |l| std::fs::write(l.join("usr/lib/more"), "").unwrap(), "usr/lib/more: it was added"),
    ];
    for (dir, harm, told) in table {
        let layer = unpack_over(&tar.clone().end(), &[&lower]).unwrap();
        assert_eq!(damages(&layer), [""; 0]);
        unseen(&layer.path().join(dir), || harm(&layer.path()));
        assert_eq!(damages(&layer), [format!("layer file {told}")]);
    }
}

/// Entries with few different names, so that most are behind links and replace each other.
fn random_tar(dice: &mut Dice) -> Vec<u8> {
    let path = |dice: &mut Dice| {
        let names: Vec<&str> = (0..=dice.roll(3)).map(|_| ["a", "b", "c", "d"][dice.roll(4)]).collect();
        names.join("/")
    };
    let mut tar = Tar::new();
    for _ in 0..=dice.roll(12) {
        let name = path(dice);
        tar = match dice.roll(12) {
            0 | 1 => tar.dir(name),
            2..=4 => tar.file(name, ""),
            5 => tar.file(name, "full"),
            6 | 7 => {
                let target = path(dice);
                tar.symlink(name, format!("{}{target}", ["", "/", "../"][dice.roll(3)]))
            }
            8 => tar.hardlink(name, path(dice)),
            9 => tar.file(format!("{name}/.wh..wh..opq"), ""),
            _ => tar.file(format!("{name}/.wh.{}", ["a", "b", "c"][dice.roll(3)]), ""),
        };
    }
    tar.end()
}

#[test]
fn no_false_alarms_at_random() {
    let (mut dice, mut sound) = (Dice(0x5151_7bad_5eed_0001), 0);
    let rounds = if std::env::var_os("STRATAFS_SOAK").is_some() { 50_000 } else { 400 };
    for round in 0..rounds {
        let lower = unpack_over(&random_tar(&mut dice), &[]);
        let tar = random_tar(&mut dice);
        let options = match round % 3 {
            0 => unpack::UnpackOptions::unprivileged(),
            _ => unpack::UnpackOptions::default(),
        };
        let below: Vec<&Layer> = lower.iter().collect();
        let Ok(layer) = unpack_with(&tar, &below, &options) else { continue };
        sound += 1;
        let names = || {
            String::from_utf8_lossy(&tar)
                .split('\0')
                .filter(|word| word.len() > 1 && !word.starts_with('0'))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(damages(&layer), [""; 0], "{round}: {} {:#?}", names(), layer.tree());
        let dirs: Vec<String> =
            layer.tree().into_iter().filter(|(_, line)| line.starts_with("dir")).map(|(path, _)| path).collect();
        let dir = dirs
            .get(dice.roll(dirs.len().max(1)))
            .filter(|dir| *dir != ".")
            .map_or(String::new(), |dir| format!("{dir}/"));
        unseen(&layer.path().join(&dir), || std::fs::write(layer.path().join(format!("{dir}new")), "").unwrap());
        assert_eq!(damages(&layer), [format!("layer file {dir}new: it was added")], "{round}: {}", names());
    }
    assert!(sound > rounds / 5, "{sound} of {rounds} were no good archives");
}

/// `STRATAFS_SOAK` asks for a million of them.
#[test]
fn a_crowd_of_empty_files() {
    let count = if std::env::var_os("STRATAFS_SOAK").is_some() { 1_000_000 } else { 20_000 };
    let started = std::time::Instant::now();
    let tar = (0..count).fold(Tar::new(), |tar, number| {
        let dir = format!("{:04}", number / 1000);
        let tar = if number % 1000 == 0 { tar.dir(&dir) } else { tar };
        tar.file(format!("{dir}/{number}"), "")
    });
    let tar = tar.end();
    let layer = unpack(&tar);
    assert_eq!(layer.unpacked.entries, count + count / 1000);
    assert_eq!(damages(&layer), [""; 0]);
    assert!(reassembled(&layer).unwrap() == tar);
    std::fs::remove_file(layer.path().join("0003/3333")).unwrap();
    assert!(damages(&layer).contains(&"layer file 0003/3333: it is gone".to_owned()));
    println!("{count} empty files: {:?}", started.elapsed());
}
