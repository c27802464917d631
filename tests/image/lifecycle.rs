//! A container's life: made, started, paused, renamed, ended and started again; its monitor, and its recorded state.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::container::{World, processes, wait_until, worlds};
use super::pty::Terminal;

/// One driver is enough: the tested code is the same for all.
fn world() -> Option<World> {
    worlds().into_iter().next_back()
}

fn inspect(world: &World, name: &str) -> Value {
    let shown: Value = serde_json::from_str(&world.ok(&["inspect", name])).unwrap();
    shown[0].clone()
}

/// The one-line message of a command that must fail.
fn refusal(world: &World, code: i32, args: &[&str]) -> String {
    let output = world.run(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.lines().count()), (Some(code), 1), "{args:?}: {message}");
    message
}

#[test]
fn a_container_that_ended_starts_again_with_all_it_had() {
    for world in worlds() {
        let driver = world.driver;
        let mut create = world.command(&[
            "create",
            "--name",
            "c",
            "-e",
            "B",
            "-e",
            "C=3",
            "-w",
            "/data",
            "--label",
            "a=b",
            "tool:1",
            "echo $A $B $C; cat kept 2>&1; pwd; echo kept >kept; exit 3",
        ]);
        assert!(create.env("B", "mine").output().unwrap().status.success());
        assert!(world.ok(&["ps", "-a"]).contains("Created"), "{driver}");
        assert_eq!(inspect(&world, "c")["State"]["Status"], "created");
        let first = world.run(&["start", "-a", "c"]);
        let expected = "image mine 3\ncat: kept: No such file or directory\n/data\n";
        assert_eq!((String::from_utf8(first.stdout).unwrap(), first.status.code()), (expected.to_owned(), Some(3)));
        let shown = inspect(&world, "c");
        assert_eq!((&shown["State"]["ExitCode"], &shown["State"]["Status"]), (&3.into(), &"exited".into()), "{driver}");
        assert_eq!(shown["Config"]["Labels"]["a"], "b");
        assert_eq!(world.ok(&["diff", "c"]), "C /data\nA /data/kept\n", "{driver}");
        assert_eq!(world.mounts(), 0);
        let again = world.run(&["start", "-a", "c"]);
        assert_eq!(String::from_utf8(again.stdout).unwrap(), "image mine 3\nkept\n/data\n", "{driver}");
        assert_eq!(world.ok(&["logs", "-n", "3", "c"]), "image mine 3\nkept\n/data\n", "{driver}");
        assert_eq!(world.ok(&["wait", "c"]), "3\n");
        assert_eq!(
            world.ok(&["rm", &shown["Id"].as_str().unwrap()[..12]]),
            format!("{}\n", &shown["Id"].as_str().unwrap()[..12])
        );
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{driver}");
    }
}

#[test]
fn a_running_container_is_paused_renamed_and_killed() {
    let Some(world) = world() else { return };
    world.ok(&["run", "-d", "--name", "c", "tool:1", "trap 'echo usr' USR1; while :; do sleep 0.05; done"]);
    let pid = inspect(&world, "c")["State"]["Pid"].clone();
    assert!(world.ok(&["top", "c"]).contains(&pid.to_string()));
    assert_eq!(world.ok(&["start", "c"]), "c\n", "it runs already");
    if world.run(&["pause", "c"]).status.success() {
        assert!(world.ok(&["ps"]).contains("(Paused)"));
        assert!(refusal(&world, 1, &["pause", "c"]).contains("is paused already"));
        assert!(refusal(&world, 1, &["exec", "c", "/bin/id"]).contains("is paused"));
        world.ok(&["unpause", "c"]);
    } else {
        super::skip("lifecycle: pause", "the machine's cgroups cannot be frozen");
    }
    world.ok(&["rename", "c", "d"]);
    assert!(refusal(&world, 1, &["rename", "c", "e"]).contains("no such container"));
    assert_eq!(world.ok(&["exec", "d", "/bin/cat", "/data/lower"]), "lower\n");
    world.ok(&["run", "-d", "--name", "c", "tool:1", "sleep 1000"]);
    assert!(refusal(&world, 1, &["rename", "d", "c"]).contains("of that name already"));
    assert_eq!(world.ok(&["exec", "d", "/bin/cat", "/data/lower"]), "lower\n");
    world.ok(&["kill", "-s", "USR1", "d"]);
    wait_until("its answer", || world.ok(&["logs", "d"]) == "usr\n");
    let waiter = world.command(&["wait", "d", "c"]).stdout(Stdio::piped()).spawn().unwrap();
    world.ok(&["kill", "d"]);
    world.ok(&["stop", "-t", "0", "c"]);
    assert_eq!(waiter.wait_with_output().unwrap().stdout, b"137\n137\n");
    wait_until("no mount", || world.mounts() == 0);
    assert!(refusal(&world, 1, &["kill", "d"]).contains("d: does not run"));
    assert_eq!(world.ok(&["restart", "d"]), "d\n");
    assert!(world.ok(&["ps"]).contains("Up "));
    world.ok(&["rm", "-f", "c", "nosuch", "d"]);
    assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0));
}

