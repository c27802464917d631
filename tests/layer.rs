//! Layers between tar streams and directories: one test for each rule of the format.
//!
//! | rule (OCI image specification, layer.md, and what writers do) | tests |
//! |---|---|
//! | whiteouts apply to lower layers only, whatever their order | `whiteouts_delete_only_from_lower_layers_whatever_their_order` `whiteouts_become_devices` |
//! | `.wh.foo`, then `foo/`: an opaque directory | `a_whiteout_and_a_directory_of_its_name_is_an_opaque_directory` |
//! | `.wh..wh..opq` is matched exactly; AUFS' own files are skipped | `opaque_markers_are_matched_exactly_and_aufs_bookkeeping_is_skipped` `opaque_markers_hide_lower_layers_whatever_their_order` |
//! | implied parents | `implied_parents_take_the_lower_layers_attributes` `the_root_has_the_lower_root_s_attributes_unless_the_layer_names_it` |
//! | hard links to lower layers, absolute, through linked parents | `hard_links_to_lower_files_copy_them_first` `hard_links_absolute_and_through_linked_parents` `a_lower_file_that_a_middle_layer_deletes_cannot_be_linked_to` |
//! | linked parents in the same layer and in a lower one | `linked_parents_in_the_same_layer_are_followed_within_it` `linked_parents_in_a_lower_layer_are_followed_too` |
//! | duplicates: the last wins | `the_last_of_several_entries_wins` `a_directory_again_loses_the_attributes_it_had` |
//! | gzip of several members, zstd of several frames, trailing bytes hashed | `compressions_are_told_by_their_magic_and_trailing_bytes_are_hashed` `members_frames_and_what_follows` |
//! | PAX, GNU, V7 and ustar names; names that are not UTF-8 | `long_and_strange_names` `ustar_prefixes_and_old_headers` `names_and_numbers_that_need_extension_headers` |
//! | base-256 numbers, negative and sub-second times | `numbers_beyond_octal` |
//! | GNU and PAX sparse files; 20 GiB | `sparse_files_of_every_format_are_expanded` `a_file_of_20_gib_that_is_nearly_all_hole` `long_runs_of_zeros_become_holes` |
//! | binary attributes, ACLs, capabilities v2 and v3 | `extended_attributes_acls_and_capabilities` `acls_as_text_become_attributes` `marks_are_stripped_and_everything_else_is_kept` |
//! | devices, FIFOs, setuid; sockets are left out | `files_of_every_type` `without_privileges_owners_and_devices_are_recorded` `marks_are_stripped_and_everything_else_is_kept` |
//! | global headers, volume labels | `global_headers_and_volume_labels_are_passed_over` |
//! | 1,000,000 empty files (`scripts/soak`; fewer else) | `a_crowd_of_empty_files` |
//! | manifests, indexes in indexes, attestations, artifacts, unknown types and fields | `the_platform_is_chosen_from_an_index` `indexes_in_indexes_without_an_end` `unknown_media_types` `unknown_fields_and_foreign_entries_survive` |

#![allow(clippy::unwrap_used)]

#[path = "common/layer_dirs.rs"]
mod layer_dirs;
#[path = "common/tar_build.rs"]
mod tar_build;

use layer_dirs::*;
use stratafs::image::layer;
use stratafs::image::snapshot::{self, SnapshotOptions};
use stratafs::image::unpack;
use stratafs::image::verify;
use tar_build::*;

fn lines(layer: &Layer) -> Vec<String> {
    layer.tree().into_iter().map(|(path, line)| format!("{path}: {line}")).collect()
}

#[test]
fn files_of_every_type() {
    let tar = Tar::new()
        .dir("d/")
        .file("d/f", "hello")
        .symlink("d/s", "../x")
        .hardlink("h", "d/f")
        .entry(spec("c", b'3').device(1, 3).mode(0o666))
        .entry(spec("b", b'4').device(8, 1).owner(0, 6))
        .entry(spec("p", b'6').mode(0o600))
        .entry(spec("suid", b'0').content("x").mode(0o6755).owner(1, 2))
        .end();
    let layer = unpack(&tar);
    assert_eq!(
        lines(&layer),
        [
            ".: dir 755 0:0 @0",
            "b: block 8:1 644 0:6 @1000000000",
            "c: char 1:3 666 0:0 @1000000000",
            "d: dir 755 0:0 @1000000000",
            "d/f: file \"hello\" 644 0:0 @1000000000",
            "d/s: link ../x 777 0:0 @1000000000",
            "h: file \"hello\" 644 0:0 @1000000000",
            "p: fifo 600 0:0 @1000000000",
            "suid: file \"x\" 6755 1:2 @1000000000",
        ]
    );
    assert_eq!(reassembled(&layer).unwrap(), tar);
    let mut out = Vec::new();
    let snapshot = snapshot::snapshot(layer.as_fd(), &[], &mut out, &SnapshotOptions::default()).unwrap();
    let again = unpack(&out);
    assert_eq!(again.tree(), layer.tree());
    assert_eq!(again.unpacked.diff_id, snapshot.diff_id);
}

