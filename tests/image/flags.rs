//! Options of `run`: storage, privileges and limits of a container.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::container::{World, worlds};

/// One driver is enough: the tested code is the same for all.
fn world() -> Option<World> {
    worlds().into_iter().next_back()
}

/// The one-line message of a command that must fail.
fn refusal(world: &World, args: &[&str]) -> String {
    let output = world.run(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.lines().count()), (Some(125), 1), "{args:?}: {message}");
    assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{args:?}");
    message
}

fn run(world: &World, args: &[&str], script: &str) -> String {
    world.ok(&[&["run", "--rm"], args, &["tool:1", script]].concat())
}

/// A line of /proc/self/status.
fn status(world: &World, args: &[&str], name: &str) -> String {
    let script = format!("while read -r n v; do case $n in {name}:) echo $v;; esac; done </proc/self/status");
    run(world, args, &script).trim().to_owned()
}

#[test]
fn what_it_may_do() {
    let Some(world) = world() else { return };
    let default = 0xa804_25fb_u64;
    let bounding = |args: &[&str]| u64::from_str_radix(&status(&world, args, "CapBnd"), 16).unwrap();
    assert_eq!(bounding(&[]), default);
    assert_eq!(bounding(&["--cap-drop", "ALL"]), 0);
    assert_eq!(bounding(&["--cap-drop", "all", "--cap-add", "NET_ADMIN"]), 1 << 12);
    assert_eq!(bounding(&["--cap-add", "CAP_SYS_PTRACE"]), default | 1 << 19);
    assert!(bounding(&["--privileged"]) & (1 << 21) != 0);
    assert_eq!((status(&world, &[], "Seccomp"), status(&world, &[], "NoNewPrivs")), ("2".to_owned(), "0".to_owned()));
    assert_eq!(status(&world, &["--security-opt", "seccomp=unconfined"], "Seccomp"), "0");
    assert_eq!(status(&world, &["--security-opt", "no-new-privileges"], "NoNewPrivs"), "1");
    let profile = world.dir.path().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, text).unwrap();
    let option = format!("seccomp={}", profile.display());
    assert_eq!(run(&world, &["--security-opt", &option], "mkdir /x 2>/dev/null || echo refused"), "refused\n");
    let own = run(&world, &["--pid", "host"], "test -e /proc/$$/stat && test $$ -gt 50 && echo host");
    assert_eq!(own, "host\n");
    assert_eq!(run(&world, &["--sysctl", "kernel.msgmax=4096"], "cat /proc/sys/kernel/msgmax"), "4096\n");
    let groups = run(&world, &["-u", "me", "--group-add", "77"], "id -G");
    assert!(groups.split_whitespace().any(|group| group == "77"), "{groups}");
    assert!(refusal(&world, &["run", "--cap-add", "FLY", "tool:1"]).contains("no such capability"));
    assert!(refusal(&world, &["run", "--security-opt", "x=y", "tool:1"]).contains("no-new-privileges and seccomp"));
    assert!(
        refusal(&world, &["run", "--restart", "always", "--name", "web", "tool:1"]).contains("strata start -a web")
    );
    assert!(refusal(&world, &["run", "--gpus", "all", "tool:1"]).contains("--device nvidia.com/gpu=all"));
    assert!(refusal(&world, &["run", "--userns", "auto", "tool:1"]).contains("not supported"));
    assert_eq!(run(&world, &["--userns", "keep-id"], "id -u"), "0\n", "root has its own id anyway");
}

