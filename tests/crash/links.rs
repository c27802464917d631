//! A hard link that a checkpoint has put into a layer goes to the upper with all its names when one of them is opened for writing.
//! The driver is killed, and a call fails, at each call of that. Nobody notices, and no failure makes two files of it.

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::checkpoint::{LIMIT, assert_same, check_mounted, look, prepare, stack};
use crate::common::stack::Mount;
use crate::common::{Driver, Upper, run_test_within, sys, tree};
use crate::gate::{Act, Counted, Gate, Order};
use crate::{Tree, kernel_reads, report, soaking, without_times};

const NAMES: [&str; 3] = ["0/new", "0/made/linked", "0/third"];

/// A mount whose topmost layer has the file; what it shows.
fn start(gate: &Gate) -> (Mount, Tree) {
    let mut mount = stack().build().mount_started_by(|command| gate.spawn(command));
    drop(prepare(&mount));
    sys::link(&mount.at(NAMES[0]), &mount.at(NAMES[2])).unwrap();
    let shown = look(&mount);
    mount.checkpoint();
    (mount, shown)
}

/// False if there are fewer calls.
fn kill_at(at: usize) -> bool {
    let gate = Gate::default();
    let (mount, shown) = start(&gate);
    gate.give(Order { at, act: Act::Kill, counted: if soaking() { Counted::All } else { Counted::Changes } });
    let opened = sys::open(&mount.at(NAMES[1]), OFlags::RDWR, 0);
    let Some(call) = gate.take() else {
        opened.unwrap();
        return false;
    };
    drop(opened);
    let when = format!("killed at call {at}, {call}");
    let mut layers = mount.crash();
    // The time of a directory of the layer is put back one step after the exchange.
    for (layer, before) in layers.lowers.iter().zip(&layers.originals) {
        assert_same(&tree::snapshot(layer, true), &without_times(before), &format!("{when}: {}", layer.display()));
    }
    layers.settle();
    let (by_kernel, layers) = kernel_reads(layers);
    assert_same(&by_kernel, &shown, &format!("{when}: the kernel's overlayfs reads another tree"));
    check_mounted(layers, false, &shown, &when);
    true
}

#[test]
fn killed_at_every_call() {
    run_test_within(LIMIT, "links::killed_at_every_call", Driver::Stratafs, |_| {
        let points = (0..).take_while(|&at| kill_at(at)).count();
        assert!(points > 10, "only {points} points");
        report("kill", Upper::Plain, "hard_link_of_a_checkpoint", points);
    });
}

#[test]
fn failing_at_every_call() {
    run_test_within(LIMIT, "links::failing_at_every_call", Driver::Stratafs, |_| {
        let mut points = 0;
        for errno in [Errno::NOSPC, Errno::IO] {
            let gate = Gate::default();
            let (mut mount, shown) = start(&gate);
            for at in 0.. {
                gate.give(Order { at, act: Act::Fail(errno), counted: Counted::Changes });
                let opened = sys::open(&mount.at(NAMES[1]), OFlags::RDWR, 0);
                let call = gate.take();
                let when = format!("{errno} at call {at}, {call:?}: {:?}", opened.as_ref().err());
                assert!(call.is_some() || opened.is_ok(), "{when}");
                drop(opened);
                assert_same(&look(&mount), &shown, &when);
                assert_eq!(NAMES.map(|name| sys::ino(&mount.at(name))), [sys::ino(&mount.at(NAMES[0])); 3], "{when}");
                let holds = |layer: &&std::path::PathBuf| sys::exists(&layer.join(NAMES[0]));
                let layer = mount.layers().lowers.iter().find(holds).unwrap();
                assert_eq!(
                    NAMES.map(|name| sys::ino(&layer.join(name))),
                    [sys::ino(&layer.join(NAMES[0])); 3],
                    "{when}"
                );
                if call.is_none() {
                    break;
                }
                points += 1;
                mount.checkpoint();
            }
            sys::append(&mount.at(NAMES[0]), b"later\n").unwrap();
            assert_eq!(sys::text(&mount.at(NAMES[2])), "new\nlater\n");
            mount.unmount();
        }
        assert!(points > 20, "only {points} points");
        report("fault", Upper::Plain, "hard_link_of_a_checkpoint", points);
    });
}