/// The lines of `layer` whose paths are in `paths`.
fn at(layer: &Layer, path: &str) -> String {
    layer.tree().get(path).unwrap_or_else(|| panic!("no {path} in {:#?}", layer.tree())).clone()
}

fn has(layer: &Layer, path: &str) -> bool {
    layer.tree().contains_key(path)
}

const OPAQUE: &str = "trusted.overlay.opaque=y";
const WHITEOUT: &str = "char 0:0";

#[test]
fn whiteouts_become_devices() {
    let layer = unpack(&Tar::new().dir("d/").file("d/.wh.gone", "").file(".wh.top", "").end());
    assert!(at(&layer, "d/gone").starts_with(WHITEOUT));
    assert!(at(&layer, "top").starts_with(WHITEOUT));
    assert!(!has(&layer, "d/.wh.gone"));
}

#[test]
fn whiteouts_delete_only_from_lower_layers_whatever_their_order() {
    for tar in [
        Tar::new().dir("d/").file("d/a", "kept").file("d/.wh.a", ""),
        Tar::new().dir("d/").file("d/.wh.a", "").file("d/a", "kept"),
    ] {
        let layer = unpack(&tar.clone().end());
        assert!(at(&layer, "d/a").starts_with("file \"kept\""));
        assert_eq!(reassembled(&layer).unwrap(), tar.end());
    }
}

#[test]
fn a_whiteout_and_a_directory_of_its_name_is_an_opaque_directory() {
    for tar in [
        Tar::new().file(".wh.foo", "").dir("foo/").file("foo/new", ""),
        Tar::new().dir("foo/").file("foo/new", "").file(".wh.foo", ""),
        Tar::new().dir("foo/").file(".wh.foo", "").file("foo/new", ""),
        Tar::new().file(".wh.foo", "").file("foo/new", ""),
        Tar::new().file(".wh.foo", "").file("foo", "a file first").dir("foo").file("foo/new", ""),
        Tar::new().dir("foo").file("foo/.wh..wh..opq", "").file("foo", "a file").dir("foo").file("foo/new", ""),
    ] {
        let layer = unpack(&tar.clone().end());
        assert!(at(&layer, "foo").contains(OPAQUE), "{:#?}", layer.tree());
        assert!(at(&layer, "foo").starts_with("dir 755"));
        assert!(has(&layer, "foo/new"));
        assert_eq!(reassembled(&layer).unwrap(), tar.end());
    }
}

#[test]
fn opaque_markers_hide_lower_layers_whatever_their_order() {
    for tar in [
        Tar::new().dir("d/").file("d/.wh..wh..opq", "").file("d/a", "a"),
        Tar::new().dir("d/").file("d/a", "a").file("d/.wh..wh..opq", ""),
        Tar::new().file("d/.wh..wh..opq", "").file("d/a", "a").dir("d/"),
    ] {
        let layer = unpack(&tar.end());
        assert!(at(&layer, "d").contains(OPAQUE));
        assert!(at(&layer, "d/a").starts_with("file"));
        assert!(!has(&layer, "d/.wh..wh..opq"));
        assert!(at(&layer, "d").contains("@1000000000"), "the time of a directory is put back");
    }
}

#[test]
fn opaque_markers_are_matched_exactly_and_aufs_bookkeeping_is_skipped() {
    let tar = Tar::new()
        .dir("d/")
        .file("d/.wh..wh..opq.x", "not a marker")
        .file("d/.wh..wh.aufs", "")
        .dir(".wh..wh.plnk/")
        .file(".wh..wh.plnk/12.34", "linked")
        .file(".wh..wh.orph/x/y", "")
        .end();
    let layer = unpack(&tar);
    assert_eq!(layer.tree().keys().collect::<Vec<_>>(), [".", "d"]);
    assert!(!at(&layer, "d").contains("overlay"));
    assert_eq!(reassembled(&layer).unwrap(), tar);
}

