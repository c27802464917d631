//! Loading and saving archives.

use std::collections::BTreeMap;

use serde_json::json;
use stratafs::image::archive::ArchiveInput;
use stratafs::image::digest::Digest;
use stratafs::image::spec::Platform;
use stratafs::image::unpack::UnpackOptions;
use stratafs::store::load::{LoadOptions, Progress};
use stratafs::store::save::{self, Format, SaveOptions, Target};
use stratafs::tar::compression::Compression;

use super::fixture::*;
use super::tar_build::Tar;

#[derive(Default)]
struct Seen {
    existing: Vec<Digest>,
    begun: Vec<Digest>,
    bytes: u64,
}

impl Progress for Seen {
    fn exists(&mut self, diff_id: &Digest) {
        self.existing.push(*diff_id);
    }
    fn begins(&mut self, diff_id: &Digest, _: u64) {
        self.begun.push(*diff_id);
    }
    fn advances(&mut self, bytes: u64) {
        self.bytes += bytes;
    }
    fn ends(&mut self, _: &Digest) {}
}

fn shapes() -> BTreeMap<&'static str, Vec<u8>> {
    let plain = |bytes: &[u8]| bytes.to_vec();
    let mut hybrid = oci("docker.io/library/x:1", &plain, "");
    let config = config(&layers(), "old");
    let members: Vec<String> = layers().iter().map(|layer| blob_name(layer)).collect();
    let list = json!([{"Config": blob_name(&config), "RepoTags": ["x:1"], "Layers": members}]);
    hybrid.push(("manifest.json".to_owned(), list.to_string().into_bytes()));
    BTreeMap::from([
        ("docker old", docker_old("x:1")),
        ("docker podman", tar_of(&docker_podman("x:1"))),
        ("docker hybrid", tar_of(&hybrid)),
        ("oci plain", tar_of(&oci("docker.io/library/x:1", &plain, ""))),
        ("oci gzip", tar_of(&oci("docker.io/library/x:1", &gzip, "+gzip"))),
        ("oci zstd", tar_of(&oci("docker.io/library/x:1", &zstd, "+zstd"))),
    ])
}

#[test]
fn every_shape_by_every_way_gives_the_same_image() {
    let mut reference = None;
    for (shape, bytes) in shapes() {
        for (way, bytes) in [("plain", bytes.clone()), ("gzip", gzip(&bytes)), ("zstd", zstd(&bytes))] {
            for from_file in [true, false] {
                let what = format!("{shape}, {way}, {}", if from_file { "file" } else { "stream" });
                let scratch = Scratch::new();
                let path = scratch.dir.path().join("archive");
                std::fs::write(&path, &bytes).unwrap();
                let mut stream = &bytes[..];
                let source =
                    if from_file { ArchiveInput::Path(&path) } else { ArchiveInput::Stream(&mut stream, "stream") };
                let loaded = scratch.load_with(source, &LoadOptions::default(), &mut ()).expect(&what);
                assert_eq!(loaded.len(), 1, "{what}");
                assert_eq!(loaded[0].names[0].to_string(), "x:1", "{what}");
                let image = scratch.store.find("x:1").unwrap();
                assert_eq!(image.config.bytes(), config(&layers(), "old"), "{what}");
                let all = (scratch.trees(&image), scratch.listing());
                assert_eq!(reference.get_or_insert_with(|| all.clone()), &all, "{what}");
            }
        }
    }
}

