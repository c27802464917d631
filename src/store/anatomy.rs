//! Which paths each layer of an image adds, replaces and deletes, and which bytes no container can see.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::image::digest::Digest;
use crate::image::{ImageError, Result};
use crate::store::StoredLayer;
use crate::union::merge::Resolution;
use crate::union::view::{UpperPart, View};

/// The type of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a pipe or a socket.
    Special,
}

/// What a layer does to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing below had it.
    Added,
    /// It replaces what a layer below has there.
    Replaced,
    /// It deletes what the layers below have there, including everything inside.
    Deleted,
}

/// One path that a layer adds, replaces or deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerChange {
    /// From the root, without a leading `/`.
    pub path: Vec<u8>,
    /// What happens to it.
    pub effect: Effect,
    /// The type it has, or had.
    pub kind: Kind,
    /// Bytes that the layer adds there. A file with several names counts once.
    pub adds: u64,
    /// Bytes of the layers below that it hides.
    pub hides: u64,
}

/// One layer.
#[derive(Clone, Debug)]
pub struct Part {
    /// The digest of its tar.
    pub diff_id: Digest,
    /// Bytes of its files.
    pub bytes: u64,
    /// Number of its files of any kind except directories.
    pub files: u64,
    /// Its changes, sorted by path. A deleted directory stands for everything in it.
    pub changes: Vec<LayerChange>,
}

/// A file of a layer that a layer above hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waste {
    /// From the root, without a leading `/`.
    pub path: Vec<u8>,
    /// Its bytes.
    pub bytes: u64,
    /// The number of the layer that has it, from 0 for the lowest.
    pub layer: usize,
    /// The number of the layer that hides it.
    pub hidden_by: usize,
    /// True if it is deleted; false if the layer above has another file with that name.
    pub deleted: bool,
}

/// What a container of the image sees at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The number of the layer that it comes from.
    pub layer: usize,
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub bytes: u64,
}

/// The layers of an image, and what they show and hide.
#[derive(Clone, Debug, Default)]
pub struct Anatomy {
    /// The layers, the lowest first.
    pub parts: Vec<Part>,
    /// Everything that a container of the image sees, by its path from the root.
    pub shown: BTreeMap<Vec<u8>, Shown>,
    /// Every file that it does not see, the largest first.
    pub wasted: Vec<Waste>,
}

/// An entry of a layer directory.
struct Entry {
    path: Vec<u8>,
    what: What,
}

enum What {
    Whiteout,
    Directory { opaque: bool },
    File { kind: Kind, bytes: u64 },
}

impl Anatomy {
    /// Analyses layers, which are given the lowest first.
    ///
    /// # Errors
    /// When a layer cannot be read.
    pub fn of(layers: &[StoredLayer]) -> Result<Self> {
        let mut anatomy = Self::default();
        for layer in layers {
            let entries = entries(layer)?;
            anatomy.add(layer.record.diff_id, &entries);
        }
        anatomy.wasted.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
        Ok(anatomy)
    }

    /// Bytes of all layers.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Bytes that no container sees.
    pub fn wasted_bytes(&self) -> u64 {
        self.wasted.iter().map(|waste| waste.bytes).sum()
    }

    /// Bytes of a layer that a layer above hides.
    pub fn wasted_of(&self, layer: usize) -> u64 {
        self.wasted.iter().filter(|waste| waste.layer == layer).map(|waste| waste.bytes).sum()
    }

    /// Adds one more layer on top.
    fn add(&mut self, diff_id: Digest, entries: &[Entry]) {
        let number = self.parts.len();
        let own = own_paths(entries);
        let hidden = self.hide(number, entries, &own);
        let mut changes = deletions(&hidden, &own);
        let (mut bytes, mut files) = (0, 0);
        for entry in entries {
            let (kind, adds) = match entry.what {
                What::Whiteout => continue,
                // The root is not a change of any layer.
                _ if entry.path.is_empty() => continue,
                What::Directory { .. } => (Kind::Directory, 0),
                What::File { kind, bytes } => (kind, bytes),
            };
            bytes += adds;
            files += u64::from(kind != Kind::Directory);
            let before = hidden.get(entry.path.as_slice());
            let merges = before.is_none() && self.shown.contains_key(&entry.path);
            if !merges {
                let effect = if before.is_some() { Effect::Replaced } else { Effect::Added };
                let hides = if before.is_some() { bytes_at(&hidden, &entry.path) } else { 0 };
                changes.push(LayerChange { path: entry.path.clone(), effect, kind, adds, hides });
            }
            self.shown.insert(entry.path.clone(), Shown { layer: number, kind, bytes: adds });
        }
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        self.parts.push(Part { diff_id, bytes, files, changes });
    }

