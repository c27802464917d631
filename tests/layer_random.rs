//! Random layers against a model in memory, and random damage.

#![allow(clippy::unwrap_used)]

#[path = "common/dice.rs"]
mod dice;
#[path = "common/layer_dirs.rs"]
mod layer_dirs;
#[path = "common/tar_build.rs"]
mod tar_build;

use std::collections::{BTreeMap, BTreeSet};

use dice::Dice;
use layer_dirs::*;
use proptest::prelude::*;
use stratafs::image::recipe;
use stratafs::image::snapshot::{self, SnapshotOptions};
use stratafs::image::unpack::UnpackOptions;
use stratafs::tar::Limits;
use tar_build::*;

/// One entry of a random layer.
#[derive(Clone, Debug)]
enum Step {
    Dir(String),
    File(String, String),
    Symlink(String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir,
    /// A number for each file, and its contents.
    File(usize, String),
    Symlink(usize),
}

/// The expected layer after its entries, by a direct implementation of the rules.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Node>,
    whiteouts: BTreeSet<String>,
    made: usize,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Model {
    /// Makes the directory and those above it; `None` if something else has a name on the way.
    fn ensure(&mut self, path: &str) -> Option<()> {
        if path.is_empty() {
            return Some(());
        }
        self.ensure(parent(path))?;
        match self.nodes.entry(path.to_owned()).or_insert(Node::Dir) {
            Node::Dir => Some(()),
            _ => None,
        }
    }

    fn replace(&mut self, path: &str, node: Node) {
        let below = format!("{path}/");
        self.nodes.retain(|other, _| other != path && !other.starts_with(&below));
        self.nodes.insert(path.to_owned(), node);
    }

    fn step(&mut self, step: &Step) -> Option<()> {
        self.made += 1;
        match step {
            Step::Dir(path) => {
                self.ensure(parent(path))?;
                if self.nodes.get(path) != Some(&Node::Dir) {
                    self.replace(path, Node::Dir);
                }
            }
            Step::File(path, content) => {
                self.ensure(parent(path))?;
                self.replace(path, Node::File(self.made, content.clone()));
            }
            Step::Symlink(path) => {
                self.ensure(parent(path))?;
                self.replace(path, Node::Symlink(self.made));
            }
            Step::HardLink(path, target) => {
                self.ensure(parent(path))?;
                let node = self.nodes.get(target).filter(|node| **node != Node::Dir)?.clone();
                if self.nodes.get(path) != Some(&node) {
                    if target.starts_with(&format!("{path}/")) {
                        return None;
                    }
                    self.replace(path, node);
                }
            }
            Step::Whiteout(path) => {
                self.ensure(parent(path))?;
                self.whiteouts.insert(path.clone());
            }
            Step::Opaque(path) => {
                self.ensure(path)?;
                self.whiteouts.insert(path.clone());
            }
        }
        Some(())
    }

    /// Path to a word on what is there.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        let is_dir = |path: &str| path.is_empty() || self.nodes.get(path) == Some(&Node::Dir);
        for (path, node) in &self.nodes {
            let word = match node {
                Node::Dir if self.whiteouts.contains(path) => "opaque".to_owned(),
                Node::Dir => "dir".to_owned(),
                Node::File(_, content) => format!("file {content:?}"),
                Node::Symlink(_) => "link".to_owned(),
            };
            tree.insert(path.clone(), word);
        }
        for path in self.whiteouts.iter().filter(|path| !self.nodes.contains_key(*path) && is_dir(parent(path))) {
            tree.insert(path.clone(), "whiteout".to_owned());
        }
        tree
    }
}

/// The same words for a real directory.
fn words(layer: &Layer) -> BTreeMap<String, String> {
    let word = |line: String| match line.split(' ').next().unwrap() {
        "dir" if line.contains("trusted.overlay.opaque=y") => "opaque".to_owned(),
        "file" => line.split("\" ").next().unwrap().to_owned() + "\"",
        "char" => "whiteout".to_owned(),
        first => first.to_owned(),
    };
    layer.tree().into_iter().filter(|(path, _)| path != ".").map(|(path, line)| (path, word(line))).collect()
}

fn tar_of(steps: &[Step]) -> Vec<u8> {
    let prefixed = |path: &str, prefix: &str| {
        let name = path.rsplit('/').next().unwrap();
        path[..path.len() - name.len()].to_owned() + prefix + name
    };
    let tar = steps.iter().fold(Tar::new(), |tar, step| match step {
        Step::Dir(path) => tar.dir(format!("{path}/")),
        Step::File(path, content) => tar.file(path, content),
        Step::Symlink(path) => tar.symlink(path, "somewhere"),
        Step::HardLink(path, target) => tar.hardlink(path, target),
        Step::Whiteout(path) => tar.file(prefixed(path, ".wh."), ""),
        Step::Opaque(path) => tar.file(format!("{path}/.wh..wh..opq"), ""),
    });
    tar.end()
}

