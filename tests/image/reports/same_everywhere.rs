//! The same thing has the same meaning in two places: an entry of an archive and of a layer, a compressed stream,
//! a layer that an image has twice. podman, which uses Go's reader, is asked for the content of each tar.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use stratafs::image::archive::{Archive, ArchiveInput, Spooling};
use stratafs::image::unpack::{self, UnpackOptions};
use stratafs::store::load::LoadOptions;
use stratafs::tar::Limits;

use super::super::container::worlds;
use super::super::crashes::one_image;
use super::super::fixture::*;
use super::super::interop::Podman;
use super::super::tar_build::{Tar, record, seal, spec};

/// overlayfs refuses one directory twice (ELOOP). Of two equal layers, the topmost shows everything that both would show.
#[test]
fn the_same_layer_twice_in_one_image() {
    let twice = Tar::new().dir("d/").file("d/a", "twice").file(".wh.gone", "").end();
    let between = Tar::new().dir("d/").file("d/.wh.a", "").file("d/b", "between").file("gone", "").end();
    let top = Tar::new().file("top", "").end();
    for world in worlds() {
        let driver = world.driver;
        for (name, layers) in [
            ("x:1", vec![twice.clone(), between.clone(), twice.clone()]),
            ("x:2", vec![twice.clone(), between.clone(), twice.clone(), top.clone(), between.clone(), twice.clone()]),
            ("x:3", vec![twice.clone(), twice.clone()]),
        ] {
            let archive = world.dir.path().join("archive");
            std::fs::write(&archive, one_image(name, &layers)).unwrap();
            world.ok(&["load", "-i", archive.to_str().unwrap()]);
            for access in [&["--read-only"][..], &[]] {
                let merged = world.ok(&[&["mount", "--name", "c"][..], access, &[name]].concat());
                let merged = Path::new(merged.trim());
                assert_eq!(std::fs::read_to_string(merged.join("d/a")).unwrap(), "twice", "{driver} {name} {access:?}");
                assert_eq!(merged.join("d/b").exists(), name != "x:3", "{driver} {name} {access:?}");
                assert!(!merged.join("gone").exists(), "{driver} {name} {access:?}");
                world.ok(&["umount", "--rm", "c"]);
            }
        }
    }
}

/// The files `a` and `b` of a tar; `None` if it is refused.
type Held = Option<BTreeMap<&'static str, Vec<u8>>>;

const NAMES: [&str; 2] = ["a", "b"];

fn files_of(mut read: impl FnMut(&str) -> Option<Vec<u8>>) -> BTreeMap<&'static str, Vec<u8>> {
    NAMES.into_iter().filter_map(|name| Some((name, read(name)?))).collect()
}

/// As a layer.
fn in_a_layer(tar: &[u8]) -> Held {
    let dir = tempfile::tempdir().unwrap();
    let fd = std::fs::File::open(dir.path()).unwrap();
    unpack::unpack_layer(&mut &tar[..], fd.as_fd(), &[], None, &UnpackOptions::default()).ok()?;
    Some(files_of(|name| std::fs::read(dir.path().join(name)).ok()))
}

/// As an archive: in place, through a pipe, and compressed.
fn in_an_archive(tar: &[u8], way: &str) -> Held {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    let spooling = Spooling { scratch: dir.path(), skip: &|_| false, limits: &limits };
    let bytes = if way == "gzip" { gzip(tar) } else { tar.to_vec() };
    let path = dir.path().join("archive");
    std::fs::write(&path, &bytes).unwrap();
    let mut stream = &bytes[..];
    let source = if way == "file" { ArchiveInput::Path(&path) } else { ArchiveInput::Stream(&mut stream, "stream") };
    let archive = Archive::open(source, &spooling).ok()?;
    Some(files_of(|name| {
        let mut bytes = Vec::new();
        archive.member(name).ok()?.read_to_end(&mut bytes).ok().map(|_| bytes)
    }))
}

/// As podman reads it.
fn in_podman(podman: &Podman, path: &Path) -> Held {
    podman.try_run(&["import", "--quiet", path.to_str().unwrap(), "odd:1"])?;
    let container = podman.run(&["create", "odd:1", "x"]);
    let mounted = podman.run(&["mount", container.trim()]);
    let held = files_of(|name| std::fs::read(Path::new(mounted.trim()).join(name)).ok());
    podman.run(&["rm", "--force", container.trim()]);
    podman.run(&["rmi", "--force", "odd:1"]);
    Some(held)
}

