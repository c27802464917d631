//! Random operations on random layers, compared with a model of the union in memory: on kernel overlayfs (which proves
//! the model right), on stratafs, on both in turn over the same upper directory, and on the library without FUSE.
//!
//! `STRATAFS_MODEL_OPS=100000` runs that many operations for each test instead of a few thousand;
//! `STRATAFS_MODEL_SEED=N` starts from another seed.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod backend;
mod beside;
mod library;
mod ops;
mod rng;
mod run;
mod storm;
mod union;

use std::collections::BTreeMap;
use std::time::Duration;

use backend::{Backend, Mounted, Outcome, Seen};
use common::{Driver, run_test_within};
use library::Library;
use ops::{Layer, Op};
use rng::Rng;

/// Operations of one sequence.
const SEQUENCE: usize = 120;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// Runs sequences until `count` operations have been tried. The first of `drivers` makes the first mount.
fn sequences(count: u64, first_seed: u64, drivers: &'static [Driver]) {
    sequences_with(count, first_seed, drivers, &[]);
}

/// [`sequences`] on mounts with `options`.
fn sequences_with(count: u64, first_seed: u64, drivers: &'static [Driver], options: &'static [&'static str]) {
    sequences_of(count, first_seed, drivers, options, false);
}

/// [`sequences_with`]. With `checkpoints`, sequences have checkpoints, and forks that any of the drivers mounts; stratafs
/// makes the first mount.
fn sequences_of(
    count: u64,
    first_seed: u64,
    drivers: &'static [Driver],
    options: &'static [&'static str],
    checkpoints: bool,
) {
    let count = number("STRATAFS_MODEL_OPS", count);
    let mut seed = number("STRATAFS_MODEL_SEED", first_seed);
    let mut tried = 0;
    while tried < count {
        let mut rng = Rng::new(seed);
        let layers = ops::random_layers(&mut rng);
        let mut sequence = ops::random_ops(&mut rng, &layers, SEQUENCE, drivers);
        let mut first = *rng.pick(drivers);
        if checkpoints {
            sequence = ops::with_checkpoints(&mut rng, sequence, drivers);
            first = Driver::Stratafs;
        }
        let make = move |layers: &[Layer]| Box::new(Mounted::with_options(layers, first, options)) as Box<dyn Backend>;
        tried += run::check(seed, &layers, sequence, &make) as u64;
        seed += 1;
    }
    eprintln!("{tried} operations, seeds {first_seed} to {seed}");
}

/// Time for a run: a long one was asked for with `STRATAFS_MODEL_OPS`.
fn limit() -> Duration {
    Duration::from_secs(400 + number("STRATAFS_MODEL_OPS", 0) / 50)
}

#[test]
fn overlayfs() {
    run_test_within(limit(), "model::overlayfs", Driver::Overlayfs, |_| {
        sequences(2000, 1000, &[Driver::Overlayfs]);
    });
}

#[test]
fn stratafs() {
    run_test_within(limit(), "model::stratafs", Driver::Stratafs, |_| {
        sequences(5000, 2000, &[Driver::Stratafs]);
    });
}

#[test]
fn stratafs_with_inventories() {
    run_test_within(limit(), "model::stratafs_with_inventories", Driver::Stratafs, |_| {
        common::use_inventories();
        sequences(2000, 9000, &[Driver::Stratafs]);
        sequences_with(1000, 9500, &[Driver::Stratafs], &INDEXED);
    });
}

/// The library's verbs, without FUSE; root is needed for devices and owners only.
#[test]
fn library() {
    run_test_within(limit(), "model::library", Driver::Overlayfs, |_| {
        library_sequences(number("STRATAFS_MODEL_OPS", 10_000), 4000, false);
    });
}

#[test]
fn library_with_inventories() {
    run_test_within(limit(), "model::library_with_inventories", Driver::Overlayfs, |_| {
        common::use_inventories();
        library_sequences(number("STRATAFS_MODEL_OPS", 5_000), 9000, false);
    });
}

/// A checkpoint is not noticeable, and no later change reaches its layer.
#[test]
fn library_with_checkpoints() {
    run_test_within(limit(), "model::library_with_checkpoints", Driver::Overlayfs, |_| {
        library_sequences(number("STRATAFS_MODEL_OPS", 1_200), 11_000, true);
    });
}

/// The same through the kernel, with its caches.
#[test]
fn stratafs_with_checkpoints() {
    run_test_within(limit(), "model::stratafs_with_checkpoints", Driver::Stratafs, |_| {
        sequences_of(600, 12_000, &[Driver::Stratafs], &[], true);
        sequences_of(200, 12_500, &[Driver::Stratafs], &["passthrough=all"], true);
        common::use_inventories();
        sequences_of(300, 12_700, &[Driver::Stratafs], &[], true);
    });
}

/// The kernel's overlayfs mounts the layers of checkpoints, as forks and in the place of stratafs.
#[test]
fn interchange_with_checkpoints() {
    run_test_within(limit(), "model::interchange_with_checkpoints", Driver::Stratafs, |_| {
        sequences_of(600, 13_000, &[Driver::Stratafs, Driver::Overlayfs], &[], true);
    });
}

fn library_sequences(count: u64, first_seed: u64, checkpoints: bool) {
    let mut seed = number("STRATAFS_MODEL_SEED", first_seed);
    let mut tried = 0;
    while tried < count {
        let mut rng = Rng::new(seed);
        let layers = ops::random_layers(&mut rng);
        let sequence = ops::random_ops(&mut rng, &layers, SEQUENCE, &[Driver::Stratafs]);
        let sequence = match checkpoints {
            true => ops::with_checkpoints(&mut rng, sequence, &[Driver::Stratafs]),
            false => sequence,
        };
        let make = |layers: &[Layer]| Box::new(Library::new(layers)) as Box<dyn Backend>;
        tried += run::check(seed, &layers, sequence, &make) as u64;
        seed += 1;
    }
}

