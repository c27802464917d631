use std::process::{Command, Output};

use rustix::process::Signal;

use super::client::*;
use super::wire;
use super::*;

fn log_of(scratch: &Scratch) -> String {
    std::fs::read_to_string(scratch.dir.path().join("log")).unwrap()
}

#[test]
fn every_call_answers_over_the_socket() {
    let scratch = Scratch::new();
    let mut service = Service::start(&scratch, &[]);
    let client = service.client();
    let upper = client.prepare("ns/1/extract-1 a", "").unwrap();
    std::fs::write(upper.join("file"), vec![1; 10_000]).unwrap();
    client.commit("a", "ns/1/extract-1 a").unwrap();
    let view: wire::MountsResponse = {
        let asked = wire::PrepareRequest { key: "v".into(), parent: "a".into(), labels: labels(&[("l", "1")]) };
        client.call("View", &asked).unwrap()
    };
    let bind = |option: &str| wire::Mount {
        r#type: "bind".to_owned(),
        source: upper.display().to_string(),
        target: String::new(),
        options: vec![option.to_owned(), "rbind".to_owned()],
    };
    assert_eq!(view.mounts, [bind("ro")]);
    assert_eq!(client.by_key::<wire::MountsResponse>("Mounts", "v").unwrap(), view);
    let info = client.by_key::<wire::InfoResponse>("Stat", "v").unwrap().info.unwrap();
    assert_eq!((info.kind(), info.parent.as_str(), &info.labels), (wire::Kind::View, "a", &labels(&[("l", "1")])));
    assert!(info.created_at.unwrap().seconds > 1_700_000_000);
    let asked = wire::UpdateRequest {
        info: Some(wire::Info { name: "v".into(), labels: labels(&[("l", "2"), ("m", "3")]), ..Default::default() }),
        update_mask: Some(wire::FieldMask { paths: vec!["labels.m".into()] }),
    };
    let info = client.call::<wire::InfoResponse>("Update", &asked).unwrap().info.unwrap();
    assert_eq!(info.labels, labels(&[("l", "1"), ("m", "3")]));
    let usage: wire::UsageResponse = client.by_key("Usage", "a").unwrap();
    assert!(usage.size >= 10_000 && usage.inodes == 2, "{usage:?}");

    let names = |filters: &[&str]| client.list(filters).unwrap().into_iter().map(|info| info.name).collect::<Vec<_>>();
    assert_eq!(names(&[]), ["a", "v"]);
    assert_eq!(names(&["kind==view", "name==none"]), ["v"]);
    client.by_key::<wire::Empty>("Remove", "v").unwrap();
    // More than fits into one message.
    let many = 130;
    for number in 0..many {
        client.prepare(&format!("k{number:03}"), "a").unwrap();
    }
    assert_eq!(client.list(&["kind==active"]).unwrap().len(), many);
    client.call::<wire::Empty>("Cleanup", &wire::Empty {}).unwrap();

    for (outcome, expected) in [
        (client.prepare("k000", "a").map(drop), (ALREADY_EXISTS, "snapshot k000: already exists")),
        (client.prepare("new", "gone").map(drop), (NOT_FOUND, "snapshot gone: not found")),
        (
            client.by_key::<wire::Empty>("Remove", "a").map(drop),
            (FAILED_PRECONDITION, "snapshot a: is the parent of another snapshot"),
        ),
        (client.list(&["=="]).map(drop), (INVALID_ARGUMENT, "filter '==': a field is expected at character 1")),
        (
            client.by_key::<wire::Empty>("Nothing", "a").map(drop),
            (UNIMPLEMENTED, "no such call: /containerd.services.snapshots.v1.Snapshots/Nothing"),
        ),
    ] {
        let failed = outcome.unwrap_err();
        assert_eq!((failed.status, failed.message.as_str()), (Some(expected.0), expected.1));
    }
    assert!(log_of(&scratch).contains("Remove: snapshot a: is the parent of another snapshot"), "{}", log_of(&scratch));

    service.signal(Signal::TERM);
    assert!(service.child.wait().unwrap().success(), "{}", log_of(&scratch));
    assert!(!service.socket.exists());
    assert_agreed(&scratch.open(), &scratch.root(), "after its end");
}

