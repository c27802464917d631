//! `inspect`, `ps` and `volume ls` with docker's keys.

use serde_json::{Value, json};

use super::container::{World, worlds};

/// One driver is enough: the tested code is the same for all.
fn world() -> Option<World> {
    worlds().into_iter().next_back()
}

fn inspect(world: &World, name: &str) -> Value {
    let shown: Value = serde_json::from_str(&world.ok(&["inspect", name])).unwrap();
    shown[0].clone()
}

#[test]
fn what_was_asked_for_is_shown_with_the_keys_of_docker() {
    let Some(world) = world() else { return };
    let host = world.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let bind = format!("{}:/h:ro", host.display());
    let flags = "--privileged --network pasta -p 127.0.0.1:8080:80 -p 53:53/udp --cap-add NET_ADMIN --cap-drop MKNOD -m 64m \
        --cpus 1.5 --pids-limit 7 --shm-size 1m --ulimit nofile=10:20 --dns 192.0.2.1 --add-host a:192.0.2.2 --tmpfs /t:size=1m \
        --device /dev/zero:/dev/nil --sysctl kernel.msgmax=1 --security-opt no-new-privileges -u me -w /data -e A=mine \
        --entrypoint /bin/cat --stop-signal USR1 --stop-timeout 3 -h host -t -i --init -v cache:/v -v /own";
    let mut args = vec!["create", "--name", "c", "-v", bind.as_str()];
    args.extend(flags.split_whitespace());
    args.extend(["tool:1", "/data/lower"]);
    world.ok(&args);
    let shown = inspect(&world, "c");
    let volume = world.root().join("volumes/cache/_data");
    for (pointer, expected) in [
        ("/HostConfig/Privileged", json!(true)),
        ("/HostConfig/NetworkMode", json!("pasta")),
        ("/HostConfig/Binds", json!([bind, "cache:/v:rw"])),
        (
            "/HostConfig/PortBindings",
            json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "53/udp": [{"HostIp": "", "HostPort": "53"}]}),
        ),
        ("/HostConfig/CapAdd", json!(["NET_ADMIN"])),
        ("/HostConfig/CapDrop", json!(["MKNOD"])),
        ("/HostConfig/Memory", json!(64 << 20)),
        ("/HostConfig/NanoCpus", json!(1_500_000_000)),
        ("/HostConfig/PidsLimit", json!(7)),
        ("/HostConfig/ShmSize", json!(1 << 20)),
        ("/HostConfig/Ulimits", json!([{"Name": "nofile", "Soft": 10, "Hard": 20}])),
        ("/HostConfig/Dns", json!(["192.0.2.1"])),
        ("/HostConfig/ExtraHosts", json!(["a:192.0.2.2"])),
        ("/HostConfig/Tmpfs", json!({"/t": "size=1m"})),
        ("/HostConfig/Sysctls", json!({"kernel.msgmax": "1"})),
        ("/HostConfig/SecurityOpt", json!(["no-new-privileges"])),
        ("/HostConfig/Init", json!(true)),
        (
            "/HostConfig/Devices",
            json!([{"PathOnHost": "/dev/zero", "PathInContainer": "/dev/nil", "CgroupPermissions": "rwm"}]),
        ),
        ("/Config/User", json!("me")),
        ("/Config/WorkingDir", json!("/data")),
        ("/Config/Env", json!(["A=image", "A=mine"])),
        ("/Config/Entrypoint", json!(["/bin/cat"])),
        ("/Config/Cmd", json!(["/data/lower"])),
        ("/Config/StopSignal", json!("USR1")),
        ("/Config/StopTimeout", json!(3)),
        ("/Config/Hostname", json!("host")),
        ("/Config/Tty", json!(true)),
        ("/Config/OpenStdin", json!(true)),
        ("/Path", json!("/bin/cat")),
        ("/Args", json!(["/data/lower"])),
        ("/State/Status", json!("created")),
        ("/NetworkSettings/Ports", json!({})),
        ("/Mounts/0/Type", json!("bind")),
        ("/Mounts/0/Source", json!(host)),
        ("/Mounts/0/Destination", json!("/h")),
        ("/Mounts/0/RW", json!(false)),
        ("/Mounts/1/Type", json!("volume")),
        ("/Mounts/1/Name", json!("cache")),
        ("/Mounts/1/Source", json!(volume)),
        ("/Mounts/2/Type", json!("tmpfs")),
        ("/Mounts/2/Destination", json!("/t")),
    ] {
        assert_eq!(shown.pointer(pointer), Some(&expected), "{pointer}");
    }
    assert!(shown["NetworkSettings"]["Networks"]["pasta"].is_object());
    let columns = world.ok(&["ps", "-a", "--format", "{{.Networks}} {{.LocalVolumes}} {{.Mounts}}"]);
    assert_eq!(columns, format!("pasta 1 {},cache\n", host.display()));
    for (filter, found) in [("volume=cache", "c\n"), ("volume=/h", "c\n"), ("volume=x", ""), ("network=pasta", "c\n")] {
        assert_eq!(world.ok(&["ps", "-a", "--format", "{{.Names}}", "--filter", filter]), found, "{filter}");
    }
    world.ok(&["rm", "c"]);
}

