//! Layer directories compared with their recipes: every kind of damage is told of by its file, and nothing else is.

#![allow(clippy::unwrap_used)]

#[path = "common/layer_dirs.rs"]
mod layer_dirs;
#[path = "common/tar_build.rs"]
mod tar_build;

use layer_dirs::*;
use stratafs::image::layer;
use tar_build::*;

/// What `verify` says of the layer, one line each.
fn damages(layer: &Layer) -> Vec<String> {
    let mut found = Vec::new();
    let sound = layer::verify(&mut layer.recipe.as_slice(), layer.as_fd(), &mut |damage| {
        found.push(damage.to_string());
        Ok(())
    });
    assert_eq!(sound.unwrap(), found.is_empty(), "{found:?}");
    found
}

const ACL: &str = "user::rw-,group::r--,group:5:r--,user:4:r-x,mask::r-x,other::---";

/// One of everything that an entry can make.
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
        // What changes a directory moves its time as well.
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
    let unprivileged = layer::UnpackOptions::unprivileged();
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

/// Archives in which one entry makes room for another, or in which names lead elsewhere: all sound.
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
    ];
    for (number, tar) in tars.into_iter().enumerate() {
        let tar = tar.end();
        for options in [layer::UnpackOptions::default(), layer::UnpackOptions::unprivileged()] {
            let layer = unpack_with(&tar, &[&lower], &options).unwrap_or_else(|error| panic!("{number}: {error}"));
            assert_eq!(damages(&layer), [""; 0], "{number}, {options:?}");
        }
    }
}

fn everything_but_the_end() -> Tar {
    let bytes = everything();
    Tar { bytes: bytes[..bytes.len() - 1024].to_vec() }
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
