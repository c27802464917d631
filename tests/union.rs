//! The driver and the image side (views, `strata diff`, commits, flattened images, `strata which`) must see the same
//! union in the same layers, which are made by hand with every kind of mark.

#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;
#[path = "common/layer_dirs.rs"]
mod layer_dirs;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use common::tree::build;
use rustix::io::Errno;
use stratafs::config::OverlayConfig;
use stratafs::driver::Overlay;
use stratafs::driver::types::{Caller, DirEntry, DirSink, Entry, NodeId};
use stratafs::image::digest::Digest;
use stratafs::image::snapshot::{self as layer, SnapshotOptions};
use stratafs::image::unpack::{UnpackOptions, unpack_layer};
use stratafs::store::trace::{What, trace};
use stratafs::store::{Store, StoredLayer};
use stratafs::union::layer::LowerRef;
use stratafs::union::view::{self, View};

/// For each path, what is there or the error.
type Tree = BTreeMap<String, Result<String, Errno>>;

/// A stack of layers in a store, topmost first.
struct Layers {
    /// Holds the store.
    directory: tempfile::TempDir,
    layers: Vec<StoredLayer>,
}

impl Layers {
    fn new(texts: &[&str], inventories: bool) -> Self {
        let directory = tempfile::Builder::new().prefix("stratafs-union-").tempdir_in(common::stack::base()).unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let ids: Vec<Digest> = (0..texts.len()).map(|at| Digest::of(at.to_string().as_bytes())).collect();
        for (id, text) in ids.iter().zip(texts) {
            let dir = directory.path().join("store/layers").join(id.hex());
            fs::create_dir_all(dir.join("diff")).unwrap();
            let record = format!(r#"{{"diffId":"{id}","size":0,"contentSize":0,"entries":0}}"#);
            fs::write(dir.join("layer.json"), record).unwrap();
            build(&dir.join("diff"), text);
            freeze(&dir.join("diff"));
            if inventories {
                stratafs::inventory::write(&dir.join("diff")).unwrap();
            }
        }
        let layers = store.layers_by_id(&ids).unwrap();
        Self { directory, layers }
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.layers.iter().map(StoredLayer::diff).collect()
    }
}

/// Gives everything the same time, so that times do not count as changes.
fn freeze(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        path.read_dir().unwrap().for_each(|entry| freeze(&entry.unwrap().path()));
    }
    let time = rustix::fs::Timespec { tv_sec: 1000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// All names in any of the layers, including those of marks and of what they delete.
fn all_names(dirs: &[PathBuf]) -> BTreeSet<String> {
    let mut names = BTreeSet::from(["nothing".to_owned()]);
    let mut pending = dirs.to_vec();
    while let Some(dir) = pending.pop() {
        for entry in dir.read_dir().unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            names.extend(name.strip_prefix(".wh.").filter(|name| !name.is_empty()).map(str::to_owned));
            names.insert(name);
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
        }
    }
    names
}

/// A file's type, mode, owner and content as text.
fn shown(mode: u32, owner: (u32, u32), inside: &[u8]) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => "dir",
        libc::S_IFREG => "file",
        libc::S_IFLNK => "link",
        _ => "special",
    };
    format!("{kind} {:o} {}:{} {}", mode & 0o7777, owner.0, owner.1, inside.escape_ascii())
}

/// A file as text, and the directory if it is one.
type Shown<D> = (String, Option<D>);

/// A way to look at a union.
trait Look {
    type Dir: Clone;

    fn root(&self) -> Self::Dir;
    /// The names that it lists.
    fn list(&self, dir: &Self::Dir) -> Result<BTreeSet<String>, Errno>;
    /// What a name leads to, and the directory if it is one.
    fn at(&self, dir: &Self::Dir, name: &str) -> Result<Option<Shown<Self::Dir>>, Errno>;
}

