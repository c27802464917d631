//! Images there and back, with skopeo as the other client.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use super::fixture::noise;
use super::fixture::*;
use super::pty::Terminal;
use super::server::{Server, Wants};
use super::tar_build::Tar;
use super::{Home, digest_in, trees};

fn insecure(name: &str) -> String {
    format!("docker://{name}")
}

fn remote_digest(home: &Home, name: &str) -> String {
    let raw = home.skopeo(&["inspect", "--tls-verify=false", "--raw", &insecure(name)]);
    stratafs::image::digest::Digest::of(raw.as_bytes()).to_string()
}

/// A layer whose compressed form is not known is compressed first, which takes longer than to send it.
#[test]
fn a_push_shows_the_compression_on_a_terminal() {
    let server = Server::start(Wants::default());
    let home = Home::new();
    let rootfs = home.path("rootfs.tar");
    std::fs::write(&rootfs, Tar::new().file("big", noise(8 << 20, 1)).end()).unwrap();
    home.ok(&["import", rootfs.to_str().unwrap(), "big:1"]);
    let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
    command.args(["push", "--plain-http", "big:1", &server.name("big:1")]);
    let mut terminal = Terminal::run(&command);
    terminal.waits_for(" compressing: [");
    terminal.waits_for(": Pushed");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn an_image_goes_there_and_comes_back() {
    let server = Server::start(Wants::default());
    let name = server.name("a/tool:1");
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    let (out, told) = home.both(&["push", "--plain-http", "tool:1", &name]);
    assert_eq!(told.matches(": Pushed").count(), 3, "{told}");
    let digest = digest_in(&out);
    assert_eq!(out, format!("1: digest: {digest} size: {}\n", out.trim().rsplit(' ').next().unwrap()));
    assert_eq!(remote_digest(&home, &name), digest, "skopeo sees the same");

    let (out, told) = home.both(&["push", "--plain-http", "tool:1", &server.name("a/tool:2")]);
    assert_eq!((digest_in(&out), told.matches("Layer already exists").count()), (digest.clone(), 3), "{told}");
    let (out, told) = home.both(&["push", "--plain-http", "tool:1", &server.name("b/tool")]);
    assert_eq!((digest_in(&out), told.matches("Mounted from a/tool").count()), (digest.clone(), 3), "{told}");
    assert_eq!(server.requests(&["PATCH"]), 4 + 1, "each layer was sent once, and the config to each repository");

    let other = Home::new();
    let (out, told) = other.both(&["pull", "--plain-http", &name]);
    assert_eq!((digest_in(&out), told.matches("Pull complete").count()), (digest.clone(), 3), "{told}");
    assert!(out.contains(&format!("Status: Downloaded newer image for {name}\n")), "{out}");
    assert_eq!(other.ok(&["images", "-q", "--no-trunc"]), home.ok(&["images", "-q", "--no-trunc"]));
    assert_eq!(trees(&other, &name), trees(&home, "tool:1"));
    assert_eq!(other.ok(&["verify"]), "3 layers are sound\n");
    let before = server.requests(&["GET", "/blobs/"]);
    let (out, told) = other.both(&["pull", "--plain-http", &name]);
    assert_eq!(told.matches("Already exists").count(), 3, "{told}");
    assert!(out.contains("Image is up to date"), "{out}");
    assert_eq!(server.requests(&["GET", "/blobs/"]), before + 1, "only the config");
    let twice = other.ok(&["pull", "--json", "--plain-http", &name, &name]);
    let twice: serde_json::Value = serde_json::from_str(&twice).unwrap();
    assert_eq!((twice.as_array().unwrap().len(), &twice[0]["RepoTags"][0]), (2, &name.as_str().into()));
    assert_eq!((&twice[0]["Id"], &twice[1]["Downloaded"]), (&twice[1]["Id"], &false.into()));
    assert_eq!(other.ok(&["pull", "-q", "--plain-http", &name]), format!("{name}\n"));

    // A pull by digest; the image is then found by that digest.
    let third = Home::new();
    let pinned = format!("{}@{digest}", server.name("a/tool"));
    third.ok(&["pull", "--plain-http", &pinned]);
    let inspected: Value = serde_json::from_str(&third.ok(&["inspect", &pinned])).unwrap();
    assert_eq!(inspected[0]["RepoDigests"], json!([pinned]));
    assert_eq!(inspected[0]["RepoTags"], json!([]));
    third.ok(&["tag", &pinned, "mine:1"]);
    let wrong = format!("{}@sha256:{}", server.name("a/tool"), "0".repeat(64));
    assert!(third.fails(&["inspect", &wrong]).contains("no such image"));
    assert!(third.fails(&["pull", "--plain-http", &wrong]).contains("is not there"));
}

#[test]
fn what_skopeo_pushed_keeps_its_digest() {
    let (server, second) = (Server::start(Wants::default()), Server::start(Wants::default()));
    type Pack = fn(&[u8]) -> Vec<u8>;
    for (shape, pack, suffix) in
        [("gzip", gzip as Pack, "+gzip"), ("zstd", zstd, "+zstd"), ("plain", <[u8]>::to_vec, "")]
    {
        let home = Home::new();
        let layout = home.path("layout");
        write_dir(&oci("x:1", &pack, suffix), &layout);
        let (name, copy) = (server.name(&format!("{shape}:1")), second.name(&format!("{shape}:1")));
        let from = format!("oci:{}:x:1", layout.display());
        home.skopeo(&["copy", "-q", "--preserve-digests", "--dest-tls-verify=false", &from, &insecure(&name)]);
        let digest = remote_digest(&home, &name);
        home.ok(&["pull", "-q", "--plain-http", "--keep-blobs", &name]);
        let (out, told) = home.both(&["push", "--plain-http", &name, &copy]);
        assert_eq!(digest_in(&out), digest, "{shape}: {told}");
        assert_eq!(remote_digest(&home, &copy), digest, "{shape}");
        assert!(home.ok(&["verify"]).contains("sound"));

        // Without the compressed layers it is the same image with other blobs, which skopeo takes too.
        let bare = Home::new();
        bare.ok(&["pull", "-q", "--plain-http", &name]);
        let again = second.name(&format!("{shape}-again:1"));
        bare.ok(&["push", "-q", "--plain-http", "--compression", "zstd", &name, &again]);
        bare.ok(&["rmi", &name]);
        assert!(bare.ok(&["pull", "--plain-http", &again]).contains("sha256:"));
        assert_eq!(bare.ok(&["images", "-q"]), home.ok(&["images", "-q"]), "{shape}");
    }
}

#[test]
fn an_image_on_top_of_another_sends_only_its_own_layer() {
    let server = Server::start(Wants::default());
    let (first, name) = (Home::new(), server.name("base:1"));
    first.load(&docker_old("tool:1"));
    first.ok(&["push", "-q", "--plain-http", "tool:1", &name]);
    let home = Home::new();
    home.ok(&["pull", "-q", "--plain-http", &name]);
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let all = [layers(), vec![Tar::new().file("more", "more").end()]].concat();
    let manifest = add_manifest(&mut files, &config(&all, "child"), &all, &zstd, "+zstd");
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": server.name("child:1")});
    files.push(("index.json".to_owned(), json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes()));
    home.load(&tar_of(&files));
    let (_, told) = home.both(&["push", "--plain-http", &server.name("child:1")]);
    assert_eq!((told.matches("Mounted from base").count(), told.matches(": Pushed").count()), (3, 1), "{told}");
    let child = Home::new();
    child.ok(&["pull", "-q", "--plain-http", &server.name("child:1")]);
    assert_eq!(trees(&child, &server.name("child:1")), trees(&home, &server.name("child:1")));
}

#[test]
fn the_platform_is_chosen_from_an_index() {
    let server = Server::start(Wants::default());
    let home = Home::new();
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut entries = Vec::new();
    for architecture in ["arm64", "amd64", "386"] {
        let layer = Tar::new().file("arch", architecture).end();
        let mut document: Value = serde_json::from_slice(&config(std::slice::from_ref(&layer), architecture)).unwrap();
        document["architecture"] = json!(architecture);
        let manifest = add_manifest(&mut files, document.to_string().as_bytes(), &[layer], &gzip, "+gzip");
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
        entries.push(entry);
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries});
    let index = index.to_string().into_bytes();
    files.push((blob_name(&index), index.clone()));
    let mut entry = descriptor("application/vnd.oci.image.index.v1+json", &index);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "x:1"});
    files.push(("index.json".to_owned(), json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes()));
    write_dir(&files, &home.path("layout"));
    let (name, from) = (server.name("many:1"), format!("oci:{}:x:1", home.path("layout").display()));
    home.skopeo(&["copy", "-q", "--all", "--dest-tls-verify=false", &from, &insecure(&name)]);
    let digest = digest_in(&home.ok(&["pull", "--plain-http", "--platform", "linux/arm64", &name]));
    assert_eq!(digest, stratafs::image::digest::Digest::of(&index).to_string(), "that of the index");
    let architecture = |home: &Home, name: &str| -> Value {
        serde_json::from_str::<Value>(&home.ok(&["inspect", name])).unwrap()[0]["Architecture"].clone()
    };
    assert_eq!(architecture(&home, &name), "arm64");
    let pinned = format!("{}@{digest}", server.name("many"));
    let other = Home::new();
    other.ok(&["pull", "-q", "--plain-http", "--platform", "386", &pinned]);
    assert_eq!(architecture(&other, &pinned), "386");
    let line = home.fails(&["pull", "--plain-http", "--platform", "linux/s390x", &name]);
    assert!(line.contains("no image for linux/s390x; it has linux/arm64, linux/amd64, linux/386"), "{line}");
}