    /// Removes and returns everything that the layer's entries hide in the layers below.
    fn hide(&mut self, number: usize, entries: &[Entry], own: &Own<'_>) -> BTreeMap<Vec<u8>, Shown> {
        let mut hidden = BTreeMap::new();
        for entry in entries {
            let there = self.shown.get(&entry.path).map(|shown| shown.kind);
            let (itself, below) = match (&entry.what, there) {
                (What::Whiteout | What::File { .. }, _) => (true, true),
                (What::Directory { opaque }, Some(Kind::Directory) | None) => (false, *opaque),
                (What::Directory { .. }, Some(_)) => (true, false),
            };
            if itself && let Some(shown) = self.shown.remove(&entry.path) {
                hidden.insert(entry.path.clone(), shown);
            }
            if below && (entry.path.is_empty() || matches!(there, Some(Kind::Directory))) {
                self.hide_below(&entry.path, &mut hidden);
            }
        }
        for (path, shown) in &hidden {
            if shown.bytes > 0 {
                let deleted = !own.contains_key(path.as_slice());
                let (path, bytes) = (path.clone(), shown.bytes);
                self.wasted.push(Waste { path, bytes, layer: shown.layer, hidden_by: number, deleted });
            }
        }
        hidden
    }

    fn hide_below(&mut self, dir: &[u8], hidden: &mut BTreeMap<Vec<u8>, Shown>) {
        let prefix = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
        let below = self.shown.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        let paths: Vec<Vec<u8>> = below.map(|(path, _)| path.clone()).collect();
        for path in paths {
            if let Some(shown) = self.shown.remove(&path) {
                hidden.insert(path, shown);
            }
        }
    }
}

/// The layer's own paths, and whether each is a directory.
type Own<'e> = HashMap<&'e [u8], bool>;

fn own_paths(entries: &[Entry]) -> Own<'_> {
    let own = |entry: &Entry| match entry.what {
        What::Whiteout => None,
        What::Directory { .. } => Some(true),
        What::File { .. } => Some(false),
    };
    entries.iter().filter_map(|entry| Some((entry.path.as_slice(), own(entry)?))).collect()
}

/// Bytes of a hidden path, including everything inside.
fn bytes_at(hidden: &BTreeMap<Vec<u8>, Shown>, path: &[u8]) -> u64 {
    let prefix = [path, b"/"].concat();
    let inside = hidden.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
    hidden.get(path).map_or(0, |shown| shown.bytes) + inside.map(|(_, shown)| shown.bytes).sum::<u64>()
}

/// Hidden paths without a successor, each including everything inside.
fn deletions(hidden: &BTreeMap<Vec<u8>, Shown>, own: &Own<'_>) -> Vec<LayerChange> {
    let mut changes: Vec<LayerChange> = Vec::new();
    // For a removed path, the change that covers it; `None` if a file has taken its place.
    let mut stands: HashMap<&[u8], Option<usize>> = HashMap::new();
    for (path, shown) in hidden {
        match own.get(path.as_slice()) {
            Some(true) => continue,
            Some(false) => {
                stands.insert(path, None);
                continue;
            }
            None => {}
        }
        let parent = path.iter().rposition(|&byte| byte == b'/').and_then(|at| path.get(..at)).unwrap_or_default();
        let number = stands.get(parent).copied().unwrap_or_else(|| {
            let (path, kind) = (path.clone(), shown.kind);
            changes.push(LayerChange { path, effect: Effect::Deleted, kind, adds: 0, hides: 0 });
            Some(changes.len() - 1)
        });
        if let Some(change) = number.and_then(|number| changes.get_mut(number)) {
            change.hides += shown.bytes;
        }
        stands.insert(path, number);
    }
    changes
}

/// All entries of the layer's directory, parents first.
fn entries(layer: &StoredLayer) -> Result<Vec<Entry>> {
    let failed = |path: &[u8], errno: Errno| ImageError::Io {
        path: layer.diff().join(OsStr::from_bytes(path)),
        source: errno.into(),
    };
    let nothing = View::new(&[], false).map_err(|errno| failed(b"", errno))?;
    let root = UpperPart::root(layer.open_diff()?).map_err(|errno| failed(b"", errno))?;
    let mut found = Vec::new();
    if root.is_opaque() {
        found.push(Entry { path: Vec::new(), what: What::Directory { opaque: true } });
    }
    let mut seen = HashSet::new();
    let mut pending = vec![(Vec::new(), root)];
    while let Some((dir, part)) = pending.pop() {
        for entry in part.entries().map_err(|errno| failed(&dir, errno))? {
            let name: &CStr = &entry.name;
            let path =
                if dir.is_empty() { name.to_bytes().to_vec() } else { [&dir, &b"/"[..], name.to_bytes()].concat() };
            if entry.whiteout {
                found.push(Entry { path, what: What::Whiteout });
                continue;
            }
            let there = match nothing.resolve(Some(&part), &[], name) {
                Ok(Resolution::Found(there)) => there,
                Ok(Resolution::WhiteoutInUpper) => {
                    found.push(Entry { path, what: What::Whiteout });
                    continue;
                }
                // The content of a metacopy is in another layer.
                Ok(Resolution::Absent) | Err(Errno::IO | Errno::NAMETOOLONG) => continue,
                Err(errno) => return Err(failed(&path, errno)),
            };
            if there.stat.is_dir() {
                let child = part.child(name, &there).map_err(|errno| failed(&path, errno))?;
                found.push(Entry { path: path.clone(), what: What::Directory { opaque: child.is_opaque() } });
                pending.push((path, child));
                continue;
            }
            let kind = kind_of(there.stat.mode);
            // The bytes of a file with several names are counted for the first one.
            let is_first = there.stat.nlink < 2 || seen.insert(there.stat.ino);
            let bytes = if kind == Kind::File && is_first { there.stat.size } else { 0 };
            found.push(Entry { path, what: What::File { kind, bytes } });
        }
    }
    Ok(found)
}

