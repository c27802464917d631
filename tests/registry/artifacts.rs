//! Artifacts in registries: their kind is reported, and they are written as files.

use serde_json::{Value, json};
use stratafs::image::digest::Digest;

use super::Home;
use super::fixture::{config, descriptor, gzip};
use super::liar::{Answer, Asked, Liar};
use super::tar_build::Tar;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Serves one manifest under every tag, and these blobs.
fn serving(documents: Vec<Vec<u8>>, blobs: Vec<Vec<u8>>) -> Liar {
    Liar::start(move |asked: &Asked, _| {
        let by_digest =
            |all: &[Vec<u8>]| all.iter().find(|one| asked.path.ends_with(&Digest::of(one).to_string())).cloned();
        let found = match asked.path.contains("/manifests/") {
            true if asked.path.contains("sha256:") => by_digest(&documents),
            true => documents.first().cloned(),
            false => by_digest(&blobs),
        };
        found.map_or_else(|| Answer::new(404, ""), |bytes| Answer::new(200, bytes))
    })
}

fn titled(kind: &str, bytes: &[u8], title: &str) -> Value {
    let mut blob = descriptor(kind, bytes);
    blob["annotations"] = json!({"org.opencontainers.image.title": title});
    blob
}

fn manifest(artifact_type: Option<&str>, config: Value, layers: &[Value]) -> Value {
    let mut manifest = json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers});
    if let Some(kind) = artifact_type {
        manifest["artifactType"] = json!(kind);
    }
    manifest
}

