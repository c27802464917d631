//! Small images built by code, in every shape that an archive may have.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use stratafs::image::Result;
use stratafs::image::archive::ArchiveInput;
use stratafs::image::digest::Digest;
use stratafs::store::load::{self, LoadOptions, Loaded, Progress};
use stratafs::store::save::{self, Format, SaveOptions, Target};
use stratafs::store::{Image, Store, StoredLayer};
use stratafs::tar::compression::Compression;

use super::layer_dirs::tree;
use super::tar_build::{Tar, spec};

/// The lowest layer: a bit of everything.
pub fn base_layer() -> Vec<u8> {
    Tar::new()
        .dir("./")
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n")
        .file("etc/issue", "base\n")
        .dir("usr/")
        .entry(spec("usr/tool", b'0').content("#!/bin/true\n").mode(0o4755))
        .symlink("bin", "usr")
        .dir("var/")
        .dir("var/cache/")
        .file("var/cache/a", "a")
        .file("var/cache/b", "b")
        .entry(spec("null", b'3').device(1, 3).mode(0o666))
        .file("pad", [7; 5000])
        .end()
}

/// On top of it: a deletion, an opaque directory, a link to a lower file, a directory that becomes a file.
pub fn middle_layer() -> Vec<u8> {
    Tar::new()
        .dir("etc/")
        .file("etc/.wh.issue", "")
        .hardlink("etc/passwd-", "etc/passwd")
        .dir("var/")
        .dir("var/cache/")
        .file("var/cache/.wh..wh..opq", "")
        .file("var/cache/c", "c")
        .end()
}

pub fn top_layer() -> Vec<u8> {
    Tar::new().dir("usr/").file("usr/.wh.tool", "").file("usr/new", "new\n").file("bin2", "").end()
}

pub fn layers() -> Vec<Vec<u8>> {
    vec![base_layer(), middle_layer(), top_layer()]
}

pub fn config(layers: &[Vec<u8>], note: &str) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let history: Vec<Value> =
        diff_ids.iter().map(|_| json!({"created": "2024-01-01T00:00:00Z", "created_by": note})).collect();
    let document = json!({
        "x-unknown": {"b": 1, "a": [1.5, null]},
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["/usr/tool"], "Env": ["A=1"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    });
    serde_json::to_vec(&document).expect("json")
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("zstd")
}

pub fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

/// Files of an archive, in order.
pub type Files = Vec<(String, Vec<u8>)>;

pub fn tar_of(files: &Files) -> Vec<u8> {
    files.iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes)).end()
}

pub fn write_dir(files: &Files, dir: &Path) {
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(path, bytes).expect("write");
    }
}

/// As docker wrote them before 25: a directory for each layer, the list last.
pub fn docker_old(tag: &str) -> Vec<u8> {
    let layers = layers();
    let config = config(&layers, "old");
    let mut tar = Tar::new();
    let mut members = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let dir = format!("{number:064x}");
        tar = tar.dir(format!("{dir}/")).file(format!("{dir}/VERSION"), "1.0").file(format!("{dir}/json"), "{}");
        tar = match number {
            // Docker writes a link for a repeated layer; this one has an indirect path.
            1 => tar.file("shared/layer.tar", layer).symlink(format!("{dir}/layer.tar"), "../shared/layer.tar"),
            _ => tar.file(format!("{dir}/layer.tar"), layer),
        };
        members.push(format!("{dir}/layer.tar"));
    }
    let name = format!("{}.json", Digest::of(&config).hex());
    let list = json!([{"Config": name, "RepoTags": [tag], "Layers": members}]);
    tar.file(&name, &config).file("manifest.json", list.to_string()).file("repositories", "{}").end()
}

/// As podman writes them: files named by digest, layers first, and links for docker's old names.
pub fn docker_podman(tag: &str) -> Files {
    let layers = layers();
    let config = config(&layers, "old");
    let mut files: Files =
        layers.iter().map(|layer| (format!("{}.tar", Digest::of(layer).hex()), layer.clone())).collect();
    let members: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
    let name = format!("{}.json", Digest::of(&config).hex());
    let list = json!([{"Config": name, "RepoTags": [tag], "Layers": members}]);
    files.push((name, config));
    files.push(("manifest.json".to_owned(), list.to_string().into_bytes()));
    files
}