#[test]
fn what_it_may_use() {
    let Some(world) = world() else { return };
    assert_eq!(run(&world, &["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn"), "100\n200\n");
    let shm = run(
        &world,
        &["--shm-size", "1m"],
        "while read -r l; do case $l in *' /dev/shm '*) echo $l;; esac; done </proc/mounts",
    );
    assert!(shm.contains("size=1024k"), "{shm}");
    let output = world.run(&[
        "run",
        "--rm",
        "--cpus",
        "0.5",
        "tool:1",
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/cpu.max",
    ]);
    match output.status.success() && !output.stdout.is_empty() {
        true => assert!(String::from_utf8_lossy(&output.stdout).starts_with("50000"), "{output:?}"),
        // The machine's cgroups are not ours to set.
        false => drop(super::skip("flags: cpus", String::from_utf8_lossy(&output.stderr).trim())),
    }
    let told = world.run(&["run", "--ulimit", "files=1", "tool:1"]);
    assert_eq!(told.status.code(), Some(125));
}

/// The container's configuration for the runtime, after it has run.
fn configuration(world: &World, args: &[&str]) -> Value {
    world.ok(&[&["run", "--name", "c"], args, &["tool:1", "true"]].concat());
    let path = world.root().join("containers/c/config.json");
    let document = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    world.ok(&["rm", "c"]);
    document
}

#[test]
fn limits_and_annotations_reach_the_runtime() {
    let Some(world) = world() else { return };
    let document = configuration(&world, &["--cpu-quota", "20000", "--cpu-period=50000", "--annotation", "a=b"]);
    let cpu = &document["linux"]["resources"]["cpu"];
    assert_eq!((&cpu["quota"], &cpu["period"]), (&json!(20000), &json!(50000)));
    assert_eq!(document["annotations"], json!({"a": "b"}));
    let document = configuration(&world, &["--cgroup-parent", "strata-test/", "--cgroupns", "private"]);
    let path = document["linux"]["cgroupsPath"].as_str().unwrap();
    assert!(path.starts_with("/strata-test/strata-"), "{path}");
    assert!(document["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": "cgroup"})));
    assert_eq!(run(&world, &["--domainname", "example.org"], "cat /proc/sys/kernel/domainname"), "example.org\n");
}

#[test]
fn the_upper_holds_no_more_than_its_size() {
    let Some(world) = worlds().into_iter().find(|world| world.driver == "stratafs") else { return };
    let fill = "s=0123456789abcdef; s=$s$s$s$s; s=$s$s$s$s; s=$s$s$s$s; i=0
        while [ $i -lt 200 ] && echo $s; do i=$((i+1)); done >>/data/full 2>/dev/null
        [ $i -lt 100 ] && echo refused";
    world.ok(&["create", "--name", "c", "--storage-opt", "size=64k", "tool:1", fill]);
    for again in ["first start", "second start"] {
        let output = world.run(&["start", "-a", "c"]);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.contains("refused"), "{again}: {told} {:?}", String::from_utf8_lossy(&output.stderr));
    }
    let shown: Value = serde_json::from_str(&world.ok(&["inspect", "c"])).unwrap();
    assert_eq!(shown[0]["HostConfig"]["StorageOpt"]["size"], "65536");
    world.ok(&["rm", "c"]);
    for (word, reason) in
        [("size=much", "NUMBER[k|m|g|t]"), ("size=0", "not a possible size"), ("speed=1", "only size=")]
    {
        assert!(refusal(&world, &["run", "--storage-opt", word, "tool:1"]).contains(reason), "{word}");
    }
    let overlay = refusal(&world, &["run", "--storage-opt", "size=1m", "--driver", "overlay", "tool:1"]);
    assert!(overlay.contains("needs --driver stratafs"), "{overlay}");
}

