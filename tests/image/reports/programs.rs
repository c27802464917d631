//! A program that cannot be started: 127 if it does not exist, 126 if it is not executable, as in shells and docker. An
//! existing program is found, also through a link into a volume.

use std::path::Path;

use super::super::container::{World, worlds};
use super::*;

/// `tool:2`: scripts, links and files that are no programs.
fn with_programs(world: &World) {
    let script = "cd /data
        printf '#!/nonexistent/sh\\n' >no-interpreter; printf '#! /bin/sh\\necho script\\n' >script
        printf '#!/bin/link\\n' >link-interpreter; ln -s /nonexistent /bin/link
        printf '\\177ELF nonsense' >elf; printf 'x' >plain; mkdir dir; ln -s loop loop; ln -s script to-script
        ln -s /vol/tool in-volume; ln -s /vol/bin /bin/more; ln -s nowhere to-nowhere
        cp /bin/ls /bin/ls2 2>/dev/null; : >mine; rm -f /bin/ls2";
    world.ok(&["run", "--name", "p", "tool:1", script]);
    let merged = world.ok(&["mount", "p"]);
    let data = Path::new(merged.trim()).join("data");
    use std::os::unix::fs::PermissionsExt;
    for name in ["no-interpreter", "script", "link-interpreter", "elf"] {
        std::fs::set_permissions(data.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(data.join("mine"), PermissionsExt::from_mode(0o700)).unwrap();
    world.ok(&["umount", "p"]);
    world.ok(&["commit", "-c", "ENTRYPOINT []", "-c", "CMD []", "p", "tool:2"]);
    world.ok(&["rm", "p"]);
}

/// Program, exit code, message.
const TABLE: [(&str, i32, &str); 15] = [
    ("nonexistent", 127, "nonexistent"),
    ("/nonexistent", 127, "/nonexistent"),
    ("/nonexistent/x", 127, "/nonexistent/x"),
    ("/bin/sh/x", 127, "/bin/sh/x"),
    ("/data/no-interpreter", 127, "interpreter"),
    ("/data/link-interpreter", 127, "interpreter"),
    ("/data/loop", 127, "/data/loop"),
    ("/data/to-nowhere", 127, "/data/to-nowhere"),
    ("/data/plain", 126, "not executable"),
    ("/data/dir", 126, "directory"),
    ("/data", 126, "directory"),
    ("/data/in-volume", 127, "/data/in-volume"),
    ("/data/script", 0, ""),
    ("/data/to-script", 0, ""),
    ("", 127, ""),
];

#[test]
fn exit_codes_of_run_and_exec() {
    for world in worlds() {
        let driver = world.driver;
        with_programs(&world);
        world.ok(&["run", "-d", "--name", "c", "tool:2", "/bin/sleep", "1000"]);
        for (program, code, message) in TABLE {
            for args in [&["run", "--rm", "tool:2", program][..], &["exec", "c", program]] {
                let output = world.run(args);
                let said = told(&output);
                assert_eq!(output.status.code(), Some(code), "{driver}: {args:?}: {said}");
                assert!(
                    said.contains(message) && (code == 0 || said.lines().count() == 1),
                    "{driver}: {args:?}: {said}"
                );
            }
        }
        for args in [&["run", "--rm", "-u", "me", "tool:2", "/data/mine"][..], &["exec", "-u", "me", "c", "/data/mine"]]
        {
            assert_eq!(world.run(args).status.code(), Some(126), "{driver}: {args:?}: not this user's");
        }
        assert_eq!(world.run(&["exec", "-w", "/data/plain", "c", "/bin/ls"]).status.code(), Some(126), "{driver}");
        assert_eq!(world.run(&["exec", "c", "/bin/sh", "-c", "exit 3"]).status.code(), Some(3), "{driver}");
        // Decisions of the kernel are left to the kernel.
        assert_eq!(world.run(&["exec", "c", "/proc/1/exe", "--version"]).status.code(), Some(0), "{driver}");
        world.ok(&["rm", "-f", "c"]);
        assert_eq!(world.mounts(), 0);
    }
}

#[test]
fn programs_are_found_by_links_into_volumes() {
    for world in worlds() {
        let driver = world.driver;
        with_programs(&world);
        let host = world.dir.path().join("host");
        std::fs::create_dir_all(host.join("bin")).unwrap();
        for name in ["tool", "bin/further"] {
            std::fs::write(host.join(name), "#!/bin/sh\necho from the volume\n").unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(host.join(name), mode).unwrap();
        }
        let volume = format!("{}:/vol", host.display());
        for args in
            [&["/data/in-volume"][..], &["-e", "PATH=/bin/more:/bin", "further"], &["/vol/tool"], &["/vol/bin/../tool"]]
        {
            let (options, program) = args.split_at(args.len() - 1);
            let words = [&["run", "--rm", "-v", &volume], options, &["tool:2"], program].concat();
            assert_eq!(world.ok(&words), "from the volume\n", "{driver}: {args:?}");
        }
        let missing = world.run(&["run", "--rm", "-v", &volume, "tool:2", "/vol/missing"]);
        assert_eq!(missing.status.code(), Some(127), "{driver}: {}", told(&missing));
    }
}