#[test]
fn several_are_all_tried() {
    let Some(world) = world() else { return };
    for name in ["a", "b"] {
        world.ok(&["create", "--name", name, "tool:1", "true"]);
    }
    for (verb, good) in [("start", "a\nb\n"), ("stop", "a\nb\n"), ("rm", "a\nb\n")] {
        let output = world.run(&[verb, "a", "nosuch", "b"]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{verb}: {told}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), good, "{verb}");
        assert!(told.contains("nosuch: no such container") && told.lines().count() == 1, "{verb}: {told}");
    }
}

#[test]
fn keys_detach_and_attach_joins_again() {
    let Some(world) = world() else { return };
    let script = "read a; echo first $a; read b; echo second $b; exit 5";
    let mut terminal = Terminal::run(&world.command(&["run", "-it", "--name", "c", "tool:1", script]));
    terminal.types("one\n");
    terminal.waits_for("first one");
    terminal.types("\x10\x11");
    assert_eq!(terminal.ends(), Some(0));
    assert!(world.ok(&["ps"]).contains("Up "));
    let mut again = Terminal::run(&world.command(&["attach", "c"]));
    // Typed input comes back after attaching.
    again.becomes("raw", |terminal| !terminal.echoes());
    again.types("two\n");
    again.waits_for("second two");
    assert_eq!(again.ends(), Some(5));
    assert!(world.ok(&["logs", "c"]).contains("second two"));
    assert!(refusal(&world, 1, &["attach", "c"]).contains("c: does not run"));
    world.ok(&["rm", "c"]);
    assert_eq!(world.ok(&["run", "-itd", "--name", "d", "tool:1", "cat"]).len(), 65, "an id");
    let mut third = Terminal::run(&world.command(&["attach", "--detach-keys", "x", "d"]));
    third.becomes("raw", |terminal| !terminal.echoes());
    third.types("heard\n");
    third.waits_for("heard\r\nheard");
    third.types("x");
    assert_eq!(third.ends(), Some(0));
    world.ok(&["rm", "-f", "d"]);
    assert_eq!(world.mounts(), 0);
}

#[test]
fn keys_detach_from_a_command_which_goes_on() {
    let Some(world) = world() else { return };
    world.ok(&["run", "-d", "--name", "c", "tool:1", "sleep 1000"]);
    let exec = |flags: &[&str], script: &str| {
        Terminal::run(&world.command(&[&["exec", "-it"], flags, &["c", "/bin/sh", "-c", script]].concat()))
    };
    let mut first = exec(&[], "echo ready; until [ -e /data/go ]; do sleep 0.05; done; echo went >/data/went; exit 3");
    first.waits_for("ready");
    first.types("\x10\x11");
    assert_eq!(first.ends(), Some(0));
    world.ok(&["exec", "c", "/bin/touch", "/data/go"]);
    let file = world.root().join("containers/c/merged/data/went");
    wait_until("its work", || std::fs::read_to_string(&file).is_ok_and(|text| text == "went\n"));
    let mut second = exec(&["--detach-keys", "x"], "echo ready; sleep 1000");
    second.waits_for("ready");
    second.types("x");
    assert_eq!(second.ends(), Some(0));
    // A container that ends by itself has its exit code, and typed input arrives.
    let mut third = exec(&[], "read a; echo \"heard $a\"; exit 7");
    third.types("this\n");
    third.waits_for("heard this");
    assert_eq!(third.ends(), Some(7));
    let refused = exec(&["-u", "nobody"], "true").ends();
    assert_eq!(refused, Some(125));
    world.ok(&["rm", "-f", "c"]);
    wait_until("no process", || processes(world.dir.path(), "exec").is_empty());
    assert_eq!(world.mounts(), 0);
}