/// A wrong value is reported in one line that names the flag and the value.
#[test]
fn wrong_values_are_told_in_one_line() {
    let Some(world) = world() else { return };
    for (flag, value) in [
        ("--memory", "1k"),
        ("--memory-swap", "5m"),
        ("--cpus", "none"),
        ("--cpu-quota", "10"),
        ("--cpu-period", "10"),
        ("--cpuset-cpus", "two"),
        ("--oom-score-adj", "5000"),
        ("--pids-limit", "x"),
        ("--storage-opt", "x"),
        ("--stop-signal", "FOO"),
        ("--workdir", "relative"),
        ("--sysctl", "x"),
        ("--network", "nosuch"),
        ("--log-driver", "syslog"),
        ("--volumes-from", "nosuch"),
        ("--link", "web"),
        ("--ip", "10.0.0.1"),
        ("--isolation", "hyperv"),
        ("--cgroup-parent", "../x"),
        ("--env", "=x"),
        ("--attach", "x"),
        ("--dns", "nosuch"),
        ("--add-host", "bad"),
        ("--expose", "x"),
        ("--publish", "x"),
        ("--env-file", "/nosuch"),
        ("--label-file", "/nosuch"),
        ("--name", "bad name"),
    ] {
        let told = refusal(&world, &["run", flag, value, "tool:1"]);
        assert!(told.contains(flag) && told.contains(value.trim_end_matches('m')), "{told}");
    }
    assert!(refusal(&world, &["create", "--nosuch", "tool:1"]).contains("--nosuch"));
    assert!(refusal(&world, &["run"]).contains("<IMAGE>"));
}