#[test]
fn volumes_of_a_container_s_own_are_shown_once_it_has_run() {
    let Some(world) = world() else { return };
    world.ok(&["run", "--name", "c", "-v", "/own", "tool:1", "echo kept >/own/file"]);
    let mounts = inspect(&world, "c")["Mounts"].clone();
    let source = world.root().join("containers/c/volumes/0");
    assert_eq!(
        (&mounts[0]["Type"], &mounts[0]["Destination"], &mounts[0]["Source"]),
        (&json!("volume"), &json!("/own"), &json!(source))
    );
    assert_eq!(std::fs::read_to_string(source.join("file")).unwrap(), "kept\n");
    world.ok(&["rm", "c"]);
}

#[test]
fn volumes_are_listed_as_they_are_asked_for() {
    let Some(world) = world() else { return };
    world.ok(&["volume", "create", "--label", "use=test", "one"]);
    world.ok(&["volume", "create", "two"]);
    world.ok(&["create", "--name", "c", "-v", "two:/v", "tool:1", "true"]);
    for (args, expected) in [
        (&["volume", "ls"][..], "DRIVER   VOLUME NAME\nlocal    one\nlocal    two\n"),
        (&["volume", "ls", "-q", "--filter", "dangling=true"], "one\n"),
        (&["volume", "ls", "-qf", "dangling=false"], "two\n"),
        (&["volume", "ls", "-q", "-f", "label=use"], "one\n"),
        (&["volume", "ls", "-q", "-f", "name=tw"], "two\n"),
        (
            &["volume", "ls", "--format", "{{.Name}} {{.Driver}} {{.Links}} {{.Labels}}"],
            "one local 0 use=test\ntwo local 1 \n",
        ),
        (&["volume", "ls", "--format", "table {{.Name}}"], "VOLUME NAME\none\ntwo\n"),
        (&["volume", "inspect", "-f", "{{.Name}} {{.Labels.use}}", "one"], "one test\n"),
        (&["inspect", "--type", "volume", "-f", "{{.Scope}}", "one"], "local\n"),
    ] {
        assert_eq!(world.ok(args), expected, "{args:?}");
    }
    let told = world.run(&["volume", "ls", "--filter", "colour=red"]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("there are name label dangling driver"), "{told:?}");
    world.ok(&["rm", "c"]);
}

#[test]
fn stats_of_a_running_container_are_its_own() {
    let Some(world) = world() else { return };
    world.ok(&["run", "-d", "--name", "busy", "tool:1", "sleep 1000 & while :; do :; done"]);
    world.ok(&["run", "-d", "--name", "idle", "tool:1", "exec sleep 1000"]);
    world.ok(&["create", "--name", "made", "tool:1", "true"]);
    let fields = "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.PIDs}}";
    let lines = world.ok(&["stats", "--no-stream", "--format", fields]);
    let of = |name: &str| -> Vec<String> {
        let line = lines.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {lines}"));
        line.split(' ').map(str::to_owned).collect()
    };
    let percent = |word: &str| word.strip_suffix('%').unwrap().parse::<f64>().unwrap();
    let (busy, idle) = (of("busy"), of("idle"));
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(percent(&busy[1]) > percent(&idle[1]) && percent(&idle[1]) < 50.0, "{lines}");
    assert_eq!((busy[6].as_str(), idle[6].as_str()), ("2", "1"), "{lines}");
    for of_one in [&busy, &idle] {
        assert!(of_one[2].ends_with('B') && of_one[3] == "/" && of_one[4].ends_with('B'), "{lines}");
        assert!(of_one[2] != "0B" && percent(&of_one[5]) < 100.0, "{lines}");
    }
    let table = world.ok(&["stats", "--no-stream", "idle"]);
    assert!(table.starts_with("CONTAINER ID   NAME   CPU %") && table.lines().count() == 2, "{table}");
    let all: Value = serde_json::from_str(&world.ok(&["stats", "--json", "-a"])).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 3);
    let told = world.run(&["stats", "--no-stream", "nosuch"]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("nosuch: no such container"), "{told:?}");
    world.ok(&["rm", "-f", "busy", "idle", "made"]);
}