/// Everything that a union shows. All of `names` are looked up in every directory: the union must find those that it
/// lists and no others.
fn tree<L: Look>(union: &L, names: &BTreeSet<String>, what: &str) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![(String::new(), union.root())];
    while let Some((path, dir)) = pending.pop() {
        let mut listed = match union.list(&dir) {
            Ok(listed) => listed,
            Err(errno) => {
                tree.insert(path, Err(errno));
                continue;
            }
        };
        for name in names {
            let below = format!("{path}/{name}");
            let is_listed = listed.remove(name);
            match union.at(&dir, name) {
                Ok(None) => assert!(!is_listed, "{what}: {below} is listed and not found"),
                Ok(Some((text, subdir))) => {
                    assert!(is_listed, "{what}: {below} is found and not listed");
                    tree.insert(below.clone(), Ok(text));
                    pending.extend(subdir.map(|subdir| (below, subdir)));
                }
                Err(errno) => {
                    assert!(is_listed, "{what}: {below} gives {errno} and is not listed");
                    tree.insert(below, Err(errno));
                }
            }
        }
        assert!(listed.is_empty(), "{what}: {path} lists {listed:?}");
    }
    tree
}

/// The names of a listing.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl DirSink for Names {
    fn push(&mut self, entry: &DirEntry<'_>, _: Option<&Entry>) -> bool {
        if entry.name != "." && entry.name != ".." {
            let name = entry.name.to_string_lossy().into_owned();
            assert!(self.0.insert(name), "{:?} is listed twice", entry.name);
        }
        true
    }
}

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };

impl Look for Overlay {
    type Dir = NodeId;

    fn root(&self) -> NodeId {
        NodeId::ROOT
    }

    fn list(&self, dir: &NodeId) -> Result<BTreeSet<String>, Errno> {
        let mut names = Names::default();
        self.read_dir(*dir, 0, &mut names)?;
        Ok(names.0)
    }

    fn at(&self, dir: &NodeId, name: &str) -> Result<Option<Shown<NodeId>>, Errno> {
        let Some(entry) = self.lookup(*dir, OsStr::new(name))? else { return Ok(None) };
        let mode = entry.attr.mode;
        let mut inside = Vec::new();
        match mode & libc::S_IFMT {
            libc::S_IFREG => {
                let opened = self.open_file(&ROOT, entry.node, libc::O_RDONLY.cast_unsigned(), false)?;
                inside = vec![0; 100];
                let count = self.read(opened.handle, 0, &mut inside)?;
                inside.truncate(count);
                self.release(opened.handle);
            }
            libc::S_IFLNK => inside = self.readlink(entry.node)?.as_encoded_bytes().to_vec(),
            _ => {}
        }
        let dir = (mode & libc::S_IFMT == libc::S_IFDIR).then_some(entry.node);
        Ok(Some((shown(mode, (entry.attr.uid, entry.attr.gid), &inside), dir)))
    }
}

impl Look for View {
    type Dir = Vec<LowerRef>;

    fn root(&self) -> Vec<LowerRef> {
        self.root().unwrap()
    }

    fn list(&self, dir: &Vec<LowerRef>) -> Result<BTreeSet<String>, Errno> {
        let listing = self.list(dir)?;
        Ok(listing.iter().map(|entry| entry.name.to_str().unwrap().to_owned()).collect())
    }

    fn at(&self, dir: &Vec<LowerRef>, name: &str) -> Result<Option<Shown<Vec<LowerRef>>>, Errno> {
        let place = |part: &LowerRef| {
            let root = self.stack().lower(part.layer).unwrap().path().to_owned();
            root.join(OsStr::from_bytes(part.path.to_bytes()))
        };
        match self.lookup(dir, &CString::new(name).unwrap())? {
            None => Ok(None),
            Some(view::Entry::Directory(parts)) => {
                let stat = rustix::fs::lstat(place(&parts[0])).unwrap();
                Ok(Some((shown(stat.st_mode, (stat.st_uid, stat.st_gid), b""), Some(parts))))
            }
            Some(view::Entry::Other(file)) => {
                let part = LowerRef {
                    layer: file.layer,
                    xattr_whiteouts: false,
                    number: None,
                    impure: false,
                    path: file.path.clone(),
                };
                let mut inside = Vec::new();
                match file.stat.mode & libc::S_IFMT {
                    libc::S_IFREG => {
                        std::io::Read::read_to_end(&mut File::from(self.open(&file)?), &mut inside).unwrap();
                    }
                    libc::S_IFLNK => inside = fs::read_link(place(&part)).unwrap().as_os_str().as_bytes().to_vec(),
                    _ => {}
                }
                Ok(Some((shown(file.stat.mode, (file.stat.uid, file.stat.gid), &inside), None)))
            }
        }
    }
}