/// Every remount may change the driver: each reads what the other wrote.
#[test]
fn interchange() {
    run_test_within(limit(), "model::interchange", Driver::Stratafs, |_| {
        sequences(3000, 3000, &[Driver::Stratafs, Driver::Overlayfs]);
    });
}

/// Hard links that stay, and copies of attributes alone.
const INDEXED: [&str; 2] = ["index=on", "metacopy=on"];

#[test]
fn indexed_overlayfs() {
    run_test_within(limit(), "model::indexed_overlayfs", Driver::Overlayfs, |_| {
        sequences_with(1500, 4000, &[Driver::Overlayfs], &INDEXED);
    });
}

#[test]
fn indexed_stratafs() {
    run_test_within(limit(), "model::indexed_stratafs", Driver::Stratafs, |_| {
        sequences_with(3000, 5000, &[Driver::Stratafs], &INDEXED);
    });
}

#[test]
fn indexed_interchange() {
    run_test_within(limit(), "model::indexed_interchange", Driver::Stratafs, |_| {
        sequences_with(2000, 6000, &[Driver::Stratafs, Driver::Overlayfs], &INDEXED);
    });
}

/// Owner, mode and type in attributes: no visible difference.
#[test]
fn kept_permissions() {
    run_test_within(limit(), "model::kept_permissions", Driver::Stratafs, |_| {
        sequences_with(1500, 7000, &[Driver::Stratafs], &["xattr_permissions=2"]);
        sequences_with(1500, 8000, &[Driver::Stratafs], &["xattr_permissions=1"]);
    });
}

/// Lower files that the kernel reads itself: only early readers see a difference.
#[test]
fn passing_lower_files_through() {
    run_test_within(limit(), "model::passing_lower_files_through", Driver::Stratafs, |_| {
        sequences_with(1500, 9000, &[Driver::Stratafs], &["passthrough=all"]);
        sequences_with(1000, 9500, &[Driver::Stratafs], &["passthrough=all", "index=on", "metacopy=on"]);
    });
}

/// A backend with a fault, to show that the comparison detects it.
struct Faulty {
    inner: Mounted,
    fault: Fault,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    ChmodDoesNothing,
    WritesOneByteLess,
    UnlinkSaysAbsent,
    ForgetsOnRemount,
    ReportsAnotherNumber,
}

impl Backend for Faulty {
    fn apply(&mut self, op: &Op, step: u64) -> Outcome {
        match (self.fault, op) {
            (Fault::ChmodDoesNothing, Op::Chmod { .. }) => Outcome::Done,
            (Fault::WritesOneByteLess, Op::Append { path, length }) if *length > 0 => {
                self.inner.apply(&Op::Append { path: path.clone(), length: length - 1 }, step)
            }
            (Fault::UnlinkSaysAbsent, Op::Unlink { .. }) => Outcome::Error(common::Errno::NOENT),
            (Fault::ForgetsOnRemount, Op::Remount { .. }) => {
                let outcome = self.inner.apply(op, step);
                if let Some(path) = self.inner.tree().unwrap().into_keys().next_back() {
                    drop(self.inner.apply(&Op::Unlink { path }, step));
                }
                outcome
            }
            _ => self.inner.apply(op, step),
        }
    }

    fn tree(&mut self) -> Result<BTreeMap<String, Seen>, String> {
        let mut tree = self.inner.tree()?;
        if let (Fault::ReportsAnotherNumber, Some(seen)) = (self.fault, tree.values_mut().next_back()) {
            seen.listed.0 += 1;
        }
        Ok(tree)
    }

    fn is_kernel(&self) -> bool {
        self.inner.is_kernel()
    }

    fn is_coherent(&self) -> bool {
        self.inner.is_coherent()
    }

    fn is_indexed(&self) -> bool {
        self.inner.is_indexed()
    }

    fn finish(self: Box<Self>) {
        Box::new(self.inner).finish();
    }
}

/// The checker detects each fault, and shows a short sequence for it (which may have to make a file first).
#[test]
fn the_checker_finds_faults() {
    run_test_within(limit(), "model::the_checker_finds_faults", Driver::Overlayfs, |_| {
        for (fault, longest) in [
            (Fault::ChmodDoesNothing, 1),
            (Fault::WritesOneByteLess, 3),
            (Fault::UnlinkSaysAbsent, 1),
            (Fault::ForgetsOnRemount, 3),
            (Fault::ReportsAnotherNumber, 1),
        ] {
            let found = (1..20).any(|seed| {
                let mut rng = Rng::new(seed);
                let layers = ops::random_layers(&mut rng);
                let sequence = ops::random_ops(&mut rng, &layers, 60, &[Driver::Overlayfs]);
                let make = move |layers: &[Layer]| {
                    Box::new(Faulty { inner: Mounted::new(layers, Driver::Overlayfs), fault }) as Box<dyn Backend>
                };
                let outcome = std::panic::catch_unwind(|| run::check(seed, &layers, sequence, &make));
                let Err(message) = outcome else { return false };
                let message = message.downcast_ref::<String>().expect("a message").clone();
                let steps =
                    message.split("after:\n").nth(1).unwrap().split("of:").next().unwrap().trim_end().lines().count();
                assert!(steps <= longest, "{fault:?} is shown in {steps} steps: {message}");
                true
            });
            assert!(found, "{fault:?} is not found");
        }
    });
}
