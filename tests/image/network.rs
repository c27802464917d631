//! Networks of containers. A network of a container's own needs `pasta` (Debian's package passt).

use std::io::{Read, Write};
use std::net::TcpStream;

use super::container::{World, processes, wait_until, worlds};

/// One driver is enough: the tested code is the same for all.
fn world() -> Option<World> {
    worlds().into_iter().next_back()
}

/// The answer of a web server; empty if it does not listen.
fn get(port: u16) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap_or(());
        stream.read_to_string(&mut text).unwrap_or(0);
    }
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// A port that is free at the moment.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An image of busybox, which has a web server and shows the network.
fn import_busybox(world: &World) {
    use super::tar_build::{Tar, spec};
    let busybox = std::fs::read("/bin/busybox").expect("busybox; scripts/test installs busybox-static");
    let mut tar = Tar::new().dir("bin/").dir("etc/").dir("tmp/").dir("www/").file("www/index.html", "hello\n");
    tar = tar.entry(spec("bin/busybox", b'0').mode(0o755).content(busybox));
    for name in ["sh", "cat", "httpd", "ip", "sleep", "hostname", "ls", "nc"] {
        tar = tar.symlink(format!("bin/{name}"), "busybox");
    }
    tar = tar.symlink("etc/resolv.conf", "../run/nowhere/resolv.conf");
    let path = world.dir.path().join("busybox.tar");
    std::fs::write(&path, tar.end()).unwrap();
    let change = |text: &'static str| ["-c", text];
    let mut args = vec!["import"];
    args.extend(change("CMD [\"httpd\", \"-f\", \"-h\", \"/www\"]"));
    args.extend(change("EXPOSE 80"));
    args.extend([path.to_str().unwrap(), "web:1"]);
    world.ok(&args);
}

#[test]
fn a_web_server_is_changed_seen_and_committed() {
    let Some(world) = world() else { return };
    import_busybox(&world);
    let port = free_port();
    world.ok(&["run", "-d", "--name", "web", "-p", &format!("127.0.0.1:{port}:80"), "web:1"]);
    wait_until("its page", || get(port) == "hello\n");
    world.ok(&["exec", "web", "sh", "-c", "echo changed >/www/index.html"]);
    assert_eq!(get(port), "changed\n");
    assert_eq!(world.ok(&["port", "web"]), format!("80/tcp -> 127.0.0.1:{port}\n"));
    assert_eq!(world.ok(&["port", "web", "80"]), format!("127.0.0.1:{port}\n"));
    let shown = world.ok(&["inspect", "-f", "{{json .NetworkSettings.Ports}} {{.HostConfig.NetworkMode}}", "web"]);
    assert_eq!(shown, format!("{{\"80/tcp\":[{{\"HostIp\":\"127.0.0.1\",\"HostPort\":\"{port}\"}}]}} pasta\n"));
    assert_eq!(world.ok(&["diff", "web"]), "C /www/index.html\n", "nothing of the network is a change");
    world.ok(&["commit", "-a", "Me", "-m", "changed", "web", "web:2"]);
    assert_eq!(world.ok(&["diff", "web:1", "web:2"]), "C /www/index.html\n");
    let taken = world.run(&["run", "-d", "--name", "two", "-p", &format!("127.0.0.1:{port}:80"), "web:2"]);
    let told = String::from_utf8(taken.stderr).unwrap();
    assert_eq!((taken.status.code(), told.lines().count()), (Some(125), 1), "{told}");
    assert!(told.contains(&format!("127.0.0.1:{port}/tcp: the port cannot be had")), "{told}");
    world.ok(&["restart", "-t", "0", "web"]);
    wait_until("its page", || get(port) == "changed\n");
    world.ok(&["rm", "-f", "web"]);
    assert_eq!((get(port), world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), String::new(), 0));
    // -P finds a port by itself.
    world.ok(&["run", "-d", "--name", "any", "-P", "web:2"]);
    let shown = world.ok(&["port", "any", "80/tcp"]);
    let any: u16 = shown.trim().rsplit(':').next().unwrap().parse().unwrap();
    wait_until("its page", || get(any) == "changed\n");
    world.ok(&["rm", "-f", "any"]);
    wait_until("no pasta", || processes(world.dir.path(), "pasta").is_empty());
}

#[test]
fn names_and_addresses_of_a_network_of_its_own() {
    let Some(world) = world() else { return };
    import_busybox(&world);
    let script =
        "hostname; cat /etc/hosts /etc/resolv.conf; ip link | cat; cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let shown = world.ok(&[
        "run",
        "--name",
        "c",
        "--network",
        "pasta",
        "--hostname",
        "me",
        "--dns",
        "192.0.2.53",
        "--dns-search",
        "example.org",
        "--add-host",
        "db:192.0.2.7",
        "web:1",
        "sh",
        "-c",
        script,
    ]);
    let expected = "me\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tme\n192.0.2.7\tdb\n\
        nameserver 192.0.2.53\nsearch example.org\n";
    assert!(shown.starts_with(expected), "{shown}");
    assert!(shown.contains("LOWER_UP") && shown.matches("link/").count() >= 2, "{shown}");
    assert_eq!(world.ok(&["diff", "c"]), "", "a dangling /etc/resolv.conf of the image's is no change");
    let host = world.ok(&["run", "--rm", "--add-host", "db:192.0.2.7", "web:1", "cat", "/etc/hosts"]);
    assert!(host.ends_with("192.0.2.7\tdb\n"), "{host}");
    let none = world.ok(&["run", "--rm", "--net", "none", "web:1", "sh", "-c", "ip link | cat; cat /etc/hosts"]);
    assert!(none.contains("LOOPBACK") && none.matches("link/").count() == 1 && none.contains("localhost"), "{none}");
    assert_eq!(world.mounts(), 0);
}

#[test]
fn without_pasta_one_line_says_what_to_install() {
    let Some(world) = world() else { return };
    import_busybox(&world);
    // A PATH with everything except pasta. /usr/sbin and /sbin, which are searched too, do not have it.
    let bin = world.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in ["runc", "fusermount3"] {
        let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|dir| format!("{dir}/{program}"));
        let found = found.iter().find(|path| std::path::Path::new(path).exists()).expect(program);
        std::os::unix::fs::symlink(found, bin.join(program)).unwrap();
    }
    let output = world.command(&["run", "--rm", "-p", "80", "web:1"]).env("PATH", &bin).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.lines().count()), (Some(125), 1), "{told}");
    assert!(told.contains("apt-get install passt"), "{told}");
    assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0));
}