#[test]
fn archives_of_the_oldest_docker() {
    let ids: Vec<String> = (1..=3).map(|number| format!("{number:064x}")).collect();
    let mut tar = Tar::new();
    for (number, layer) in layers().iter().enumerate() {
        let mut step = json!({
            "id": ids[number], "created": "2015-01-01T00:00:00Z", "architecture": "amd64", "os": "linux",
            "container_config": {"Cmd": ["/bin/sh", "-c", format!("step {number}")]}, "config": {"Cmd": ["/usr/tool"]},
            "docker_version": "1.9", "Size": 5,
        });
        if number > 0 {
            step["parent"] = json!(ids[number - 1]);
        }
        let layer = if number == 1 { gzip(layer) } else { layer.clone() };
        tar = tar
            .file(format!("{}/json", ids[number]), step.to_string())
            .file(format!("{}/layer.tar", ids[number]), layer);
    }
    let repositories = json!({"x": {"1": ids[2]}, "y": {"2": ids[2]}});
    let scratch = Scratch::new();
    let loaded = scratch.load(&tar.file("repositories", repositories.to_string()).end()).unwrap();
    assert_eq!(loaded[0].names.len(), 2);
    let image = scratch.store.find("y:2").unwrap();
    let diff_ids: Vec<Digest> = layers().iter().map(|layer| Digest::of(layer)).collect();
    assert_eq!(image.config.diff_ids(), diff_ids);
    assert_eq!(image.config.history()[1].created_by.as_deref(), Some("/bin/sh -c step 1"));
    assert!(image.config.document().get("id").is_none() && image.config.document().get("parent").is_none());
    assert_eq!(image.config.process().cmd, ["/usr/tool"]);
    let modern = Scratch::new();
    modern.load(&docker_old("x:1")).unwrap();
    assert_eq!(scratch.trees(&image), modern.trees(&modern.store.find("x:1").unwrap()));
}

#[test]
fn a_directory_too_with_blobs_that_are_links() {
    let scratch = Scratch::new();
    let dir = scratch.dir.path().join("layout");
    write_dir(&oci("x:1", &gzip, "+gzip"), &dir);
    let blob = dir.join(blob_name(&gzip(&base_layer())));
    std::fs::rename(&blob, dir.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../../elsewhere", &blob).unwrap();
    scratch.load_with(ArchiveInput::Path(&dir), &LoadOptions::default(), &mut ()).unwrap();
    assert_eq!(scratch.trees(&scratch.store.find("x:1").unwrap()).len(), 3);
}

#[test]
fn a_known_layer_is_not_read() {
    let scratch = Scratch::new();
    for (shape, bytes) in shapes() {
        let path = scratch.dir.path().join("archive");
        std::fs::write(&path, &bytes).unwrap();
        let mut seen = Seen::default();
        scratch.load_with(ArchiveInput::Path(&path), &LoadOptions::default(), &mut seen).unwrap();
        match shape {
            "docker hybrid" => assert_eq!((seen.begun.len(), seen.existing.len()), (3, 0), "{shape}"),
            _ => assert_eq!((seen.begun.len(), seen.existing.len(), seen.bytes), (0, 3, 0), "{shape}"),
        }
    }
    assert_eq!(scratch.store.all_layers().unwrap().len(), 3);
}

#[test]
fn a_layer_that_needs_those_below_belongs_to_its_chain() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let other_base = Tar::new().dir("etc/").file("etc/passwd", "other\n").end();
    let layers = vec![other_base, middle_layer()];
    let config = config(&layers, "other");
    let mut files: Files = Vec::new();
    let members: Vec<String> = layers.iter().map(|layer| format!("{}.tar", Digest::of(layer).hex())).collect();
    files.extend(members.iter().cloned().zip(layers));
    files.push(("c.json".to_owned(), config));
    let list = json!([{"Config": "c.json", "RepoTags": ["other:1"], "Layers": members}]);
    files.push(("manifest.json".to_owned(), list.to_string().into_bytes()));
    scratch.load(&tar_of(&files)).unwrap();
    let linked = |name: &str| {
        let image = scratch.store.find(name).unwrap();
        let layers = scratch.store.layers_of(&image).unwrap();
        (
            layers[1].id(),
            layers[1].record.diff_id,
            std::fs::read_to_string(layers[1].diff().join("etc/passwd-")).unwrap(),
        )
    };
    let (first, second) = (linked("x:1"), linked("other:1"));
    assert_eq!(first.1, second.1, "one diff id");
    assert_ne!(first.0, second.0, "two layers");
    assert!(first.2.starts_with("root:"));
    assert_eq!(second.2, "other\n");
}