/// The tree of the driver over `dirs`; `writable`: the topmost is its upper.
fn driver(dirs: &[PathBuf], work: &Path, writable: bool, names: &BTreeSet<String>, what: &str) -> Tree {
    let mut config = OverlayConfig { metacopy: true, volatile: true, ..OverlayConfig::default() };
    let mut lowers = dirs.to_vec();
    if writable {
        config.upper = Some(lowers.remove(0));
        fs::create_dir(work).unwrap();
        config.work = Some(work.to_owned());
    }
    config.lowers = lowers;
    rustix::process::umask(rustix::fs::Mode::empty());
    let overlay = Overlay::open(config).unwrap_or_else(|error| panic!("{what}: does not open: {error}"));
    tree(&overlay, names, what)
}

/// The tree of a view.
fn viewed(dirs: &[PathBuf], inventories: bool, names: &BTreeSet<String>, what: &str) -> Tree {
    let roots: Vec<File> = dirs.iter().map(|dir| File::open(dir).unwrap()).collect();
    let fds: Vec<_> = roots.iter().map(AsFd::as_fd).collect();
    tree(&View::new(&fds, inventories).unwrap(), names, what)
}

#[track_caller]
fn assert_same(left: &Tree, right: &Tree, what: &str) {
    let differs = |path: &&String| left.get(*path) != right.get(*path);
    let paths: BTreeSet<&String> = left.keys().chain(right.keys()).filter(differs).collect();
    let lines = paths.iter().map(|path| format!("  {path}: {:?} / {:?}", left.get(*path), right.get(*path)));
    assert!(paths.is_empty(), "{what}:\n{}", lines.collect::<Vec<_>>().join("\n"));
}

/// The changes from one tree to another, as `strata diff` lists them: the parent of an added or deleted file is changed,
/// and of a deleted tree only the top is listed.
fn changes(before: &Tree, after: &Tree) -> BTreeMap<String, char> {
    let mut changes = BTreeMap::new();
    let is_there = |tree: &Tree, path: &str| tree.contains_key(path);
    for path in before.keys().chain(after.keys()) {
        let parent = path.rsplit_once('/').unwrap().0;
        let letter = match (before.get(path), after.get(path)) {
            (None, _) => 'A',
            (Some(_), None) if parent.is_empty() => 'D',
            (Some(_), None)
                if is_there(after, parent)
                    && matches!(after.get(parent), Some(Ok(text)) if text.starts_with("dir")) =>
            {
                'D'
            }
            (Some(_), None) => continue,
            (Some(before), Some(after)) if before != after => 'C',
            _ => continue,
        };
        changes.insert(path.clone(), letter);
        if letter != 'C' && !parent.is_empty() {
            changes.entry(parent.to_owned()).or_insert('C');
        }
    }
    changes
}