#[test]
fn xattr_whiteouts_where_devices_are_not_to_be_made() {
    let marks = layer::MarkStyle { whiteouts: layer::WhiteoutForm::Xattr, ..layer::MarkStyle::default() };
    let options = unpack::UnpackOptions { marks, ..Default::default() };
    let layer = unpack_with(&Tar::new().dir("d/").file("d/.wh.a", "").end(), &[], &options).unwrap();
    assert!(at(&layer, "d").contains("trusted.overlay.opaque=x"));
    assert!(at(&layer, "d/a").contains("trusted.overlay.whiteout=y"));
    // In an opaque directory such a file would be seen.
    let tar = Tar::new().dir("d/").file("d/.wh.a", "").file("d/.wh..wh..opq", "").file("d/.wh.b", "").end();
    let layer = unpack_with(&tar, &[], &options).unwrap();
    assert_eq!(layer.tree().keys().collect::<Vec<_>>(), [".", "d"]);
    assert!(at(&layer, "d").contains(OPAQUE));
}

#[test]
fn implied_parents_take_the_lower_layers_attributes() {
    let lower = unpack(
        &Tar::new()
            .entry(spec("a/", b'5').mode(0o1750).owner(7, 8).mtime(42).pax("SCHILY.xattr.user.k", "v"))
            .dir("a/b")
            .end(),
    );
    let layer = unpack_over(&Tar::new().file("a/b/c", "x").file("n/f", "").end(), &[&lower]).unwrap();
    assert_eq!(at(&layer, "a"), "dir 1750 7:8 @42 user.k=v");
    assert_eq!(at(&layer, "a/b"), "dir 755 0:0 @1000000000");
    assert_eq!(at(&layer, "n"), "dir 755 0:0 @0");
    assert!(layer.unpacked.depends_on_lower);
}

#[test]
fn a_layer_that_names_its_parents_does_not_depend_on_those_below() {
    let lower = unpack(&Tar::new().dir("a/").end());
    let layer = unpack_over(&Tar::new().dir("a/").file("a/b", "x").file("a/.wh.c", "").end(), &[&lower]).unwrap();
    assert!(!layer.unpacked.depends_on_lower);
}

#[test]
fn the_root_has_the_lower_root_s_attributes_unless_the_layer_names_it() {
    let lower = unpack(&Tar::new().entry(spec("./", b'5').mode(0o700).owner(5, 5)).end());
    let layer = unpack_over(&Tar::new().file("a", "").end(), &[&lower]).unwrap();
    assert!(at(&layer, ".").starts_with("dir 700 5:5"));
    assert!(layer.unpacked.depends_on_lower);
    let layer = unpack_over(&Tar::new().dir("./").file("a", "").end(), &[&lower]).unwrap();
    assert_eq!(at(&layer, "."), "dir 755 0:0 @1000000000");
    assert!(!layer.unpacked.depends_on_lower);
}

#[test]
fn hard_links_to_lower_files_copy_them_first() {
    let lower = unpack(
        &Tar::new()
            .dir("d/")
            .entry(spec("d/f", b'0').content("data").mode(0o4755).owner(1, 2).mtime(77).pax("SCHILY.xattr.user.k", "v"))
            .symlink("d/s", "f")
            .end(),
    );
    let tar = Tar::new().hardlink("h", "d/f").hardlink("hs", "/d/s").end();
    let layer = unpack_over(&tar, &[&lower]).unwrap();
    assert_eq!(at(&layer, "h"), "file \"data\" 4755 1:2 @77 user.k=v");
    assert_eq!(at(&layer, "d/f"), at(&layer, "h"));
    assert!(at(&layer, "hs").starts_with("link f"));
    assert!(layer.unpacked.depends_on_lower);
    let links = |name: &str| std::os::unix::fs::MetadataExt::ino(&layer.path().join(name).symlink_metadata().unwrap());
    assert_eq!(links("h"), links("d/f"));
    assert_eq!(links("hs"), links("d/s"));
    assert_eq!(reassembled(&layer).unwrap(), tar);
}

#[test]
fn hard_links_absolute_and_through_linked_parents() {
    let layer = unpack(
        &Tar::new()
            .dir("real")
            .file("real/f", "x")
            .symlink("via", "/real")
            .hardlink("h1", "/real/f")
            .hardlink("via/h2", "via/f")
            .end(),
    );
    assert_eq!(at(&layer, "h1"), at(&layer, "real/f"));
    assert!(has(&layer, "real/h2"));
    let lower = unpack(&Tar::new().dir("usr").dir("usr/lib").file("usr/lib/f", "x").symlink("lib", "usr/lib").end());
    let layer = unpack_over(&Tar::new().hardlink("h", "lib/f").end(), &[&lower]).unwrap();
    assert!(has(&layer, "usr/lib/f") && !has(&layer, "lib"));
    assert_eq!(at(&layer, "h"), at(&layer, "usr/lib/f"));
}