#[test]
fn streams_and_logs_as_asked() {
    let Some(world) = world() else { return };
    let both = "echo out; echo err >&2";
    for (streams, shown) in [(&["-a", "stdout"][..], ("out\n", "")), (&["-a", "STDERR"], ("", "err\n"))] {
        let output = world.run(&[&["run", "--rm"], streams, &["tool:1", both]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!((text(&output.stdout), text(&output.stderr)), (shown.0.to_owned(), shown.1.to_owned()));
    }
    world.ok(&["run", "--name", "c", "--log-driver", "none", "tool:1", both]);
    let output = world.run(&["logs", "c"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--log-driver none"));
    world.ok(&["rm", "-fv", "c"]);
    let file = world.dir.path().join("labels");
    fs::write(&file, "# none\ntier=front\nempty\n").unwrap();
    world.ok(&["create", "--name", "c", "--label-file", file.to_str().unwrap(), "-l", "tier=back", "tool:1", "true"]);
    let shown: Value = serde_json::from_str(&world.ok(&["inspect", "c"])).unwrap();
    assert_eq!(
        (&shown[0]["Config"]["Labels"]["tier"], &shown[0]["Config"]["Labels"]["empty"]),
        (&json!("back"), &json!(""))
    );
    world.ok(&["rm", "c"]);
}

/// Makes the container `z` slowly. As soon as `place` is there, `removal` is tried: it is refused.
fn while_it_is_made(world: &World, options: &[&str], place: &Path, removal: &[&str]) {
    let slowly = world.command(&[&["create", "--name", "z"], options, &["tool:1", "true"]].concat());
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qqq", "-o", "/dev/null", "--trace=/^rename", "--inject=/^rename:delay_enter=500000"]);
    traced.env("STRATA_DRIVER", world.driver);
    let mut user = traced.arg(slowly.get_program()).args(slowly.get_args()).stdout(Stdio::null()).spawn().unwrap();
    while !place.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(world.run(removal).status.code(), Some(1), "{removal:?}");
    assert!(user.wait().unwrap().success());
    world.ok(&["rm", "z"]);
}

#[test]
fn volumes_of_another_container() {
    let Some(world) = world() else { return };
    world.ok(&["run", "--name", "c", "-v", "cache:/v", "-v", "/own", "tool:1", "echo kept >/own/x; echo shared >/v/x"]);
    assert_eq!(run(&world, &["--volumes-from", "c"], "cat /own/x /v/x"), "kept\nshared\n");
    assert_eq!(run(&world, &["--volumes-from", "c:ro"], "echo no >/own/x 2>/dev/null || echo ro"), "ro\n");
    assert_eq!(run(&world, &["--volumes-from", "c", "-v", "other:/v"], "cat /own/x; ls /v"), "kept\n");
    world.ok(&["rm", "c"]);
    world.ok(&["create", "--name", "d", "-v", "cache:/v", "tool:1", "true"]);
    world.ok(&["create", "--name", "e", "--volumes-from", "d", "tool:1", "true"]);
    world.ok(&["rm", "d"]);
    assert_eq!(world.run(&["volume", "rm", "cache"]).status.code(), Some(1), "e uses it");
    world.ok(&["rm", "-a"]);
    // A container's own volumes stay as long as another one uses them.
    let make = |names: [&str; 2]| {
        world.ok(&["create", "--name", names[0], "-v", "/own", "tool:1", "true"]);
        world.ok(&["create", "--name", names[1], "--volumes-from", names[0], "tool:1", "true"]);
    };
    make(["a", "z"]);
    let output = world.run(&["rm", "-f", "a"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.lines().count()), (Some(1), 1), "{message}");
    assert!(message.ends_with("a: container z uses its volumes (--volumes-from); remove that first\n"), "{message}");
    world.ok(&["rm", "z", "a"]);
    // So it is, and so are named volumes, while the new container is being made.
    world.ok(&["create", "--name", "a", "-v", "/own", "tool:1", "true"]);
    let own = world.root().join("containers/a/volumes/0");
    while_it_is_made(&world, &["--volumes-from", "a"], &own, &["rm", "a"]);
    while_it_is_made(&world, &["-v", "held:/v"], &world.root().join("volumes/held"), &["volume", "rm", "held"]);
    world.ok(&["rm", "a"]);
    world.ok(&["volume", "rm", "held"]);
    for names in [["a", "z"], ["z", "a"]] {
        make(names);
        world.ok(&["rm", "-a"]);
        make(names);
        world.ok(&["container", "prune", "-f"]);
        assert_eq!(world.ok(&["ps", "-aq"]), "");
    }
    assert_eq!(world.ok(&["volume", "prune", "-af"]), "cache\nother\n");
}

#[test]
fn namespaces_of_another_container() {
    let Some(world) = world() else { return };
    world.ok(&["run", "-d", "--name", "c", "--network", "none", "tool:1", "while :; do sleep 0.05; done"]);
    let namespace = |args: &[&str], kind: &str| {
        let shown = world.ok(&[args, &["ls -l /proc/self/ns/$0", kind]].concat());
        shown.rsplit(' ').next().unwrap().to_owned()
    };
    let inside = ["exec", "c", "/bin/sh", "-c"];
    for (flag, kind) in [("--network", "net"), ("--pid", "pid")] {
        let shares = namespace(&["run", "--rm", flag, "container:c", "--entrypoint", "/bin/sh", "tool:1", "-c"], kind);
        assert_eq!(shares, namespace(&inside, kind), "{flag}");
        assert_ne!(shares, namespace(&["run", "--rm", "--entrypoint", "/bin/sh", "tool:1", "-c"], kind), "{flag}");
    }
    world.ok(&["create", "--name", "d", "--network", "container:c", "tool:1", "true"]);
    let id = world.ok(&["ps", "-q", "--no-trunc"]);
    let shown = world.ok(&["inspect", "-f", "{{.HostConfig.NetworkMode}}", "d"]);
    assert_eq!(shown, format!("container:{id}"));
    world.ok(&["stop", "-t", "0", "c"]);
    let refused = world.run(&["start", "d"]);
    assert_eq!(String::from_utf8_lossy(&refused.stderr), "strata: c: does not run; the container shares its network\n");
    world.ok(&["rm", "-a"]);
    let published = refusal(&world, &["run", "--network", "container:c", "-p", "80", "tool:1"]);
    assert!(published.contains("of that container"), "{published}");
}

#[test]
fn what_it_sees() {
    let Some(world) = world() else { return };
    let dir = world.dir.path();
    let strange = dir.join("a:b");
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("file"), "seen\n").unwrap();
    let bind = format!("type=bind,source={},destination=/m,readonly", strange.display());
    assert_eq!(
        run(&world, &["--mount", &bind], "cat /m/file; touch /m/x 2>/dev/null || echo read-only"),
        "seen\nread-only\n"
    );
    let mounted = "while read -r a b c d; do case $b in /t|/u) echo $b $c;; esac; done </proc/mounts";
    let both = run(&world, &["--tmpfs", "/t:size=64k", "--mount", "type=tmpfs,dst=/u,tmpfs-mode=700"], mounted);
    assert_eq!(both, "/t tmpfs\n/u tmpfs\n");
    assert_eq!(run(&world, &["--device", "/dev/zero:/dev/nil"], "test -c /dev/nil && echo device"), "device\n");
    let file = dir.join("env");
    fs::write(&file, "# a comment\nA=from file\nB=2\n").unwrap();
    assert_eq!(run(&world, &["--env-file", file.to_str().unwrap(), "-e", "B=3"], "echo $A $B"), "from file 3\n");
    assert_eq!(run(&world, &["-h", "me"], "cat /proc/sys/kernel/hostname"), "me\n");
    let id = dir.join("id");
    world.ok(&["run", "--name", "c", "--cidfile", id.to_str().unwrap(), "-v", "/own", "tool:1", "echo kept >/own/x"]);
    assert_eq!(world.ok(&["diff", "c"]), "", "a volume of its own is no change");
    assert!(world.ok(&["inspect", "c"]).contains(&fs::read_to_string(&id).unwrap()));
    world.ok(&["run", "--replace", "--name", "c", "tool:1", "true"]);
    assert_eq!(world.names(), "c\n");
    world.ok(&["rm", "c"]);
    assert!(refusal(&world, &["run", "--cidfile", id.to_str().unwrap(), "tool:1"]).contains("is there already"));
    if ["catatonit", "tini-static", "docker-init", "tini"]
        .iter()
        .any(|name| fs::exists(format!("/usr/bin/{name}")).unwrap())
    {
        assert!(run(&world, &["--init"], "cat /proc/1/cmdline").starts_with("/dev/init\0--\0/bin/sh\0"));
    }
}

#[test]
fn named_volumes_are_shared_and_outlive_containers() {
    let Some(world) = world() else { return };
    assert_eq!(world.ok(&["volume", "ls", "-q"]), "");
    // The image's content at that path is copied.
    assert_eq!(run(&world, &["-v", "cache:/data"], "cat /data/lower; echo kept >/data/kept"), "lower\n");
    assert_eq!(run(&world, &["-v", "cache:/v:ro"], "cat /v/kept; touch /v/x 2>/dev/null || echo ro"), "kept\nro\n");
    assert_eq!(world.ok(&["volume", "create", "two"]), "two\n");
    assert_eq!(world.ok(&["volume", "ls", "-q"]), "cache\ntwo\n");
    let shown = world.ok(&["volume", "inspect", "cache"]);
    assert!(shown.contains("\"Mountpoint\"") && shown.contains("volumes/cache/_data"), "{shown}");
    world.ok(&["create", "--name", "c", "--mount", "type=volume,src=cache,dst=/v", "tool:1", "true"]);
    let told = world.run(&["volume", "rm", "cache"]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("container c uses it"), "{told:?}");
    assert_eq!(world.ok(&["volume", "prune", "-f"]), "two\n");
    world.ok(&["rm", "c"]);
    assert_eq!(world.ok(&["volume", "rm", "cache"]), "cache\n");
    world.ok(&["volume", "rm", "-f", "cache"]);
    assert_eq!(world.ok(&["volume", "ls", "-q"]), "");
    // A directory must not be taken for a volume's name.
    let relative = world.run(&["run", "--rm", "-v", "some/dir:/v", "tool:1"]);
    assert!(String::from_utf8_lossy(&relative.stderr).contains("./some/dir"), "{relative:?}");
    assert_eq!(world.mounts(), 0);
}
