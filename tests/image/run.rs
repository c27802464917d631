//! `run`: values from the image's configuration and from options, and what survives a crash.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::container::{World, processes, wait_until, worlds};
use super::tar_build::Tar;

/// The one-line message of a command that must fail.
fn refusal(world: &World, code: i32, args: &[&str]) -> String {
    let output = world.run(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.lines().count()), (Some(code), 1), "{args:?}: {message}");
    assert!(message.starts_with("strata: "), "{message}");
    message
}

#[test]
fn volumes_of_the_image_are_no_change_of_the_container() {
    for world in worlds() {
        let driver = world.driver;
        world.ok(&["run", "--name", "c", "-u", "0", "tool:1", "mkdir /data/in; ln -s in /data/link; touch /data/in/x"]);
        world.ok(&["commit", "-c", "VOLUME /data /fresh/deep", "c", "tool:volumes"]);
        let script = "ls /data /data/link/; echo new >/data/new; echo z >/fresh/deep/z; echo y >/tmp/y";
        let shown = world.ok(&["run", "--name", "v", "tool:volumes", script]);
        assert_eq!(shown, "/data:\nin\nlink\nlower\n\n/data/link/:\nx\n", "{driver}: filled with what the image has");
        assert_eq!(world.ok(&["diff", "v"]), "C /tmp\nA /tmp/y\n", "{driver}");
        let volumes = world.root().join("containers/v/volumes");
        assert_eq!(std::fs::read_to_string(volumes.join("0/new")).unwrap(), "new\n", "{driver}");
        world.ok(&["rm", "v"]);
        assert!(!volumes.exists());
        let host = world.dir.path().join("host");
        std::fs::create_dir(&host).unwrap();
        std::fs::write(host.join("mine"), "").unwrap();
        let over = format!("{}:/data", host.display());
        assert_eq!(world.ok(&["run", "--rm", "-v", &over, "tool:volumes", "ls /data"]), "mine\n", "{driver}");
        world.ok(&["run", "--rm", "tool:volumes", "test ! -e /data/new"]);
        assert_eq!(world.mounts(), 0);
    }
}

/// An image of little more than this.
fn hostile(world: &World, name: &str, tar: Tar) {
    let path = world.dir.path().join("hostile.tar");
    std::fs::write(&path, tar.dir("bin/").file("bin/sh", "").end()).unwrap();
    world.ok(&["import", "-c", "CMD [\"/bin/sh\"]", path.to_str().unwrap(), name]);
}

#[test]
fn links_of_the_image_lead_nowhere() {
    for world in worlds() {
        let driver = world.driver;
        // The user's name is looked up in the image, even if a link points elsewhere.
        for target in ["/etc/passwd", "../../../../../../etc/passwd", "/proc/self/root/etc/passwd"] {
            hostile(&world, "hostile:passwd", Tar::new().dir("etc/").symlink("etc/passwd", target));
            let told = refusal(&world, 125, &["run", "--rm", "-u", "daemon", "hostile:passwd"]);
            assert!(told.contains("daemon: no such user in the image's /etc/passwd"), "{driver}: {told}");
        }
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{driver}");
        let inside = world.dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        world.ok(&["run", "--name", "l", "tool:1", "ln -s /data /link"]);
        world.ok(&["commit", "l", "tool:link"]);
        let volume = format!("{}:/link/v", inside.display());
        world.ok(&["run", "--rm", "-v", &volume, "tool:link", "touch /data/v/here"]);
        assert!(inside.join("here").exists() && !Path::new("/data/v").exists(), "{driver}");
    }
}

#[test]
fn links_at_the_kernels_mount_points_are_refused() {
    for world in worlds() {
        for name in ["proc", "dev", "sys"] {
            let merged = world.ok(&["mount", "--name", "h", "tool:1"]);
            let merged = Path::new(merged.trim());
            std::os::unix::fs::symlink("/etc", merged.join(name)).unwrap();
            world.ok(&["umount", "h"]);
            world.ok(&["commit", "h", "tool:hostile"]);
            world.ok(&["rm", "h"]);
            let told = refusal(&world, 125, &["run", "--rm", "tool:hostile"]);
            assert!(told.contains(&format!("its /{name} is no directory")), "{}: {told}", world.driver);
            assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0));
        }
    }
}

