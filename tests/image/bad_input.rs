//! Broken or misleading archives: one clear line, nothing stored, the store unharmed.

use serde_json::json;
use stratafs::image::archive::ArchiveInput;
use stratafs::image::digest::Digest;
use stratafs::store::load::LoadOptions;

use super::fixture::*;
use super::tar_build::{Tar, spec};

/// Loads an archive that must be refused; returns the message.
fn refused(bytes: &[u8]) -> String {
    let scratch = Scratch::new();
    let before = scratch.listing();
    let error = scratch.load(bytes).expect_err("must be refused").to_string();
    assert_eq!(scratch.listing(), before, "{error}");
    assert!(!error.contains('\n'), "{error}");
    let path = scratch.dir.path().join("archive");
    std::fs::write(&path, bytes).unwrap();
    let from_file = scratch.load_with(ArchiveInput::Path(&path), &LoadOptions::default(), &mut ());
    from_file.expect_err("must be refused from a file too");
    drop(scratch.store.begin().unwrap());
    assert_eq!(scratch.listing(), before, "{error}");
    assert_eq!(std::fs::read_dir(scratch.store.root().join("tmp")).unwrap().count(), 0, "tmp is empty");
    error
}

#[test]
fn no_archives() {
    assert_eq!(refused(b""), "stream: is empty");
    assert_eq!(refused(&[0; 2048]), "stream: is empty");
    assert_eq!(refused(&[b'x'; 2048]), "stream: is not a tar archive");
    assert!(refused(b"\xfd7zXZ\0").starts_with("stream: byte 0: premature eof"));
    let other = Tar::new().file("a", "b").end();
    assert_eq!(refused(&other), "stream: is no image archive: it has neither manifest.json nor index.json");
    assert_eq!(refused(&Tar::new().file("repositories", "{}").end()), "stream: holds no image");
    let ours_is_its_own_parent =
        Tar::new().file("repositories", r#"{"x":{"1":"ab"}}"#).file("ab/json", r#"{"parent":"ab"}"#);
    assert!(refused(&ours_is_its_own_parent.end()).contains("its own parent"));
    let outside = Tar::new().file("repositories", r#"{"x":{"1":"../ab"}}"#).end();
    assert!(refused(&outside).contains("is no layer's id"));
}

#[test]
fn cut_short_at_every_block() {
    // The lists of what is in them come first here and last there.
    let mut oci_list_first = oci("x:1", &gzip, "+gzip");
    oci_list_first.reverse();
    for whole in [docker_old("x:1"), tar_of(&oci_list_first)] {
        let needed = whole.len() - 1024;
        let scratch = Scratch::new();
        let before = scratch.listing();
        for end in (0..needed).step_by(512) {
            if scratch.load(&whole[..end]).is_ok() {
                assert!(end >= needed - 1024, "{end}: only the last member, which is not needed, may be missing");
                break;
            }
            assert_eq!(scratch.listing(), before, "{end}");
        }
        scratch.load(&whole).unwrap();
    }
}

#[test]
fn a_flipped_bit_in_a_layer() {
    for (shape, mut bytes) in
        [("docker", tar_of(&docker_podman("x:1"))), ("oci", tar_of(&oci("x:1", &|b| b.to_vec(), "")))]
    {
        let needle = b"root:x:0:0";
        let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
        bytes[at] ^= 1;
        let message = refused(&bytes);
        assert!(message.contains("was promised, but it is"), "{shape}: {message}");
        assert!(message.contains(&Digest::of(&base_layer()).hex()), "{shape}: {message}");
    }
}

/// An OCI archive, changed by `change`.
fn oci_with(change: &dyn Fn(&mut serde_json::Value)) -> Vec<u8> {
    let mut files = oci("x:1", &gzip, "+gzip");
    let at = files.len() - 2;
    let mut manifest: serde_json::Value = serde_json::from_slice(&files[at].1).unwrap();
    change(&mut manifest);
    let bytes = manifest.to_string().into_bytes();
    let entry = descriptor("application/vnd.oci.image.manifest.v1+json", &bytes);
    files[at] = (blob_name(&bytes), bytes);
    let last = files.len() - 1;
    files[last].1 = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
    tar_of(&files)
}

#[test]
fn lies_of_a_manifest() {
    refused(&oci_with(&|manifest| manifest["layers"][0]["size"] = json!(5)));
    refused(&oci_with(&|manifest| manifest["config"]["size"] = json!(5)));
    refused(&oci_with(&|manifest| manifest["config"]["size"] = json!(-5)));
    refused(&oci_with(&|manifest| manifest["layers"] = json!([])));
    refused(&oci_with(&|manifest| manifest["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd")));
    refused(&oci_with(&|manifest| manifest["layers"][0]["digest"] = manifest["layers"][1]["digest"].clone()));
    refused(&oci_with(&|manifest| manifest["config"] = json!(null)));
    scratch_accepts(&oci_with(&|manifest| manifest["unknown"] = json!({"a": [1]})));
}

#[test]
fn names_in_messages_stay_on_one_line() {
    let cut = Tar::new().entry(spec("a\nb\x1b[2J", b'0').size(5000)).end();
    assert_eq!(refused(&cut), "stream: a\\nb\\u{1b}[2J: byte 1536: the archive is cut off");
    let long = Tar::new().entry(spec("x", b'0').pax("path", "n/".repeat(5000)).size(50_000)).end();
    assert!(refused(&long).len() < 2000);
}

/// A layer's media type is never fatal: the compression is recognized by the bytes.
#[test]
fn unknown_media_types() {
    for media_type in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.v1.tar",
        "application/x-of-next-year",
        "",
    ] {
        scratch_accepts(&oci_with(&|manifest| {
            manifest["layers"][0]["mediaType"] = json!(media_type);
            manifest["layers"][0]["urls"] = json!(["https://elsewhere.example/layer"]);
            manifest["layers"][0]["annotations"] = json!({"a": "b"});
        }));
    }
    scratch_accepts(&oci_with(&|manifest| {
        manifest.as_object_mut().expect("an object").remove("mediaType");
    }));
}

fn scratch_accepts(bytes: &[u8]) {
    Scratch::new().load(bytes).expect("must be accepted");
}

#[test]
fn lies_of_a_docker_list() {
    let with = |list: serde_json::Value| {
        let mut files = docker_podman("x:1");
        files.pop();
        files.push(("manifest.json".to_owned(), list.to_string().into_bytes()));
        tar_of(&files)
    };
    let config = docker_podman("x:1")[3].0.clone();
    let layer = docker_podman("x:1")[0].0.clone();
    for list in [
        json!([]),
        json!({}),
        json!([{"Config": "../../etc/passwd", "Layers": []}]),
        json!([{"Config": "/etc/passwd", "Layers": []}]),
        json!([{"Config": config, "Layers": []}]),
        json!([{"Config": config, "Layers": [layer, layer, layer]}]),
        json!([{"Config": config, "Layers": [layer, "../x", "missing"]}]),
        json!([{"Config": layer, "Layers": [layer]}]),
    ] {
        refused(&with(list));
    }
    let mut renamed = docker_podman("x:1");
    renamed[3].1.push(b' ');
    assert!(refused(&tar_of(&renamed)).contains("was promised"), "a config that is not its name");
}

#[test]
fn links_that_lead_out_or_round() {
    let archive = |link: &str| Tar::new().symlink("manifest.json", link).symlink("a", "b").symlink("b", "a").end();
    for link in ["/etc/passwd", "../../../etc/passwd", "a", "manifest.json"] {
        refused(&archive(link));
    }
    let scratch = Scratch::new();
    let dir = scratch.dir.path().join("layout");
    std::fs::create_dir(&dir).unwrap();
    for target in ["/etc/passwd", "../outside", "index.json"] {
        std::fs::write(scratch.dir.path().join("outside"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        std::os::unix::fs::symlink(target, dir.join("index.json")).unwrap();
        let result = scratch.load_with(ArchiveInput::Path(&dir), &LoadOptions::default(), &mut ());
        assert!(result.is_err(), "{target}");
        std::fs::remove_file(dir.join("index.json")).unwrap();
    }
    let made = std::process::Command::new("mkfifo").arg(dir.join("index.json")).status().unwrap();
    assert!(made.success());
    let error = scratch.load_with(ArchiveInput::Path(&dir), &LoadOptions::default(), &mut ()).unwrap_err().to_string();
    assert!(error.contains("index.json is not a regular file"), "{error}");
}

#[test]
fn headers_that_ask_for_too_much() {
    let huge = Tar::new().entry(spec("x", b'x').size(1 << 30)).end();
    assert!(refused(&huge).contains("more than the limit of 1048576 of extension"));
    let long = Tar::new().entry(spec("manifest.json", b'0').size(u64::MAX >> 2)).end();
    refused(&long);
    let mut checksum = docker_old("x:1");
    checksum[0] ^= 1;
    assert_eq!(refused(&checksum), "stream: is not a tar archive");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    refused(&Tar::new().file("manifest.json", &deep).end());
    assert!(refused(&Tar::new().file("index.json", format!("{{\"x\":{deep}}}")).end()).contains("recursion limit"));
    let large = vec![b' '; 9 << 20];
    assert!(refused(&Tar::new().file("manifest.json", large).end()).contains("larger than 8 MiB"));
}

#[test]
fn documents_that_say_a_thing_twice() {
    let mut files = docker_podman("x:1");
    let config = files[3].0.clone();
    files[4].1 = format!("[{{\"Config\":{config:?},\"Config\":\"other\",\"Layers\":[]}}]").into_bytes();
    // The last one counts, as in Go.
    assert!(refused(&tar_of(&files)).contains("other is missing"));
    // Of two members of one name the last counts, as for tar.
    let mut files = docker_podman("x:1");
    let good = files[4].clone();
    files[4].1 = b"[".to_vec();
    files.push(good);
    scratch_accepts(&tar_of(&files));
}

#[test]
fn indexes_in_indexes_without_an_end() {
    let mut files = oci("x:1", &gzip, "+gzip");
    let manifest = files[files.len() - 2].1.clone();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    for depth in 0..12 {
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
        let last = files.len() - 1;
        files[last].1.clone_from(&index);
        match depth {
            0..=7 => scratch_accepts(&tar_of(&files)),
            9.. => assert!(refused(&tar_of(&files)).contains("nested more than 8 deep")),
            _ => {}
        }
        entry = descriptor("application/vnd.oci.image.index.v1+json", &index);
        files.insert(0, (blob_name(&index), index));
    }
}

/// No index can contain its own digest; one that claims to is found out at the first step.
#[test]
fn indexes_in_a_circle() {
    let index = "application/vnd.oci.image.index.v1+json";
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    let leads_to = |digest: &Digest, size: usize| {
        json!({"schemaVersion": 2, "manifests": [{"mediaType": index, "digest": digest.to_string(), "size": size}]})
            .to_string()
            .into_bytes()
    };
    let size = leads_to(&one, 100).len();
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let layout = ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    let files = [layout, ("index.json".to_owned(), leads_to(&one, size)), (blob(&one), leads_to(&two, size))];
    let circle = [&files[..], &[(blob(&two), leads_to(&one, size))]].concat();
    assert!(refused(&tar_of(&circle)).contains(&format!("{one} was promised")));
    let itself = [&files[..2], &[(blob(&one), leads_to(&one, size))]].concat();
    assert!(refused(&tar_of(&itself)).contains(&format!("{one} was promised")));
}

#[test]
fn members_that_are_no_files() {
    for flag in [b'3', b'4', b'5', b'6'] {
        let archive = Tar::new().entry(spec("manifest.json", flag).device(1, 3)).end();
        assert_eq!(refused(&archive), "stream: is no image archive: it has neither manifest.json nor index.json");
    }
}

#[test]
fn invalid_names_are_left_out() {
    let scratch = Scratch::new();
    for name in ["../../evil:1", "UPPER:1", "a b", "x:1\nREPOSITORY", "-rf"] {
        let mut files = docker_podman("x:1");
        let list = String::from_utf8(files[4].1.clone()).unwrap().replace("\"x:1\"", &json!(name).to_string());
        files[4].1 = list.into_bytes();
        let loaded = scratch.load(&tar_of(&files)).expect(name);
        assert!(loaded[0].names.is_empty(), "{name}");
    }
    assert_eq!(scratch.store.images().unwrap().len(), 1);
}

#[test]
fn invalid_names_in_annotations_are_left_out() {
    let scratch = Scratch::new();
    for key in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
        for name in ["../../evil:1", "UPPER:1", "a b:1", "x:1\nREPOSITORY", "-rf:1", "x/../y:1", "x:1\u{1b}[2J", ""] {
            let mut files = oci("x:1", &gzip, "+gzip");
            let last = files.len() - 1;
            let mut index: serde_json::Value = serde_json::from_slice(&files[last].1).unwrap();
            index["manifests"][0]["annotations"] = json!({key: name});
            files[last].1 = index.to_string().into_bytes();
            let loaded = scratch.load(&tar_of(&files)).expect(name);
            assert!(loaded[0].names.is_empty(), "{key} {name:?}: {:?}", loaded[0].names);
        }
    }
    assert_eq!(scratch.store.images().unwrap().len(), 1);
}

#[test]
fn a_bomb_does_not_fill_the_disk() {
    use stratafs::image::unpack::UnpackOptions;
    use stratafs::tar::Limits;
    let bomb = zstd(&Tar::new().file("ones", vec![1; 8 << 20]).file("index.json", "{}").end());
    assert!(bomb.len() < 8 << 10);
    let scratch = Scratch::new();
    let load = |limits: Limits| {
        let options =
            LoadOptions { unpack: UnpackOptions { limits, ..UnpackOptions::default() }, ..LoadOptions::default() };
        let error = scratch.load_with(ArchiveInput::Stream(&mut &bomb[..], "stream"), &options, &mut ()).unwrap_err();
        error.to_string()
    };
    let limited = load(Limits { ratio_from: 1 << 20, ..Limits::default() });
    assert!(limited.starts_with("stream: ones: ") && limited.contains(" compressed ones, times: "), "{limited}");
    assert!(limited.ends_with("more than the limit of 200 of ratio (--unlimited accepts it)"), "{limited}");
    let streamed = load(Limits { stream: 4 << 20, ..Limits::default() });
    assert!(streamed.contains("uncompressed bytes: more than the limit of 4194304 of stream"), "{streamed}");
    assert!(load(Limits::unlimited()).contains("index.json"), "the bomb itself is accepted then");
}
