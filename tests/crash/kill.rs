//! `kill -9` of the driver before each call that changes a layer, and before the reply.

use std::time::Duration;

use crate::common::stack::{Layers, Stack};
use crate::common::{Driver, Upper, run_test_within, skip, tree};
use crate::gate::{Act, Counted, Gate, Order};
use crate::verbs::{VERBS, Verb, scenes};
use crate::{Tree, check_crashed, refuses, report, soaking, without_times};

fn layers(verb: &Verb, upper: Upper) -> Layers {
    let stack = Stack::new().lower(&scenes(1)).upper_on(upper);
    verb.options.iter().fold(stack, |stack, option| stack.option(option)).build()
}

/// The tree before and after the change, without a fault.
fn before_and_after(verb: &Verb, upper: Upper) -> (Tree, Tree) {
    let mount = layers(verb, upper).mount(Driver::Stratafs);
    let scene = mount.at("0");
    (verb.prepare)(&scene).unwrap();
    let old = without_times(&tree::snapshot(mount.root(), true));
    (verb.act)(&scene).unwrap();
    let new = without_times(&tree::snapshot(mount.root(), true));
    assert_ne!(old, new, "{} changes something", verb.name);
    (old, new)
}

/// Kills at call number `at`. Returns false if the change has fewer calls.
fn kill_at(verb: &Verb, upper: Upper, at: usize, old: &Tree, new: &Tree) -> bool {
    let gate = Gate::default();
    let mount = layers(verb, upper).mount_started_by(|command| gate.spawn(command));
    let scene = mount.at("0");
    (verb.prepare)(&scene).unwrap();
    gate.give(Order { at, act: Act::Kill, counted: if soaking() { Counted::All } else { Counted::Changes } });
    let acted = (verb.act)(&scene);
    let Some(call) = gate.take() else {
        acted.unwrap();
        return false;
    };
    let when = format!("{} killed at call {at}, {call}", verb.name);
    check_crashed(mount.crash(), verb, old, new, &when);
    true
}

fn everywhere_on(upper: Upper, name: &'static str) {
    let test = format!("kill {upper:?} {name}");
    run_test_within(Duration::from_secs(1800), &test, Driver::Stratafs, move |_| {
        let verb = VERBS.iter().find(|verb| verb.name == name).unwrap();
        if refuses(upper, verb) {
            return skip(&format!("kill {name}"), &format!("{upper:?} refuses it"));
        }
        let (old, new) = before_and_after(verb, upper);
        let points = (0..).take_while(|&at| kill_at(verb, upper, at, &old, &new)).count();
        assert!(points > 1, "{name} has no calls to be killed at");
        report("kill", upper, name, points);
    });
}

fn everywhere(name: &'static str) {
    everywhere_on(Upper::Plain, name);
}

with_verbs!(test_each);

mod behind_bindfs {
    fn everywhere(name: &'static str) {
        super::everywhere_on(super::Upper::Bindfs, name);
    }

    with_fallback_verbs!(test_fallbacks);
}

mod with_xattr_whiteouts {
    fn everywhere(name: &'static str) {
        super::everywhere_on(super::Upper::XattrWhiteouts, name);
    }

    with_fallback_verbs!(test_fallbacks);
}