/// Some bytes with a long hole, and some more.
fn with_hole() -> Vec<u8> {
    let mut bytes = vec![7; 5000];
    bytes.resize(300_000, 0);
    bytes.extend_from_slice(b"end");
    bytes
}

/// GNU tar's form of two sparse files, one with more runs than fit into a header.
fn by_tar(args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("a")).unwrap();
    for run in 0..40 {
        file.write_all_at(&[run + 1; 4096], u64::from(run) * 65536).unwrap();
    }
    file.set_len(5 << 20).unwrap();
    let hole = std::fs::File::create(dir.path().join("b")).unwrap();
    hole.set_len(1 << 20).unwrap();
    let mut command = Command::new("tar");
    command.arg("-C").arg(dir.path()).args(["--sparse", "-cf", "-"]).args(args).args(NAMES);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// `a` and `b`, with something unusual before, between or after them.
fn odd_tars() -> Vec<(&'static str, Vec<u8>)> {
    let a = || Tar::new().file("a", "first");
    let v7 = |name: &str, content: &str| {
        let mut block = spec(name, 0).content(content).block();
        block[257..265].fill(0);
        seal(&mut block);
        Tar::new().raw(&block).raw(content.as_bytes()).pad().bytes
    };
    let mut signed = spec("b", b'0').block();
    signed[265..269].copy_from_slice(&[0xe4; 4]);
    seal(&mut signed);
    let sum = u32::from_str_radix(std::str::from_utf8(&signed[148..154]).unwrap(), 8).unwrap() - 4 * 256;
    signed[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    let mut base256 = spec("b", b'0').block();
    base256[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    seal(&mut base256);
    let mut bad_sum = spec("b", b'0').block();
    bad_sum[0] = b'c';
    let claims = |flag: u8| a().entry(spec("x", flag).link("a").device(1, 3).size(512)).file("b", "second").end();
    vec![
        ("plain", a().file("b", "second").end()),
        ("a directory with a size", claims(b'5')),
        ("a symbolic link with a size", claims(b'2')),
        ("a hard link with a size", claims(b'1')),
        ("a device with a size", claims(b'3')),
        ("a FIFO with a size", claims(b'6')),
        ("a directory with a size in PAX", a().entry(spec("x", b'5').pax("size", "512")).file("b", "second").end()),
        ("sparse, GNU", by_tar(&["--format=gnu"])),
        ("sparse, PAX 0.0", by_tar(&["--format=posix", "--sparse-version=0.0"])),
        ("sparse, PAX 0.1", by_tar(&["--format=posix", "--sparse-version=0.1"])),
        ("sparse, PAX 1.0", by_tar(&["--format=posix", "--sparse-version=1.0"])),
        ("zeros", a().file("b", with_hole()).end()),
        ("GNU long name", a().extension(b'L', b"b\0").file("long", "second").end()),
        ("GNU long name in ustar", a().entry(spec("x", b'L').content("b\0")).file("long", "second").end()),
        ("GNU long name of nothing", a().extension(b'L', b"\0").file("b", "second").end()),
        ("PAX path", a().entry(spec("x", b'0').pax("path", "b").content("second")).end()),
        ("PAX path taken back", a().entry(spec("b", b'0').pax("path", "").content("second")).end()),
        ("PAX size", a().entry(spec("b", b'0').pax("size", "6").content("second").size(1)).end()),
        (
            "two PAX headers",
            a().extension(b'x', &record(b"path", b"x")).extension(b'x', &record(b"path", b"b")).file("y", "2").end(),
        ),
        ("a global path", Tar::new().extension(b'g', &record(b"path", b"x")).file("a", "1").file("b", "2").end()),
        (
            "a global header in between",
            a().extension(b'x', &record(b"path", b"x")).extension(b'g', &record(b"k", b"v")).file("b", "2").end(),
        ),
        ("base-256 size", a().raw(&base256).raw(b"sec").pad().end()),
        ("a signed checksum", a().raw(&signed).end()),
        ("V7", [v7("a", "first"), v7("b", "second"), vec![0; 1024]].concat()),
        ("V7 directory", [v7("x/", ""), v7("a", "first"), v7("x/b", "second"), vec![0; 1024]].concat()),
        ("one name twice", a().file("b", "second").file("a", "third").end()),
        ("a link to a file", a().hardlink("b", "a").end()),
        ("no end", a().file("b", "second").bytes),
        ("half an end", a().file("b", "second").raw(&[0; 512]).bytes),
        ("the last padding cut", a().raw(&spec("b", b'0').content("second").block()).raw(b"second").bytes),
        ("the last padding cut in the middle", a().file("b", "second").bytes[..1024 + 700].to_vec()),
        ("zeros behind the end", a().file("b", "second").raw(&[0; 20480]).bytes),
        ("something behind the end", [a().end(), Tar::new().file("b", "hidden").end()].concat()),
        ("a zero block in between", a().raw(&[0; 512]).file("b", "second").end()),
        ("contents cut", a().file("b", [1; 2000]).bytes[..1024 + 512 + 600].to_vec()),
        ("a header cut", a().file("b", "second").bytes[..1024 + 300].to_vec()),
        ("half an end and less", a().raw(&[0; 700]).bytes),
        ("a wrong checksum", a().raw(&bad_sum).end()),
        ("a negative size", a().entry(spec("b", b'0').size(u64::MAX)).end()),
        ("an old GNU sparse file in ustar", a().entry(spec("b", b'S').content("x")).end()),
        ("a PAX size that is none", a().entry(spec("b", b'0').pax("size", "x").content("second")).end()),
        ("a PAX record that is too long", a().extension(b'x', b"99 path=b\n").file("b", "second").end()),
    ]
}

#[test]
fn an_entry_means_the_same_in_an_archive_and_in_a_layer() {
    let dir = tempfile::tempdir().unwrap();
    let podman = super::super::overlayfs_for("an_entry_means_the_same_in_an_archive_and_in_a_layer")
        .then(|| Podman::new(dir.path()));
    let (mut held, mut refused) = (0, 0);
    for (what, tar) in odd_tars() {
        let layer = in_a_layer(&tar);
        *if layer.is_some() { &mut held } else { &mut refused } += 1;
        for way in ["file", "stream", "gzip"] {
            assert!(in_an_archive(&tar, way) == layer, "{what}: {way} archive and layer differ");
        }
        // podman's unpacker, unlike Go's reader, accepts neither of these; GNU tar accepts both.
        let beyond_podman = ["sparse, GNU", "one name twice"].contains(&what);
        if let Some(podman) = podman.as_ref().filter(|_| !beyond_podman) {
            let path = dir.path().join("odd.tar");
            std::fs::write(&path, &tar).unwrap();
            let theirs = in_podman(podman, &path);
            let short = |held: &Held| held.as_ref().map(|files| files.values().map(Vec::len).collect::<Vec<_>>());
            assert!(theirs == layer, "{what}: podman has {:?}, we {:?}", short(&theirs), short(&layer));
        }
    }
    assert!(held > 25 && refused > 5, "{held} {refused}");
}

/// Archives that `tar --sparse` made of an image's files: `docker save` and a backup in between.
#[test]
fn sparse_archives_of_images() {
    let hole = Tar::new().file("zeros", vec![0; 3 << 20]).file("f", "x").end();
    let (plain, dir) = (one_image("x:1", std::slice::from_ref(&hole)), tempfile::tempdir().unwrap());
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).current_dir(dir.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
        output.stdout
    };
    std::fs::write(dir.path().join("plain.tar"), &plain).unwrap();
    std::fs::create_dir(dir.path().join("files")).unwrap();
    run("tar", &["-C", "files", "-xf", "plain.tar"]);
    run("fallocate", &["--dig-holes", "files/0.tar"]);
    for format in ["gnu", "0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={format}");
        let how = if format == "gnu" { vec!["--format=gnu"] } else { vec!["--format=posix", &version] };
        run("tar", &[&["-C", "files", "--sparse", "-cf", "sparse.tar"][..], &how, &["."]].concat());
        let sparse = std::fs::read(dir.path().join("sparse.tar")).unwrap();
        assert!(sparse.len() < 1 << 20, "{format}: not sparse");
        let scratch = Scratch::new();
        let loaded = scratch.load(&sparse).unwrap_or_else(|error| panic!("{format}: {error}"));
        let from_file = Scratch::new();
        let source = dir.path().join("sparse.tar");
        let again = from_file.load_with(ArchiveInput::Path(&source), &LoadOptions::default(), &mut ()).expect(format);
        assert_eq!((loaded[0].id, again[0].id), (plain_id(&plain), plain_id(&plain)), "{format}");
        run(
            "skopeo",
            &["copy", "-q", "--insecure-policy", "docker-archive:sparse.tar", &format!("dir:copied{format}")],
        );
    }
}

