//! Thirty processes at once: a name belongs to one process, and a generated name never collides.

use std::collections::BTreeSet;
use std::process::{Child, Output, Stdio};

use super::super::container::{World, worlds};
use super::*;

const MANY: usize = 30;

/// Starts the same command many times and waits for all.
fn at_once(start: impl Fn(usize) -> Child) -> Vec<Output> {
    let children: Vec<Child> = (0..MANY).map(start).collect();
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn spawn(world: &World, args: &[&str]) -> Child {
    world.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn names_that_are_chosen_for_containers_do_not_collide() {
    for world in worlds().into_iter().take(1) {
        let made = at_once(|_| spawn(&world, &["mount", "--read-only", "tool:1"]));
        let names: BTreeSet<Vec<u8>> = made.iter().map(|output| output.stdout.clone()).collect();
        let failed: Vec<String> = made.iter().filter(|output| !output.status.success()).map(told).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(names.len(), MANY);
        let listed = world.ok(&["ps", "-aq"]);
        let mut args = vec!["rm", "-f"];
        args.extend(listed.lines());
        world.ok(&args);
        let ran = at_once(|number| spawn(&world, &["run", "--rm", "tool:1", &format!("echo {number}")]));
        for (number, output) in ran.iter().enumerate() {
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{number}\n"), "{}", told(output));
        }
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0));
    }
}

#[test]
fn a_name_that_the_user_chose_is_taken_once() {
    for world in worlds().into_iter().take(1) {
        let made = at_once(|_| spawn(&world, &["mount", "--name", "c", "tool:1"]));
        let (won, lost): (Vec<&Output>, Vec<&Output>) = made.iter().partition(|output| output.status.success());
        assert_eq!(won.len(), 1, "{:?}", lost.iter().map(|output| told(output)).collect::<Vec<_>>());
        for output in lost {
            assert!(told(output).contains("there is a container of that name already"), "{}", told(output));
        }
        world.ok(&["umount", "c"]);
        // Removed by many at once: one of them succeeds.
        let removed = at_once(|_| spawn(&world, &["rm", "c"]));
        assert_eq!(removed.iter().filter(|output| output.status.success()).count(), 1);
        for output in removed.iter().filter(|output| !output.status.success()) {
            let told = told(output);
            assert!(told.contains("c: no such container") || told.contains("c: is mounted or running"), "{told}");
        }
        assert_eq!(world.ok(&["ps", "-aq"]), "");
    }
}

#[test]
fn one_container_mounted_unmounted_and_removed_by_many() {
    for world in worlds() {
        world.ok(&["mount", "--name", "c", "tool:1"]);
        world.ok(&["umount", "c"]);
        let verbs: [&[&str]; 5] = [&["mount", "c"], &["umount", "c"], &["diff", "c"], &["commit", "c"], &["ps", "-a"]];
        let done = at_once(|number| spawn(&world, verbs[number % verbs.len()]));
        for (number, output) in done.iter().enumerate() {
            let verb = verbs[number % verbs.len()];
            let told = told(output);
            // Unmounting fails if another process has unmounted it; nothing else fails.
            let excused = verb[0] == "umount" && told.contains("is not mounted") || told.contains("is in use");
            assert!(output.status.success() || excused, "{}: {verb:?}: {told}", world.driver);
        }
        world.ok(&["rm", "-f", "c"]);
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{}", world.driver);
        world.ok(&["verify"]);
    }
}

#[test]
fn loads_tags_removals_and_collections_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let archive = dir.path().join("in.tar");
    std::fs::write(&archive, docker_old("docker.io/library/x:1")).unwrap();
    let archive = archive.to_str().unwrap();
    ok(&root, &["load", "-qi", archive]);
    let done = at_once(|number| {
        let tag = format!("y:{number}");
        let args: Vec<&str> = match number % 6 {
            0 => vec!["load", "-qi", archive],
            1 => vec!["tag", "x:1", &tag],
            2 => vec!["gc", "--untagged"],
            3 => vec!["images"],
            4 => vec!["rmi", "x:1"],
            _ => vec!["verify"],
        };
        command(&root, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    for (number, output) in done.iter().enumerate() {
        let told = told(output);
        let gone = told.contains("no such image") || told.contains("was removed meanwhile");
        let excused = matches!(number % 6, 1 | 4) && gone;
        assert!(output.status.success() && told.find("WARN").is_none() || excused, "{number}: {told}");
    }
    ok(&root, &["load", "-qi", archive]);
    ok(&root, &["verify"]);
    assert!(ok(&root, &["images"]).contains("x "));
}