#[test]
fn a_lower_file_that_a_middle_layer_deletes_cannot_be_linked_to() {
    let bottom = unpack(&Tar::new().dir("d").file("d/f", "x").end());
    let middle = unpack(&Tar::new().dir("d").file("d/.wh.f", "").end());
    let refused = unpack_over(&Tar::new().hardlink("h", "d/f").end(), &[&middle, &bottom]);
    assert!(refused.err().unwrap().to_string().contains("no such file"));
    let opaque = Tar::new().dir("d").file("d/.wh..wh..opq", "").hardlink("h", "d/f").end();
    assert!(unpack_over(&opaque, &[&bottom]).is_err());
    let deleted = Tar::new().dir("d").file("d/.wh.f", "").hardlink("h", "d/f").end();
    assert!(unpack_over(&deleted, &[&bottom]).err().unwrap().to_string().contains("deletes it"));
}

#[test]
fn linked_parents_in_the_same_layer_are_followed_within_it() {
    let tar = Tar::new()
        .dir("usr/")
        .dir("usr/lib/")
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr")
        .symlink("up", "../../usr")
        .file("lib/a", "1")
        .file("abs/lib/b", "2")
        .file("up/lib/c", "3")
        .file("lib/.wh.gone", "")
        .end();
    let layer = unpack(&tar);
    for name in ["usr/lib/a", "usr/lib/b", "usr/lib/c", "usr/lib/gone"] {
        assert!(has(&layer, name), "{name}");
    }
    assert!(at(&layer, "lib").starts_with("link usr/lib"));
    assert!(at(&layer, "usr/lib").contains("@1000000000"));
    assert!(!layer.unpacked.depends_on_lower);
}

#[test]
fn linked_parents_in_a_lower_layer_are_followed_too() {
    let lower = unpack(&Tar::new().dir("usr").entry(spec("usr/lib", b'5').mode(0o711)).symlink("lib", "usr/lib").end());
    let layer = unpack_over(&Tar::new().file("lib/x.so", "1").file("lib/.wh.y.so", "").end(), &[&lower]).unwrap();
    assert!(at(&layer, "usr/lib").starts_with("dir 711"));
    assert!(has(&layer, "usr/lib/x.so") && !has(&layer, "lib"));
    assert!(at(&layer, "usr/lib/y.so").starts_with(WHITEOUT));
    assert!(layer.unpacked.depends_on_lower);
    // If a layer has the directory itself, it replaces the link.
    let layer = unpack_over(&Tar::new().dir("lib").file("lib/x.so", "1").end(), &[&lower]).unwrap();
    assert!(at(&layer, "lib").starts_with("dir"));
    assert!(has(&layer, "lib/x.so"));
}

#[test]
fn the_last_of_several_entries_wins() {
    let tar = Tar::new()
        .file("f", "first")
        .file("f", "second, longer")
        .file("to-link", "x")
        .symlink("to-link", "f")
        .symlink("to-file", "f")
        .file("to-file", "y")
        .dir("d")
        .file("d/kept", "z")
        .entry(spec("d", b'5').mode(0o700).owner(3, 3))
        .dir("to-f")
        .dir("to-f/sub")
        .file("to-f/sub/deep", "gone again")
        .file("to-f", "now a file")
        .file("to-d", "a file")
        .dir("to-d")
        .file("l1", "linked")
        .hardlink("l2", "l1")
        .file("l1", "not linked")
        .end();
    let layer = unpack(&tar);
    assert!(at(&layer, "f").starts_with("file \"second, longer\""));
    assert!(at(&layer, "to-link").starts_with("link f"));
    assert!(at(&layer, "to-file").starts_with("file \"y\""));
    assert_eq!(at(&layer, "d"), "dir 700 3:3 @1000000000");
    assert!(has(&layer, "d/kept"));
    assert!(at(&layer, "to-f").starts_with("file"));
    assert!(at(&layer, "to-d").starts_with("dir"));
    assert!(at(&layer, "l1").starts_with("file \"not linked\""));
    assert!(at(&layer, "l2").starts_with("file \"linked\""));
    assert_eq!(reassembled(&layer).unwrap(), tar);
}

#[test]
fn a_directory_again_loses_the_attributes_it_had() {
    let tar = Tar::new()
        .entry(spec("d", b'5').pax("SCHILY.xattr.user.old", "1"))
        .file("d/.wh..wh..opq", "")
        .entry(spec("d", b'5').pax("SCHILY.xattr.user.new", "2"));
    assert_eq!(at(&unpack(&tar.end()), "d"), format!("dir 755 0:0 @1000000000 {OPAQUE} user.new=2"));
}