/// `strata snapshotter` that is expected to end by itself.
fn refused(dir: &Path, address: &Path) -> Output {
    Command::new("timeout")
        .args(["--signal=KILL", "60", env!("CARGO_BIN_EXE_strata"), "snapshotter", "--dir"])
        .arg(dir)
        .arg("--address")
        .arg(address)
        .output()
        .unwrap()
}

#[test]
fn another_programs_socket_is_left_alone() {
    let scratch = Scratch::new();
    let mut service = Service::start(&scratch, &[]);
    let client = service.client();
    client.prepare("k", "").unwrap();
    let (other, file) = (scratch.dir.path().join("other"), scratch.dir.path().join("file"));
    std::fs::write(&file, "mine").unwrap();
    let long = scratch.dir.path().join("x".repeat(120));
    for (address, reason) in [
        (&service.socket, "another process listens there"),
        (&file, "is there, and not a socket"),
        (&long, "the path is too long for a socket"),
    ] {
        let output = refused(&other, address);
        let line = format!("strata: {}: {reason}\n", address.display());
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), line));
    }
    let output = refused(&file, &other);
    let line = format!("strata: {}: File exists\n", file.display());
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), line));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let output = refused(&scratch.root(), &scratch.dir.path().join("second"));
    let line = format!("strata: {}: another snapshotter serves this directory\n", scratch.root().display());
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), line));
    client.by_key::<wire::Empty>("Remove", "k").unwrap();
    // One that was killed leaves its socket; the next one takes its place.
    drop(service);
    let mut again = Service::start(&scratch, &[]);
    let client = again.client();
    assert_eq!(client.list(&[]).unwrap().len(), 0);
}

#[test]
fn systemd_is_told_when_calls_are_answered() {
    let scratch = Scratch::new();
    let path = scratch.dir.path().join("notify");
    let notified = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    notified.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let service = Service::start(&scratch, &["env".to_owned(), format!("NOTIFY_SOCKET={}", path.display())]);
    let mut told = [0; 64];
    let length = notified.recv(&mut told).unwrap();
    assert_eq!(&told[..length], b"READY=1");
    // At once, without waiting for the socket to come.
    assert!(std::os::unix::net::UnixStream::connect(&service.socket).is_ok());
}

#[test]
fn names_of_every_kind_are_names() {
    let scratch = Scratch::new();
    let mut service = Service::start(&scratch, &[]);
    let client = service.client();
    client.prepare("making base", "").unwrap();
    client.commit("base", "making base").unwrap();
    let (long, longest) = ("x".repeat(300), "y".repeat(100_000));
    let names = ["/", "..", "a/../b", " ", "a\nb", "a\u{1b}[2J\u{202e}", "a\0b", "é\u{301}", &long, &longest];
    for name in names {
        client.prepare(name, "base").unwrap_or_else(|failed| panic!("{name:?}: {failed:?}"));
        let failed = client.prepare(name, "base").unwrap_err();
        assert_eq!(failed.status, Some(ALREADY_EXISTS), "{name:?}");
        // Of very long ones, the beginning.
        assert!(failed.message.len() < 2000, "{}", failed.message.len());
        assert!(failed.message.contains(&name[..name.len().min(300)]), "{name:?}: {}", failed.message);
    }
    let failed = client.by_key::<wire::UsageResponse>("Usage", &"z".repeat(3_000_000)).unwrap_err();
    assert_eq!(failed.status, Some(NOT_FOUND));
    let mut found: Vec<String> = client.list(&["kind==active"]).unwrap().into_iter().map(|info| info.name).collect();
    let mut expected = names.map(str::to_owned).to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    for name in names {
        let committed = format!("{name} committed");
        client.commit(&committed, name).unwrap();
        let failed = client.by_key::<wire::MountsResponse>("Mounts", &committed).unwrap_err();
        assert_eq!(failed.status, Some(FAILED_PRECONDITION), "{name:?}");
        client.by_key::<wire::Empty>("Remove", &committed).unwrap();
    }
    let log = log_of(&scratch);
    assert_eq!(log.lines().count(), names.len(), "{log}");
    assert!(log.contains("Mounts: snapshot a\\nb committed: is committed; it has no mounts"), "{log}");
    assert!(log.contains("Mounts: snapshot a\\u{1b}[2J\\u{202e} committed: is committed"), "{log}");
}

