//! Inventories of layers: a union shows the same with and without them, and a damaged, outdated or foreign inventory is
//! ignored.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::stack::{Layers, take_inventory};
use common::{Driver, Errno, Stack, run_test, sys};
use stratafs::config::{IdRange, Inventories, OverlayConfig, XattrPermissions, Xino};
use stratafs::driver::Overlay;
use stratafs::driver::types::{Attr, Caller, DirEntry, DirSink, Entry, NodeId, Timestamp};
use stratafs::union::layer::LayerStack;

/// Everything that a union shows about one name.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    attr: Result<Attr, Errno>,
    /// By `readdir`, then by `readdirplus`.
    listed: (u64, u8),
    listed_plus: (u64, u8),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    content: Vec<u8>,
}

#[derive(Default)]
struct Names {
    entries: Vec<(OsString, u64, u8)>,
    nodes: Vec<NodeId>,
    last: u64,
    room: usize,
}

impl DirSink for Names {
    fn push(&mut self, name: &DirEntry<'_>, entry: Option<&Entry>) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.last = name.next;
        self.nodes.extend(entry.map(|entry| entry.node));
        if name.name != "." && name.name != ".." {
            self.entries.push((name.name.to_owned(), name.ino, name.kind));
        }
        true
    }
}

fn list(overlay: &Overlay, node: NodeId, plus: bool) -> BTreeMap<OsString, (u64, u8)> {
    let mut names = Names::default();
    loop {
        names.room = 5;
        match plus {
            true => overlay.read_dir_plus(node, names.last, &mut names).unwrap(),
            false => overlay.read_dir(node, names.last, &mut names).unwrap(),
        }
        if names.room > 0 {
            break;
        }
    }
    names.nodes.iter().for_each(|&node| overlay.forget(node, 1));
    let count = names.entries.len();
    let listed: BTreeMap<_, _> = names.entries.into_iter().map(|(name, ino, kind)| (name, (ino, kind))).collect();
    assert_eq!(listed.len(), count, "a name is listed twice");
    listed
}

fn content(overlay: &Overlay, entry: &Entry) -> Vec<u8> {
    match entry.attr.mode & libc::S_IFMT {
        libc::S_IFLNK => overlay.readlink(entry.node).unwrap().into_vec(),
        libc::S_IFREG => {
            let caller = Caller::default();
            let opened = match overlay.open_file(&caller, entry.node, libc::O_RDONLY as u32, false) {
                Ok(opened) => opened,
                Err(errno) => return errno.to_string().into_bytes(),
            };
            let mut buffer = vec![0; 1 << 16];
            let length = overlay.read(opened.handle, 0, &mut buffer).unwrap();
            buffer.truncate(length);
            overlay.release(opened.handle);
            buffer
        }
        _ => vec![],
    }
}

/// Access times are not compared, because reading may change them.
fn timeless(attr: Attr) -> Attr {
    Attr { atime: Timestamp::default(), ..attr }
}

fn look(overlay: &Overlay, node: NodeId, path: &Path, found: &mut BTreeMap<PathBuf, Seen>) {
    // Looking up by name first in one half of the directories, listing first in the other.
    let plus_first = path.as_os_str().len().is_multiple_of(2);
    let first = list(overlay, node, plus_first);
    let second = list(overlay, node, !plus_first);
    let (plain, plus) = if plus_first { (second, first) } else { (first, second) };
    assert_eq!(overlay.lookup(node, OsStr::new("no such name")).unwrap().map(|entry| entry.attr), None);
    for (name, &listed) in &plain {
        let path = path.join(name);
        let mut seen =
            Seen { attr: Err(Errno::NOENT), listed, listed_plus: plus[name], xattrs: vec![], content: vec![] };
        match overlay.lookup(node, name) {
            Ok(Some(entry)) => {
                let (attr, _) = overlay.getattr(entry.node, None).unwrap();
                assert_eq!(timeless(attr), timeless(entry.attr), "{path:?}");
                seen.attr = Ok(timeless(attr));
                for key in overlay.listxattr(entry.node).unwrap().split(|&b| b == 0).filter(|key| !key.is_empty()) {
                    let value = overlay.getxattr(entry.node, OsStr::from_bytes(key)).unwrap();
                    seen.xattrs.push((key.to_vec(), value));
                }
                for absent in ["user.absent", "security.capability", "system.posix_acl_access"] {
                    if let Ok(value) = overlay.getxattr(entry.node, OsStr::new(absent)) {
                        seen.xattrs.push((absent.into(), value));
                    }
                }
                if attr.mode & libc::S_IFMT == libc::S_IFDIR {
                    look(overlay, entry.node, &path, found);
                } else {
                    seen.content = content(overlay, &entry);
                }
                overlay.forget(entry.node, 1);
            }
            Ok(None) => {}
            Err(errno) => seen.attr = Err(errno),
        }
        found.insert(path, seen);
    }
    assert_eq!(plain.len(), plus.len());
}