#[test]
fn a_stop_signal_of_the_image_is_sent() {
    for world in worlds() {
        let merged = world.ok(&["mount", "--name", "s", "tool:1"]);
        assert!(Path::new(merged.trim()).exists());
        world.ok(&["umount", "s"]);
        world.ok(&["commit", "-c", "STOPSIGNAL SIGUSR1", "s", "tool:signal"]);
        let script = "trap 'exit 5' USR1; touch /tmp/ready; while :; do sleep 0.05; done";
        world.ok(&["run", "-d", "--name", "c", "tool:signal", script]);
        let ready = world.root().join("containers/c/merged/tmp/ready");
        wait_until("its trap", || ready.exists());
        world.ok(&["stop", "-t", "60", "c"]);
        assert!(world.ok(&["ps", "-a"]).contains("Exited (5)"), "{}", world.driver);
    }
}

/// Unmounting writes everything to the disk; even while that takes time, the container has ended.
#[test]
fn stopping_waits_for_the_unmount() {
    // The program does the same for both drivers.
    for world in worlds().into_iter().take(1) {
        world.ok(&[
            "run",
            "-d",
            "--name",
            "c",
            "tool:1",
            "trap 'exit 5' TERM; touch /tmp/ready; while :; do sleep 0.05; done",
        ]);
        let ready = world.root().join("containers/c/merged/tmp/ready");
        wait_until("its trap", || ready.exists());
        let supervisors = processes(world.dir.path(), "supervise c");
        let [supervisor] = &supervisors[..] else { panic!("{supervisors:?}") };
        let signal = |name: &str| Command::new("kill").args([name, supervisor]).status().unwrap();
        assert!(signal("-STOP").success());
        let stopped = std::thread::scope(|scope| {
            let stop = scope.spawn(|| world.run(&["stop", "-t", "60", "c"]));
            std::thread::sleep(Duration::from_secs(12));
            let waits = !stop.is_finished();
            assert!(signal("-CONT").success());
            let output = stop.join().unwrap();
            assert!(waits, "{}: {output:?}", world.driver);
            output
        });
        assert!(stopped.status.success(), "{}: {stopped:?}", world.driver);
        let ps = world.ok(&["ps", "-a"]);
        assert!(ps.contains("Exited (5)"), "{}: {ps}", world.driver);
        assert_eq!(world.mounts(), 0);
    }
}

#[test]
fn exec_uses_the_given_user_and_directory() {
    for world in worlds() {
        let driver = world.driver;
        world.ok(&["run", "-d", "--name", "c", "-e", "B=run", "tool:1", "sleep 1000"]);
        let show = "id; echo $HOME $A $B $C; ls";
        let shown = world.ok(&["exec", "-u", "me", "-e", "C=exec", "-w", "/data", "c", "/bin/sh", "-c", show]);
        assert_eq!(
            shown, "uid=1000(me) gid=1001(us) groups=1001(us),50(more)\n/home/me image run exec\nlower\n",
            "{driver}"
        );
        assert!(world.ok(&["exec", "c", "/bin/id"]).starts_with("uid=0(root)"), "{driver}");
        let told = refusal(&world, 125, &["exec", "-u", "nobody", "c", "/bin/id"]);
        assert!(told.contains("nobody: no such user"), "{told}");
        world.ok(&["stop", "-t", "0", "c"]);
        assert!(refusal(&world, 1, &["exec", "c", "/bin/id"]).contains("c: does not run"));
        assert!(refusal(&world, 1, &["exec", "d", "/bin/id"]).contains("d: no such container"));
        let told = refusal(&world, 125, &["run", "--name", "c", "tool:1"]);
        assert!(told.contains("there is a container of that name already"), "{told}");
    }
}

