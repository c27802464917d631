//! Artifacts: what registries hold besides images (OCI image specification 1.1, "Guidelines for Artifact Usage"). Finds
//! out their kind, and writes their blobs as files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::image::digest::Digest;
use crate::image::files::sync_dir;
use crate::image::spec::{self, Descriptor, Manifest, Platform};
use crate::image::{ImageError, IoContext, Result};
use crate::registry::blob::BlobReader;
use crate::registry::pull::RemoteImage;
use crate::registry::session::{Access, Session};
use crate::registry::{Options, Progress, manifest as manifests};

/// Media type of the artifact manifest of the specification's release candidates.
pub(super) const MANIFEST: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// Media type of an empty config.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Annotation: the file name of a blob.
const TITLE: &str = "org.opencontainers.image.title";

/// Parts of media types, and the kinds that they mean.
const KINDS: &[(&str, &str)] = &[
    ("cncf.helm", "a Helm chart"),
    ("in-toto", "an attestation"),
    ("dev.cosign", "a signature of cosign"),
    ("dev.sigstore", "a signature of sigstore"),
    ("cncf.notary", "a signature of Notary"),
    ("cyclonedx", "an SBOM"),
    ("spdx", "an SBOM"),
    ("syft", "an SBOM"),
    ("sbom", "an SBOM"),
    ("wasm", "a WebAssembly module"),
    ("docker.plugin", "a plugin of docker"),
    ("docker.ai", "a model"),
    ("cncf.model", "a model"),
    ("cncf.flux", "a source of Flux"),
    ("sylabs.sif", "an image of Singularity"),
    ("devcontainers", "a part of a development container"),
    ("opa.", "a policy of Open Policy Agent"),
    ("buildkit.cacheconfig", "a build cache of BuildKit"),
    ("oras", "files of ORAS"),
];

/// The kind of a manifest, in words and with advice; `None` for an image whose layers can be unpacked here.
pub(super) fn kind_of(manifest: &Manifest) -> Option<String> {
    let config = manifest.config.media_type.as_str();
    let declared = manifest.unknown.get("artifactType").and_then(Value::as_str).filter(|kind| !kind.is_empty());
    let strange = manifest.layers.iter().map(|layer| layer.media_type.as_str()).find(|kind| !is_layer(kind));
    let subject = manifest.unknown.get("subject").and_then(|subject| subject.get("digest")).and_then(Value::as_str);
    let is_image = spec::is_image_config(config);
    // An image may have its own type and refer to another one; its components decide.
    if is_image && strange.is_none() && (declared.is_none() || !manifest.layers.is_empty()) {
        return None;
    }
    let types = [declared, (!is_image && config != EMPTY).then_some(config), strange, Some(config)];
    let types: Vec<&str> = types.into_iter().flatten().collect();
    let known = types.iter().find_map(|kind| {
        let kind = kind.to_lowercase();
        KINDS.iter().find(|(part, _)| kind.contains(part)).map(|(_, words)| *words)
    });
    let words = known.unwrap_or("an artifact");
    let kind = types.first().copied().unwrap_or_default();
    let through = match (is_image, declared) {
        (true, None) => "layers of type",
        (false, None) => "a config of type",
        (_, Some(_)) => "type",
    };
    let about = subject.map(|subject| format!(" about {subject}")).unwrap_or_default();
    Some(format!("{words}{about} ({through} {kind}); strata pull --artifact -o DIR writes its files"))
}

/// True for layers that can be unpacked, here or on another system.
fn is_layer(media_type: &str) -> bool {
    let known = [
        spec::LAYER,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.container.image.rootfs.diff",
        "application/octet-stream",
        "application/x-tar",
        "application/gzip",
        "application/x-gzip",
        "text/html",
    ];
    // The last word decides too: tools that make their own kind of image have their own types for ordinary tars.
    let is_tar = |rest: &str| rest.split(['+', '.']).any(|word| word == "tar");
    media_type.is_empty() || known.iter().any(|known| media_type.starts_with(known)) || {
        is_tar(media_type) && media_type.contains("layer") && !media_type.contains("helm")
    }
}

/// Converts a manifest of the release candidates to the present form.
pub(super) fn manifest(kind: Option<String>, blobs: Vec<Descriptor>) -> Manifest {
    let mut manifest = Manifest::new(Descriptor::of(EMPTY, b"{}"), blobs);
    manifest.unknown.insert("artifactType".to_owned(), kind.into());
    manifest
}

/// The written files.
#[derive(Clone, Debug)]
pub struct Written {
    /// The digest in the registry.
    pub digest: Digest,
    /// The files, relative to the directory.
    pub files: Vec<PathBuf>,
}

/// Writes the blobs of an artifact, or the unchanged layers of an image, into a directory, which must be empty or not
/// exist. The file name of a blob is its `org.opencontainers.image.title`. If there is none, or it leads out of the
/// directory or is taken, the name is the digest (`sha256-…`).
///
/// # Errors
/// When the registry cannot be reached or breaks the protocol, or the directory cannot be written; the directory is
/// then unchanged.
pub fn pull_artifact(
    source: &RemoteImage,
    dir: &Path,
    platform: Option<&Platform>,
    registry: &Options,
    progress: &dyn Progress,
) -> Result<Written> {
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
        return Err(ImageError::refused(dir.display().to_string(), "exists and is not an empty directory"));
    }
    let session = Session::open(&source.name, Access::Pull, registry, progress)?;
    let platform = platform.cloned().unwrap_or_else(Platform::host);
    let found = manifests::find(&session, source, &platform)?;
    let beside = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stage = tempfile::Builder::new().prefix(".strata-").tempdir_in(beside).at(dir)?;
    let files = names(&found.manifest.layers);
    for (file, blob) in files.iter().zip(&found.manifest.layers) {
        let path = stage.path().join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).at(parent)?;
        }
        let mut out = File::options().write(true).create_new(true).open(&path).at(&path)?;
        progress.begins(&blob.digest, blob.size);
        let mut reader = BlobReader::new(&session, blob);
        io::copy(&mut reader, &mut out).map_err(|error| session.error(format!("blob {}: {error}", blob.digest)))?;
        out.sync_all().at(&path)?;
        progress.ends(&blob.digest, &format!("Written to {}", file.display()));
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(stage.path(), mode).at(stage.path())?;
    fs::rename(stage.keep(), dir).at(dir)?;
    sync_dir(beside)?;
    Ok(Written { digest: found.digest, files })
}

