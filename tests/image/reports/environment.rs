//! The caller's settings and working directory do not change what a container sees.

use std::path::Path;
use std::process::{Command, Stdio};

use super::super::container::{World, worlds};
use super::*;

/// Runs the program from a shell that first makes some settings.
fn after(world: &World, set_up: &str, args: &[&str]) -> Output {
    let mut command = Command::new("/bin/sh");
    command.env("STRATA_DRIVER", world.driver).stdin(Stdio::null());
    command.args(["-c", &format!("{set_up}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_strata"), "--root"]);
    command.arg(world.root()).args(args).output().unwrap()
}

#[test]
fn the_callers_umask_changes_nothing() {
    for world in worlds() {
        let show = "for d in / /dev /dev/shm /etc /etc/hosts /etc/resolv.conf /tmp /proc /sys /mnt/v; do ls -ld $d; done; umask";
        let modes = |umask: &str| {
            let volume = format!("{}:/mnt/v/deep", world.dir.path().display());
            let args = ["run", "--rm", "-v", &volume, "tool:1", show];
            let output = after(&world, &format!("umask {umask}"), &args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mode = |line: &str| format!("{} {}", line.split(' ').next().unwrap(), line.rsplit(' ').next().unwrap());
            (text.lines().map(mode).collect::<Vec<_>>(), told(&output))
        };
        let (expected, _) = modes("022");
        assert!(expected.len() > 8, "{expected:?}");
        for umask in ["077", "000", "777", "027"] {
            let (found, said) = modes(umask);
            assert_eq!(found, expected, "{}: {umask}: {said}", world.driver);
        }
    }
}

#[test]
fn empty_variables_are_as_unset() {
    for world in worlds().into_iter().take(1) {
        let names = [
            "SOURCE_DATE_EPOCH",
            "STRATA_ROOT",
            "STRATA_RUNTIME",
            "STRATA_DRIVER",
            "STRATA_LOG",
            "HOME",
            "TMPDIR",
            "XDG_DATA_HOME",
            "XDG_CONFIG_HOME",
            "XDG_RUNTIME_DIR",
            "DOCKER_CONFIG",
            "REGISTRY_AUTH_FILE",
            "NO_COLOR",
        ];
        for name in names {
            let set = format!("export {name}=");
            world.ok(&["mount", "--name", "c", "tool:1"]);
            world.ok(&["umount", "c"]);
            for args in [&["images"][..], &["commit", "c", "tool:2"], &["run", "--rm", "tool:1", "true"], &["ps", "-a"]]
            {
                let output = after(&world, &set, args);
                assert!(output.status.success(), "{name}: {args:?}: {}", told(&output));
            }
            world.ok(&["rm", "c"]);
        }
        // Values that a container gets from the caller stay the same.
        let output = after(
            &world,
            "export TMPDIR= X=",
            &["run", "--rm", "-e", "TMPDIR", "-e", "X", "tool:1", "echo \"${TMPDIR-unset}|${X-unset}|${Y-unset}\""],
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout), "||unset\n", "{}", told(&output));
    }
}

#[test]
fn a_directory_that_is_gone_and_closed_streams() {
    for world in worlds() {
        let driver = world.driver;
        let gone = world.dir.path().join("gone");
        let set_ups = [
            format!("mkdir {0}; cd {0}; rmdir {0}", gone.display()),
            "exec <&-".to_owned(),
            "exec 2>&-".to_owned(),
            "exec <&- 2>&-".to_owned(),
            "LC_ALL=de_DE.UTF-8; LANG=tr_TR; export LC_ALL LANG".to_owned(),
            "TMPDIR=/nonexistent; export TMPDIR".to_owned(),
            "ulimit -n 64".to_owned(),
            "ulimit -c 0".to_owned(),
        ];
        for set_up in set_ups {
            let output = after(&world, &set_up, &["run", "--rm", "tool:1", "echo hello >/tmp/x; cat /tmp/x"]);
            assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "{driver}: {set_up}: {}", told(&output));
            assert_eq!(world.mounts(), 0, "{driver}: {set_up}");
        }
        assert!(after(&world, "exec >&-", &["run", "--rm", "tool:1", "true"]).status.success(), "{driver}");
        assert_eq!(after(&world, "exec >/dev/full", &["images"]).status.code(), Some(1), "{driver}");
    }
}

#[test]
fn odd_characters_in_paths() {
    for world in worlds() {
        for odd in ["back\\slash", "co:lon", "com,ma", "bl ank", "quo'te\"", "-dash", "hash#", "$dollar", "new\nline"] {
            let root = world.dir.path().join(odd).join("store");
            let run = |args: &[&str]| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
                command.env("STRATA_DRIVER", world.driver).arg("--root").arg(&root).args(args).stdin(Stdio::null());
                command.output().unwrap()
            };
            let tar = world.dir.path().join("rootfs.tar");
            assert!(run(&["import", tar.to_str().unwrap(), "tool:1"]).status.success());
            let source = root.parent().unwrap().join(odd);
            std::fs::create_dir(&source).unwrap();
            std::fs::write(source.join("here"), "").unwrap();
            let volume = format!("{}:/v", source.display());
            let output = run(&["run", "--rm", "-v", &volume, "tool:1", "/bin/ls", "/v"]);
            let (shown, said) = (String::from_utf8_lossy(&output.stdout).into_owned(), told(&output));
            assert_eq!(shown, "here\n", "{}: {odd:?}: {said}", world.driver);
            assert_eq!(world.mounts(), 0, "{}: {odd:?}", world.driver);
        }
    }
}

#[test]
fn a_volume_on_the_root_is_refused_before_anything_is_made() {
    for world in worlds().into_iter().take(1) {
        for destination in ["/", "//", "/.", "/x/..", "/:ro"] {
            let output = world.run(&["run", "-v", &format!("/etc:{destination}"), "tool:1", "true"]);
            assert_eq!(output.status.code(), Some(125), "{destination}: {}", told(&output));
        }
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0));
    }
}

#[test]
fn a_dangling_link_at_resolv_conf() {
    for world in worlds() {
        let driver = world.driver;
        for target in ["../run/systemd/resolve/stub-resolv.conf", "/run/resolv.conf", "nowhere"] {
            let merged = world.ok(&["mount", "--name", "l", "tool:1"]);
            std::os::unix::fs::symlink(target, Path::new(merged.trim()).join("etc/resolv.conf")).unwrap();
            world.ok(&["umount", "l"]);
            world.ok(&["commit", "l", "tool:link"]);
            world.ok(&["rm", "l"]);
            let shown = world.ok(&["run", "--name", "c", "tool:link", "cat /etc/resolv.conf"]);
            assert_eq!(shown, std::fs::read_to_string("/etc/resolv.conf").unwrap(), "{driver}: {target}");
            assert_eq!(world.ok(&["diff", "c"]), "", "{driver}: {target}");
            world.ok(&["rm", "c"]);
            assert_eq!(world.mounts(), 0);
        }
    }
}
