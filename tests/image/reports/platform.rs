//! The choice among several images, and the refusal of a single one for another platform, in every format that `load`
//! knows. The table of `image::platform` has the rules themselves.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::tar_build::Tar;
use super::*;

/// A configuration for a platform (`-`: one that names none).
fn config_for(platform: &str, layer: &[u8]) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(&config(&[layer.to_vec()], platform)).unwrap();
    let document = document.as_object_mut().unwrap();
    document.remove("os");
    document.remove("architecture");
    if platform != "-" {
        let parts: Vec<&str> = platform.split('/').collect();
        document.insert("os".to_owned(), json!(parts[0]));
        document.insert("architecture".to_owned(), json!(parts[1]));
        if let Some(variant) = parts.get(2) {
            document.insert("variant".to_owned(), json!(variant));
        }
    }
    serde_json::to_vec(&document).unwrap()
}

fn layer_for(platform: &str) -> Vec<u8> {
    Tar::new().file("for", platform).end()
}

/// A layout whose index has one entry: an index of an image for each platform.
fn index_of(platforms: &[&str]) -> Files {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut entries = Vec::new();
    for platform in platforms {
        let layer = layer_for(platform);
        let manifest = add_manifest(&mut files, &config_for(platform, &layer), &[layer], &|tar| tar.to_vec(), "");
        let parts: Vec<&str> = platform.split('/').collect();
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["platform"] = json!({"os": parts[0], "architecture": parts[1]});
        if let Some(variant) = parts.get(2) {
            entry["platform"]["variant"] = json!(variant);
        }
        entries.push(entry);
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string().into_bytes();
    let mut entry = descriptor(kind, &index);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "x:1"});
    files.push((blob_name(&index), index));
    files.push(("index.json".to_owned(), json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes()));
    files
}

/// The same image in every format: names of formats, and paths.
fn every_format(dir: &Path, platform: &str) -> Vec<(&'static str, PathBuf)> {
    let layer = layer_for(platform);
    let config = config_for(platform, &layer);
    let oci = layout("x:1", &config, std::slice::from_ref(&layer));
    let name = format!("{}.json", Digest::of(&config).hex());
    let list = json!([{"Config": name, "RepoTags": ["x:1"], "Layers": ["layer.tar"]}]).to_string().into_bytes();
    let docker =
        vec![(name, config.clone()), ("layer.tar".to_owned(), layer.clone()), ("manifest.json".to_owned(), list)];
    let id = "1".repeat(64);
    let mut step: Value = serde_json::from_slice(&config).unwrap();
    step["id"] = json!(id);
    let legacy = vec![
        ("repositories".to_owned(), json!({"x": {"1": id}}).to_string().into_bytes()),
        (format!("{id}/json"), step.to_string().into_bytes()),
        (format!("{id}/layer.tar"), layer),
    ];
    write_dir(&oci, &dir.join("oci-dir"));
    let mut formats = vec![("oci-dir", dir.join("oci-dir"))];
    for (format, files) in [("oci-archive", oci), ("docker-archive", docker), ("legacy", legacy)] {
        std::fs::write(dir.join(format), tar_of(&files)).unwrap();
        formats.push((format, dir.join(format)));
    }
    formats
}

