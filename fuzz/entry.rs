//! What the fuzzer calls, and `tests/fuzz.rs` with inputs of its own: any bytes are refused with an error, or what was
//! made of them holds. A panic, a hang or a failed assertion is a fault.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use stratafs::image::archive::{Archive, ArchiveInput, Spooling};
use stratafs::image::config::{History, ImageConfig};
use stratafs::image::digest::Digest;
use stratafs::image::recipe;
use stratafs::image::reference::{ImageQuery, Reference};
use stratafs::image::spec::{self, Index, Manifest, Platform};
use stratafs::image::unpack::{self, UnpackOptions};
use stratafs::image::verify;
use stratafs::marks::origin::{self, Decoded};
use stratafs::marks::override_stat::OverrideStat;
use stratafs::marks::{self, AufsName, Namespace, Redirect, Visible};
use stratafs::store::LayerRecord;
use stratafs::tar::Limits;

/// Small enough that nothing takes long.
fn limits() -> Limits {
    Limits { entries: 1000, stream: 1 << 20, file: 1 << 30, ratio_from: 1 << 20, ..Limits::default() }
}

/// Puts the right checksum into every block that looks like a header: nothing gets past a wrong one.
fn sealed(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

/// A layer's tar: unpacked, its recipe gives the same bytes again, and finds it sound; nothing beside the layer's directory is touched.
pub fn layer_tar(bytes: &[u8]) {
    let tar = sealed(bytes);
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(dir.path().join("layer")).expect("mkdir");
    std::fs::write(dir.path().join("witness"), "untouched").expect("write");
    let layer = File::open(dir.path().join("layer")).expect("open");
    let options = UnpackOptions { limits: limits(), threads: false, ..UnpackOptions::default() };
    let mut recipe = Vec::new();
    let unpacked = unpack::unpack_layer(&mut tar.as_slice(), layer.as_fd(), &[], Some(&mut recipe), &options);
    let beside: Vec<_> = std::fs::read_dir(dir.path()).expect("read_dir").collect();
    assert_eq!(beside.len(), 2, "something was made beside the layer");
    assert_eq!(std::fs::read(dir.path().join("witness")).expect("read"), b"untouched");
    match unpacked {
        Err(error) => assert_one_line(&error.to_string()),
        Ok(unpacked) => {
            let mut again = Vec::new();
            let (digest, size) =
                recipe::reassemble(&mut recipe.as_slice(), layer.as_fd(), &mut again).expect("re-assembled");
            assert_eq!((digest, size), (unpacked.diff_id, unpacked.size));
            assert!(unpacked.compressed.is_some() || again == tar, "not the same tar again");
            let mut alarm = |damage| panic!("a false alarm: {damage}");
            assert!(verify::verify(&mut recipe.as_slice(), layer.as_fd(), &mut alarm).expect("verified"));
            // The reader of archives is the same one: what a layer may be, an archive may be too.
            let limits = limits();
            let spooling = Spooling { scratch: dir.path(), skip: &|_| false, limits: &limits };
            let archive = Archive::open(ArchiveInput::Stream(&mut tar.as_slice(), "fuzz"), &spooling);
            assert!(unpacked.entries == 0 || archive.is_ok(), "refused as an archive only: {:?}", archive.err());
        }
    }
}

/// A whole archive: the outer tar and every document in it.
pub fn archive(bytes: &[u8]) {
    let tar = sealed(bytes);
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let limits = limits();
    let spooling = Spooling { scratch: scratch.path(), skip: &|_| false, limits: &limits };
    let images = Archive::open(ArchiveInput::Stream(&mut tar.as_slice(), "fuzz"), &spooling)
        .and_then(|archive| archive.images(None, false).map(|images| (archive, images)));
    match images {
        Err(error) => assert_one_line(&error.to_string()),
        Ok((archive, images)) => {
            for image in images {
                assert_eq!(image.layers.len(), image.config.diff_ids().len());
                assert_eq!(image.config.id(), Digest::of(image.config.bytes()));
                for layer in &image.layers {
                    // Absent or there; never a panic.
                    drop(archive.member(&layer.member));
                }
            }
        }
    }
}

/// Manifests, indexes, configurations, records and names.
pub fn documents(bytes: &[u8]) {
    if let Ok(index) = spec::parse::<Index>("index", bytes) {
        let text = spec::serialize("index", &index).expect("serialized");
        assert_eq!(spec::parse::<Index>("index", &text).expect("parsed again"), index);
    }
    if let Ok(manifest) = spec::parse::<Manifest>("manifest", bytes) {
        let text = spec::serialize("manifest", &manifest).expect("serialized");
        assert_eq!(spec::parse::<Manifest>("manifest", &text).expect("parsed again"), manifest);
    }
    if let Ok(record) = spec::parse::<LayerRecord>("layer.json", bytes) {
        record.id();
    }
    if let Ok(config) = ImageConfig::parse("config", bytes.to_vec()) {
        assert_eq!(config.bytes(), bytes);
        let described = (config.process(), config.history(), config.created(), config.platform());
        assert!(format!("{described:?}").len() < 64 * (bytes.len() + 64));
        if let Ok(child) = config.with_layer(Digest::of(b""), &History::default(), &[]) {
            assert_eq!(child.diff_ids().len(), config.diff_ids().len() + 1);
            // A history that is too short or too long for the layers is put right.
            assert_eq!(
                child.history().iter().filter(|line| line.empty_layer != Some(true)).count(),
                child.diff_ids().len()
            );
            assert!(child.history().len() > config.history().len());
            assert_eq!(child.process(), config.process());
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = text.parse::<Reference>() {
        for shown in [name.to_string(), name.full()] {
            assert_eq!(shown.parse::<Reference>().expect("a name is shown as one"), name, "{text:?}");
        }
    }
    drop(text.parse::<ImageQuery>());
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().expect("parsed again"), platform);
    }
}

/// Every mark's codec: what is read can be written again as it was.
pub fn marks(bytes: &[u8]) {
    match marks::decode_aufs_name(OsStr::from_bytes(bytes)) {
        AufsName::Whiteout(name) => {
            assert_eq!([marks::AUFS_PREFIX, name.as_bytes()].concat(), bytes);
            assert!(![&b""[..], b".", b".."].contains(&name.as_bytes()));
        }
        AufsName::Opaque => assert_eq!(bytes, marks::AUFS_OPAQUE),
        AufsName::Bookkeeping => assert!(bytes.starts_with(marks::AUFS_META_PREFIX)),
        AufsName::Plain => {}
    }
    match marks::decode_redirect(bytes) {
        Ok(Redirect::Absolute(path)) => {
            assert_eq!([b"/", path.as_slice()].concat(), bytes);
            assert!(path.split(|&byte| byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..")));
        }
        Ok(Redirect::Relative(name)) => assert!(name == bytes && !name.contains(&b'/')),
        Err(_) => {}
    }
    if let Decoded::Handle(handle) = origin::decode(bytes) {
        let encoded = handle.encode().expect("encoded");
        // The flag for either byte order is not written again.
        assert_eq!((encoded.len(), origin::decode(&encoded)), (bytes.len(), Decoded::Handle(handle)));
    }
    if let Some(stat) = OverrideStat::decode(bytes) {
        assert_eq!(OverrideStat::decode(stat.encode().as_bytes()), Some(stat));
    }
    if let Some(origin) = marks::index::decode_entry_name(bytes) {
        assert_eq!(marks::index::entry_name(&origin).as_bytes(), bytes.to_ascii_lowercase());
    }
    if let Some(count) = marks::index::decode_nlink(bytes, 3, 5) {
        let mark = marks::index::encode_nlink('U', count, 3);
        assert_eq!(marks::index::decode_nlink(mark.as_bytes(), 3, 5), Some(count));
    }
    marks::decode_opaque(bytes);
    marks::is_metacopy(bytes);
    for namespace in Namespace::ALL {
        if let Some(escaped) = marks::escape_xattr(namespace, bytes) {
            assert_eq!(marks::unescape_xattr(namespace, &escaped), Visible::Unescaped(bytes.to_vec()));
        }
    }
}

/// Messages are one line, whatever names they quote.
fn assert_one_line(message: &str) {
    assert!(!message.contains('\n') && message.len() < 2000, "{message:?}");
}
