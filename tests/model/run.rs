//! Runs a sequence on the model and on a backend, compares, and makes a failing sequence small.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::backend::{Backend, Outcome, Seen};
use crate::ops::{Layer, Op};
use crate::union::{CopiedUp, Expected, Id, Kind, Union};

/// Operations between two comparisons of the whole tree.
const COMPARE_EVERY: usize = 5;

/// Most runs spent on making a failing sequence small.
const MINIMISING_RUNS: usize = 250;

/// Makes the backend for a run.
pub type Make<'a> = &'a dyn Fn(&[Layer]) -> Box<dyn Backend>;

/// A difference: after which step, and what.
#[derive(Clone, Debug)]
pub struct Failure {
    pub step: usize,
    pub message: String,
}

/// Runs the sequence; counts the operations that were tried.
pub fn run(layers: &[Layer], ops: &[(u64, Op)], make: Make) -> Result<usize, Failure> {
    let step = std::cell::Cell::new(0);
    let outcome = catch_unwind(AssertUnwindSafe(|| run_steps(layers, ops, make, &step)));
    match outcome {
        Ok(Ok(count)) => Ok(count),
        Ok(Err(message)) => Err(Failure { step: step.get(), message }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Failure { step: step.get(), message: text.unwrap_or_else(|| "a panic".to_owned()) })
        }
    }
}

/// What the model says of a union, and the inode numbers that it has shown.
struct Known {
    union: Union,
    numbers: BTreeMap<Id, u64>,
    /// The numbers at the last checkpoint.
    saved_numbers: BTreeMap<Id, u64>,
    /// True if the upper has become a layer while it was mounted. For files that were copied up into it, the kernel shows
    /// their own inode numbers, and stratafs those of their origins.
    has_checkpoints: bool,
}

impl Known {
    fn new(union: Union) -> Self {
        Self { union, numbers: BTreeMap::new(), saved_numbers: BTreeMap::new(), has_checkpoints: false }
    }

    fn compare(&mut self, backend: &mut dyn Backend) -> Result<(), String> {
        compare(&self.union, backend, &mut self.numbers)
    }

    /// Carries out one operation; false if it was not tried.
    fn step(&mut self, backend: &mut dyn Backend, op: &Op, seed: u64, in_any_case: bool) -> Result<bool, String> {
        let is_checkpoint = matches!(op, Op::Checkpoint | Op::Rollback | Op::Fork { .. });
        if is_checkpoint {
            if backend.is_kernel() {
                return Ok(false);
            }
            // Before this point, changed files may have other numbers; from here on, numbers must not change.
            self.compare(backend)?;
            self.has_checkpoints = true;
        }
        let expected = self.union.apply(op, seed);
        if expected == Expected::Skip {
            return Ok(false);
        }
        if is_checkpoint && !matches!(op, Op::Rollback) {
            self.saved_numbers.clone_from(&self.numbers);
            // The layer gets copies of these.
            let written = self.union.written();
            self.saved_numbers.retain(|id, _| !written.contains(id));
        }
        let was_kernel = backend.is_kernel();
        let outcome = backend.apply(op, seed);
        if let Some(message) = disagreement(&expected, &outcome, backend.is_coherent()) {
            return Err(format!("{op:?}: {message}"));
        }
        if matches!(op, Op::Rollback) {
            self.numbers.clone_from(&self.saved_numbers);
        }
        let is_restack = matches!(op, Op::Restack { .. });
        if is_restack || (self.has_checkpoints && was_kernel != backend.is_kernel()) {
            self.numbers.clear();
        }
        if is_checkpoint || is_restack || matches!(op, Op::Remount { .. }) || in_any_case {
            self.compare(backend)?;
        }
        Ok(true)
    }
}