#[test]
fn saving_gives_back_what_was_loaded_in_every_format() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let image = scratch.store.find("x:1").unwrap();
    let trees = scratch.trees(&image);
    for format in [Format::DockerArchive, Format::OciArchive] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let what = format!("{format:?} {compression:?}");
            let bytes = scratch.save(&["x:1"], format, compression);
            assert_eq!(bytes, scratch.save(&["x:1"], format, compression), "{what}: the same bytes again");
            let other = Scratch::new();
            let loaded = other.load(&bytes).expect(&what);
            assert_eq!(loaded[0].id, image.id(), "{what}");
            assert_eq!(other.trees(&other.store.find("x:1").unwrap()), trees, "{what}");
            assert_eq!(other.save(&["x:1"], format, compression), bytes, "{what}: the same bytes from another store");
        }
    }
    let dir = scratch.dir.path().join("out");
    let selection = save::select(&scratch.store, &["x:1".to_owned()]).unwrap();
    let options = SaveOptions { format: Format::OciDirectory, compression: Compression::Gzip };
    save::save(&scratch.store, &selection, Target::Path(&dir), options).unwrap();
    assert!(save::save(&scratch.store, &selection, Target::Path(&dir), options).is_err(), "not over what is there");
    let other = Scratch::new();
    other.load_with(ArchiveInput::Path(&dir), &LoadOptions::default(), &mut ()).unwrap();
    assert_eq!(other.trees(&other.store.find("x:1").unwrap()), trees);
}

#[test]
fn saved_layers_are_the_original_tars() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let saved = scratch.save(&["x:1"], Format::DockerArchive, Compression::None);
    for layer in layers() {
        assert!(saved.windows(layer.len()).any(|window| window == layer));
    }
}

#[test]
fn several_images_share_layers_in_one_archive() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let layers = vec![base_layer()];
    let small = config(&layers, "small");
    let list = json!([{"Config": "c.json", "RepoTags": ["small:1", "small:2"], "Layers": ["l.tar"]}]);
    let files = vec![
        ("c.json".to_owned(), small),
        ("l.tar".to_owned(), base_layer()),
        ("manifest.json".to_owned(), list.to_string().into_bytes()),
    ];
    scratch.load(&tar_of(&files)).unwrap();
    let bytes = scratch.save(&["x:1", "small:1", "small:2"], Format::DockerArchive, Compression::None);
    let needle = base_layer();
    assert_eq!(
        bytes.windows(needle.len()).filter(|window| *window == needle).count(),
        1,
        "the shared layer is there once"
    );
    let other = Scratch::new();
    let loaded = other.load(&bytes).unwrap();
    let names: Vec<Vec<String>> =
        loaded.iter().map(|image| image.names.iter().map(ToString::to_string).collect()).collect();
    assert_eq!(names, [vec!["x:1"], vec!["small:1", "small:2"]]);
    assert_eq!(other.store.all_layers().unwrap().len(), 3);
}

/// An index of two platforms, an attestation, an artifact and something from the future.
fn multi_platform() -> Files {
    let mut files: Files = Vec::new();
    let mut entries = Vec::new();
    for (architecture, variant, layer) in [("amd64", None, base_layer()), ("arm64", Some("v8"), top_layer())] {
        let layers = vec![layer];
        let text = String::from_utf8(config(&layers, architecture))
            .unwrap()
            .replace("\"amd64\",", &format!("\"{architecture}\","));
        let manifest = add_manifest(&mut files, text.as_bytes(), &layers, &gzip, "+gzip");
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = json!(variant);
        }
        entries.push(entry);
    }
    let mut attestation = descriptor("application/vnd.oci.image.manifest.v1+json", b"not here");
    attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    entries.insert(0, attestation);
    entries.push(json!({"mediaType": "application/x-future", "digest": "blake9:00", "size": 1}));
    let nested = json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes();
    files.push((blob_name(&nested), nested.clone()));
    let mut top = descriptor("application/vnd.oci.image.index.v1+json", &nested);
    top["annotations"] = json!({"org.opencontainers.image.ref.name": "multi:1"});
    let unknown = json!({"mediaType": "application/x-unknown", "digest": Digest::of(b"?"), "size": 1});
    let index = json!({"schemaVersion": 2, "manifests": [unknown, top]});
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    files
}

