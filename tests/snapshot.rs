//! Layer tars and lists of changes from upper directories, with every form of mark that the kernel and fuse-overlayfs
//! write.

#![allow(clippy::unwrap_used)]

#[path = "common/layer_dirs.rs"]
mod layer_dirs;
#[path = "common/tar_build.rs"]
mod tar_build;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use layer_dirs::*;
use rustix::fs::{FileType, Mode, XattrFlags};
use stratafs::config::{OverlayConfig, XattrPermissions};
use stratafs::driver::Overlay;
use stratafs::driver::types::NodeId;
use stratafs::image::digest::Digest;
use stratafs::image::snapshot::{self, Snapshot, SnapshotOptions};
use tar_build::*;

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

/// Sets the time of everything below `root`, so that bytes compare.
fn freeze(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in path.read_dir().unwrap() {
            freeze(&entry.unwrap().path());
        }
    }
    let time = rustix::fs::Timespec { tv_sec: 1000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn snapshot_with(upper: &Path, lowers: &[&Layer], options: &SnapshotOptions) -> (Vec<u8>, Snapshot) {
    let fds: Vec<_> = lowers.iter().map(|lower| lower.as_fd()).collect();
    let mut out = Vec::new();
    let snapshot = snapshot::snapshot(File::open(upper).unwrap().as_fd(), &fds, &mut out, options).unwrap();
    assert_eq!((snapshot.diff_id, snapshot.size), (Digest::of(&out), out.len() as u64));
    (out, snapshot)
}

/// Names, types and contents of the entries, as `tar -t` would list them.
fn entries(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let list = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = char::from(entry.header().entry_type().as_byte());
        let link =
            entry.link_name_bytes().map(|link| format!(" -> {}", String::from_utf8_lossy(&link))).unwrap_or_default();
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
        format!("{kind} {name}{link} {content}").trim_end().to_owned()
    });
    list.collect()
}

fn snapshot(upper: &Path, lowers: &[&Layer]) -> Vec<String> {
    entries(&snapshot_with(upper, lowers, &SnapshotOptions::default()).0)
}

fn changes(upper: &Path, lowers: &[&Layer]) -> Vec<String> {
    let fds: Vec<_> = lowers.iter().map(|lower| lower.as_fd()).collect();
    let list = snapshot::changes(File::open(upper).unwrap().as_fd(), &fds).unwrap();
    list.iter().map(|change| format!("{} {}", change.kind, String::from_utf8_lossy(&change.path))).collect()
}

/// An upper directory whose root has the attributes of an empty layer's root.
fn upper() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn base() -> Layer {
    unpack(
        &Tar::new()
            .dir("./")
            .dir("d/")
            .file("d/a", "lower a")
            .file("d/b", "lower b")
            .dir("d/sub/")
            .file("d/sub/deep", "lower deep")
            .file("top", "lower top")
            .symlink("link", "top")
            .hardlink("top2", "top")
            .end(),
    )
}

/// A file system that is mounted in the upper is no change; the directory that it is mounted on is.
#[test]
fn file_systems_mounted_in_the_upper_are_left_out() {
    let upper = upper();
    let point = upper.path().join("point");
    fs::create_dir(&point).unwrap();
    fs::write(point.join("covered"), "c").unwrap();
    fs::write(upper.path().join("f"), "f").unwrap();
    rustix::mount::mount("none", &point, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    fs::write(point.join("mounted"), "m").unwrap();
    let names: Vec<String> = std::panic::catch_unwind(|| snapshot(upper.path(), &[])).unwrap_or_default();
    rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH).unwrap();
    let has = |name: &str| names.iter().any(|line| line.contains(name));
    assert!(has("point/covered") && has("f") && !has("mounted"), "{names:?}");
}

#[test]
fn whiteouts_of_every_form() {
    let lower = base();
    let dir = upper();
    let at = |name: &str| dir.path().join(name);
    whiteout(&at("top"));
    fs::create_dir(at("d")).unwrap();
    xattr(&at("d"), "trusted.overlay.opaque", b"x");
    File::create(at("d/a")).unwrap();
    xattr(&at("d/a"), "trusted.overlay.whiteout", b"");
    File::create(at("d/b")).unwrap();
    xattr(&at("d/b"), "user.overlay.whiteout", b"y");
    File::create(at("d/.wh.sub")).unwrap();
    File::create(at("d/empty")).unwrap();
    assert_eq!(
        snapshot(dir.path(), &[&lower]),
        ["5 d/", "0 d/.wh.a", "0 d/.wh.b", "0 d/empty", "0 d/.wh.sub", "0 .wh.top"]
    );
    assert_eq!(changes(dir.path(), &[&lower]), ["C /d", "D /d/a", "D /d/b", "A /d/empty", "D /d/sub", "D /top"]);
}