/// Everything that a union of these layers shows.
fn shown(config: &OverlayConfig) -> BTreeMap<PathBuf, Seen> {
    let overlay = Overlay::open(config.clone()).unwrap_or_else(|error| panic!("{error}"));
    let mut found = BTreeMap::new();
    look(&overlay, NodeId::ROOT, Path::new(""), &mut found);
    assert_eq!(overlay.population(), (1, 0), "nodes and handles left");
    overlay.close();
    found
}

fn config(layers: &Layers) -> OverlayConfig {
    OverlayConfig {
        lowers: layers.lowers.clone(),
        data_only: layers.data_only.clone(),
        upper: layers.upper.clone(),
        work: layers.work.clone(),
        volatile: true,
        ..OverlayConfig::default()
    }
}

fn without(config: &OverlayConfig) -> OverlayConfig {
    OverlayConfig { inventory: Inventories::Off, ..config.clone() }
}

/// Number of lower layers whose inventory is used.
fn used(config: &OverlayConfig) -> usize {
    let lowers_only = OverlayConfig { upper: None, work: None, ..config.clone() };
    let stack = LayerStack::open(&lowers_only).unwrap_or_else(|error| panic!("{error}"));
    stack.lowers().iter().filter(|layer| layer.inventory().is_some()).count()
}

/// The first name that differs between two unions.
fn difference(with: &BTreeMap<PathBuf, Seen>, without: &BTreeMap<PathBuf, Seen>) -> Option<String> {
    let names = with.keys().chain(without.keys());
    let differs = |path: &&PathBuf| with.get(*path) != without.get(*path);
    names
        .into_iter()
        .find(differs)
        .map(|path| format!("{path:?}\n   with an inventory: {:?}\nwithout: {:?}", with.get(path), without.get(path)))
}

#[track_caller]
fn assert_same(config: &OverlayConfig, what: &str) {
    let truth = shown(&without(config));
    assert!(!truth.is_empty(), "{what}");
    assert_eq!(difference(&shown(config), &truth), None, "{what}");
}

const TOP: &str = "file a \"top\"\nwhiteout gone\ndir opaque trusted.overlay.opaque=y\nfile opaque/own \"o\"\n\
    file d/.wh.hidden \"\"\nfile d/top \"1\" user.k=v\ndir moved trusted.overlay.redirect=/old/inner\nfile moved/new \"n\"\n\
    file meta size=5 mode=600 trusted.overlay.metacopy=\nfile far size=4 trusted.overlay.metacopy= trusted.overlay.redirect=/blob\n\
    dir x trusted.overlay.opaque=x\nfile x/white \"\" trusted.overlay.whiteout=y\nfile x/empty \"\"\n\
    file w/.wh..wh..opq \"\"\nfile w/top \"w\"\nwhiteout old\nfile kept \"\" user.containers.override_stat=7:8:0640:char-1-3";
const MIDDLE: &str = "file a \"middle\"\nfile gone \"g\"\nfile opaque/below \"b\"\nfile d/hidden \"h\"\nfile d/middle \"2\"\n\
    file old/inner/deep/f \"f\"\nfile meta \"meta!\" user.m=1\nfile x/white \"x\"\nfile x/empty \"e\"\nfile w/below \"b\"\n\
    hard linked a\nhard d/linked a\nchar c 1:3\nblock b 7:0\nfifo p\nsocket s\nlink l -> a\nlink broken -> /nowhere/at/all\n\
    file caps \"\" mode=4755 security.capability=\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00";