fn plain_id(archive: &[u8]) -> stratafs::image::digest::Digest {
    Scratch::new().load(archive).unwrap()[0].id
}

/// What the program `tool` makes of `bytes`.
fn packed(tool: &str, args: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut command = Command::new(tool);
    let mut child = command.args(args).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(tool);
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{tool}");
        output.stdout
    })
}

/// Compressed by the programs themselves, the archive as a whole and each of its layers.
#[test]
fn every_compression_of_archives_and_layers() {
    let plain = tar_of(&docker_podman("x:1"));
    let reference = Scratch::new();
    reference.load(&plain).unwrap();
    let expected = reference.trees(&reference.store.find("x:1").unwrap());
    let dir = tempfile::tempdir().unwrap();
    for (tool, args) in [
        ("gzip", &["-9"][..]),
        ("zstd", &["-q"]),
        ("xz", &["-9"]),
        ("xz", &["-0", "-T2", "--block-size=4096"]),
        ("bzip2", &[]),
    ] {
        let whole = packed(tool, args, &plain);
        let (first, second) = plain.split_at(plain.len() / 2);
        let parts = [packed(tool, args, first), packed(tool, args, second)].concat();
        let inside = tar_of(&oci("x:1", &|layer| packed(tool, args, layer), ""));
        for (what, archive) in [("whole", &whole), ("in two parts", &parts), ("layers", &inside)] {
            let scratch = Scratch::new();
            let loaded = scratch.load(archive).unwrap_or_else(|error| panic!("{tool} {args:?}, {what}: {error}"));
            assert_eq!(loaded[0].id, reference.store.find("x:1").unwrap().id(), "{tool} {what}");
            assert_eq!(scratch.trees(&scratch.store.find("x:1").unwrap()), expected, "{tool} {what}");
            let path = dir.path().join("archive");
            std::fs::write(&path, archive).unwrap();
            let from_file = Scratch::new();
            from_file.load_with(ArchiveInput::Path(&path), &LoadOptions::default(), &mut ()).expect(tool);
            // Truncated anywhere, it is refused.
            for part in 1..7 {
                let error = Scratch::new().load(&archive[..archive.len() * part / 8]).err();
                assert!(error.is_some(), "{tool} {what}: {part}/8 of it are taken");
            }
        }
        // skopeo 1.9 wrongly reports a complete gzip stream as truncated.
        if tool == "gzip" {
            continue;
        }
        let path = dir.path().join("whole");
        std::fs::write(&path, &whole).unwrap();
        let source = format!("docker-archive:{}", path.display());
        let output = Command::new("skopeo").args(["inspect", "--raw", &source]).output().unwrap();
        assert!(output.status.success(), "skopeo {tool}: {output:?}");
    }
}