#[test]
fn opaque_directories_of_every_form() {
    let lower = base();
    for form in ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque", ".wh..wh..opq"] {
        let dir = upper();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("d/sub")).unwrap();
        fs::write(at("d/a"), "upper a").unwrap();
        if form.starts_with('.') {
            drop(File::create(at("d").join(form)).unwrap())
        } else {
            xattr(&at("d"), form, b"y")
        }
        assert_eq!(
            snapshot(dir.path(), &[&lower]),
            ["5 d/", "0 d/.wh..wh..opq", "0 d/a upper a", "5 d/sub/"],
            "{form}"
        );
        assert_eq!(changes(dir.path(), &[&lower]), ["C /d", "C /d/a", "D /d/b", "C /d/sub", "D /d/sub/deep"], "{form}");
    }
}

#[test]
fn a_renamed_lower_directory_is_written_in_full() {
    let lower = base();
    let dir = upper();
    let at = |name: &str| dir.path().join(name);
    // mv d e; echo new > e/n; rm e/b; mv e/sub e/sub2
    whiteout(&at("d"));
    fs::create_dir_all(at("e/sub2")).unwrap();
    xattr(&at("e"), "trusted.overlay.redirect", b"d");
    fs::write(at("e/n"), "new").unwrap();
    whiteout(&at("e/b"));
    whiteout(&at("e/sub"));
    xattr(&at("e/sub2"), "trusted.overlay.redirect", b"/d/sub");
    let expected =
        ["0 .wh.d", "5 e/", "0 e/.wh..wh..opq", "0 e/a lower a", "0 e/n new", "5 e/sub2/", "0 e/sub2/deep lower deep"];
    assert_eq!(snapshot(dir.path(), &[&lower]), expected);
    assert_eq!(changes(dir.path(), &[&lower]), ["D /d", "A /e", "A /e/a", "A /e/n", "A /e/sub2", "A /e/sub2/deep"],);
    // The same through a layer that is itself split in two.
    let top = unpack(&Tar::new().dir("d/").file("d/a", "middle a").file("d/.wh.sub", "").end());
    fs::remove_file(at("e/sub")).unwrap();
    fs::remove_dir(at("e/sub2")).unwrap();
    assert_eq!(
        snapshot(dir.path(), &[&top, &lower]),
        ["0 .wh.d", "5 e/", "0 e/.wh..wh..opq", "0 e/a middle a", "0 e/n new"]
    );
}

#[test]
fn a_directory_renamed_over_another_hides_it() {
    let lower = base();
    let dir = upper();
    let at = |name: &str| dir.path().join(name);
    // mv d/sub x; rm -r d; mv x d
    fs::create_dir(at("d")).unwrap();
    xattr(&at("d"), "trusted.overlay.redirect", b"/d/sub");
    assert_eq!(snapshot(dir.path(), &[&lower]), ["5 d/", "0 d/.wh..wh..opq", "0 d/deep lower deep"]);
    assert_eq!(changes(dir.path(), &[&lower]), ["C /d", "D /d/a", "D /d/b", "A /d/deep", "D /d/sub"]);
}

#[test]
fn metacopy_files_get_their_contents_from_below() {
    let lower = base();
    let dir = upper();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("d")).unwrap();
    for (name, redirect) in [("d/a", None), ("d/moved", Some(&b"b"[..])), ("away", Some(b"/d/sub/deep"))] {
        let file = File::create(at(name)).unwrap();
        file.set_len(7).unwrap();
        xattr(&at(name), "trusted.overlay.metacopy", b"");
        if let Some(redirect) = redirect {
            xattr(&at(name), "trusted.overlay.redirect", redirect);
        }
    }
    File::options().write(true).open(at("away")).unwrap().set_len(10).unwrap();
    assert_eq!(snapshot(dir.path(), &[&lower]), ["0 away lower deep", "5 d/", "0 d/a lower a", "0 d/moved lower b"]);
    // Without the lower layer the contents are missing, which is an error and does not give zeros.
    let error =
        snapshot::snapshot(File::open(dir.path()).unwrap().as_fd(), &[], &mut Vec::new(), &SnapshotOptions::default());
    assert!(error.unwrap_err().to_string().contains("metacopy"));
}