const BOTTOM: &str = "file d/bottom \"3\" uid=1000 gid=100 mtime=-1000\nfile before/1970 \"\" mtime=-86401\ndir sticky mode=1777\n\
    file many/1 \"1\"\nfile many/2 \"2\"\nfile many/3 \"3\"\ndir many/4 mode=2750 gid=9\nfile opaque/lowest \"l\"\n\
    file old/inner/lowest \"l\"\nfile wide user.long=0123456789 size=100000";

/// Layers with every type of file; the lowest layer also has names of all kinds.
fn everything(upper: &str) -> Layers {
    let mut layers =
        Stack::new().upper(upper).lower(TOP).lower(MIDDLE).lower(BOTTOM).data_only("file blob \"data\"").build();
    let names = layers.lowers[2].join("names");
    sys::mkdir(&names, 0o755).unwrap();
    for name in [&b"\xff\xfe not text"[..], &[b'n'; 255], b" ", b"new\nline", b"\\", b".hidden", b".wh.", b"..."] {
        sys::create(&names.join(OsStr::from_bytes(name)), name).unwrap();
    }
    for number in 0..300 {
        sys::create(&names.join(format!("{number}")), b"").unwrap();
    }
    sys::utimens(&names.join(" "), (1, 999_999_999), (-1, 1)).unwrap();
    // Beyond what fits into nanoseconds of 64 bits, where the file system has such times.
    sys::utimens(&names.join("..."), (1, 0), (10_000_000_000, 5)).unwrap();
    layers.settle();
    layers
}

#[test]
fn a_union_shows_the_same_with_and_without() {
    run_test("inventory::same", Driver::Stratafs, |_| {
        let upper = "dir d\nfile d/upper \"u\"\nwhiteout many/2\nfile a \"upper\"";
        let layers = everything(upper);
        for layer in layers.lowers.iter().chain(&layers.data_only) {
            take_inventory(layer);
        }
        let base = config(&layers);
        assert_eq!((used(&base), used(&without(&base))), (3, 0));
        let map = vec![IdRange { shown: 5, on_disk: 0, count: 1 }, IdRange { shown: 100, on_disk: 1000, count: 10 }];
        let variants = [
            ("plain", base.clone()),
            ("read-only", OverlayConfig { upper: None, work: None, ..base.clone() }),
            ("metacopy", OverlayConfig { metacopy: true, ..base.clone() }),
            ("index", OverlayConfig { index: true, metacopy: true, ..base.clone() }),
            ("kept in user.*", OverlayConfig { xattr_permissions: XattrPermissions::Containers, ..base.clone() }),
            ("kept in security.*", OverlayConfig { xattr_permissions: XattrPermissions::Privileged, ..base.clone() }),
            ("userxattr", OverlayConfig { userxattr: true, ..base.clone() }),
            ("mapped", OverlayConfig { uid_mapping: map.clone(), gid_mapping: map, ..base.clone() }),
            ("squashed", OverlayConfig { squash_to_uid: Some(3), squash_to_gid: Some(4), ..base.clone() }),
            ("no attributes", OverlayConfig { no_xattrs: true, no_acl: true, ..base.clone() }),
            ("static nlink", OverlayConfig { static_nlink: true, ..base.clone() }),
            (
                "one layer",
                OverlayConfig { lowers: vec![base.lowers[2].clone()], upper: None, work: None, ..base.clone() },
            ),
            ("another order", OverlayConfig { lowers: base.lowers.iter().rev().cloned().collect(), ..base.clone() }),
        ];
        for (what, config) in variants {
            assert_same(&config, what);
        }
    });
}

