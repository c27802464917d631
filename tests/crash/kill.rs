//! `kill -9` of the driver before each call that changes a layer, and before the reply.

use std::time::Duration;

use crate::common::stack::{Layers, Stack};
use crate::common::{Driver, run_test_within, tree};
use crate::gate::{Act, Gate, Order};
use crate::verbs::{VERBS, Verb, scenes};
use crate::{Tree, check_crashed, report, soaking, without_times};

fn layers(verb: &Verb) -> Layers {
    let stack = Stack::new().lower(&scenes(1));
    verb.options.iter().fold(stack, |stack, option| stack.option(option)).build()
}

/// The tree before and after the change, without a fault.
fn before_and_after(verb: &Verb) -> (Tree, Tree) {
    let mount = layers(verb).mount(Driver::Stratafs);
    let scene = mount.at("0");
    (verb.prepare)(&scene).unwrap();
    let old = without_times(&tree::snapshot(mount.root(), true));
    (verb.act)(&scene).unwrap();
    let new = without_times(&tree::snapshot(mount.root(), true));
    assert_ne!(old, new, "{} changes something", verb.name);
    (old, new)
}

/// Kills at call number `at`. False when the change has fewer calls.
fn kill_at(verb: &Verb, at: usize, old: &Tree, new: &Tree) -> bool {
    let gate = Gate::default();
    let mount = layers(verb).mount_started_by(|command| gate.spawn(command));
    let scene = mount.at("0");
    (verb.prepare)(&scene).unwrap();
    gate.give(Order { at, act: Act::Kill, looking: soaking() });
    let acted = (verb.act)(&scene);
    let Some(call) = gate.take() else {
        acted.unwrap();
        return false;
    };
    let when = format!("{} killed at call {at}, {call}", verb.name);
    check_crashed(mount.crash(), verb, old, new, &when);
    true
}

fn everywhere(name: &'static str) {
    run_test_within(Duration::from_secs(1800), name, Driver::Stratafs, move |_| {
        let verb = VERBS.iter().find(|verb| verb.name == name).unwrap();
        let (old, new) = before_and_after(verb);
        let points = (0..).take_while(|&at| kill_at(verb, at, &old, &new)).count();
        assert!(points > 1, "{name} has no calls to be killed at");
        report("kill", name, points);
    });
}

with_verbs!(test_each);