/// A name for each blob. All are different, and none is a directory of another.
fn names(blobs: &[Descriptor]) -> Vec<PathBuf> {
    let mut taken: BTreeSet<PathBuf> = BTreeSet::new();
    let mut names = Vec::new();
    for blob in blobs {
        let titled = blob.annotations.get(TITLE).and_then(|title| safe_path(title));
        let clashes = |path: &PathBuf| taken.iter().any(|other| other.starts_with(path) || path.starts_with(other));
        let mut name = titled.filter(|path| !clashes(path));
        let mut number = 0;
        let name = loop {
            match name.take() {
                Some(free) => break free,
                None => {
                    let suffix = if number == 0 { String::new() } else { format!("-{number}") };
                    let path = PathBuf::from(format!("sha256-{}{suffix}", blob.digest.hex()));
                    number += 1;
                    name = Some(path).filter(|path| !clashes(path));
                }
            }
        };
        taken.insert(name.clone());
        names.push(name);
    }
    names
}

/// Converts a title to a path that stays below a directory and has no control characters.
fn safe_path(title: &str) -> Option<PathBuf> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(name) if name.len() <= 255);
    let path = Path::new(title.strip_prefix("./").unwrap_or(title));
    let is_shown = !title.chars().any(|c| c.is_control() || c == '\\');
    let is_file = !title.is_empty() && !title.ends_with(['/', '.']) && title.len() < 4096;
    (is_shown && is_file && path.components().all(is_plain)).then(|| path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles() {
        for (title, expected) in [
            ("a.txt", Some("a.txt")),
            ("./a.txt", Some("a.txt")),
            ("dir/a b.json", Some("dir/a b.json")),
            ("dir//a", Some("dir/a")),
            ("..a", Some("..a")),
            ("", None),
            (".", None),
            ("..", None),
            ("../a", None),
            ("a/../../b", None),
            ("/etc/passwd", None),
            ("dir/", None),
            ("a\0b", None),
            ("a\u{1b}[31m", None),
            ("..\\a", None),
        ] {
            assert_eq!(safe_path(title), expected.map(PathBuf::from), "{title:?}");
        }
        assert_eq!(safe_path(&"x".repeat(256)), None);
    }

    #[test]
    fn every_blob_has_a_name_of_its_own() {
        let blob = |content: &str, title: &str| {
            let mut blob = Descriptor::of("x", content.as_bytes());
            blob.annotations.insert(TITLE.to_owned(), title.to_owned());
            blob
        };
        let digest = |content: &str| format!("sha256-{}", Digest::of(content.as_bytes()).hex());
        let names = names(&[blob("1", "a"), blob("2", "a"), blob("3", "a/b"), blob("4", "../x"), blob("2", "a")]);
        let names: Vec<String> = names.iter().map(|name| name.display().to_string()).collect();
        assert_eq!(names, ["a".to_owned(), digest("2"), digest("3"), digest("4"), format!("{}-1", digest("2"))]);
    }

    #[test]
    fn what_is_an_image_and_what_is_not() {
        let gzip = format!("{}+gzip", spec::LAYER);
        let helm = "application/vnd.cncf.helm.config.v1+json";
        for (declared, config, layers, expected) in [
            (None, spec::CONFIG, &[gzip.as_str()][..], None),
            (None, spec::CONFIG, &[], None),
            (Some("application/x.mine"), spec::CONFIG, &[&gzip], None),
            (None, spec::CONFIG, &["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"], None),
            (None, spec::CONFIG, &["application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"], None),
            (None, helm, &["application/vnd.cncf.helm.chart.content.v1.tar+gzip"], Some("a Helm chart")),
            (None, spec::CONFIG, &["application/vnd.in-toto+json"], Some("an attestation")),
            (None, spec::CONFIG, &["application/vnd.dev.cosign.simplesigning.v1+json"], Some("a signature of cosign")),
            (Some("application/spdx+json"), EMPTY, &["application/spdx+json"], Some("an SBOM")),
            (Some("application/vnd.example.thing"), EMPTY, &["text/plain"], Some("an artifact")),
            (None, "application/vnd.wasm.config.v0+json", &["application/wasm"], Some("a WebAssembly module")),
            (None, "application/vnd.docker.plugin.v1+json", &[&gzip], Some("a plugin of docker")),
            (None, "application/vnd.unknown.config.v1+json", &["text/plain"], Some("an artifact")),
            (Some("application/x"), spec::CONFIG, &[], Some("an artifact")),
        ] {
            let layers = layers.iter().map(|kind| Descriptor::of(kind, b"x")).collect();
            let mut manifest = Manifest::new(Descriptor::of(config, b"{}"), layers);
            if let Some(kind) = declared {
                manifest.unknown.insert("artifactType".to_owned(), kind.into());
            }
            let kind = kind_of(&manifest);
            let words = kind.as_deref().map(|kind| kind.split(" (").next().unwrap_or_default());
            assert_eq!(words, expected, "{kind:?}");
        }
    }
}