fn kind_of(mode: u32) -> Kind {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Special,
    }
}

/// The path for display, with a leading `/`.
pub fn absolute(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, bytes: u64) -> Entry {
        Entry { path: path.into(), what: What::File { kind: Kind::File, bytes } }
    }

    fn dir(path: &str, opaque: bool) -> Entry {
        Entry { path: path.into(), what: What::Directory { opaque } }
    }

    fn whiteout(path: &str) -> Entry {
        Entry { path: path.into(), what: What::Whiteout }
    }

    fn of(layers: &[&[Entry]]) -> Anatomy {
        let mut anatomy = Anatomy::default();
        layers.iter().for_each(|entries| anatomy.add(Digest::of(b""), entries));
        anatomy
    }

    /// For each change: effect, path, bytes added, bytes hidden.
    fn changes(part: &Part) -> Vec<(Effect, String, u64, u64)> {
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        part.changes.iter().map(|change| (change.effect, text(&change.path), change.adds, change.hides)).collect()
    }

    #[test]
    fn what_layers_add_replace_and_delete() {
        use Effect::{Added, Deleted, Replaced};
        let base: &[Entry] = &[
            dir("a", false),
            file("a/big", 100),
            file("a/small", 5),
            dir("a/sub", false),
            file("a/sub/x", 7),
            file("a-b", 3),
        ];
        for (what, top, expected, wasted) in [
            ("replaced", vec![dir("a", false), file("a/big", 90)], vec![(Replaced, "a/big", 90, 100)], 100),
            ("deleted file", vec![dir("a", false), whiteout("a/big")], vec![(Deleted, "a/big", 0, 100)], 100),
            ("deleted directory", vec![whiteout("a")], vec![(Deleted, "a", 0, 112)], 112),
            (
                "opaque",
                vec![dir("a", true), file("a/small", 6), file("a/new", 1)],
                vec![
                    (Deleted, "a/big", 0, 100),
                    (Added, "a/new", 1, 0),
                    (Replaced, "a/small", 6, 5),
                    (Deleted, "a/sub", 0, 7),
                ],
                112,
            ),
            ("file over directory", vec![file("a", 1)], vec![(Replaced, "a", 1, 112)], 112),
            (
                "directory over file",
                vec![dir("a-b", false), file("a-b/y", 2)],
                vec![(Replaced, "a-b", 0, 3), (Added, "a-b/y", 2, 0)],
                3,
            ),
            ("whiteout of nothing", vec![whiteout("none")], vec![], 0),
            (
                "opaque root",
                vec![dir("", true), file("z", 1)],
                vec![(Deleted, "a", 0, 112), (Deleted, "a-b", 0, 3), (Added, "z", 1, 0)],
                115,
            ),
        ] {
            let anatomy = of(&[base, &top]);
            let expected: Vec<(Effect, String, u64, u64)> = expected
                .into_iter()
                .map(|(effect, path, adds, hides)| (effect, path.to_owned(), adds, hides))
                .collect();
            assert_eq!(changes(&anatomy.parts[1]), expected, "{what}");
            assert_eq!((anatomy.wasted_bytes(), anatomy.wasted_of(0)), (wasted, wasted), "{what}");
            let visible: u64 = anatomy.shown.values().map(|shown| shown.bytes).sum();
            assert_eq!(visible + wasted, anatomy.bytes(), "{what}: every byte is shown or wasted");
        }
    }

    #[test]
    fn a_file_that_comes_back_is_new() {
        let anatomy = of(&[&[file("f", 10)], &[whiteout("f")], &[file("f", 4)]]);
        assert_eq!(changes(&anatomy.parts[2]), [(Effect::Added, "f".to_owned(), 4, 0)]);
        assert_eq!(anatomy.wasted, [Waste { path: b"f".into(), bytes: 10, layer: 0, hidden_by: 1, deleted: true }]);
    }
}
