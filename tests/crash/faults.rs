//! Each call on the layers fails, with each errno that a file system may return.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::common::stack::{Mount, Stack};
use crate::common::{Driver, Upper, run_test_within, skip, sys, tree};
use crate::gate::{Act, Call, Counted, Gate, Order};
use crate::verbs::{VERBS, Verb, scenes};
use crate::{Tree, refuses, report, soaking, without_any_times, without_devices_of_users, without_times};

/// Errors of calls that change something, and errors of all calls.
const CHANGES: [Errno; 2] = [Errno::NOSPC, Errno::DQUOT];
const ALL: [Errno; 3] = [Errno::IO, Errno::MFILE, Errno::NOMEM];

/// The error of a file system that does not know a flag of `renameat2(2)`.
const REFUSALS: [Errno; 1] = [Errno::INVAL];
const FLAGGED: Counted = Counted::Named("renameat2");

/// Scenes of one mount; each has one fault.
const SCENES: usize = 40;

/// One scene of the mount, by name.
fn scene_of(root: &Path, at: usize) -> Tree {
    without_times(&tree::snapshot(&root.join(at.to_string()), true))
}

fn difference(verb: &Verb, found: &Tree, expected: &Tree, mount: &Mount) -> String {
    if verb.leaves_device() && mount.log().contains("no device left") {
        // The rename is not undone.
        return tree::diff(&without_devices_of_users(found), &without_devices_of_users(expected));
    }
    if verb.options.contains(&"metacopy=on") {
        // Copying content into a metacopy file changes its time.
        return tree::diff(&without_any_times(found), &without_any_times(expected));
    }
    tree::diff(found, expected)
}

fn mount(verb: &Verb, upper: Upper, scene_count: usize, gate: &Gate) -> Mount {
    let stack = Stack::new().lower(&scenes(scene_count)).upper_on(upper);
    let stack = verb.options.iter().fold(stack, |stack, option| stack.option(option));
    stack.build().mount_started_by(|command| gate.spawn(command))
}

fn descriptors(mount: &Mount) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", mount.daemon().unwrap())).unwrap().count()
}

/// The result of one fault.
enum Outcome {
    /// The change has no call with this number.
    NoSuchCall,
    Old(Call),
    New,
}

struct Run<'a> {
    verb: &'a Verb,
    errno: Errno,
    counted: Counted,
    mount: &'a Mount,
    gate: &'a Gate,
}

impl Run<'_> {
    /// Call number `at` of the change of scene `scene` fails.
    fn fail_at(&self, scene: usize, at: usize, new: &Tree) -> Outcome {
        let path = self.mount.at(&scene.to_string());
        (self.verb.prepare)(&path).unwrap();
        let old = scene_of(self.mount.root(), scene);
        self.gate.give(Order { at, act: Act::Fail(self.errno), counted: self.counted });
        let acted = (self.verb.act)(&path);
        let struck = self.gate.take();
        let now = scene_of(self.mount.root(), scene);
        let Some(call) = struck else {
            acted.unwrap();
            return Outcome::NoSuchCall;
        };
        let when = format!("{}, {:?} at call {at}, {call}: {acted:?}", self.verb.name, self.errno);
        match acted {
            Ok(()) => Outcome::New,
            Err(errno) => {
                assert_eq!(errno, self.errno, "{when}");
                // If only a later read fails, the change has happened. The same is true for truncation on opening: the
                // copy-up leaves out the content (kernel: `ovl_open`).
                if (call.looks || self.verb.name == "open_truncating_lower") && now == *new {
                    return Outcome::New;
                }
                let difference = difference(self.verb, &now, &old, self.mount);
                assert!(difference.is_empty(), "{when}, but the tree has changed:\n{difference}");
                Outcome::Old(call)
            }
        }
    }
}

/// The results of the same changes without a fault.
struct Control {
    /// For each number of scenes, the descriptors that the daemon holds after them.
    held: Vec<usize>,
    /// A changed scene.
    new: Tree,
}

impl Control {
    fn of(verb: &Verb, upper: Upper) -> Self {
        let mount = mount(verb, upper, SCENES, &Gate::default());
        let mut held = vec![descriptors(&mount)];
        for scene in 0..SCENES {
            let path = mount.at(&scene.to_string());
            (verb.prepare)(&path).unwrap();
            scene_of(mount.root(), scene);
            (verb.act)(&path).unwrap();
            scene_of(mount.root(), scene);
            held.push(descriptors(&mount));
        }
        Self { held, new: scene_of(mount.root(), 0) }
    }
}