/// Asserts that all readers see the same in one stack.
fn agree(name: &str, texts: &[&str], inventories: bool) {
    let what = format!("{name}{}", if inventories { ", inventories" } else { "" });
    let layers = Layers::new(texts, inventories);
    let dirs = layers.dirs();
    let names = all_names(&dirs);
    let scratch = |name: &str| layers.directory.path().join(name);

    let whole = driver(&dirs, &scratch("work"), false, &names, &format!("{what}, driver"));
    assert_same(
        &whole,
        &viewed(&dirs, inventories, &names, &format!("{what}, view")),
        &format!("{what}: driver / view"),
    );
    check_which(&layers, &whole, texts.iter().any(|text| text.contains("metacopy")), &what);

    let roots: Vec<File> = dirs.iter().map(|dir| File::open(dir).unwrap()).collect();
    let fds: Vec<_> = roots.iter().map(AsFd::as_fd).collect();
    let mut flat = Vec::new();
    let flattened = layer::flatten(&fds, &mut flat, &SnapshotOptions::default());
    let is_sound = whole.values().all(Result::is_ok);
    assert_eq!(flattened.is_ok(), is_sound, "{what}: {:?}", flattened.err());
    if is_sound {
        let unpacked = layer_dirs::unpack(&flat);
        let flat = viewed(&[unpacked.path()], false, &names, &format!("{what}, flattened"));
        assert_same(&whole, &flat, &format!("{what}: driver / flattened"));
    }

    let below = driver(&dirs[1..], &scratch("no work"), false, &names, &format!("{what}, lowers"));
    let mut committed = Vec::new();
    let snapshot = layer::snapshot(fds[0], &fds[1..], &mut committed, &SnapshotOptions::default());
    assert!(!is_sound || snapshot.is_ok(), "{what}: {:?}", snapshot.err());
    // If a mark below is damaged, it is not known what the layer changes.
    if is_sound && below.values().all(Result::is_ok) {
        let path = scratch("committed");
        fs::create_dir(&path).unwrap();
        let into = File::open(&path).unwrap();
        unpack_layer(&mut &committed[..], into.as_fd(), &fds[1..], None, &UnpackOptions::default()).unwrap();
        let stack: Vec<PathBuf> = std::iter::once(path).chain(dirs[1..].iter().cloned()).collect();
        let committed = viewed(&stack, inventories, &names, &format!("{what}, committed"));
        assert_same(&whole, &committed, &format!("{what}: driver / committed"));
        let expected = changes(&below, &whole);
        let told: BTreeMap<String, char> = layer::changes(fds[0], &fds[1..])
            .unwrap()
            .into_iter()
            .map(|change| (String::from_utf8(change.path).unwrap(), change.kind.to_string().chars().next().unwrap()))
            .collect();
        // A directory that is closed or was moved counts as changed, even if it shows the same.
        let is_more =
            |path: &str| whole.get(path).is_some_and(|shown| matches!(shown, Ok(text) if text.starts_with("dir")));
        let told_less: BTreeMap<_, _> = told
            .iter()
            .filter(|(path, kind)| **kind != 'C' || expected.contains_key(*path) || !is_more(path))
            .map(|(path, kind)| (path.clone(), *kind))
            .collect();
        assert_eq!(told_less, expected, "{what}: diff");
        let compared = layer::compare(&fds[1..], &fds, stratafs::XattrPermissions::Auto).unwrap();
        let compared: BTreeMap<String, char> = compared
            .into_iter()
            .map(|change| (String::from_utf8(change.path).unwrap(), change.kind.to_string().chars().next().unwrap()))
            .collect();
        assert_eq!(compared, expected, "{what}: diff of stacks");
    }
    // This comes last, because it may mark the upper.
    let writable = driver(&dirs, &scratch("work"), true, &names, &format!("{what}, upper"));
    assert_same(&whole, &writable, &format!("{what}: lower / upper"));
}

/// `strata which` names the layers of each file that is there, the right one first, and no layer for a missing file. With
/// `metacopy`, contents may be in other layers.
fn check_which(layers: &Layers, whole: &Tree, metacopy: bool, what: &str) {
    let lowest_first: Vec<StoredLayer> = layers.layers.iter().rev().cloned().collect();
    let names = all_names(&layers.dirs());
    let parents = whole.iter().filter(|(_, shown)| matches!(shown, Ok(text) if text.starts_with("dir")));
    let parents: Vec<&str> = std::iter::once("").chain(parents.map(|(path, _)| path.as_str())).collect();
    for path in parents.iter().flat_map(|parent| names.iter().map(move |name| format!("{parent}/{name}"))) {
        let steps = trace(&lowest_first, Path::new(&path));
        let Some(shown) = whole.get(&path) else {
            let steps = steps.unwrap_or_else(|error| panic!("{what}: which {path}: {error}"));
            assert!(steps.iter().all(|step| step.hidden || !step.what.is_there()), "{what}: which {path}: {steps:?}");
            continue;
        };
        let Ok(text) = shown else {
            assert!(steps.is_err(), "{what}: which {path}: {steps:?}");
            continue;
        };
        let steps = steps.unwrap_or_else(|error| panic!("{what}: which {path}: {error}"));
        let found = steps.iter().find(|step| !step.hidden && step.what.is_there());
        let found = found.unwrap_or_else(|| panic!("{what}: which {path}: {steps:?}"));
        assert_eq!(found.what == What::File, !text.starts_with("dir"), "{what}: which {path}: {found:?}");
        // Files say in which layer they are.
        if metacopy {
            continue;
        }
        if let Some(content) = text.strip_prefix("file ").and_then(|text| text.split(' ').nth(2)?.strip_prefix("in")) {
            let number: usize = content.trim_end_matches('-').parse().unwrap();
            let at = layers.layers.iter().position(|layer| layer.record.diff_id == found.diff_id);
            assert_eq!(at, Some(number), "{what}: which {path}");
        }
    }
}