fn run_steps(layers: &[Layer], ops: &[(u64, Op)], make: Make, at: &std::cell::Cell<usize>) -> Result<usize, String> {
    let mut backend = make(layers);
    let mut known = Known::new(Union::new(layers, backend.is_indexed()));
    known.compare(backend.as_mut()).map_err(|message| format!("before the first step: {message}"))?;
    let mut fork: Option<Known> = None;
    let mut tried = 0;
    for (index, (seed, op)) in ops.iter().enumerate() {
        at.set(index);
        let compare_now = index % COMPARE_EVERY == 0;
        let done = match (op, &mut fork) {
            (Op::InFork(op), Some(fork)) => {
                let backend = backend.forked().expect("a fork");
                fork.step(backend, op, *seed, compare_now).map_err(|message| format!("in the fork: {message}"))?
            }
            (Op::InFork(_), None) => false,
            _ => known.step(backend.as_mut(), op, *seed, compare_now)?,
        };
        tried += usize::from(done);
        if done && matches!(op, Op::Fork { .. }) {
            fork = Some(Known { has_checkpoints: true, ..Known::new(known.union.fork()) });
        }
        if (compare_now || matches!(op, Op::Fork { .. }))
            && let Some(fork) = &mut fork
        {
            let backend = backend.forked().expect("a fork");
            fork.compare(backend).map_err(|message| format!("the fork: {message}"))?;
        }
    }
    known.compare(backend.as_mut())?;
    if let Some(fork) = &mut fork {
        fork.compare(backend.forked().expect("a fork")).map_err(|message| format!("the fork: {message}"))?;
    }
    backend.finish();
    Ok(tried)
}

fn disagreement(expected: &Expected, outcome: &Outcome, is_coherent: bool) -> Option<String> {
    let agrees = match (expected, outcome) {
        (Expected::Done, Outcome::Done) => true,
        (Expected::Error(expected), Outcome::Error(found)) => expected == found,
        (Expected::Content(expected), Outcome::Content(found)) => expected == found,
        (Expected::CoherentContent(expected), Outcome::Content(found)) => !is_coherent || expected == found,
        (Expected::Names(expected), Outcome::Names(found)) => expected == found,
        (Expected::Stat(mode, size, nlink), Outcome::Stat(found_mode, found_size, found_nlink)) => {
            mode == found_mode && size == found_size && nlink.is_none_or(|nlink| nlink == *found_nlink)
        }
        _ => false,
    };
    let short = |text: String| if text.len() > 300 { format!("{}…", &text[..300]) } else { text };
    let content_detail = match (expected, outcome) {
        (Expected::Content(expected) | Expected::CoherentContent(expected), Outcome::Content(found)) => {
            let at = expected.iter().zip(found).position(|(one, other)| one != other);
            format!(" ({} and {} bytes, first difference at {at:?})", expected.len(), found.len())
        }
        _ => String::new(),
    };
    (!agrees).then(|| {
        format!("expected {}, found {}{content_detail}", short(format!("{expected:?}")), short(format!("{outcome:?}")))
    })
}

/// Compares the whole trees. `numbers`: the inode numbers seen so far.
pub fn compare(union: &Union, backend: &mut dyn Backend, numbers: &mut BTreeMap<Id, u64>) -> Result<(), String> {
    let mut found = backend.tree()?;
    let (is_kernel, counts_links) = (backend.is_kernel(), backend.counts_links());
    let mut owners: BTreeMap<u64, Id> = BTreeMap::new();
    for (path, id) in union.entries() {
        let seen = found.remove(&path).ok_or_else(|| format!("{path:?} is missing"))?;
        if let Some(message) = entry_difference(union, id, &seen, is_kernel, counts_links) {
            return Err(format!("{path:?}: {message}"));
        }
        let inode = &union.inodes[id];
        if let Some(&before) = numbers.get(&id) {
            let may_change = !inode.keeps_number() && inode.copied_up != CopiedUp::No;
            if before != seen.ino && !may_change {
                return Err(format!("{path:?}: st_ino was {before} and is {}", seen.ino));
            }
        }
        numbers.insert(id, seen.ino);
        if let Some(&other) = owners.get(&seen.ino) {
            let both_lower = [id, other].iter().all(|&id| union.inodes[id].copied_up != CopiedUp::Yes);
            let one_lower_file = both_lower && union.inodes[other].group == inode.group;
            if other != id && !one_lower_file {
                return Err(format!("{path:?}: st_ino {} is also another file's", seen.ino));
            }
        }
        owners.insert(seen.ino, id);
    }
    match found.into_keys().next() {
        None => Ok(()),
        Some(path) => Err(format!("{path:?} should not be there")),
    }
}