/// Each layer on a file system of its own: inode numbers carry the layer's.
#[test]
fn several_file_systems() {
    run_test("inventory::several_file_systems", Driver::Stratafs, |_| {
        let layers = Stack::new()
            .read_only()
            .lower("file a \"1\"\nfile d/x \"x\"")
            .lower("file b \"2\"\nfile d/y \"y\"")
            .build();
        let point = layers.lowers[1].clone();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &point, "tmpfs", flags, None).unwrap();
        sys::create(&point.join("b"), b"2").unwrap();
        sys::mkdir(&point.join("d"), 0o755).unwrap();
        sys::create(&point.join("d/y"), b"y").unwrap();
        for layer in &layers.lowers {
            take_inventory(layer);
        }
        for xino in [Xino::Auto, Xino::On, Xino::Off] {
            let config = OverlayConfig { xino, ..config(&layers) };
            assert_eq!(used(&config), 2);
            assert_same(&config, "two file systems");
        }
        // Anything mounted inside a layer is not in its inventory.
        let inner = layers.lowers[0].join("d");
        rustix::mount::mount("none", &inner, "tmpfs", flags, None).unwrap();
        sys::create(&inner.join("z"), b"z").unwrap();
        assert_same(&config(&layers), "a mount inside of a layer");
        for mounted in [inner, point] {
            rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::empty()).unwrap();
        }
    });
}

/// Every byte of the file, and every possible length after truncation.
#[test]
fn a_damaged_one_is_not_believed() {
    run_test("inventory::damaged", Driver::Stratafs, |_| {
        let layers = Stack::new()
            .read_only()
            .lower("file a \"1\"\nfile d/x \"x\" user.k=v\nlink d/l -> x\nwhiteout w\nfile d/e/f \"f\"\ndir d/empty")
            .lower("file w \"w\"\nfile d/below \"b\"")
            .build();
        let path = take_inventory(&layers.lowers[0]);
        let config = config(&layers);
        let (sound, truth) = (fs::read(&path).unwrap(), shown(&without(&config)));
        assert_eq!(used(&config), 1);
        assert_eq!(difference(&shown(&config), &truth), None);
        // Each replaces the previous one, because an inventory in use is never changed.
        let try_with = |bytes: &[u8], what: &dyn Fn() -> String| {
            let stage = path.with_extension("stage");
            fs::write(&stage, bytes).unwrap();
            fs::set_permissions(&stage, fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(&stage, &path).unwrap();
            assert_eq!(difference(&shown(&config), &truth), None, "{}", what());
        };
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= if at % 2 == 0 { 0xff } else { 1 << (at % 8) };
            try_with(&bytes, &|| format!("byte {at} changed"));
        }
        for length in (0..sound.len()).step_by(7) {
            try_with(&sound[..length], &|| format!("cut to {length} bytes"));
            assert_eq!(used(&config), 0, "cut to {length} bytes");
        }
        for (from, to) in [(0, sound.len()), (64, sound.len()), (sound.len() / 2, sound.len())] {
            let mut bytes = sound.clone();
            bytes[from..to].fill(0);
            try_with(&bytes, &|| format!("zeros from {from} to {to}"));
        }
        try_with(&[&sound[..], b"more"].concat(), &|| "something behind it".to_owned());
        assert_eq!(used(&config), 0);
        try_with(&sound, &|| "sound again".to_owned());
        assert_eq!(used(&config), 1);
    });
}

/// If the disk fails or the file is truncated while it is in use, at most one request fails; after that the layer is
/// read.
#[test]
fn one_that_goes_away_while_in_use() {
    run_test("inventory::goes_away", Driver::Stratafs, |_| {
        for looked_before in [false, true] {
            let names: Vec<String> = (0..500).map(|n| format!("file d{}/{n} \"{n}\"", n % 3)).collect();
            let layers = Stack::new().read_only().lower(&names.join("\n")).lower("file d1/below \"b\"").build();
            let paths: Vec<_> = layers.lowers.iter().map(|layer| take_inventory(layer)).collect();
            let config = config(&layers);
            assert_eq!(used(&config), 2);
            let truth = shown(&without(&config));
            let overlay = Overlay::open(config).unwrap();
            if looked_before {
                let mut found = BTreeMap::new();
                look(&overlay, NodeId::ROOT, Path::new(""), &mut found);
                assert_eq!(difference(&found, &truth), None);
            }
            for path in &paths {
                fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
            }
            // For each file, one lookup may find it missing.
            for _ in &paths {
                if let Ok(Some(found)) = overlay.lookup(NodeId::ROOT, OsStr::new("d1")) {
                    overlay.forget(found.node, 1);
                }
            }
            let mut found = BTreeMap::new();
            look(&overlay, NodeId::ROOT, Path::new(""), &mut found);
            assert_eq!(difference(&found, &truth), None);
            overlay.close();
        }
    });
}

