//! Options of `run`: storage, privileges and limits of a container.

use std::fs;

use super::container::{World, worlds};

/// The program does the same for every driver.
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