#[test]
fn pull_says_what_it_is() {
    let empty = || descriptor(EMPTY, b"{}");
    let plain = || descriptor(CONFIG, &config(&[], "x"));
    let one = |kind: &str| vec![descriptor(kind, b"one")];
    let about = Digest::of(b"subject").to_string();
    let mut signature = manifest(None, plain(), &one("application/vnd.dev.cosign.simplesigning.v1+json"));
    signature["subject"] = json!({"mediaType": IMAGE, "digest": about, "size": 7});
    let index = |entries: Value| json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries});
    let mut attestation = descriptor(IMAGE, b"1");
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let mut referrer = descriptor(IMAGE, b"2");
    referrer["artifactType"] = json!("application/spdx+json");
    let mut windows = descriptor(IMAGE, b"3");
    windows["platform"] = json!({"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.1"});
    let old = json!({"mediaType": "application/vnd.oci.artifact.manifest.v1+json",
        "artifactType": "application/vnd.example.sbom", "blobs": [descriptor("application/json", b"one")]});
    for (what, document, told) in [
        (
            "helm",
            manifest(
                None,
                descriptor("application/vnd.cncf.helm.config.v1+json", b"{}"),
                &one("application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
            ),
            "is no image, but a Helm chart (a config of type application/vnd.cncf.helm.config.v1+json)",
        ),
        (
            "sbom",
            manifest(Some("application/spdx+json"), empty(), &one("application/spdx+json")),
            "an SBOM (type application/spdx+json)",
        ),
        (
            "sbom in an image",
            manifest(None, plain(), &one("application/vnd.cyclonedx+json")),
            "an SBOM (layers of type application/vnd.cyclonedx+json)",
        ),
        ("attestation", manifest(None, plain(), &one("application/vnd.in-toto+json")), "an attestation"),
        ("signature", signature, &*format!("a signature of cosign about {about}")),
        (
            "wasm",
            manifest(None, descriptor("application/vnd.wasm.config.v0+json", b"{}"), &one("application/wasm")),
            "a WebAssembly module",
        ),
        (
            "unheard of",
            manifest(Some("application/vnd.example.thing"), empty(), &[]),
            "an artifact (type application/vnd.example.thing)",
        ),
        (
            "oras",
            manifest(None, descriptor("application/vnd.unknown.config.v1+json", b"{}"), &one("text/plain")),
            "an artifact (a config of type application/vnd.unknown.config.v1+json)",
        ),
        ("release candidate", old, "an SBOM"),
        ("attestations", index(json!([attestation, attestation])), "is no image, but 2 attestations of one"),
        (
            "referrers",
            index(json!([referrer, referrer])),
            "an index of 2 artifacts (application/spdx+json, application/spdx+json)",
        ),
        ("empty", index(json!([])), "an empty index"),
        ("windows", index(json!([windows])), "has no image for linux/amd64; it has windows/amd64"),
    ] {
        let document = document.to_string().into_bytes();
        let liar = serving(vec![document], vec![b"one".to_vec(), b"{}".to_vec(), config(&[], "x")]);
        let home = Home::new();
        let line = home.fails(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
        assert!(line.contains(told), "{what}: {line}");
        assert!(line.contains("--artifact") || document_is_index(what), "{what}: {line}");
    }
}

fn document_is_index(what: &str) -> bool {
    matches!(what, "attestations" | "referrers" | "empty" | "windows")
}

#[test]
fn layers_that_others_distribute() {
    let tar = Tar::new().file("a", "a").end();
    let (config, blob) = (config(std::slice::from_ref(&tar), "x"), gzip(&tar));
    for kind in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ] {
        let mut layer = descriptor(kind, &blob);
        layer["urls"] = json!(["https://elsewhere.example/layer"]);
        let document = manifest(None, descriptor(CONFIG, &config), &[layer]).to_string().into_bytes();
        // Newer registries have them all the same.
        let liar = serving(vec![document.clone()], vec![config.clone(), blob.clone()]);
        Home::new().ok(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
        let liar = serving(vec![document], vec![config.clone()]);
        let line = Home::new().fails(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
        let told = "a layer that its publisher distributes himself (at https://elsewhere.example/layer) is not there";
        assert!(line.contains(told), "{line}");
    }
}

#[test]
fn an_artifact_is_written_as_files() {
    let blobs: Vec<Vec<u8>> = (0..7).map(|number| format!("blob {number}").into_bytes()).collect();
    let titles = ["sbom.json", "dir/a b.txt", "../evil", "/tmp/strata-evil", "a\u{1b}[31m", "sbom.json"];
    let mut layers: Vec<Value> =
        titles.iter().zip(&blobs).map(|(title, blob)| titled("text/plain", blob, title)).collect();
    layers.push(descriptor("text/plain", &blobs[6]));
    let document = manifest(Some("application/spdx+json"), descriptor(EMPTY, b"{}"), &layers).to_string().into_bytes();
    let liar = serving(vec![document.clone()], blobs.clone());
    let (home, name) = (Home::new(), format!("{}/x:1", liar.host()));
    let dir = home.path("out/deep");
    std::fs::create_dir(home.path("out")).unwrap();
    let args = ["pull", "--plain-http", "--artifact", "-o", dir.to_str().unwrap(), &name];
    let out = home.ok(&args);
    assert!(out.starts_with(&format!("Digest: {}\n", Digest::of(&document))), "{out}");
    let digest = |number: usize| format!("sha256-{}", Digest::of(&blobs[number]).hex());
    let files =
        ["sbom.json".to_owned(), "dir/a b.txt".to_owned(), digest(2), digest(3), digest(4), digest(5), digest(6)];
    for (file, blob) in files.iter().zip(&blobs) {
        assert_eq!(&std::fs::read(dir.join(file)).unwrap(), blob, "{file}");
        assert!(out.contains(&format!("{}\n", dir.join(file).display())), "{out}");
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 7);
    assert_eq!(std::fs::read_dir(home.path("out")).unwrap().count(), 1, "nothing beside it");
    assert!(!std::path::Path::new("/tmp/strata-evil").exists());
    assert!(home.fails(&args).contains("exists and is not an empty directory"));
    // Without the other one, each option is a mistake.
    assert_eq!(home.strata(&["pull", "--artifact", &name]).status.code(), Some(2));
    assert_eq!(home.strata(&["pull", "-o", "x", &name]).status.code(), Some(2));

    // If a blob does not match its digest, nothing is left.
    let liar = serving(vec![document], blobs[..6].to_vec());
    let other = home.path("out/other");
    let name = format!("{}/x:1", liar.host());
    let line = home.fails(&["pull", "--plain-http", "--artifact", "-o", other.to_str().unwrap(), &name]);
    assert!(line.contains("is not there"), "{line}");
    assert_eq!(std::fs::read_dir(home.path("out")).unwrap().count(), 1);
}

#[test]
fn an_image_can_be_written_as_files_too() {
    let tar = Tar::new().file("a", "a").end();
    let (config, blob) = (config(std::slice::from_ref(&tar), "x"), gzip(&tar));
    let document = manifest(None, descriptor(CONFIG, &config), &[descriptor(LAYER, &blob)]).to_string().into_bytes();
    let liar = serving(vec![document], vec![config, blob.clone()]);
    let home = Home::new();
    let dir = home.path("out");
    home.ok(&["pull", "--plain-http", "--artifact", "-o", dir.to_str().unwrap(), &format!("{}/x:1", liar.host())]);
    assert_eq!(std::fs::read(dir.join(format!("sha256-{}", Digest::of(&blob).hex()))).unwrap(), blob);
}