/// An OCI layout with layers packed by `pack`.
pub fn oci(name: &str, pack: &dyn Fn(&[u8]) -> Vec<u8>, suffix: &str) -> Files {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let manifest = add_manifest(&mut files, &config(&layers(), "old"), &layers(), pack, suffix);
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    files.push(("index.json".to_owned(), json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes()));
    files
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// Adds the blobs of an image and returns its manifest.
pub fn add_manifest(
    files: &mut Files,
    config: &[u8],
    layers: &[Vec<u8>],
    pack: &dyn Fn(&[u8]) -> Vec<u8>,
    suffix: &str,
) -> Vec<u8> {
    let mut descriptors = Vec::new();
    for layer in layers {
        let packed = pack(layer);
        descriptors.push(descriptor(&format!("application/vnd.oci.image.layer.v1.tar{suffix}"), &packed));
        files.push((blob_name(&packed), packed));
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config), "layers": descriptors,
        "annotations": {"kept": "only with --keep-blobs"},
    });
    let manifest = manifest.to_string().into_bytes();
    files.push((blob_name(config), config.to_vec()));
    files.push((blob_name(&manifest), manifest.clone()));
    manifest
}

/// A store in a temporary directory.
pub struct Scratch {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Scratch {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("strata-test-").tempdir().expect("tempdir");
        let store = Store::open(&dir.path().join("store")).expect("store");
        Self { dir, store }
    }

    pub fn load(&self, bytes: &[u8]) -> Result<Vec<Loaded>> {
        self.load_with(ArchiveInput::Stream(&mut &bytes[..], "stream"), &LoadOptions::default(), &mut ())
    }

    pub fn load_with(
        &self,
        source: ArchiveInput<'_>,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Loaded>> {
        let mut transaction = self.store.begin()?;
        let archive = load::open(&transaction, source, options)?;
        let loaded = load::load(&mut transaction, &archive, options, progress)?;
        transaction.publish()?;
        Ok(loaded)
    }

    pub fn save(&self, names: &[&str], format: Format, compression: Compression) -> Vec<u8> {
        save_from(&self.store, names, format, compression)
    }

    /// Every layer's tree, the lowest first. The times of whiteouts have no meaning.
    pub fn trees(&self, image: &Image) -> Vec<std::collections::BTreeMap<String, String>> {
        let timeless = |(path, line): (String, String)| match line.strip_prefix("char 0:0 ") {
            Some(_) => (path, "whiteout".to_owned()),
            None => (path, line),
        };
        let tree_of = |layer: &StoredLayer| tree(&layer.diff()).into_iter().map(timeless).collect();
        self.store.layers_of(image).expect("layers").iter().map(tree_of).collect()
    }

    /// Everything in the store but times, to see whether anything changed.
    pub fn listing(&self) -> Vec<String> {
        listing_of(&self.store).into_iter().collect()
    }
}

/// An archive of these images.
pub fn save_from(store: &Store, names: &[&str], format: Format, compression: Compression) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let selection = save::select(store, &names).expect("select");
    let mut bytes = Vec::new();
    let target = Target::Stream(&mut bytes, "bytes");
    save::save(store, &selection, target, SaveOptions { format, compression }).expect("save");
    bytes
}

/// Everything in a store except times, the content of `tmp`, and inventories, which contain inode numbers and may be missing.
pub fn listing_of(store: &Store) -> BTreeSet<String> {
    tree(store.root())
        .into_iter()
        .filter(|(path, _)| {
            !path.starts_with("tmp/") && !path.ends_with(".inventory") && !path.contains("/.inventory-")
        })
        .map(|(path, line)| format!("{path} {}", line.split(" @").next().unwrap_or_default()))
        .collect()
}

/// Bytes that do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(length / 8 + 1).flatten().collect();
    bytes.truncate(length);
    bytes
}