#[test]
fn logs_are_followed_and_cut() {
    for world in worlds() {
        let script = "echo 1; echo 2; echo 3; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last";
        world.ok(&["run", "-d", "--name", "c", "tool:1", script]);
        wait_until("three lines", || world.ok(&["logs", "c"]) == "1\n2\n3\n");
        for (lines, expected) in [("0", ""), ("1", "3\n"), ("2", "2\n3\n"), ("3", "1\n2\n3\n"), ("9", "1\n2\n3\n")] {
            assert_eq!(world.ok(&["logs", "--tail", lines, "c"]), expected, "{}: {lines}", world.driver);
        }
        let mut follower = world.command(&["logs", "-f", "-n", "1", "c"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(follower.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "3\n");
        // Not by `exec`: the end of the container may kill that process first.
        std::fs::write(world.root().join("containers/c/merged/tmp/go"), "").unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), follower.wait().unwrap().success()), ("last\n", true), "{}", world.driver);
        wait_until("no mount", || world.mounts() == 0);
    }
}

#[test]
fn limits_reach_the_cgroup() {
    for world in worlds() {
        let bounded = ["run", "--rm", "-m", "64m", "--pids-limit", "77", "tool:1"];
        let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null;
            cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true";
        let output = world.run(&[&bounded[..], &[script]].concat());
        if !output.status.success() || output.stdout.is_empty() {
            // The machine's cgroups are not ours to set.
            super::skip("run::limits_reach_the_cgroup", String::from_utf8_lossy(&output.stderr).trim());
            continue;
        }
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "67108864\n77\n", "{}", world.driver);
    }
}

#[test]
fn a_killed_program_is_told_by_the_exit_code() {
    for world in worlds() {
        let driver = world.driver;
        let killed = world.run(&["run", "--rm", "tool:1", "sh -c 'kill -9 $$'; exit $?"]);
        assert_eq!(killed.status.code(), Some(137), "{driver}");
        assert_eq!(world.mounts(), 0);
    }
}

#[test]
fn commit_changes_the_configuration() {
    for world in worlds() {
        world.ok(&["run", "--name", "c", "tool:1", "echo made >/made"]);
        let changes = [
            "CMD [\"ls\", \"/\"]",
            "ENTRYPOINT [\"/bin/env\"]",
            "ENV A=committed B=2",
            "LABEL org.example.a=b",
            "USER me:us",
            "WORKDIR /data",
            "EXPOSE 80 53/udp",
            "VOLUME /var/x",
            "STOPSIGNAL SIGINT",
        ];
        let mut args = vec!["commit", "-m", "a message", "-a", "Me <me@example.org>"];
        changes.iter().for_each(|change| args.extend(["-c", change]));
        args.extend(["c", "tool:2"]);
        world.ok(&args);
        let config: serde_json::Value = serde_json::from_str(&world.ok(&["inspect", "--config", "tool:2"])).unwrap();
        let expected = serde_json::json!({
            "Entrypoint": ["/bin/env"], "Cmd": ["ls", "/"], "Env": ["A=committed", "B=2"],
            "Labels": {"org.example.a": "b"}, "User": "me:us", "WorkingDir": "/data",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/var/x": {}}, "StopSignal": "SIGINT",
        });
        assert_eq!(config["config"], expected, "{}", world.driver);
        assert_eq!(config["author"], "Me <me@example.org>");
        let last = config["history"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["comment"], &last["author"]), (&"a message".into(), &"Me <me@example.org>".into()));
        let words = world.ok(&["run", "--rm", "tool:2", "/bin/sh", "-c", "id -un; pwd; echo $A $B; cat /made"]);
        assert_eq!(words, "me\n/data\ncommitted 2\nmade\n", "{}", world.driver);
    }
}

