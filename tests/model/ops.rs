//! The operations, and how random layers and sequences of them are made.

use std::fmt::Write as _;

use crate::common::Driver;
use crate::rng::Rng;
use crate::union::Union;

/// Maximum number of files held open at once.
pub const SLOTS: usize = 4;

/// One step of a sequence. Paths are relative to the root of the union.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Create {
        path: String,
        length: usize,
    },
    WriteAt {
        path: String,
        offset: u64,
        length: usize,
    },
    Append {
        path: String,
        length: usize,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Overwrite {
        path: String,
        length: usize,
    },
    Read {
        path: String,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Rmdir {
        path: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    RenameNoReplace {
        from: String,
        to: String,
    },
    Exchange {
        from: String,
        to: String,
    },
    Link {
        old: String,
        new: String,
    },
    Symlink {
        path: String,
        target: String,
    },
    Mknod {
        path: String,
        mode: u32,
        rdev: (u32, u32),
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        uid: u32,
        gid: u32,
    },
    Utimens {
        path: String,
        mtime: i64,
    },
    SetXattr {
        path: String,
        name: String,
        value: Vec<u8>,
    },
    RemoveXattr {
        path: String,
        name: String,
    },
    Readdir {
        path: String,
    },
    Open {
        slot: usize,
        path: String,
        write: bool,
    },
    HandleWrite {
        slot: usize,
        offset: u64,
        length: usize,
    },
    HandleRead {
        slot: usize,
    },
    HandleTruncate {
        slot: usize,
        size: u64,
    },
    HandleChmod {
        slot: usize,
        mode: u32,
    },
    HandleStat {
        slot: usize,
    },
    Close {
        slot: usize,
    },
    /// Unmounts and mounts again; in a run with several drivers, by this one.
    Remount {
        driver: Driver,
    },
    /// The upper becomes the topmost lower layer, below a new upper.
    Restack {
        driver: Driver,
    },
    /// As before, while it is mounted and files are open.
    Checkpoint,
    /// Back to the last checkpoint, while it is mounted and files are open.
    Rollback,
    /// A checkpoint, and another union beside this one that begins there, mounted by this driver.
    Fork {
        driver: Driver,
    },
    /// An operation in the last fork.
    InFork(Box<Op>),
}

/// Adds checkpoints, rollbacks and forks to a sequence. Some of the operations are also done in a fork. Forks are mounted
/// by one of `drivers`.
pub fn with_checkpoints(rng: &mut Rng, ops: Vec<Op>, drivers: &[Driver]) -> Vec<Op> {
    let mut mixed = Vec::with_capacity(ops.len() * 3 / 2);
    let mut has_fork = false;
    for op in ops {
        match rng.below(100) {
            0..10 => mixed.push(Op::Checkpoint),
            10..13 => {
                mixed.push(Op::Fork { driver: *rng.pick(drivers) });
                has_fork = true;
            }
            13..18 => mixed.push(Op::Rollback),
            _ => {}
        }
        let in_fork = (has_fork && rng.chance(30)).then(|| Op::InFork(Box::new(op.clone())));
        mixed.push(op);
        mixed.extend(in_fork);
    }
    mixed
}

/// Bytes that identify the write they come from.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut text = String::with_capacity(length + 16);
    while text.len() < length {
        write!(text, "{:016x}", rng.next()).unwrap();
    }
    text.truncate(length);
    text.into_bytes()
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "a long name, with a \u{fc}mlaut"];
const MODES: [u32; 7] = [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o40];
const XATTRS: [&str; 4] = ["user.k1", "user.k2", "trusted.t", "trusted.overlay.opaque"];

/// The content of a layer at one path.
#[derive(Clone, Debug)]
pub enum LayerKind {
    Dir { opaque: bool },
    File { content: Vec<u8>, links: u64, group: u64 },
    Symlink(String),
    Node(u32, (u32, u32)),
    Whiteout,
}

/// One entry of a layer.
#[derive(Clone, Debug)]
pub struct LayerEntry {
    pub path: String,
    pub kind: LayerKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// The earlier path that this one is a hard link to.
    pub link_to: Option<String>,
}

/// A layer: parents before children.
pub type Layer = Vec<LayerEntry>;

/// Random lower layers, topmost first.
pub fn random_layers(rng: &mut Rng) -> Vec<Layer> {
    let count = 1 + rng.below(3);
    let mut layers: Vec<Layer> = (0..count).map(|layer| random_layer(rng, layer, layer + 1 < count)).collect();
    for at in 0..layers.len() {
        // A whiteout that hides nothing is not well-formed; the kernel lists it where no merge filters it.
        let kept = layers[at].iter().filter(|entry| {
            let parent = entry.path.rsplit_once('/').map_or("", |(parent, _)| parent);
            !matches!(entry.kind, LayerKind::Whiteout) || merges_below(&layers[at..], parent)
        });
        layers[at] = kept.cloned().collect();
    }
    layers
}

/// True if the directory `path` of the first layer merges with one of the others.
fn merges_below(layers: &[Layer], path: &str) -> bool {
    let prefixes = || path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]).filter(|path| !path.is_empty());
    let is_opaque = |layer: &Layer| {
        let mut above = layer.iter().filter(|entry| prefixes().any(|prefix| prefix == entry.path));
        above.any(|entry| matches!(entry.kind, LayerKind::Dir { opaque: true }))
    };
    let mut previous = &layers[0];
    for layer in &layers[1..] {
        let found: Vec<_> = layer.iter().filter(|entry| prefixes().any(|prefix| prefix == entry.path)).collect();
        if is_opaque(previous) || found.iter().any(|entry| !matches!(entry.kind, LayerKind::Dir { .. })) {
            return false;
        }
        if path.is_empty() || found.iter().any(|entry| entry.path == path) {
            return true;
        }
        previous = layer;
    }
    false
}