#[test]
fn compressions_are_told_by_their_magic_and_trailing_bytes_are_hashed() {
    use std::io::Write;
    let tar = Tar::new().file("a", "hello").end();
    let with_trailer = [tar.as_slice(), b"whatever follows"].concat();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (head, tail) = with_trailer.split_at(700);
    let streams = [
        with_trailer.clone(),
        gzip(&with_trailer),
        [gzip(head), gzip(tail)].concat(),
        [gzip(&with_trailer), b"garbage".to_vec()].concat(),
        zstd::encode_all(with_trailer.as_slice(), 1).unwrap(),
        [zstd::encode_all(head, 1).unwrap(), zstd::encode_all(tail, 1).unwrap()].concat(),
    ];
    for (index, stream) in streams.iter().enumerate() {
        let layer = unpack(stream);
        assert_eq!(layer.unpacked.diff_id, stratafs::image::digest::Digest::of(&with_trailer));
        assert_eq!(layer.unpacked.size, with_trailer.len() as u64);
        let compressed = (index > 0).then(|| (stratafs::image::digest::Digest::of(stream), stream.len() as u64));
        assert_eq!(layer.unpacked.compressed, compressed, "stream {index}");
        assert_eq!(reassembled(&layer).unwrap(), with_trailer);
    }
}

#[test]
fn long_and_strange_names() {
    let deep = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    let tar = Tar::new()
        .entry(spec("short", b'0').pax("path", &deep).content("pax"))
        .extension(b'L', format!("{}\0", "g".repeat(180)).as_bytes())
        .entry(spec("short", b'0').gnu().content("gnu"))
        .extension(b'K', format!("{}\0", "t".repeat(300)).as_bytes())
        .entry(spec("link", b'2').gnu())
        .entry(spec("pax-link", b'2').pax("linkpath", "u".repeat(300)))
        .file(b"bin\xff\xfe\n", "not UTF-8")
        .entry(spec("x", b'0').pax("path", b"pax\xff\x01").pax("hdrcharset", "BINARY"))
        .file("./././dots//f", "")
        .file("/absolute", "")
        .file("b\\ackslash", "")
        .end();
    let layer = unpack(&tar);
    for name in
        [deep.as_str(), &"g".repeat(180), "bin\\xff\\xfe\\n", "pax\\xff\\x01", "dots/f", "absolute", "b\\\\ackslash"]
    {
        assert!(has(&layer, name), "{name} in {:#?}", layer.tree().keys());
    }
    assert!(at(&layer, "link").starts_with(&format!("link {}", "t".repeat(300))));
    assert!(at(&layer, "pax-link").starts_with(&format!("link {}", "u".repeat(300))));
    assert_eq!(reassembled(&layer).unwrap(), tar);
}

#[test]
fn ustar_prefixes_and_old_headers() {
    let mut prefixed = spec("file", b'0').block();
    prefixed[345..350].copy_from_slice(b"a/b/c");
    seal(&mut prefixed);
    let mut v7 = spec("v7", 0).content("x").block();
    v7[257..265].fill(0);
    seal(&mut v7);
    let mut v7_dir = spec("v7d/", 0).block();
    v7_dir[257..265].fill(0);
    seal(&mut v7_dir);
    // Go before 1.8 put a prefix into GNU headers.
    let mut gnu = spec("gnu", b'0').gnu().block();
    gnu[345..352].copy_from_slice(b"old/go1");
    seal(&mut gnu);
    let tar = Tar::new().raw(&prefixed).raw(&v7).raw(b"x").pad().raw(&v7_dir).raw(&gnu).end();
    let layer = unpack(&tar);
    for name in ["a/b/c/file", "v7", "v7d", "old/go1/gnu"] {
        assert!(has(&layer, name), "{name} in {:#?}", layer.tree());
    }
    assert!(at(&layer, "v7d").starts_with("dir"));
}

#[test]
fn numbers_beyond_octal() {
    let tar = Tar::new()
        .entry(spec("ids", b'0').owner(3_000_000_000, 2_097_152))
        .entry(spec("pax-ids", b'0').pax("uid", "4294967294").pax("gid", "5"))
        .entry(spec("before", b'0').mtime(-1))
        .entry(spec("pax-before", b'0').pax("mtime", "-1.25"))
        .entry(spec("sub-second", b'0').pax("mtime", "1234567890.987654321"))
        .entry(spec("far", b'0').mtime(9_000_000_000))
        .end();
    let layer = unpack(&tar);
    assert!(at(&layer, "ids").contains(" 3000000000:2097152 "));
    assert!(at(&layer, "pax-ids").contains(" 4294967294:5 "));
    assert!(at(&layer, "before").ends_with("@-1"));
    assert!(at(&layer, "pax-before").ends_with("@-2.750000000"));
    assert!(at(&layer, "sub-second").ends_with("@1234567890.987654321"));
    assert!(at(&layer, "far").ends_with("@9000000000"));
}