fn any_path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_path().prop_map(Step::Dir),
        4 => (any_path(), "[xyz]{0,3}").prop_map(|(path, content)| Step::File(path, content)),
        // Not as a parent: the model follows no links.
        1 => any_path().prop_map(|path| Step::Symlink(path + "-link")),
        2 => (any_path(), any_path()).prop_map(|(path, target)| Step::HardLink(path, target)),
        2 => any_path().prop_map(Step::Whiteout),
        1 => any_path().prop_map(Step::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_are_as_the_model_says(steps in proptest::collection::vec(any_step(), 1..14)) {
        let tar = tar_of(&steps);
        let mut model = Model::default();
        // An impossible entry ends the layer; take those before it.
        let expected = steps.iter().try_for_each(|step| model.step(step)).map(|()| model.tree());
        match (unpack_over(&tar, &[]), expected) {
            (Ok(layer), Some(expected)) => {
                prop_assert_eq!(words(&layer), expected);
                prop_assert_eq!(reassembled(&layer).unwrap(), tar);
                // The directory has everything that the tar has.
                let mut out = Vec::new();
                snapshot::snapshot(layer.as_fd(), &[], &mut out, &SnapshotOptions::default()).unwrap();
                let mut again = words(&unpack(&out));
                let mut before = words(&layer);
                // A snapshot omits deletions in an opaque directory, which have no effect.
                let hidden = before.clone();
                before.retain(|path, word| word != "whiteout" || hidden.get(parent(path)).is_none_or(|word| word != "opaque"));
                again.retain(|_, word| !word.is_empty());
                prop_assert_eq!(again, before);
            }
            (Err(_), None) => {}
            (Ok(layer), None) => prop_assert!(false, "unpacked to {:#?}", layer.tree()),
            (Err(error), Some(_)) => prop_assert!(false, "refused: {error}"),
        }
    }
}

#[test]
fn random_damage_is_refused_or_kept_to_the_byte() {
    let good = everything();
    assert_eq!(reassembled(&unpack(&good)).unwrap(), good);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let limits = Limits { file: 1 << 30, ..Limits::default() };
    let options = UnpackOptions { limits, threads: false, ..UnpackOptions::default() };
    let mut accepted = 0;
    for _ in 0..1500 {
        let mut bytes = good.clone();
        for _ in 0..=dice.roll(3) {
            let at = dice.roll(bytes.len());
            let special =
                [0, b'0', b'7', b'/', b'.', b' ', b'=', b'\n', 0x80, 0xff, b'x', b'g', b'1', b'2', b'5', b'S'];
            bytes[at] = special[dice.roll(special.len())];
            // With a corrected checksum, the damage reaches further.
            if dice.roll(4) != 0 {
                let block: &mut [u8; 512] = (&mut bytes[at / 512 * 512..][..512]).try_into().unwrap();
                if block[257..262] == *b"ustar" {
                    seal(block);
                }
            }
        }
        if let Ok(layer) = unpack_with(&bytes, &[], &options) {
            accepted += 1;
            assert_eq!(reassembled(&layer).unwrap(), bytes);
        }
    }
    assert!(accepted > 150, "most damage stops at the first header: {accepted}");
}

#[test]
fn damaged_recipes_are_errors() {
    let layer = unpack(&everything());
    let mut dice = Dice(7);
    let plain = zstd::decode_all(layer.recipe.as_slice()).unwrap();
    for round in 0..1500 {
        let mut bytes = if round % 2 == 0 { layer.recipe.clone() } else { plain.clone() };
        let at = dice.roll(bytes.len());
        match dice.roll(3) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << dice.roll(8),
            _ => bytes[at] = 0xff,
        }
        let recipe = if round % 2 == 0 { bytes } else { zstd::encode_all(bytes.as_slice(), 1).unwrap() };
        let mut out = Vec::new();
        // A flipped bit that zstd does not notice may have no effect, but a wrong tar is never accepted.
        if let Ok((digest, _)) = recipe::reassemble(&mut recipe.as_slice(), layer.as_fd(), &mut out) {
            assert_eq!(stratafs::image::digest::Digest::of(&out), digest);
            assert!(digest == layer.unpacked.diff_id || round % 2 == 1);
        }
    }
}