fn random_layer(rng: &mut Rng, number: u64, has_lower: bool) -> Layer {
    let mut layer = Layer::new();
    fill(rng, &mut layer, "", 0, number, has_lower);
    add_hard_links(rng, &mut layer);
    layer
}

fn fill(rng: &mut Rng, layer: &mut Layer, parent: &str, depth: u32, number: u64, has_lower: bool) {
    for name in NAMES {
        if !rng.chance(55) {
            continue;
        }
        let path = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
        let kind = match rng.below(100) {
            0..45 if depth < 3 => LayerKind::Dir { opaque: has_lower && rng.chance(15) },
            45..55 if has_lower => LayerKind::Whiteout,
            55..61 => LayerKind::Symlink(format!("nowhere{}", rng.below(9))),
            61..64 => LayerKind::Node(libc::S_IFIFO, (0, 0)),
            64..67 => LayerKind::Node(libc::S_IFCHR, (1, 3)),
            _ => {
                let length = *rng.pick(&[0, 1, 100, 5000, 20_000]);
                let group = number * 1000 + layer.len() as u64;
                LayerKind::File { content: bytes(rng.next(), length), links: 1, group }
            }
        };
        let is_dir = matches!(kind, LayerKind::Dir { .. });
        let mode = match kind {
            LayerKind::Symlink(_) => 0o777,
            LayerKind::Dir { .. } => *rng.pick(&[0o755, 0o700, 0o1777, 0o2755]),
            _ => *rng.pick(&MODES),
        };
        let mut xattrs = vec![];
        let takes_xattrs = matches!(kind, LayerKind::Dir { .. } | LayerKind::File { .. });
        if takes_xattrs && rng.chance(30) {
            xattrs.push(("user.k1".to_owned(), bytes(rng.next(), 5)));
        }
        let owner = |rng: &mut Rng| if rng.chance(70) { 0 } else { 1000 + rng.below(3) as u32 };
        let (uid, gid, mtime) = (owner(rng), owner(rng), 1_000_000 + rng.below(1_000_000).cast_signed());
        layer.push(LayerEntry { path: path.clone(), kind, mode, uid, gid, mtime, xattrs, link_to: None });
        if is_dir {
            fill(rng, layer, &path, depth + 1, number, has_lower);
        }
    }
}

/// Turns some files into hard links to earlier ones.
fn add_hard_links(rng: &mut Rng, layer: &mut Layer) {
    for at in 1..layer.len() {
        let first = rng.below(at as u64) as usize;
        let both_files = [at, first].iter().all(|&at| matches!(layer[at].kind, LayerKind::File { links: 1, .. }));
        if both_files && rng.chance(25) {
            let (path, target) = (layer[at].path.clone(), layer[first].path.clone());
            if let LayerKind::File { links, .. } = &mut layer[first].kind {
                *links = 2;
            }
            layer[at] = LayerEntry { path, link_to: Some(target), ..layer[first].clone() };
        }
    }
}