#[test]
fn extended_attributes_acls_and_capabilities() {
    let v2 = [0x01, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let v3 = [&[0x01, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0x40, 0x42, 0x0f, 0]].concat();
    let acl = [
        &2_u32.to_le_bytes()[..],
        &[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
        &[2, 0, 7, 0, 0xe8, 3, 0, 0],
        &[4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x10, 0, 7, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
    ]
    .concat();
    let tar = Tar::new()
        .entry(
            spec("bin", b'0')
                .content("x")
                .owner(9, 9)
                .mode(0o755)
                .pax("SCHILY.xattr.user.bin", b"\0\n=\xff")
                .pax("SCHILY.xattr.security.capability", v2),
        )
        .entry(spec("v3", b'0').content("x").pax("SCHILY.xattr.security.capability", &v3))
        .entry(spec("arch", b'0').pax("LIBARCHIVE.xattr.user.a%3Db", "aGVsbG8"))
        .entry(spec("acl", b'0').mode(0o674).pax("SCHILY.xattr.system.posix_acl_access", &acl))
        .entry(spec("d", b'5').pax("SCHILY.xattr.system.posix_acl_default", &acl))
        .file("d/plain", "no ACL of its own")
        .dir("d/sub")
        .symlink("l", "x")
        .entry(spec("l2", b'2').link("x").pax("SCHILY.xattr.trusted.t", "on a link"))
        .end();
    let layer = unpack(&tar);
    assert_eq!(layer.unpacked.warnings, [""; 0]);
    let at = |name: &str| xattrs(&layer.path().join(name));
    assert_eq!(at("bin")["user.bin"], b"\0\n=\xff");
    assert_eq!(at("bin")["security.capability"], v2);
    assert_eq!(at("v3")["security.capability"], v3);
    assert_eq!(at("arch")["user.a=b"], b"hello");
    assert_eq!(at("acl")["system.posix_acl_access"], acl);
    assert_eq!(at("d")["system.posix_acl_default"], acl);
    assert!(at("d/plain").is_empty() && at("d/sub").is_empty());
    assert_eq!(at("l2")["trusted.t"], b"on a link");
}

#[test]
fn marks_in_the_image_are_escaped_never_obeyed() {
    let tar = Tar::new()
        .entry(
            spec("d", b'5')
                .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
                .pax("SCHILY.xattr.user.overlay.redirect", "/etc"),
        )
        .entry(
            spec("f", b'0')
                .pax("SCHILY.xattr.user.fuseoverlayfs.whiteout", "y")
                .pax("SCHILY.xattr.user.containers.override_stat", "0:0:4755")
                .pax("SCHILY.xattr.user.containers.override_security.capability", "x"),
        )
        .entry(
            spec("./", b'5')
                .pax("SCHILY.xattr.security.fuseoverlayfs.override_stat", "0:0:755:dir")
                .pax("SCHILY.xattr.user.fuseoverlayfs.override_stat", "0:0:755:dir")
                .pax("SCHILY.xattr.user.containers.override_stat", "0:0:755:dir"),
        )
        .end();
    let layer = unpack(&tar);
    let names = |name: &str| xattrs(&layer.path().join(name)).into_keys().collect::<Vec<_>>();
    assert_eq!(names("d"), ["trusted.overlay.overlay.opaque", "user.overlay.overlay.redirect"]);
    assert_eq!(names("f"), ["user.fuseoverlayfs.overlay.whiteout"]);
    assert_eq!(names(""), [""; 0]);
    assert_eq!(layer.unpacked.warnings.len(), 5);
}

#[test]
fn acls_as_text_become_attributes() {
    let text = "user::rw-,user:alice:rw-:1000,group::r--,mask::rw-,other::r--";
    let tar = Tar::new()
        .entry(spec("f", b'0').mode(0o664).pax("SCHILY.acl.access", text))
        .entry(spec("d", b'5').pax("SCHILY.acl.default", text))
        .end();
    let layer = unpack(&tar);
    assert_eq!(layer.unpacked.warnings, [""; 0]);
    let shown =
        std::process::Command::new("getfacl").args(["-n", "-c", "-p", "--"]).arg(layer.path().join("f")).output();
    let shown = String::from_utf8(shown.expect("getfacl; scripts/test installs it").stdout).unwrap();
    assert_eq!(shown, "user::rw-\nuser:1000:rw-\ngroup::r--\nmask::rw-\nother::r--\n\n");
    assert!(xattrs(&layer.path().join("d")).contains_key("system.posix_acl_default"));
    assert_eq!(reassembled(&layer).unwrap(), tar);
}

#[test]
fn a_file_of_20_gib_that_is_nearly_all_hole() {
    const SIZE: u64 = 20 << 30;
    let map = format!("2\n0\n3\n{}\n4\n", SIZE - 4);
    let mut content = map.into_bytes();
    content.resize(512, 0);
    content.extend_from_slice(b"abcwxyz");
    let sparse = |name: &str| {
        spec(name, b'0')
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.realsize", SIZE.to_string())
            .pax("GNU.sparse.name", "big")
    };
    let tar = Tar::new().entry(sparse("GNUSparseFile.0/big").content(content)).hardlink("again", "big").end();
    let layer = unpack(&tar);
    let path = layer.path().join("big");
    let meta = std::fs::metadata(&path).unwrap();
    use std::os::unix::fs::{FileExt, MetadataExt};
    assert_eq!((meta.len(), meta.nlink(), layer.unpacked.content_size), (SIZE, 2, SIZE));
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let mut end = [0; 8];
    std::fs::File::open(&path).unwrap().read_exact_at(&mut end, SIZE - 8).unwrap();
    assert_eq!(&end, b"\0\0\0\0wxyz");
    assert_eq!(reassembled(&layer).unwrap(), tar);
    assert!(!layer.tree().keys().any(|name| name.contains("GNUSparseFile")));
}

#[test]
fn acls_as_text_without_numbers_are_left_out_with_a_warning() {
    let layer = unpack(&Tar::new().entry(spec("f", b'0').pax("SCHILY.acl.access", "user::rw-,user:alice:rw-")).end());
    assert!(layer.unpacked.warnings[0].starts_with("f: an ACL as text"), "{:?}", layer.unpacked.warnings);
}

#[test]
fn sparse_files_of_every_format_are_expanded() {
    // Ten stored bytes: five at 0, five at 100,000, of 200,000.
    let mut content = vec![0; 200_000];
    content[..5].copy_from_slice(b"start");
    content[100_000..100_005].copy_from_slice(b"later");
    let mut old = spec("old", b'S').gnu().content("startlater").block();
    let pairs = [(0_u64, 5_u64), (100_000, 5), (200_000, 0)];
    for (index, (offset, len)) in pairs.iter().enumerate() {
        let field = [number(*offset as i64, 12), vec![0], number(*len as i64, 12), vec![0]].concat();
        old[386 + 24 * index..386 + 24 * index + 11].copy_from_slice(&field[..11]);
        old[398 + 24 * index..398 + 24 * index + 11].copy_from_slice(&number(*len as i64, 12));
    }
    old[483..494].copy_from_slice(&number(200_000, 12));
    seal(&mut old);
    let v00 = [
        ("GNU.sparse.size", "200000"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "0"),
        ("GNU.sparse.numbytes", "5"),
        ("GNU.sparse.offset", "100000"),
        ("GNU.sparse.numbytes", "5"),
    ];
    let v01 = [
        ("GNU.sparse.size", "200000"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.name", "v01"),
        ("GNU.sparse.map", "0,5,100000,5"),
    ];
    let v10 = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "v10"),
        ("GNU.sparse.realsize", "200000"),
    ];
    let with = |name: &str, records: &[(&str, &str)], content: &[u8]| {
        records.iter().fold(spec(name, b'0').content(content), |spec, (key, value)| spec.pax(key, value))
    };
    let mut map = b"3\n0\n5\n100000\n5\n200000\n0\n".to_vec();
    map.resize(512, 0);
    let tar = Tar::new()
        .raw(&old)
        .raw(b"startlater")
        .pad()
        .entry(with("v00", &v00, b"startlater"))
        .entry(with("GNUSparseFile.0/v01", &v01, b"startlater"))
        .entry(with("GNUSparseFile.0/v10", &v10, &[map.as_slice(), b"startlater"].concat()))
        .end();
    let layer = unpack(&tar);
    for name in ["old", "v00", "v01", "v10"] {
        assert!(std::fs::read(layer.path().join(name)).unwrap() == content, "{name}");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&layer.path().join(name).metadata().unwrap());
        assert!(blocks <= 16, "{name} has holes: {blocks}");
    }
    assert!(!has(&layer, "GNUSparseFile.0"));
    assert_eq!(layer.unpacked.content_size, 4 * 200_000);
    assert_eq!(reassembled(&layer).unwrap(), tar);
}

#[test]
fn long_runs_of_zeros_become_holes() {
    let mut content = vec![0; 1 << 20];
    content[500_000] = 1;
    let tar = Tar::new().file("odd", "x").file("f", &content).end();
    let layer = unpack(&tar);
    assert!(std::fs::read(layer.path().join("f")).unwrap() == content);
    assert!(std::os::unix::fs::MetadataExt::blocks(&layer.path().join("f").metadata().unwrap()) <= 256);
    assert_eq!(reassembled(&layer).unwrap(), tar);
}

#[test]
fn global_headers_and_volume_labels_are_passed_over() {
    let tar =
        Tar::new().extension(b'g', &record(b"path", b"evil")).entry(spec("label", b'V').gnu()).file("a", "x").end();
    let layer = unpack(&tar);
    assert_eq!(layer.tree().keys().collect::<Vec<_>>(), [".", "a"]);
    assert_eq!(layer.unpacked.entries, 1);
}

#[test]
fn without_privileges_owners_and_devices_are_recorded() {
    let options = unpack::UnpackOptions::unprivileged();
    let tar = Tar::new()
        .entry(spec("d", b'5').owner(3, 4).mode(0o1500))
        .entry(spec("d/f", b'0').owner(1, 2).mode(0o4400).content("x"))
        .entry(spec("dev", b'3').device(1, 3).owner(0, 5).mode(0o666))
        .entry(spec("fifo", b'6'))
        .file("d/.wh.gone", "")
        .file("d/.wh..wh..opq", "")
        .end();
    let layer = unpack_with(&tar, &[], &options).unwrap();
    assert_eq!(
        at(&layer, "d"),
        "dir 700 0:0 @1000000000 user.containers.override_stat=3:4:1500:dir user.overlay.opaque=y"
    );
    assert_eq!(at(&layer, "d/f"), "file \"x\" 600 0:0 @1000000000 user.containers.override_stat=1:2:4400:file");
    assert_eq!(at(&layer, "dev"), "file \"\" 666 0:0 @1000000000 user.containers.override_stat=0:5:0666:char-1-3");
    assert_eq!(at(&layer, "fifo"), "file \"\" 644 0:0 @1000000000 user.containers.override_stat=0:0:0644:pipe");
    assert_eq!(reassembled(&layer).unwrap(), tar);
    // A snapshot of it equals what root would have unpacked.
    let mut out = Vec::new();
    snapshot::snapshot(layer.as_fd(), &[], &mut out, &SnapshotOptions::default()).unwrap();
    let mut as_root = unpack(&tar).tree();
    as_root.remove("d/gone");
    assert_eq!(unpack(&out).tree(), as_root);
}

#[test]
fn one_thread_gives_the_same_as_several() {
    let tar = (0..300)
        .fold(Tar::new().dir("d"), |tar, index| tar.file(format!("d/{index}"), vec![index as u8; index * 40]))
        .end();
    let one = unpack_with(&tar, &[], &unpack::UnpackOptions { threads: false, ..Default::default() }).unwrap();
    let several = unpack(&tar);
    assert_eq!(one.unpacked, several.unpacked);
    assert_eq!(one.tree(), several.tree());
    assert_eq!(one.recipe, several.recipe);
}

#[test]
fn damage_is_found_file_by_file() {
    let tar = Tar::new().file("a", "aaaa").file("b", "bbbb").file("c", "cccc").end();
    let layer = unpack(&tar);
    let check = || {
        let mut found = Vec::new();
        let sound = verify::verify(&mut layer.recipe.as_slice(), layer.as_fd(), &mut |damage| {
            found.push(damage.to_string());
            Ok(())
        });
        (sound.unwrap(), found)
    };
    assert_eq!(check(), (true, vec![]));
    std::fs::write(layer.path().join("a"), "aaXa").unwrap();
    std::fs::remove_file(layer.path().join("c")).unwrap();
    let (sound, found) = check();
    assert!(!sound);
    assert_eq!(found.len(), 2);
    assert!(found[0].starts_with("layer file a: ") && found[1].starts_with("layer file c: "), "{found:?}");
    assert!(reassembled(&layer).is_err());
}

#[test]
fn deep_trees_are_made_replaced_and_written_without_recursion() {
    let deep = vec!["d"; 2000].join("/");
    let tar = Tar::new()
        .entry(spec("x", b'0').pax("path", format!("{deep}/f")).content("deep"))
        .entry(spec("x", b'0').pax("path", format!("{deep}/g")).content("deep too"))
        .end();
    let layer = unpack(&tar);
    assert_eq!(reassembled(&layer).unwrap(), tar);
    let mut out = Vec::new();
    let snapshot = snapshot::snapshot(layer.as_fd(), &[], &mut out, &SnapshotOptions::default()).unwrap();
    assert_eq!(snapshot.entries, 2003);
    let replaced = unpack(&[&tar[..tar.len() - 1024], &Tar::new().file("d", "a file").end()].concat());
    assert_eq!(replaced.tree().len(), 2);
    assert!(reassembled(&replaced).is_ok());
}