#[test]
fn marks_are_stripped_and_everything_else_is_kept() {
    let dir = upper();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("f"), "x").unwrap();
    std::os::unix::fs::chown(at("f"), Some(5), Some(3_000_000_000)).unwrap();
    fs::set_permissions(at("f"), fs::Permissions::from_mode(0o6751)).unwrap();
    let capability = [0x01, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (name, value) in [
        ("trusted.overlay.origin", &b"handle"[..]),
        ("trusted.overlay.overlay.opaque", b"y"),
        ("user.overlay.impure", b"y"),
        ("user.a=b", b"\0\n"),
        ("trusted.mine", b"1"),
        ("security.capability", &capability),
    ] {
        xattr(&at("f"), name, value);
    }
    fs::hard_link(at("f"), at("g")).unwrap();
    symlink("f", at("s")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    freeze(dir.path());
    let (tar, snapshot) = snapshot_with(dir.path(), &[], &SnapshotOptions::default());
    assert_eq!(snapshot.warnings, ["socket: a socket; left out"]);
    let layer = unpack(&tar);
    let mut expected = tree(dir.path());
    expected.remove("socket");
    let f = expected["f"].replace(" trusted.overlay.origin=handle", "").replace(" user.overlay.impure=y", "");
    expected.insert("f".into(), f.clone());
    expected.insert("g".into(), f);
    assert_eq!(layer.tree(), expected);
    assert_eq!(layer.path().join("f").metadata().unwrap().ino(), layer.path().join("g").metadata().unwrap().ino());
}

#[test]
fn the_same_changes_give_the_same_bytes() {
    let make = |names: &[&str]| {
        let dir = upper();
        for name in names {
            fs::write(dir.path().join(name), name).unwrap();
            xattr(&dir.path().join(name), "user.z", b"1");
            xattr(&dir.path().join(name), "user.a", b"2");
        }
        freeze(dir.path());
        snapshot_with(dir.path(), &[], &SnapshotOptions::default()).0
    };
    let one = make(&["b", "a", "c"]);
    assert_eq!(one, make(&["c", "b", "a"]));
    assert!(!one.windows(4).any(|window| window == b"root"), "no user names");
}

#[test]
fn source_date_epoch_clamps_times() {
    let dir = upper();
    fs::write(dir.path().join("new"), "").unwrap();
    fs::write(dir.path().join("old"), "").unwrap();
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(50, 500_000_000));
    File::options().write(true).open(dir.path().join("old")).unwrap().set_times(times).unwrap();
    let (tar, _) =
        snapshot_with(dir.path(), &[], &SnapshotOptions { source_date_epoch: Some(100), ..SnapshotOptions::default() });
    let layer = unpack(&tar);
    let tree = layer.tree();
    assert!(tree["new"].ends_with("@100"));
    assert!(tree["old"].ends_with("@50.500000000"));
    assert!(tree["."].ends_with("@100"));
}

#[test]
fn names_and_numbers_that_need_extension_headers() {
    let dir = upper();
    let deep = dir.path().join("d".repeat(90)).join("e".repeat(90)).join("f".repeat(200));
    fs::create_dir_all(deep.parent().unwrap()).unwrap();
    fs::write(&deep, "deep").unwrap();
    fs::hard_link(&deep, dir.path().join("zlink")).unwrap();
    symlink("t".repeat(500), dir.path().join("s")).unwrap();
    let strange = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\xfe\n");
    fs::write(dir.path().join(strange), "").unwrap();
    fs::write(dir.path().join("before"), "").unwrap();
    freeze(dir.path());
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: -5, tv_nsec: 250_000_000 },
    };
    rustix::fs::utimensat(rustix::fs::CWD, dir.path().join("before"), &times, rustix::fs::AtFlags::empty()).unwrap();
    let (tar, _) = snapshot_with(dir.path(), &[], &SnapshotOptions::default());
    assert_eq!(unpack(&tar).tree(), tree(dir.path()));
    // Another reader agrees.
    assert_eq!(entries(&tar).len(), 8);
}