/// Lets every call of the change fail with `errno`, in as many mounts as needed. Returns the number of calls.
fn fail_each(verb: &Verb, upper: Upper, errno: Errno, counted: Counted, control: &Control) -> usize {
    let mut at = 0;
    loop {
        let gate = Gate::default();
        let mount = mount(verb, upper, SCENES, &gate);
        let run = Run { verb, errno, counted, mount: &mount, gate: &gate };
        let (mut done, mut used) = (false, 0);
        while used < SCENES && !done {
            match run.fail_at(used, at, &control.new) {
                Outcome::NoSuchCall => done = true,
                Outcome::New => at += 1,
                Outcome::Old(call) => {
                    // The error has passed: it can be done now.
                    let again = (verb.act)(&mount.at(&used.to_string()));
                    assert_eq!(again, Ok(()), "{}, again after {errno:?} at call {at}, {call}", verb.name);
                    at += 1;
                }
            }
            let difference = difference(verb, &scene_of(mount.root(), used), &control.new, &mount);
            assert!(difference.is_empty(), "{} with {errno:?} before call {at}:\n{difference}", verb.name);
            used += 1;
        }
        if at == 0 {
            // No call of those was made, so nothing has failed.
            return 0;
        }
        assert_descriptors_are_given_back(&mount, used, control, verb, errno);
        assert_no_stage_is_left(&mount, verb, errno);
        let mount = mount.remount(Driver::Stratafs);
        for scene in 0..used {
            let difference = difference(verb, &scene_of(mount.root(), scene), &control.new, &mount);
            assert!(difference.is_empty(), "{} with {errno:?}, mounted again:\n{difference}", verb.name);
        }
        if done {
            return at;
        }
    }
}

/// Waits until the daemon holds no more descriptors than after the same number of scenes without faults. If it holds
/// more, the scenes without faults are counted again: during the first count, the kernel may have forgotten dentries,
/// whose files the driver then closed.
#[track_caller]
fn assert_descriptors_are_given_back(mount: &Mount, used: usize, control: &Control, verb: &Verb, errno: Errno) {
    let mut held = control.held[used];
    for _ in 0..4 {
        // Files are closed a moment after their users have closed them.
        let patience = Instant::now() + Duration::from_secs(20);
        while descriptors(mount) > held && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        if descriptors(mount) <= held {
            return;
        }
        held = held.max(Control::of(verb, mount.layers().upper_on).held[used]);
    }
    let now = descriptors(mount);
    assert!(now <= held, "{} with {errno:?}: {now} descriptors are open, {held} without faults", verb.name);
}

#[track_caller]
fn assert_no_stage_is_left(mount: &Mount, verb: &Verb, errno: Errno) {
    let stage = mount.layers().work.as_ref().unwrap().join("work");
    let (shared, left): (Vec<String>, Vec<String>) =
        sys::names(&stage).into_iter().partition(|name| is_whiteout(&stage, name));
    // While the mount lives, the work directory holds one whiteout, of which all others are links, and files whose
    // removal failed, which the log names.
    let excused = mount.log().matches("cannot remove").count();
    let tidy = left.len() <= excused && shared.len() <= excused + 1;
    assert!(tidy, "{} with {errno:?}: left as stages: {left:?} {shared:?}", verb.name);
}

fn is_whiteout(work: &Path, name: &str) -> bool {
    let path = work.join(name);
    let by_xattr = || sys::getxattr(&path, "trusted.overlay.whiteout").is_ok();
    sys::lstat(&path).unwrap().st_mode & libc::S_IFMT == libc::S_IFCHR || by_xattr()
}

fn everywhere_on(upper: Upper, name: &'static str) {
    let test = format!("faults {upper:?} {name}");
    run_test_within(Duration::from_secs(1800), &test, Driver::Stratafs, move |_| {
        let place = VERBS.iter().position(|verb| verb.name == name).unwrap();
        let verb = &VERBS[place];
        if refuses(upper, verb) {
            return skip(&format!("faults {name}"), &format!("{upper:?} refuses it"));
        }
        let control = Control::of(verb, upper);
        let (changes, all) = match (soaking(), place % 3) {
            (true, _) => (&CHANGES[..], &ALL[..]),
            (false, 0) if upper == Upper::Plain => (&CHANGES[..1], &ALL[..1]),
            (false, _) => (&CHANGES[..1], &ALL[..0]),
        };
        let mut points = 0;
        for (errnos, counted) in [(changes, Counted::Changes), (all, Counted::All), (&REFUSALS[..], FLAGGED)] {
            points += errnos.iter().map(|&errno| fail_each(verb, upper, errno, counted, &control)).sum::<usize>();
        }
        assert!(points > 0, "{name} has no calls that could fail");
        report("fault", upper, name, points);
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