/// As after a reboot: no process, no mount, and nothing in `/run`.
#[test]
fn after_a_crash_of_everything_it_is_stopped_and_can_be_mounted() {
    for world in worlds() {
        let driver = world.driver;
        for reboot in [false, true] {
            world.ok(&["run", "-d", "--name", "c", "tool:1", "echo kept >/data/kept; sleep 1000"]);
            let dir = world.root().join("containers/c");
            wait_until("the change", || {
                std::fs::read(dir.join("upper/data/kept")).is_ok_and(|bytes| bytes == b"kept\n")
            });
            let state = std::fs::read(dir.join("state.json")).unwrap();
            let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
            let mut pids = processes(world.dir.path(), "supervise c");
            pids.extend(processes(world.dir.path(), "--bundle"));
            pids.extend(processes(world.dir.path(), "fsname=strata-c"));
            pids.push(state["process"]["pid"].to_string());
            for pid in &pids {
                Command::new("kill").args(["-9", pid]).status().unwrap();
            }
            let gone = |pid: &String| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            };
            wait_until("their end", || pids.iter().all(gone));
            if reboot {
                Command::new("umount").arg("-l").arg(dir.join("merged")).status().unwrap();
                let id = stratafs::image::digest::Digest::of(world.root().as_os_str().as_encoded_bytes()).hex();
                std::fs::remove_dir_all(Path::new("/run/strata").join(&id[..16])).unwrap();
            }
            let listed = world.ok(&["ps", "-a"]);
            assert!(
                listed.lines().any(|line| line.ends_with(" c") && line.contains(" Stopped ")),
                "{driver}: {listed}"
            );
            let merged = world.ok(&["mount", "c"]);
            assert_eq!(std::fs::read(Path::new(merged.trim()).join("data/kept")).unwrap(), b"kept\n", "{driver}");
            world.ok(&["umount", "c"]);
            world.ok(&["commit", "c", "tool:kept"]);
            world.ok(&["rm", "c"]);
            assert_eq!(world.ok(&["run", "--rm", "--name", "c", "tool:kept", "cat /data/kept"]), "kept\n", "{driver}");
            assert_eq!(world.mounts(), 0);
        }
    }
}

/// An image is loaded and removed, `gc` runs and the store is verified while the image is run. A run sees a whole image
/// or none, and a running container keeps its image to the end.
#[test]
fn loads_and_collections_beside_a_run() {
    const ROUNDS: usize = 8;
    for world in worlds() {
        let driver = world.driver;
        let archive = world.dir.path().join("two.tar");
        let archive = archive.to_str().unwrap();
        world.ok(&["run", "--name", "c", "tool:1", "echo two >/data/two"]);
        world.ok(&["commit", "c", "tool:2"]);
        world.ok(&["save", "-o", archive, "tool:2"]);
        world.ok(&["rm", "c"]);
        world.ok(&["rmi", "tool:2"]);
        let fails = |args: &[&str], excuse: &str| {
            let output = world.run(args);
            let told = String::from_utf8(output.stderr).unwrap();
            let excused = !output.status.success() && !excuse.is_empty() && told.contains(excuse);
            assert!(output.status.success() || excused, "{driver}, {args:?}: {told}");
            excused
        };
        let (whole, mut absent) = (AtomicUsize::new(0), 0);
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| {
                for round in 0..ROUNDS {
                    fails(&["load", "-q", "-i", archive], "");
                    let (before, patience) = (whole.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(20));
                    // Every other time it is removed at once.
                    while round % 2 == 0 && whole.load(Ordering::Relaxed) == before && Instant::now() < patience {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    fails(&["rmi", "tool:2"], "is made of it; remove that first");
                }
            });
            scope.spawn(|| {
                for _ in 0..2 * ROUNDS {
                    fails(&["gc", "--untagged"], "");
                    fails(&["verify"], "");
                }
            });
            let script = "cat /data/two /data/lower; echo mine >/data/mine; cat /data/mine";
            while !loader.is_finished() {
                let output = world.run(&["run", "--rm", "--pull", "never", "tool:2", script]);
                let told = String::from_utf8(output.stderr).unwrap();
                if output.status.success() {
                    assert_eq!(String::from_utf8(output.stdout).unwrap(), "two\nlower\nmine\n", "{driver}: {told}");
                    whole.fetch_add(1, Ordering::Relaxed);
                } else {
                    let gone = ["tool:2: no such image", "tool:2: was removed meanwhile"];
                    assert!(gone.iter().any(|gone| told.contains(gone)), "{driver}: {told}");
                    absent += 1;
                }
            }
        });
        let whole = whole.into_inner();
        println!("{driver}: {whole} runs of a whole image, {absent} times it was not there");
        assert!(whole >= ROUNDS / 2, "{driver}: it hardly ever ran");
        world.ok(&["load", "-q", "-i", archive]);
        assert_eq!(world.ok(&["run", "--rm", "tool:2", "cat /data/two"]), "two\n", "{driver}");
        world.ok(&["verify"]);
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{driver}");
    }
}