fn entry_difference(union: &Union, id: Id, seen: &Seen, is_kernel: bool, counts_links: bool) -> Option<String> {
    let inode = &union.inodes[id];
    let (kind, rdev) = match inode.kind {
        Kind::Dir(_) => (libc::S_IFDIR, None),
        Kind::File(_) => (libc::S_IFREG, None),
        Kind::Symlink(_) => (libc::S_IFLNK, None),
        Kind::Node(kind, rdev) => (kind, Some(rdev)),
    };
    macro_rules! same {
        ($what:literal, $expected:expr, $found:expr) => {
            if $expected != $found {
                return Some(format!("{} should be {:?} and is {:?}", $what, $expected, $found));
            }
        };
    }
    same!("type", format!("{kind:o}"), format!("{:o}", seen.kind));
    same!("mode", format!("{:o}", inode.mode), format!("{:o}", seen.mode));
    same!("owner", (inode.uid, inode.gid), (seen.uid, seen.gid));
    same!("xattrs", inode.xattrs, seen.xattrs);
    // The kernel's ovl_link does not count as a change of the directory's listing.
    if !is_kernel || !inode.linked {
        same!("d_ino", seen.ino, seen.listed.0);
    }
    same!("d_type", format!("{kind:o}"), format!("{:o}", seen.listed.1));
    if let Some(rdev) = rdev.filter(|_| kind != libc::S_IFIFO) {
        same!("device", rdev, seen.rdev);
    }
    if kind != libc::S_IFDIR && counts_links {
        same!("nlink", inode.nlink(), seen.nlink);
    }
    if let Some(mtime) = inode.mtime {
        same!("mtime", mtime, seen.mtime);
    }
    match &inode.kind {
        Kind::File(content) => {
            same!("size", content.len() as u64, seen.size);
            let found = seen.content.as_deref().unwrap_or_default();
            if content != found {
                let at = content.iter().zip(found).position(|(one, other)| one != other);
                return Some(format!("content: {} bytes read, first difference at {at:?}", found.len()));
            }
        }
        Kind::Symlink(target) => same!("target", Some(target), seen.target.as_ref()),
        Kind::Dir(_) | Kind::Node(..) => {}
    }
    None
}

/// Runs; on a difference makes the sequence small and panics with it and the seed.
pub fn check(seed: u64, layers: &[Layer], ops: Vec<Op>, make: Make) -> usize {
    let ops: Vec<(u64, Op)> = ops.into_iter().enumerate().map(|(step, op)| (step as u64, op)).collect();
    match run(layers, &ops, make) {
        Ok(count) => count,
        Err(failure) => {
            let (ops, failure) = minimise(layers, ops, failure, make);
            let list: Vec<String> = ops.iter().map(|(step, op)| format!("  {step}: {op:?}")).collect();
            let mentioned = |path: &str| list.iter().any(|line| line.contains(path));
            let entries: Vec<String> = layers
                .iter()
                .enumerate()
                .flat_map(|(number, layer)| layer.iter().map(move |entry| (number, entry)))
                .filter(|(_, entry)| mentioned(&format!("\"{}", entry.path)) || failure.message.contains(&entry.path))
                .map(|(number, entry)| {
                    let link = entry.link_to.as_ref().map(|to| format!(" = {to}")).unwrap_or_default();
                    format!(
                        "  lower {number}: {}{link} {:.60} mode {:o}",
                        entry.path,
                        format!("{:?}", entry.kind),
                        entry.mode
                    )
                })
                .collect();
            panic!("seed {seed}: {}\nafter:\n{}\nof:\n{}", failure.message, list.join("\n"), entries.join("\n"));
        }
    }
}

/// Drops everything that the difference does not need.
fn minimise(layers: &[Layer], mut ops: Vec<(u64, Op)>, mut failure: Failure, make: Make) -> (Vec<(u64, Op)>, Failure) {
    ops.truncate(failure.step + 1);
    let mut left = MINIMISING_RUNS;
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 && left > 0 {
        let mut at = 0;
        let mut removed = false;
        while at < ops.len() && left > 0 {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + chunk).min(ops.len()));
            left -= 1;
            match run(layers, &fewer, make) {
                Err(other) => {
                    fewer.truncate(other.step + 1);
                    ops = fewer;
                    failure = other;
                    removed = true;
                }
                Ok(_) => at += chunk,
            }
        }
        if !removed || chunk > 1 {
            chunk /= 2;
        }
    }
    (ops, failure)
}