#[test]
fn the_platform_is_chosen_from_an_index() {
    let archive = tar_of(&multi_platform());
    let load = |platform: Option<&str>| {
        let scratch = Scratch::new();
        let options =
            LoadOptions { platform: platform.map(|p| p.parse::<Platform>().unwrap()), ..LoadOptions::default() };
        scratch.load_with(ArchiveInput::Stream(&mut &archive[..], "stream"), &options, &mut ())?;
        let image = scratch.store.find("multi:1")?;
        Ok::<_, stratafs::image::ImageError>(image.config.platform().unwrap().architecture)
    };
    assert_eq!(load(Some("linux/amd64")).unwrap(), "amd64");
    assert_eq!(load(Some("arm64")).unwrap(), "arm64");
    assert_eq!(load(Some("linux/arm64/v8")).unwrap(), "arm64");
    assert_eq!(load(None).unwrap(), Platform::host().architecture);
    let error = load(Some("linux/s390x")).unwrap_err().to_string();
    assert_eq!(error, "stream: holds no image for linux/s390x; it has linux/amd64, linux/arm64/v8");
}

#[test]
fn kept_blobs_are_the_originals() {
    let scratch = Scratch::new();
    let files = oci("x:1", &gzip, "+gzip");
    let archive = tar_of(&files);
    let options = LoadOptions { keep_blobs: true, ..LoadOptions::default() };
    scratch.load_with(ArchiveInput::Stream(&mut &archive[..], "stream"), &options, &mut ()).unwrap();
    let image = scratch.store.find("x:1").unwrap();
    let original = image.original_manifest().expect("an original manifest");
    assert!(String::from_utf8(scratch.store.read_blob(&original).unwrap()).unwrap().contains("kept"));
    scratch.store.gc(true).unwrap();
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("blobs/")) {
        assert_eq!(&std::fs::read(scratch.store.root().join(name)).unwrap(), bytes, "{name}");
    }
    scratch.store.remove("x:1", false).unwrap();
    assert_eq!(std::fs::read_dir(scratch.store.root().join("blobs/sha256")).unwrap().count(), 0);
}

/// Layers that depend on those below in every way. The store is the same, whichever layer is ready first.
#[test]
fn layers_unpacked_together_are_those_unpacked_one_by_one() {
    let big =
        Tar::new().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").file("usr/lib/big", vec![7; 3 << 20]).end();
    let layers = [
        big,
        Tar::new().hardlink("again", "usr/lib/big").end(),
        Tar::new().file("lib/new", "through a lower link").hardlink("third", "again").end(),
        Tar::new().file("usr/.wh.lib", "").file("usr/only", "x").end(),
        Tar::new().file("lib/late", "x").end(),
        Tar::new().end(),
        Tar::new().file("small", "").end(),
        Tar::new().end(),
    ];
    let archive = super::crashes::one_image("x:1", &layers);
    let load = |threads: bool| {
        let scratch = Scratch::new();
        let unpack = UnpackOptions { threads, ..UnpackOptions::default() };
        let options = LoadOptions { unpack, ..LoadOptions::default() };
        scratch.load_with(ArchiveInput::Stream(&mut archive.as_slice(), "stream"), &options, &mut ()).unwrap();
        assert!(scratch.store.verify().unwrap().damages.is_empty());
        scratch.listing()
    };
    let one_by_one = load(false);
    for _ in 0..5 {
        assert_eq!(load(true), one_by_one);
    }
}

/// The lowest bad layer is the one reported, and no layer waits for it for ever.
#[test]
fn of_several_bad_layers_the_lowest_is_told() {
    let good = Tar::new().file("a", vec![1; 1 << 20]).end();
    let (bad, needs) = (Tar::new().file("../evil", "x").end(), Tar::new().hardlink("h", "a").end());
    let worse = Tar::new().raw(&[7; 1024]).end();
    for layers in [[&good, &bad, &needs, &worse], [&bad, &needs, &needs, &worse], [&good, &needs, &bad, &worse]] {
        let lowest = layers.iter().position(|layer| *layer == &bad).unwrap();
        let archive = super::crashes::one_image("x:1", &layers.map(Vec::clone));
        for _ in 0..5 {
            let scratch = Scratch::new();
            let before = scratch.listing();
            let error = scratch.load(&archive).unwrap_err().to_string();
            assert!(error.starts_with(&format!("stream: {lowest}.tar: ")) && error.contains("\"..\""), "{error}");
            assert_eq!(scratch.listing(), before);
        }
    }
}