#[test]
fn the_root_is_written_only_when_it_changed() {
    let lower = base();
    let dir = upper();
    assert_eq!(snapshot(dir.path(), &[&lower]), [""; 0]);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(snapshot(dir.path(), &[&lower]), ["5 ./"]);
    assert_eq!(changes(dir.path(), &[&lower]), [""; 0]);
}

#[test]
fn changes_tell_added_changed_and_untouched() {
    let lower = base();
    let dir = upper();
    let at = |name: &str| dir.path().join(name);
    // A copied-up file that was not changed, in an unchanged directory.
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/a"), "lower a").unwrap();
    fs::write(at("d/b"), "other b").unwrap();
    for name in ["d/a", "d"] {
        let times =
            fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000));
        File::open(at(name)).unwrap().set_times(times).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(if name == "d" { 0o755 } else { 0o644 })).unwrap();
    }
    whiteout(&at("never-was"));
    fs::create_dir(at("top")).unwrap();
    fs::write(at("new"), "").unwrap();
    assert_eq!(changes(dir.path(), &[&lower]), ["C /d/b", "A /new", "C /top"]);
}

#[test]
fn names_that_a_layer_cannot_hold_are_refused() {
    let dir = upper();
    fs::write(dir.path().join(".wh."), "").unwrap();
    let refused =
        snapshot::snapshot(File::open(dir.path()).unwrap().as_fd(), &[], &mut Vec::new(), &SnapshotOptions::default());
    assert!(refused.unwrap_err().to_string().contains(".wh.: "));
    let dir = upper();
    whiteout(&dir.path().join("n".repeat(254)));
    let refused =
        snapshot::snapshot(File::open(dir.path()).unwrap().as_fd(), &[], &mut Vec::new(), &SnapshotOptions::default());
    assert!(refused.unwrap_err().to_string().contains("too long"));
}

/// A file that a user made through a mount under the name of a whiteout is listed. A layer can neither hold nor delete it.
#[test]
fn plain_files_with_names_of_whiteouts_are_refused() {
    let (lower, dir) = (base(), upper());
    fs::write(dir.path().join(".wh.lower-file"), "mine").unwrap();
    xattr(&dir.path().join(".wh.lower-file"), "user.overlay.stratafs.plain", b"y");
    let root = File::open(dir.path()).unwrap();
    let take = |lowers: &[std::os::fd::BorrowedFd<'_>], root: &File| {
        snapshot::snapshot(root.as_fd(), lowers, &mut Vec::new(), &SnapshotOptions::default())
    };
    let message = take(&[lower.as_fd()], &root).unwrap_err().to_string();
    assert!(message.contains(" .wh.lower-file: ") && message.contains("whiteout"), "{message}");
    let changes = snapshot::changes(root.as_fd(), &[lower.as_fd()]).unwrap();
    let listed: Vec<_> = changes.iter().map(|change| (change.path.as_slice(), change.kind)).collect();
    assert_eq!(listed, [(&b"/.wh.lower-file"[..], snapshot::ChangeKind::Added)]);
    let deleting = upper();
    whiteout(&deleting.path().join(".wh.lower-file"));
    let above = File::open(deleting.path()).unwrap();
    let message = take(&[root.as_fd(), lower.as_fd()], &above).unwrap_err().to_string();
    assert!(message.contains(" .wh.lower-file: "), "{message}");
}

/// A device 0:0 that a user made through a mount is listed, and is no whiteout in a layer.
#[test]
fn devices_of_users_are_refused() {
    let (lower, dir) = (base(), upper());
    let path = dir.path().join("zero");
    let mode = Mode::from_raw_mode(0o1600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, mode, 0).unwrap();
    let root = File::open(dir.path()).unwrap();
    let refused = snapshot::snapshot(root.as_fd(), &[lower.as_fd()], &mut Vec::new(), &SnapshotOptions::default());
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("zero: ") && message.contains("0:0"), "{message}");
    let changes = snapshot::changes(root.as_fd(), &[lower.as_fd()]).unwrap();
    assert!(changes.iter().any(|change| change.path == b"/zero" && change.kind == snapshot::ChangeKind::Added));
}