#[test]
fn what_is_typed_into_an_attached_pipe_reaches_it() {
    let Some(world) = world() else { return };
    world.ok(&["run", "-id", "--name", "c", "tool:1", "cat; exit 4"]);
    let mut attached = world.command(&["attach", "c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let long = vec![b'x'; 3 << 20];
    let mut input = attached.stdin.take().unwrap();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, &long).unwrap());
    let mut out = Vec::new();
    attached.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    writer.join().unwrap();
    assert_eq!((out.len(), attached.wait().unwrap().code()), (3 << 20, Some(4)));
    world.ok(&["rm", "-f", "c"]);
    // If the reader stops, the container's next write fails.
    let line = format!(
        "{} --root {} run --rm tool:1 'while echo y; do :; done 2>/dev/null; exit 6' | head -n 1",
        env!("CARGO_BIN_EXE_strata"),
        world.root().display()
    );
    let head = Command::new("bash").args(["-c", &format!("{line}; echo ${{PIPESTATUS[0]}}")]).output().unwrap();
    let shown = String::from_utf8(head.stdout).unwrap();
    assert!(matches!(shown.as_str(), "y\n6\n" | "y\n141\n"), "{shown}");
}

#[test]
fn logs_know_streams_and_times() {
    let Some(world) = world() else { return };
    world.ok(&[
        "run",
        "-d",
        "--name",
        "c",
        "tool:1",
        "echo out; echo err >&2; sleep 0.1; printf part; sleep 0.1; echo ed",
    ]);
    world.ok(&["wait", "c"]);
    let output = world.run(&["logs", "-t", "c"]);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let untimed = |text: &str| text.lines().map(|line| line.split_once("Z ").unwrap().1.to_owned()).collect::<Vec<_>>();
    assert_eq!((untimed(&out), untimed(&err)), (vec!["out".to_owned(), "parted".to_owned()], vec!["err".to_owned()]));
    let first = out.split(' ').next().unwrap();
    assert_eq!(world.ok(&["logs", "--until", first, "c"]), "");
    assert_eq!(world.ok(&["logs", "--since", first, "--tail", "all", "c"]), "out\nparted\n");
    assert_eq!(world.ok(&["logs", "--since", "0s", "c"]), "");
    assert_eq!(world.ok(&["logs", "-n", "1", "c"]), "parted\n");
    // After its end, a container is still being unmounted for a moment.
    world.ok(&["start", "c"]);
    world.ok(&["wait", "c"]);
    world.ok(&["start", "c"]);
    world.ok(&["wait", "c"]);
    world.ok(&["rm", "c"]);
    assert_eq!(world.mounts(), 0);
}

#[test]
fn a_container_whose_monitor_was_killed_is_run_again() {
    let Some(world) = world() else { return };
    world.ok(&["run", "-d", "--name", "c", "tool:1", "sleep 1000"]);
    for pid in processes(world.dir.path(), "supervise") {
        Command::new("kill").args(["-9", &pid]).status().unwrap();
    }
    assert!(world.ok(&["ps"]).contains("Up "));
    world.ok(&["restart", "-t", "0", "c"]);
    assert!(world.ok(&["ps"]).contains("Up "));
    assert_eq!(processes(world.dir.path(), "supervise").len(), 1);
    world.ok(&["rm", "-f", "c"]);
    assert_eq!(world.mounts(), 0);
}

#[test]
fn exec_leaves_a_command_behind() {
    let Some(world) = world() else { return };
    world.ok(&["run", "-d", "--name", "c", "tool:1", "sleep 1000"]);
    world.ok(&["exec", "-d", "c", "/bin/sh", "-c", "sleep 0.2; echo done >/data/done"]);
    let file = world.root().join("containers/c/merged/data/done");
    wait_until("its work", || std::fs::read_to_string(&file).is_ok_and(|text| text == "done\n"));
    world.ok(&["rm", "-f", "c"]);
}