#[test]
fn a_listing_of_large_snapshots_comes_in_messages_that_are_taken() {
    let scratch = Scratch::new();
    let mut service = Service::start(&scratch, &[]);
    let client = service.client();
    let prepare = |key: &str, size: usize| {
        let asked = wire::PrepareRequest {
            key: key.into(),
            parent: String::new(),
            labels: labels(&[("l", &"v".repeat(size))]),
        };
        client.call::<wire::MountsResponse>("Prepare", &asked).map(drop)
    };
    for number in 0..20 {
        prepare(&format!("k{number}"), 500_000).unwrap();
    }
    let asked = wire::ListRequest { filters: vec![] };
    let messages: Vec<wire::ListResponse> = client.stream("List", &asked).unwrap();
    let sizes: Vec<usize> = messages.iter().map(prost::Message::encoded_len).collect();
    // gRPC's clients take 4 MiB.
    assert!(sizes.iter().all(|&size| size < 4 << 20), "{sizes:?}");
    assert_eq!(messages.iter().map(|message| message.info.len()).sum::<usize>(), 20);
    // What could not be listed is not kept.
    let failed = prepare("large", 3_000_000).unwrap_err();
    let told = (failed.status, failed.message.as_str());
    assert_eq!(told, (Some(INVALID_ARGUMENT), "snapshot large: its name and labels take more than 1 MiB"));
    assert_eq!(client.by_key::<wire::InfoResponse>("Stat", "large").unwrap_err().status, Some(NOT_FOUND));
    assert_eq!(client.list(&[]).unwrap().len(), 20);
    client.call::<wire::Empty>("Cleanup", &wire::Empty {}).unwrap();
    drop(service);
    assert_agreed(&scratch.open(), &scratch.root(), "after large snapshots");
}

#[test]
fn calls_of_a_client_that_vanishes_are_completed() {
    let scratch = Scratch::new();
    drop(scratch.open());
    let strace = "strace -D -f -qqq -o /dev/null --trace=?mkdir,mkdirat,syncfs,?rename,renameat,renameat2 \
        --inject=?mkdir,mkdirat,syncfs,?rename,renameat,renameat2:delay_enter=400ms";
    let wrapper: Vec<String> = strace.split_whitespace().map(str::to_owned).collect();
    let mut service = Service::start(&scratch, &wrapper);
    let client = service.client();
    let prepare = wire::PrepareRequest { key: "k".into(), parent: String::new(), labels: no_labels() };
    let commit = wire::CommitRequest { name: "layer".into(), key: "k".into(), ..wire::CommitRequest::default() };
    let remove = wire::KeyRequest { key: "layer".into() };
    let exists = |name: &str| client.by_key::<wire::InfoResponse>("Stat", name).is_ok();
    let vanish = std::time::Duration::from_millis(50);
    let eventually = |what: &str, done: &dyn Fn() -> bool| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !done() {
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    service.client().vanish_after(vanish, "Prepare", &prepare);
    assert!(!exists("k"), "not in the middle");
    eventually("prepared", &|| exists("k"));
    let upper = PathBuf::from(&client.by_key::<wire::MountsResponse>("Mounts", "k").unwrap().mounts[0].source);
    std::fs::write(upper.join("file"), "content").unwrap();
    service.client().vanish_after(vanish, "Commit", &commit);
    assert!(exists("k"), "not in the middle");
    eventually("committed", &|| exists("layer") && !exists("k"));
    assert_eq!(std::fs::read(upper.join("file")).unwrap(), b"content");
    service.client().vanish_after(vanish, "Remove", &remove);
    eventually("removed", &|| !exists("layer"));
    // SIGTERM waits for what is running.
    service.client().vanish_after(vanish, "Prepare", &prepare);
    service.signal(Signal::TERM);
    assert!(service.child.wait().unwrap().success(), "{}", log_of(&scratch));
    let snapshotter = scratch.open();
    snapshotter.cleanup().unwrap();
    assert_agreed(&snapshotter, &scratch.root(), "after clients vanished");
    assert!(!upper.exists());
    assert!(snapshotter.stat("k").is_ok());
}
