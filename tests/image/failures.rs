//! If a `run` fails at any step, nothing is left behind.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::container::{World, processes, wait_until, worlds};

/// One driver is enough: the tested code is the same for all.
fn world() -> Option<World> {
    worlds().into_iter().next_back()
}

/// A runtime that runs `lines` and then runc.
fn runtime(world: &World, lines: &str) -> PathBuf {
    let path = world.dir.path().join("runtime");
    std::fs::write(&path, format!("#!/bin/sh\n{lines}\nexec runc \"$@\"\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs with these flags, which must fail with this code, and leave nothing.
fn leaves_nothing(world: &World, code: i32, flags: &[&str]) -> String {
    for detached in [None, Some("-d")] {
        let mut args = vec!["run", "--rm"];
        args.extend(detached);
        args.extend(flags);
        args.extend(["tool:1", "sleep 1000"]);
        let output = world.run(&args);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), told.lines().count()), (Some(code), 1), "{args:?}: {told}");
        assert!(told.starts_with("strata: "), "{told}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args:?}");
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{args:?}");
        assert_eq!(std::fs::read_dir(world.root().join("tmp")).unwrap().count(), 0, "{args:?}");
        wait_until("no process", || processes(world.dir.path(), "").is_empty());
        if detached.is_some() {
            return told;
        }
    }
    String::new()
}

#[test]
fn at_each_step() {
    let Some(world) = world() else { return };
    let file = world.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (missing, bad) = ("/nonexistent:/v".to_owned(), format!("{}:/data", file.display()));
    // Before the container exists, while it is mounted, and while its configuration is made.
    for (flags, why) in [
        (&["--runtime", "/nonexistent"][..], "/nonexistent"),
        (&["--name", "x y"], "name"),
        (&["-u", "nobody"], "no such user"),
        (&["-v", &missing], "/nonexistent"),
        (&["--cap-add", "FLY"], "--cap-add FLY: no such capability"),
        (&["--device", "/nosuch"], "--device /nosuch: "),
        (&["--security-opt", "nosuch"], "--security-opt nosuch: "),
        (&["--security-opt", "seccomp=/nonexistent"], "/nonexistent"),
        (&["--device", "/nonexistent"], "/nonexistent"),
        (&["-v", &bad], ""),
        (&["--sysctl", "no.such=1"], "no.such"),
    ] {
        let told = leaves_nothing(&world, 125, flags);
        assert!(told.contains(why), "{flags:?}: {told}");
    }
    for (flags, code) in [(&["--entrypoint", "/nope"][..], 127), (&["--entrypoint", "/etc/passwd"], 126)] {
        leaves_nothing(&world, code, flags);
    }
    // In the runtime.
    for verb in ["create", "start"] {
        let failing = runtime(&world, &format!("case \"$*\" in *' {verb} '*) echo 'no luck' >&2; exit 1 ;; esac"));
        let told = leaves_nothing(&world, 125, &["--runtime", failing.to_str().unwrap()]);
        assert!(told.contains("no luck"), "{verb}: {told}");
    }
    // It made the container, but reported failure.
    let lying = runtime(&world, "case \"$*\" in *' create '*) runc \"$@\"; echo 'no luck' >&2; exit 1 ;; esac");
    leaves_nothing(&world, 125, &["--runtime", lying.to_str().unwrap()]);
}
