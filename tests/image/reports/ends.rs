//! However `run` ends, its container is unmounted.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::container::{processes, wait_until, worlds};

/// A signal ends it a little later each time: while it makes the container, mounts, starts the runtime, runs and
/// unmounts.
#[test]
fn a_signal_at_any_moment_leaves_no_mount() {
    for world in worlds() {
        let driver = world.driver;
        for (number, after) in (0..24).map(|step| (step, Duration::from_millis(step * 12))) {
            let signal = ["-TERM", "-INT", "-HUP"][usize::try_from(number % 3).unwrap()];
            let mut child =
                world.command(&["run", "--rm", "tool:1", "sleep 0.1"]).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(after);
            Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
            child.wait().unwrap();
            wait_until(&format!("{driver}: no mount after {signal} at {after:?}"), || world.mounts() == 0);
            assert_eq!(world.ok(&["ps", "-aq"]), "", "{driver}: {signal} at {after:?}");
        }
        assert!(processes(world.dir.path(), "fsname=").is_empty(), "{driver}");
    }
}

/// A process group, as a terminal's: the runtime and the driver's starter get the signal too.
#[test]
fn an_interrupt_of_the_whole_group_leaves_no_mount() {
    use std::os::unix::process::CommandExt;
    for world in worlds() {
        let driver = world.driver;
        for step in 0..12 {
            let mut command = world.command(&["run", "--rm", "tool:1", "sleep 0.1"]);
            let mut child = command.stderr(Stdio::null()).process_group(0).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(step * 25));
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-INT", "--", &group]).stderr(Stdio::null()).status().unwrap();
            child.wait().unwrap();
            wait_until(&format!("{driver}: no mount after step {step}"), || world.mounts() == 0);
            assert_eq!(world.ok(&["ps", "-aq"]), "", "{driver}: step {step}");
        }
    }
}

/// A runtime that fails in several ways after the mount was made.
#[test]
fn a_runtime_that_fails_leaves_no_mount() {
    use std::os::unix::fs::PermissionsExt;
    for world in worlds() {
        let driver = world.driver;
        let program = world.dir.path().join("runtime");
        let path = program.to_str().unwrap().to_owned();
        let texts = [
            ("exits", "#!/bin/sh\nexit 1\n"),
            ("is killed", "#!/bin/sh\n[ \"$3\" = create ] && kill -9 $$\nexit 1\n"),
            ("is no program", "#!/nonexistent/interpreter\n"),
            ("says nonsense of the state", "#!/bin/sh\n[ \"$3\" = state ] && echo nonsense && exit 0\nexit 3\n"),
        ];
        for (what, text) in texts {
            std::fs::write(&program, text).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            for args in [
                &["run", "--rm", "--runtime", &path, "tool:1", "true"][..],
                &["run", "--rm", "-d", "--runtime", &path, "tool:1", "true"],
            ] {
                let output = world.run(args);
                assert!(!output.status.success() || args.contains(&"-d"), "{driver}: {what}");
                wait_until(&format!("{driver}: {what}: no mount"), || world.mounts() == 0);
                wait_until(&format!("{driver}: {what}: no container"), || world.ok(&["ps", "-aq"]).is_empty());
            }
        }
    }
}

#[test]
fn a_signal_while_it_is_being_detached_ends_it() {
    for world in worlds() {
        let driver = world.driver;
        for step in 0..8 {
            let mut child = world
                .command(&["run", "-d", "--rm", "tool:1", "trap 'exit 0' TERM INT; while :; do sleep 0.02; done"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(step * 20));
            Command::new("kill").args(["-TERM", &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
            child.wait().unwrap();
            let names = world.ok(&["ps", "-aq"]);
            // The mount may have been detached before the signal came.
            for name in names.lines() {
                world.run(&["rm", "-f", name]);
            }
            wait_until(&format!("{driver}: no mount after step {step}"), || world.mounts() == 0);
        }
    }
}

/// `export` mounts an image or a container for a while.
#[test]
fn an_interrupted_export_leaves_no_mount() {
    for world in worlds() {
        let driver = world.driver;
        world.ok(&["mount", "--name", "c", "tool:1"]);
        world.ok(&["umount", "c"]);
        let out = world.dir.path().join("out.tar");
        for step in 0..24 {
            let after = Duration::from_millis(step * 10);
            let name = ["c", "tool:1"][usize::from(step % 2 == 0)];
            let signal = ["-TERM", "-INT", "-HUP"][usize::try_from(step % 3).unwrap()];
            let args = ["export", "-o", out.to_str().unwrap(), name];
            let mut child = world.command(&args).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(after);
            Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
            let status = child.wait().unwrap();
            let context = format!("{driver}: {name}: {signal} at {after:?}");
            assert_eq!(status.success(), out.exists(), "{context}: the file is there, or not at all");
            wait_until(&context, || world.mounts() == 0);
            assert_eq!(world.names(), "c\n", "{context}");
            std::fs::remove_file(&out)
                .or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })
                .unwrap();
            let left = std::fs::read_dir(world.dir.path()).unwrap().count();
            assert_eq!(left, 2, "{context}: rootfs.tar and store");
        }
    }
}

/// The reader of the output has stopped, but keeps the pipe open.
#[test]
fn an_export_into_a_full_pipe_can_be_interrupted() {
    for world in worlds() {
        let driver = world.driver;
        for name in ["tool:1", "c"] {
            if name == "c" {
                world.ok(&["mount", "--name", "c", "tool:1"]);
                world.ok(&["umount", "c"]);
            }
            let mut child = world.command(&["export", name]).stdout(Stdio::piped()).spawn().unwrap();
            wait_until("it is mounted", || world.mounts() == 1);
            std::thread::sleep(Duration::from_millis(200));
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
            wait_until(&format!("{driver}: {name}: it ends"), || child.try_wait().unwrap().is_some());
            assert_eq!(child.wait().unwrap().code(), Some(128 + 15), "{driver}: {name}");
            assert_eq!(world.mounts(), 0, "{driver}: {name}");
        }
        assert_eq!(world.names(), "c\n", "{driver}");
    }
}