#[test]
fn a_single_image_of_another_platform_is_refused_unless_asked_for() {
    let mut cases = 0;
    for (platform, asked, taken) in [
        ("linux/amd64", None, true),
        ("linux/x86_64", None, true),
        ("Linux/AMD64", None, true),
        ("-", None, true),
        ("linux/arm64", None, false),
        ("linux/s390x", None, false),
        ("linux/amd64/v3", None, false),
        ("windows/amd64", None, false),
        ("linux/arm64", Some("linux/arm64"), true),
        ("linux/arm64/v8", Some("linux/aarch64"), true),
        ("linux/arm/v6", Some("linux/arm"), true),
        ("linux/arm/v7", Some("linux/arm/v6"), false),
        ("linux/amd64", Some("linux/arm64"), false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for (format, path) in every_format(dir.path(), platform) {
            cases += 1;
            let what = format!("{platform} asked for as {asked:?} in {format}");
            let root = dir.path().join(format!("store-{format}"));
            let mut args = vec!["load", "-q", "-i", path.to_str().unwrap()];
            args.extend(asked.iter().flat_map(|asked| ["--platform", asked]));
            let output = strata(&root, &args);
            assert_eq!(output.status.success(), taken, "{what}: {}", told(&output));
            if !taken {
                let message = told(&output);
                let own = platform.to_lowercase();
                assert!(message.contains(&own) || message.contains("holds no image for"), "{what}: {message}");
                assert_eq!(ok(&root, &["images", "-q"]), "", "{what}");
            }
        }
    }
    assert_eq!(cases, 52);
}

#[test]
fn the_best_image_of_an_index_is_taken() {
    for (has, asked, taken) in [
        (&["linux/arm/v5", "linux/arm/v6", "linux/arm64"][..], "linux/arm/v7", Some("linux/arm/v6")),
        (&["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm", Some("linux/arm/v7")),
        (&["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "armhf", Some("linux/arm/v7")),
        (&["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], "x86_64", Some("linux/amd64")),
        (&["linux/amd64/v3", "linux/amd64/v2"], "linux/amd64", None),
        (&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", Some("linux/amd64/v2")),
        (&["linux/386", "linux/amd64"], "i386", Some("linux/386")),
        (&["linux/amd64", "linux/arm64"], "aarch64", Some("linux/arm64")),
        (&["linux/s390x"], "linux/amd64", None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (archive, root) = (dir.path().join("archive"), dir.path().join("store"));
        std::fs::write(&archive, tar_of(&index_of(has))).unwrap();
        let output = strata(&root, &["load", "-q", "--platform", asked, "-i", archive.to_str().unwrap()]);
        match taken {
            None => assert!(told(&output).contains("has") && !output.status.success(), "{has:?}: {}", told(&output)),
            Some(taken) => {
                assert!(output.status.success(), "{has:?} {asked}: {}", told(&output));
                let inspected: Value = serde_json::from_str(&ok(&root, &["inspect", "x:1"])).unwrap();
                let layer = inspected[0]["LayerDirs"][0].as_str().unwrap();
                assert_eq!(std::fs::read_to_string(Path::new(layer).join("for")).unwrap(), taken, "{has:?} {asked}");
            }
        }
    }
}

/// skopeo chooses by the rules of podman, which are the same where a variant is named.
#[test]
fn skopeo_takes_the_same_image_of_an_index() {
    for (has, asked) in [
        (&["linux/arm/v5", "linux/arm/v6", "linux/arm64"][..], "linux/arm/v7"),
        (&["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        (&["linux/arm/v7", "linux/arm/v5"], "linux/arm/v6"),
        (&["linux/arm/v7", "linux/arm/v8"], "linux/arm/v6"),
        (&["linux/amd64", "linux/arm64"], "linux/amd64"),
        (&["linux/amd64", "linux/arm64"], "linux/arm64"),
        (&["linux/s390x", "windows/amd64"], "linux/amd64"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (archive, root) = (dir.path().join("archive"), dir.path().join("store"));
        std::fs::write(&archive, tar_of(&index_of(has))).unwrap();
        let parts: Vec<&str> = asked.split('/').collect();
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--override-os", parts[0], "--override-arch", parts[1]]);
        if let Some(variant) = parts.get(2) {
            skopeo.args(["--override-variant", variant]);
        }
        let theirs =
            skopeo.args(["inspect", "--config", &format!("oci-archive:{}:x:1", archive.display())]).output().unwrap();
        let ours = strata(&root, &["load", "-q", "--platform", asked, "-i", archive.to_str().unwrap()]);
        assert_eq!(
            ours.status.success(),
            theirs.status.success(),
            "{has:?} {asked}: {} {}",
            told(&ours),
            told(&theirs)
        );
        if ours.status.success() {
            let theirs: Value = serde_json::from_slice(&theirs.stdout).unwrap();
            let ours: Value = serde_json::from_str(&ok(&root, &["inspect", "x:1"])).unwrap();
            assert_eq!(ours[0]["History"][0]["created_by"], theirs["history"][0]["created_by"], "{has:?} {asked}");
        }
    }
}

#[test]
fn run_says_why_it_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    for platform in ["linux/s390x", "windows/amd64"] {
        let (_, archive) = every_format(dir.path(), platform).pop().unwrap();
        ok(&root, &["load", "-q", "--platform", platform, "-i", archive.to_str().unwrap()]);
        let output = strata(&root, &["run", "--rm", "x:1", "/for"]);
        assert_eq!(output.status.code(), Some(126), "{}", told(&output));
        assert!(told(&output).contains(&format!("x:1: is for {platform}; this machine runs ")), "{}", told(&output));
        assert_eq!(ok(&root, &["ps", "-aq"]), "");
    }
}