/// Zeros become holes in a layer's files and in the spool of an archive: they fill no disk. Everything else is counted.
#[test]
fn zeros_are_no_bomb_anywhere() {
    let limits = Limits { ratio_from: 1 << 20, ..Limits::default() };
    let unpack = UnpackOptions { limits, ..UnpackOptions::default() };
    let options = LoadOptions { unpack, ..LoadOptions::default() };
    let load = |bytes: &[u8]| {
        let scratch = Scratch::new();
        let loaded = scratch.load_with(ArchiveInput::Stream(&mut &bytes[..], "stream"), &options, &mut ());
        loaded.map(drop).map_err(|error| error.to_string())
    };
    for (fill, is_bomb) in [(0, false), (1, true)] {
        let layer = Tar::new().file("f", vec![fill; 8 << 20]).end();
        let outside = zstd(&one_image("x:1", std::slice::from_ref(&layer)));
        let inside = tar_of(&oci_of(&[zstd(&layer)], &[layer]));
        for (what, archive) in [("outside", outside), ("inside", inside)] {
            let outcome = load(&archive);
            let refused = outcome.as_ref().is_err_and(|error| error.contains("more than the limit of 200 of ratio"));
            assert_eq!(refused, is_bomb, "{fill}, {what}: {outcome:?}");
            assert!(refused || outcome.is_ok(), "{fill}, {what}: {outcome:?}");
        }
    }
}

/// An OCI layout with the given packed layers.
fn oci_of(packed: &[Vec<u8>], layers: &[Vec<u8>]) -> Files {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let at = |layer: &[u8]| layers.iter().position(|known| known == layer).unwrap();
    let manifest = add_manifest(&mut files, &config(layers, "x"), layers, &|layer| packed[at(layer)].clone(), "");
    let entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    files
}