#[test]
fn snapshot_and_unpack_are_each_other_s_inverse() {
    let lower = base();
    let dir = upper();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("d/sub")).unwrap();
    xattr(&at("d/sub"), "trusted.overlay.opaque", b"y");
    whiteout(&at("d/a"));
    fs::write(at("d/sub/n"), vec![7; 70_000]).unwrap();
    freeze(dir.path());
    let (tar, first) = snapshot_with(dir.path(), &[&lower], &SnapshotOptions::default());
    let layer = unpack_over(&tar, &[&lower]).unwrap();
    let mut expected = tree(dir.path());
    expected.insert(".".into(), layer.tree()["."].clone());
    let whiteout = layer.tree()["d/a"].clone();
    assert!(whiteout.starts_with("char 0:0"));
    expected.insert("d/a".into(), whiteout);
    assert_eq!(layer.tree(), expected);
    let (again, second) = snapshot_with(&layer.path(), &[&lower], &SnapshotOptions::default());
    assert_eq!((again, second), (tar, first));
}

/// Owner, mode and type of every entry of a snapshot are those that a mount with the same option shows.
#[test]
fn kept_permissions_are_those_that_a_mount_shows() {
    const KEYS: [&str; 3] =
        ["security.fuseoverlayfs.override_stat", "user.containers.override_stat", "user.fuseoverlayfs.override_stat"];
    let cases = [
        ("privileged", vec![(KEYS[0], "7:8:4711:file")]),
        ("containers", vec![(KEYS[1], "9:10:0640:file")]),
        ("old", vec![(KEYS[2], "11:12:0600")]),
        ("all", vec![(KEYS[2], "3:3:0603:file"), (KEYS[1], "2:2:0602:file"), (KEYS[0], "1:1:0601:file")]),
        ("null", vec![(KEYS[0], "0:0:0666:char-1-3"), (KEYS[1], "0:0:0666:char-1-3")]),
        ("link", vec![(KEYS[1], "0:0:0777:symlink")]),
        ("unknown", vec![(KEYS[1], "0:0:0755:door")]),
        ("damaged", vec![(KEYS[1], "0:0:9:file")]),
    ];
    let mut shown = std::collections::BTreeSet::new();
    for permissions in
        [XattrPermissions::Auto, XattrPermissions::Inode, XattrPermissions::Privileged, XattrPermissions::Containers]
    {
        for (layer, marked) in
            [("upper", None), ("upper", Some(0)), ("upper", Some(1)), ("lower", Some(1)), ("lower", Some(2))]
        {
            let dir = upper();
            let [lower, upper, work] = ["lower", "upper", "work"].map(|name| dir.path().join(name));
            for path in [&lower, &upper, &work] {
                fs::create_dir(path).unwrap();
            }
            for (name, attributes) in &cases {
                fs::write(upper.join(name), "").unwrap();
                fs::set_permissions(upper.join(name), fs::Permissions::from_mode(0o644)).unwrap();
                attributes.iter().for_each(|(key, value)| xattr(&upper.join(name), key, value.as_bytes()));
            }
            if let Some(key) = marked {
                xattr(&dir.path().join(layer), KEYS[key], b"0:0:0755:dir");
            }
            let open = |path| File::open(path).unwrap();
            let options = SnapshotOptions { permissions, ..SnapshotOptions::default() };
            let mut out = Vec::new();
            snapshot::snapshot(open(&upper).as_fd(), &[open(&lower).as_fd()], &mut out, &options).unwrap();
            let config = OverlayConfig {
                lowers: vec![lower],
                upper: Some(upper),
                work: Some(work),
                xattr_permissions: permissions,
                ..OverlayConfig::default()
            };
            let overlay = Overlay::open(config).unwrap();
            for entry in tar::Archive::new(&out[..]).entries().unwrap() {
                let entry = entry.unwrap();
                let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                if name == "./" {
                    continue;
                }
                let header = entry.header();
                let (kind, device) = match header.entry_type().is_character_special() {
                    true => (
                        libc::S_IFCHR,
                        [header.device_major(), header.device_minor()].map(|part| part.unwrap().unwrap()),
                    ),
                    false => (libc::S_IFREG, [0, 0]),
                };
                let kept = (header.uid().unwrap(), header.gid().unwrap(), header.mode().unwrap() | kind, device.into());
                let found = overlay.lookup(NodeId::ROOT, name.as_ref()).unwrap().unwrap().attr;
                let is = (u64::from(found.uid), u64::from(found.gid), found.mode, found.rdev);
                assert_eq!(kept, is, "{name}: {permissions:?}, {marked:?} on {layer}");
                shown.insert(is);
            }
        }
    }
    // The files with real attributes, seven with kept ones, and a device.
    assert_eq!(shown.len(), 9, "{shown:?}");
}