/// A layer as the text that `common::tree` builds from.
pub fn layer_text(layer: &Layer) -> String {
    let escape = |text: &str| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let mut text = String::new();
    for entry in layer {
        let path: String = entry.path.split('/').map(escape).collect::<Vec<_>>().join("/");
        let detail = match (&entry.link_to, &entry.kind) {
            (Some(target), _) => {
                let target: String = target.split('/').map(escape).collect::<Vec<_>>().join("/");
                writeln!(text, "hard {path} {target}").unwrap();
                continue;
            }
            (None, LayerKind::Dir { .. }) => format!("dir {path}"),
            (None, LayerKind::File { content, .. }) => format!("file {path} \"{}\"", String::from_utf8_lossy(content)),
            (None, LayerKind::Symlink(target)) => format!("link {path} -> {target}"),
            (None, LayerKind::Node(libc::S_IFIFO, _)) => format!("fifo {path}"),
            (None, LayerKind::Node(_, (major, minor))) => format!("char {path} {major}:{minor}"),
            (None, LayerKind::Whiteout) => {
                writeln!(text, "whiteout {path}").unwrap();
                continue;
            }
        };
        write!(text, "{detail} mode={:o} uid={} gid={} mtime={}", entry.mode, entry.uid, entry.gid, entry.mtime)
            .unwrap();
        for (name, value) in &entry.xattrs {
            write!(text, " {name}={}", String::from_utf8_lossy(value)).unwrap();
        }
        if matches!(entry.kind, LayerKind::Dir { opaque: true }) {
            text.push_str(" trusted.overlay.opaque=y");
        }
        text.push('\n');
    }
    text
}

/// A random sequence, made with the help of the model so that most steps have an effect. `drivers` are those that may mount.
pub fn random_ops(rng: &mut Rng, layers: &[Layer], count: usize, drivers: &[Driver]) -> Vec<Op> {
    let mut union = Union::new(layers, false);
    let mut ops = vec![];
    for step in 0..count {
        let op = random_op(rng, &union, drivers);
        // The predictions are not used here; they update the model.
        drop(union.apply(&op, step as u64));
        ops.push(op);
    }
    ops
}

fn random_path(rng: &mut Rng, union: &Union, existing: u64) -> String {
    let paths = union.paths();
    if !paths.is_empty() && rng.chance(existing) {
        return rng.pick(&paths).clone();
    }
    let directories: Vec<&String> = paths.iter().filter(|path| union.is_dir(path)).collect();
    let name = *rng.pick(&NAMES);
    if directories.is_empty() || rng.chance(25) {
        return name.to_owned();
    }
    if rng.chance(3) {
        return format!("{}/{name}", rng.pick(&paths));
    }
    format!("{}/{name}", rng.pick(&directories))
}

fn random_op(rng: &mut Rng, union: &Union, drivers: &[Driver]) -> Op {
    let length = *rng.pick(&[0, 1, 10, 4096, 10_000]);
    let offset = rng.below(12_000);
    let slot = rng.below(SLOTS as u64) as usize;
    let old = random_path(rng, union, 92);
    let new = random_path(rng, union, 20);
    let mixed = random_path(rng, union, 55);
    match rng.below(1000) {
        0..90 => Op::Create { path: new, length },
        90..140 => Op::WriteAt { path: old, offset, length },
        140..180 => Op::Append { path: old, length },
        180..210 => Op::Truncate { path: old, size: offset },
        210..225 => Op::Overwrite { path: old, length },
        225..245 => Op::Read { path: old },
        245..310 => Op::Mkdir { path: new, mode: *rng.pick(&MODES) },
        310..380 => Op::Rmdir { path: old },
        380..480 => Op::Unlink { path: old },
        480..590 => Op::Rename { from: old, to: mixed },
        590..615 => Op::RenameNoReplace { from: old, to: mixed },
        615..650 => Op::Exchange { from: old, to: random_path(rng, union, 95) },
        650..685 => Op::Link { old, new },
        685..700 => Op::Symlink { path: new, target: format!("nowhere{}", rng.below(9)) },
        700..715 => {
            let (mode, rdev) = *rng.pick(&[(libc::S_IFIFO, (0, 0)), (libc::S_IFCHR, (1, 5)), (libc::S_IFREG, (0, 0))]);
            Op::Mknod { path: new, mode: mode | 0o640, rdev }
        }
        715..755 => Op::Chmod { path: old, mode: *rng.pick(&MODES) },
        755..785 => Op::Chown { path: old, uid: rng.below(3) as u32, gid: rng.below(3) as u32 },
        785..805 => Op::Utimens { path: old, mtime: rng.below(2_000_000_000).cast_signed() },
        805..825 => {
            let value = bytes(rng.next(), *rng.pick(&[0, 3, 200]));
            Op::SetXattr { path: old, name: (*rng.pick(&XATTRS)).to_owned(), value }
        }
        825..835 => Op::RemoveXattr { path: old, name: (*rng.pick(&XATTRS)).to_owned() },
        835..850 => Op::Readdir { path: old },
        850..885 => Op::Open { slot, path: old, write: rng.chance(60) },
        885..910 => Op::HandleWrite { slot, offset, length },
        910..930 => Op::HandleRead { slot },
        930..940 => Op::HandleTruncate { slot, size: offset },
        940..948 => Op::HandleChmod { slot, mode: *rng.pick(&MODES) },
        948..965 => Op::HandleStat { slot },
        965..980 => Op::Close { slot },
        980..994 => Op::Remount { driver: *rng.pick(drivers) },
        _ => Op::Restack { driver: *rng.pick(drivers) },
    }
}
