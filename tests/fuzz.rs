//! The fuzzer's entry points (`fuzz/entry.rs`) on the seeds of `fixtures/fuzz` and of code, changed by a fixed
//! sequence of random numbers. `cargo fuzz` does the same without end.

#![allow(clippy::unwrap_used)]

#[path = "common/dice.rs"]
mod dice;
#[path = "../fuzz/entry.rs"]
mod entry;
#[path = "common/tar_build.rs"]
mod tar_build;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use dice::Dice;
use stratafs::image::digest::Digest;
use tar_build::{Tar, everything, spec};

/// Bytes with a meaning in one of the formats.
const SPECIAL: &[u8] = b"\0\n /.,:=-\"[]{}019xgLKS\x7f\x80\xff";

fn fixtures(ending: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz");
    let mut paths: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().ends_with(ending));
    paths.sort();
    assert!(!paths.is_empty(), "no {ending} in {}", dir.display());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// One of the seeds with some changes.
fn mutated(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[dice.roll(seeds.len())].clone();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len() + 1);
        let len = dice.roll(bytes.len() - at + 1).min(1 << dice.roll(11));
        match dice.roll(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
            1 | 2 if at < bytes.len() => bytes[at] = SPECIAL[dice.roll(SPECIAL.len())],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..at + len)),
            5 => {
                let part = bytes[at..at + len].to_vec();
                let to = dice.roll(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            6 => {
                let other = &seeds[dice.roll(seeds.len())];
                let from = dice.roll(other.len() + 1);
                let to = from + dice.roll(other.len() - from + 1).min(1024);
                bytes.splice(at..at + len, other[from..to].iter().copied());
            }
            _ => bytes.insert(at, SPECIAL[dice.roll(SPECIAL.len())]),
        }
    }
    bytes
}

/// Runs the seeds as they are, then changed. An input that makes it fail is kept and printed.
fn fuzz(name: &str, seeds: &[Vec<u8>], rounds: u32, target: fn(&[u8])) {
    let mut dice = Dice(0x5eed_0000 + u64::from(rounds));
    let changed: Vec<Vec<u8>> = (0..rounds).map(|_| mutated(&mut dice, seeds)).collect();
    for bytes in seeds.iter().chain(&changed) {
        if let Err(fault) = catch_unwind(AssertUnwindSafe(|| target(bytes))) {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{}", Digest::of(bytes).hex()));
            std::fs::write(&path, bytes).unwrap();
            eprintln!("the input is in {}", path.display());
            resume_unwind(fault);
        }
    }
}

#[test]
fn layer_tars() {
    let plain = everything();
    let links = Tar::new()
        .symlink("out", "../witness")
        .symlink("up", "..")
        .dir("d")
        .symlink("d/root", "/")
        .file("d/root/a", "x")
        .hardlink("h", "d/root/a")
        .entry(spec("f", b'0').pax("SCHILY.xattr.user.a", "b").pax("mtime", "-1.5").content("c"))
        .end();
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &plain).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    fuzz("layer_tar", &[plain, links, gzip, zstd], 1500, entry::layer_tar);
}

#[test]
fn archives() {
    let [config, index, manifest, list] = ["config.json", "index.json", "manifest.json", "docker.json"]
        .map(|name| fixtures(name).into_iter().next().unwrap());
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let manifest = text(&manifest).replace("CONFIG", &Digest::of(&config).hex());
    let index = text(&index)
        .replace("MANIFEST", &Digest::of(manifest.as_bytes()).hex())
        .replace("\"size\":1,", &format!("\"size\":{},", manifest.len()));
    let oci = Tar::new()
        .file("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}")
        .file("index.json", &index)
        .file(blob(manifest.as_bytes()), &manifest)
        .file(blob(&config), &config)
        .end();
    let docker = Tar::new().file("c.json", &config).symlink("l", "c.json").file("manifest.json", &list).end();
    let old = Tar::new()
        .file("repositories", "{\"x\":{\"1\":\"ab\"}}")
        .file("ab/json", "{\"id\":\"ab\",\"created\":\"2013-01-01T00:00:00Z\"}")
        .file("ab/layer.tar", Tar::new().file("a", "b").end())
        .end();
    fuzz("archive", &[oci, docker, old], 1500, entry::archive);
}

#[test]
fn documents() {
    fuzz("documents", &[fixtures(".json"), lines("names")].concat(), 20_000, entry::documents);
}

#[test]
fn marks() {
    use stratafs::marks::origin::Origin;
    let handle = Origin { uuid: [7; 16], handle_type: 1, handle: vec![64, 0, 0, 0, 1, 2, 3, 4], upper: true };
    let seeds = [lines("marks"), vec![handle.encode().unwrap()]].concat();
    fuzz("marks", &seeds, 50_000, entry::marks);
}

fn lines(name: &str) -> Vec<Vec<u8>> {
    let file = fixtures(name).concat();
    file.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}