/// The lowest layer. Contents name their layer, and their lengths differ between layers.
const BASE: &str = "dir a\nfile a/x \"in2--\"\nfile a/y \"in2--\"\ndir a/sub\nfile a/sub/deep \"in2--\"\nfile b \"in2--\"\n\
                    dir c\nfile c/z \"in2--\"\nlink l -> b\nfifo p\n";
/// The middle layer.
const MIDDLE: &str =
    "dir a mode=750\nfile a/x \"in1-\"\nfile a/m \"in1-\"\ndir a/sub\nfile a/sub/mid \"in1-\"\nfile m \"in1-\"\n";

/// Upper layers, each with one kind of mark; `NS` is a name space, `SX` and `SY` are the sizes of `a/x` and `a/y` below.
const TOPS: [(&str, &str); 30] = [
    ("nothing", ""),
    ("plain", "dir a\nfile a/x \"in0\"\nfile n \"in0\"\nfile b \"in0\""),
    ("device whiteouts", "whiteout b\ndir a\nwhiteout a/x\nwhiteout a/sub\nwhiteout none\nwhiteout l"),
    ("whiteout of a directory", "whiteout a\nwhiteout p"),
    ("names", "file .wh.b \"\"\ndir a\nfile a/.wh.x \"\"\nfile a/.wh.sub \"\"\nfile a/.wh.none \"\""),
    ("name of a directory", "file .wh.a \"\"\nfile .wh.p \"\""),
    ("name beside a directory", "file .wh.a \"\"\ndir a\nfile a/n \"in0\""),
    ("name beside a file", "file .wh.b \"\"\nfile b \"in0\""),
    ("opaque by name", "dir a\nfile a/.wh..wh..opq \"\"\nfile a/n \"in0\""),
    ("opaque root by name", "file .wh..wh..opq \"\"\nfile n \"in0\"\ndir a"),
    ("opaque y", "dir a NS.opaque=y\nfile a/x \"in0\"\nfile a/n \"in0\""),
    ("opaque y below", "dir a\ndir a/sub NS.opaque=y\nfile a/sub/n \"in0\""),
    ("opaque y of what is new", "dir new NS.opaque=y\nfile new/n \"in0\""),
    ("opaque in the place of a file", "dir b NS.opaque=y\nfile b/n \"in0\""),
    ("directory in the place of a file", "dir b\nfile b/n \"in0\""),
    ("file in the place of a directory", "file a \"in0\""),
    ("xattr whiteouts", "dir a NS.opaque=x\nfile a/x \"\" NS.whiteout=y\nfile a/sub \"\" NS.whiteout=y\nfile a/e \"\""),
    ("xattr whiteouts without x", "dir a\nfile a/x \"\" NS.whiteout=y\nfile b \"\" NS.whiteout=y"),
    ("xattr whiteout with content", "dir a NS.opaque=x\nfile a/x \"in0\" NS.whiteout=y"),
    ("relative redirect", "dir moved NS.redirect=a\nfile moved/n \"in0\"\nwhiteout a"),
    ("absolute redirect", "dir t\ndir t/moved NS.redirect=/a/sub\nfile t/moved/n \"in0\"\ndir a\nwhiteout a/sub"),
    (
        "nested redirects",
        "dir moved NS.redirect=a\ndir moved/in NS.redirect=sub\nfile moved/in/n \"in0\"\nwhiteout moved/sub\nwhiteout a",
    ),
    ("redirect to nothing", "dir moved NS.redirect=none\nfile moved/n \"in0\""),
    ("redirect over another", "dir c NS.redirect=/a\nfile c/n \"in0\"\nwhiteout a"),
    ("redirect to a file", "dir moved NS.redirect=b"),
    ("metacopy", "dir a NS.impure=y\nfile a/x size=SX mode=600 NS.metacopy= NS.origin="),
    (
        "metacopy with a redirect",
        "dir t NS.impure=y\nfile t/f size=SY mode=600 NS.metacopy= NS.redirect=/a/y NS.origin=",
    ),
    ("metacopy over nothing", "dir t NS.impure=y\nfile t/f size=5 NS.metacopy= NS.origin="),
    ("damaged redirect", "dir moved NS.redirect=/a/../b\nfile moved/n \"in0\""),
    ("damaged opaque", "dir a NS.opaque=z\nfile a/n \"in0\""),
];