/// Scripts pass the id that `run -d` and `create` print, or its beginning, to other verbs.
#[test]
fn an_id_does_where_a_name_does() {
    let Some(world) = world() else { return };
    let file = world.dir.path().join("id");
    let made = world.ok(&["create", "--name", "made", "--cidfile", file.to_str().unwrap(), "tool:1", "true"]);
    let (made, written) = (made.trim_end(), std::fs::read_to_string(&file).unwrap());
    assert!(made.len() == 64 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{made}");
    assert_eq!((written.as_str(), inspect(&world, "made")["Id"].as_str()), (made, Some(made)));
    assert_eq!(world.ok(&["ps", "-aq"]), format!("{}\n", &made[..12]));
    assert_eq!(world.ok(&["ps", "-aq", "--no-trunc"]), format!("{made}\n"));
    world.ok(&["rm", &made[..12]]);
    let id = world.ok(&["run", "-d", "tool:1", "echo out; while :; do sleep 0.05; done"]);
    let id = id.trim_end();
    wait_until("its output", || world.ok(&["logs", id]) == "out\n");
    for known in [id, &id[..12], &id[..5]] {
        assert_eq!(world.ok(&["exec", known, "/bin/cat", "/data/lower"]), "lower\n");
        assert_eq!(world.ok(&["restart", "-t", "0", known]), format!("{known}\n"));
        world.ok(&["cp", &format!("{known}:/data/lower"), world.dir.path().to_str().unwrap()]);
        world.ok(&["commit", known, "tool:committed"]);
        assert_eq!(world.ok(&["diff", known]), "");
        assert_eq!(world.ok(&["checkpoint", "ls", "-q", known]), "");
    }
    world.ok(&["rename", &id[..12], "renamed"]);
    assert_eq!(world.ok(&["rm", "-f", id]), format!("{id}\n"));
    assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0));
}

/// The root directory of such an image is closed to all users except root.
#[test]
fn a_user_who_may_not_reach_a_program_is_told_in_one_line() {
    let Some(world) = world() else { return };
    world.ok(&["run", "-d", "--name", "c", "tool:1", "while :; do sleep 0.05; done"]);
    let merged = world.root().join("containers/c/merged");
    std::fs::set_permissions(merged, std::fs::Permissions::from_mode(0o700)).unwrap();
    let told = refusal(&world, 127, &["exec", "-w", "/nosuch", "c", "/bin/id"]);
    assert_eq!(told, "strata: /nosuch: no such directory to start in\n");
    let processes = world.ok(&["top", "c", "aux"]);
    assert!(processes.contains("while :") && !processes.contains("strata"), "{processes}");
    let told = refusal(&world, 126, &["exec", "-u", "1000", "c", "/bin/id"]);
    assert!(told.contains("may not search the directories"), "{told}");
    let file = world.dir.path().join("env");
    std::fs::write(&file, "A=file\nB=file\n").unwrap();
    let shown = ["exec", "--env-file", file.to_str().unwrap(), "-e", "B=word", "c", "/bin/sh", "-c", "echo $A $B"];
    assert_eq!(world.ok(&shown), "file word\n");
    let effective = "while read -r n v; do case $n in CapEff:) echo $v;; esac; done </proc/self/status";
    let all = world.ok(&["exec", "--privileged", "c", "/bin/sh", "-c", effective]);
    assert!(u64::from_str_radix(all.trim(), 16).unwrap() & (1 << 21) != 0, "{all}");
    assert_eq!(world.ok(&["stop", "-a", "-t", "0"]).len(), 65);
    world.ok(&["rm", "-a"]);
}

#[test]
fn an_image_that_is_not_there_is_not_made_up() {
    let Some(world) = world() else { return };
    for verb in ["run", "create"] {
        let code = if verb == "run" { 125 } else { 1 };
        let told = refusal(&world, code, &[verb, "--pull", "never", "nosuch:1"]);
        assert!(told.contains("nosuch:1: no such image"), "{told}");
    }
    let told = refusal(&world, 125, &["run", "--pull", "never", "--platform", "linux/riscv64", "tool:1"]);
    assert!(told.contains("--platform linux/riscv64: ") && told.contains(" is here for linux/"), "{told}");
    // There is no registry at this address.
    let output = world.run(&["run", "--rm", "localhost:1/nosuch:1"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(told.starts_with("Pulling localhost:1/nosuch:1 from localhost:1\n"), "{told}");
    assert_eq!(world.ok(&["ps", "-aq"]), "");
}