/// Changes between two mounts that make the inventory outdated.
#[test]
fn a_changed_layer_is_not_served_from_an_old_one() {
    type Change = (&'static str, fn(&Path));
    let changes: &[Change] = &[
        ("a new name", |dir| sys::create(&dir.join("d/new"), b"n").unwrap()),
        ("a new name in the root", |dir| sys::create(&dir.join("new"), b"n").unwrap()),
        ("a name less", |dir| sys::unlink(&dir.join("d/x")).unwrap()),
        ("another name", |dir| sys::rename(&dir.join("d/x"), &dir.join("d/y")).unwrap()),
        ("another file of that name", |dir| {
            sys::create(&dir.join("other"), b"X").unwrap();
            sys::rename(&dir.join("other"), &dir.join("d/x")).unwrap();
        }),
        ("another directory", |dir| {
            sys::rename(&dir.join("d"), &dir.join("was")).unwrap();
            sys::mkdir(&dir.join("d"), 0o755).unwrap();
            sys::create(&dir.join("d/x"), b"X").unwrap();
        }),
        ("two directories exchanged", |dir| {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            sys::rename_with(&dir.join("d/e"), &dir.join("d/g"), flags).unwrap();
        }),
        ("another mode of a directory", |dir| sys::chmod(&dir.join("d/e"), 0o711).unwrap()),
        ("another owner of a directory", |dir| sys::chown(&dir.join("d/e"), Some(9), None).unwrap()),
        ("other times of a directory", |dir| sys::utimens(&dir.join("d/e"), (5, 0), (5, 0)).unwrap()),
        ("an opaque directory", |dir| sys::setxattr(&dir.join("d"), "trusted.overlay.opaque", b"y").unwrap()),
        ("an opaque root", |dir| sys::setxattr(dir, "trusted.overlay.opaque", b"y").unwrap()),
        ("a whiteout", |dir| {
            sys::unlink(&dir.join("d/x")).unwrap();
            sys::mknod(&dir.join("d/x"), libc::S_IFCHR, (0, 0)).unwrap();
        }),
        ("a new name deep down", |dir| sys::create(&dir.join("d/e/deep/new"), b"n").unwrap()),
        ("a symlink in a directory's place", |dir| {
            sys::rename(&dir.join("d/e"), &dir.join("was")).unwrap();
            sys::symlink("../was", &dir.join("d/e")).unwrap();
        }),
        ("the modification time set back", |dir| {
            let before = sys::mtime(&dir.join("d"));
            sys::unlink(&dir.join("d/x")).unwrap();
            sys::utimens(&dir.join("d"), before, before).unwrap();
        }),
    ];
    run_test("inventory::changed", Driver::Stratafs, move |_| {
        for (what, change) in changes {
            let layers = Stack::new()
                .read_only()
                .lower("file a \"1\"\nfile d/x \"x\"\nfile d/e/f \"f\"\nfile d/e/deep/z \"z\"\nfile d/g/f \"other\"")
                .lower("file d/below \"b\"")
                .build();
            layers.lowers.iter().for_each(|layer| drop(take_inventory(layer)));
            assert_same(&config(&layers), what);
            change(&layers.lowers[0]);
            assert_same(&config(&layers), what);
        }
    });
}

/// A change in a file itself is noticed when the file is opened, and shown from then on.
#[test]
fn a_changed_file_is_noticed_when_it_is_opened() {
    run_test("inventory::changed_file", Driver::Stratafs, |_| {
        for in_place in [true, false] {
            let layers = Stack::new().read_only().lower("file d/x \"short\"\nfile d/y \"y\"").build();
            take_inventory(&layers.lowers[0]);
            let file = layers.lowers[0].join("d/x");
            match in_place {
                true => sys::append(&file, b" and longer").unwrap(),
                false => sys::chmod(&file, 0o600).unwrap(),
            }
            let overlay = Overlay::open(config(&layers)).unwrap();
            let dir = overlay.lookup(NodeId::ROOT, OsStr::new("d")).unwrap().unwrap();
            let old = overlay.lookup(dir.node, OsStr::new("x")).unwrap().unwrap();
            assert_eq!((old.attr.size, old.attr.mode & 0o777), (5, 0o644), "from the inventory");
            let open = || overlay.open_file(&Caller::default(), old.node, libc::O_RDONLY as u32, false);
            // The kernel looks the name up again, and opens what it finds.
            assert_eq!(open().map(|_| ()), Err(Errno::STALE));
            let new = overlay.lookup(dir.node, OsStr::new("x")).unwrap().unwrap();
            assert_eq!(new.node, old.node);
            assert_eq!((new.attr.size, new.attr.mode & 0o777), if in_place { (16, 0o644) } else { (5, 0o600) });
            overlay.release(open().unwrap().handle);
            assert_eq!(overlay.lookup(dir.node, OsStr::new("y")).unwrap().unwrap().attr.size, 1);
            overlay.close();
        }
    });
}

#[test]
fn only_the_mounters_own_is_believed() {
    run_test("inventory::trust", Driver::Stratafs, |_| {
        let layers = Stack::new().read_only().lower("file a \"1\"").build();
        let path = take_inventory(&layers.lowers[0]);
        let config = config(&layers);
        assert_eq!(sys::mode(&path), 0o600, "it tells what private directories hold");
        assert_eq!(used(&config), 1);
        for (mode, uid, expected) in [(0o622, 0, 0), (0o660, 0, 0), (0o644, 0, 1), (0o600, 1000, 0), (0o400, 0, 1)] {
            sys::chmod(&path, mode).unwrap();
            sys::chown(&path, Some(uid), None).unwrap();
            assert_eq!(used(&config), expected, "mode {mode:o}, owner {uid}");
        }
        let real = path.with_extension("real");
        sys::rename(&path, &real).unwrap();
        sys::symlink(real.to_str().unwrap(), &path).unwrap();
        assert_eq!(used(&config), 0, "a symbolic link");
        sys::unlink(&path).unwrap();
        let fifo = CString::new(path.as_os_str().as_bytes()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &*fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(used(&config), 0, "a pipe");
    });
}

/// It is valid after both the layer and it were moved, but not for a copy of the layer.
#[test]
fn moved_and_copied_layers() {
    run_test("inventory::moved", Driver::Stratafs, |_| {
        let layers = Stack::new().read_only().lower("file a \"1\"\nfile d/x \"x\"").build();
        take_inventory(&layers.lowers[0]);
        let beside = |name: &str| layers.directory.path().join(name);
        let copy = |from: &str, to: &str| {
            let copied = Command::new("cp").arg("-a").arg(beside(from)).arg(beside(to)).status().unwrap();
            assert!(copied.success());
        };
        let config_of = |name: &str| OverlayConfig { lowers: vec![beside(name)], ..config(&layers) };
        copy("lower0", "copy");
        copy("lower0.inventory", "copy.inventory");
        assert_eq!(used(&config_of("copy")), 0, "a copy");
        sys::symlink("lower0", &beside("link")).unwrap();
        assert_eq!(used(&config_of("link")), 1, "found by a link");
        let before = shown(&config_of("lower0"));
        sys::rename(&beside("lower0"), &beside("moved")).unwrap();
        sys::rename(&beside("lower0.inventory"), &beside("moved.inventory")).unwrap();
        // Some file systems count a rename as a change of the directory; the inventory is then not used.
        assert_same(&config_of("moved"), "moved");
        assert_eq!(shown(&config_of("moved")).len(), before.len());
        sys::rename(&beside("moved"), &beside("lower0")).unwrap();
    });
}