#[test]
fn a_kill_in_a_pull_leaves_the_store_whole() {
    let server = Server::start(Wants::default());
    let name = server.name("big:1");
    let source = Home::new();
    let mut tar = Tar::new();
    for number in 0..1500 {
        tar = tar.file(format!("file-{number}"), noise(500, number + 1));
    }
    let rootfs = source.path("rootfs.tar");
    std::fs::write(&rootfs, tar.end()).unwrap();
    source.ok(&["import", rootfs.to_str().unwrap(), &name]);
    source.ok(&["push", "-q", "--plain-http", &name]);
    let home = Home::new();
    home.load(&docker_old("kept:1"));
    for round in 0..8 {
        let mut child = home
            .command(env!("CARGO_BIN_EXE_strata"))
            .args(["pull", "-q", "--plain-http", &name])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(30 * round + 5));
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        let listed = home.ok(&["images", "-q", &name]).lines().count();
        assert!(listed == 1 || !finished, "round {round}");
        assert!(home.ok(&["verify"]).contains("layers are sound"), "round {round}");
        home.ok(&["inspect", "kept:1"]);
        if listed == 1 {
            home.ok(&["rmi", &name]);
        }
    }
    home.ok(&["pull", "-q", "--plain-http", &name]);
    assert_eq!(trees(&home, &name), trees(&source, &name));
    assert_eq!(std::fs::read_dir(home.path("store/tmp")).unwrap().count(), 0, "rubbish is gone");
}

/// On a terminal each layer has a bar; elsewhere a line.
#[test]
fn bars_on_a_terminal_alone() {
    let server = Server::start(Wants::default());
    let name = server.name("tool:1");
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    let (_, told) = home.both(&["push", "--plain-http", "tool:1", &name]);
    assert!(!told.contains('\x1b') && !told.contains('\r'), "{told:?}");
    let other = Home::new();
    let line = format!("{} pull --plain-http {name}", env!("CARGO_BIN_EXE_strata"));
    let output = other.command("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains('\x1b'), "{shown:?}");
    assert_eq!(shown.matches("Pull complete").count(), 3, "{shown:?}");
}