/// The name spaces of marks.
const NAMESPACES: [&str; 3] = ["trusted.overlay", "user.overlay", "user.fuseoverlayfs"];

/// The differences between the readers of a stack.
fn disagreement(name: &str, texts: &[&str], inventories: bool) -> Option<String> {
    let panic = std::panic::catch_unwind(|| agree(name, texts, inventories)).err()?;
    Some(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| name.to_owned()))
}

#[track_caller]
fn assert_none(disagreements: &[String]) {
    assert!(disagreements.is_empty(), "{} stacks:\n{}", disagreements.len(), disagreements.join("\n"));
}

/// Every kind of mark in every name space: in the topmost layer of three, of two, and in the middle one.
#[test]
fn driver_and_images_see_the_same_union() {
    let mut disagreements = Vec::new();
    let mut look_at = |name: &str, texts: &[&str]| {
        disagreements
            .extend([false, true].into_iter().filter_map(|inventories| disagreement(name, texts, inventories)));
    };
    for (name, top) in TOPS {
        let has_marks = top.contains("NS");
        for namespace in NAMESPACES.into_iter().take(if has_marks { NAMESPACES.len() } else { 1 }) {
            let top = top.replace("NS", namespace);
            let name = format!("{name}, {namespace}");
            look_at(&format!("{name}, on top"), &[&sized(&top, "4", "5"), MIDDLE, BASE]);
            let base = BASE.replace("in2--", "in1-");
            look_at(&format!("{name}, over one"), &[&sized(&top, "4", "4"), &base]);
            let above = "dir a\nfile a/q \"in0\"\ndir moved\nfile moved/q \"in0\"\ndir t";
            let middle = sized(&top, "5", "5").replace("\"in0\"", "\"in1-\"");
            look_at(&format!("{name}, between"), &[above, &middle, BASE]);
        }
    }
    assert_none(&disagreements);
}

fn sized(top: &str, x: &str, y: &str) -> String {
    top.replace("SX", x).replace("SY", y)
}

/// Two layers of marks on each other: a quarter of all pairs, half of them with inventories.
#[test]
fn marks_over_marks() {
    let mut disagreements = Vec::new();
    for (above, (upper_name, upper)) in TOPS.iter().enumerate() {
        for (below, (lower_name, lower)) in TOPS.iter().enumerate().filter(|(below, _)| (above * 7 + below) % 4 == 0) {
            let [upper, lower] = [upper, lower].map(|text| text.replace("NS", "trusted.overlay"));
            let lower = sized(&lower, "5", "5").replace("\"in0\"", "\"in1-\"");
            let size_of_x = match () {
                () if lower.contains("file a/x \"in1-\"") => "4",
                () if lower.contains("file a/x \"\"") => "0",
                () => "5",
            };
            let upper = sized(&upper, size_of_x, "5");
            let name = format!("{upper_name} over {lower_name}");
            disagreements.extend(disagreement(&name, &[&upper, &lower, BASE], below % 2 == 0));
        }
    }
    assert_none(&disagreements);
}
