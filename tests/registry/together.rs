//! Layers of one image that are unpacked at the same time.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stratafs::image::digest::Digest;

use super::Home;
use super::fixture::noise;
use super::liar::{Answer, Image, Liar};
use super::tar_build::Tar;
use super::trees;

/// Six layers: hard links to files of lower ones, a parent that only a lower one names, and one layer twice.
fn six() -> Image {
    let again = Tar::new().dir("usr/").file("usr/again", noise(90_000, 5)).end();
    let named =
        |number: u64| Tar::new().file(format!("etc/file-{number}"), noise(300_000, number)).dir(format!("d{number}/"));
    Image::of(&[
        Tar::new().dir("etc/").dir("usr/").file("usr/tool", noise(400_000, 1)).end(),
        named(2).hardlink("etc/tool", "usr/tool").end(),
        again.clone(),
        named(3).hardlink("usr/more", "etc/tool").hardlink("d3/again", "usr/again").end(),
        again,
        named(4).hardlink("d4/file", "etc/file-3").file("etc/.wh.file-2", "").end(),
    ])
}

fn honest(image: &Image) -> Liar {
    let image = image.clone();
    Liar::start(move |asked, _| image.answer(asked))
}

fn is_clean(home: &Home) {
    home.ok(&["gc"]);
    assert_eq!(std::fs::read_dir(home.path("store/tmp")).unwrap().count(), 0);
}

#[test]
fn six_layers_with_links_into_each_other() {
    let image = six();
    let liar = honest(&image);
    let name = format!("{}/x:1", liar.host());
    let (home, keeping) = (Home::new(), Home::new());
    let (_, told) = home.both(&["pull", "--plain-http", &name]);
    let said = |what: &str| told.matches(what).count();
    assert_eq!((said("Pull complete"), said("Already exists")), (5, 1), "{told}");
    for blob in &image.layers {
        assert_eq!(liar.asked(&Digest::of(blob).to_string()).len(), 1, "one that is there twice is fetched once");
    }
    assert_eq!(home.ok(&["verify"]), "5 layers are sound\n");
    is_clean(&home);
    keeping.ok(&["pull", "-q", "--plain-http", "--keep-blobs", &name]);
    for blob in &image.layers {
        let kept = keeping.path("store/blobs/sha256").join(Digest::of(blob).hex());
        assert!(std::fs::read(kept).unwrap() == *blob);
    }
    assert!(keeping.ok(&["verify"]).contains("sound"));
    // The same as from an archive, by another path.
    let archive = home.path("out.tar");
    home.ok(&["save", "-o", archive.to_str().unwrap(), &name]);
    let loaded = Home::new();
    loaded.ok(&["load", "-q", "-i", archive.to_str().unwrap()]);
    assert_eq!(trees(&home, &name).len(), 6);
    assert_eq!(trees(&home, &name), trees(&loaded, &name));
    assert_eq!(trees(&keeping, &name), trees(&home, &name));
    // With some of them there, only the rest comes.
    let before = liar.asked("/blobs/").len();
    let (_, told) = home.both(&["pull", "--plain-http", "--keep-blobs", &name]);
    assert_eq!(told.matches("Already exists").count(), 6, "{told}");
    assert_eq!(liar.asked("/blobs/").len(), before + 5 + 1, "the blobs that are to be kept, and the config");
}

#[test]
fn a_damaged_third_blob_is_named() {
    let image = six();
    let third = Digest::of(&image.layers[2]).to_string();
    for at in [20, 40_000, usize::MAX] {
        let (honest, damaged) = (image.clone(), third.clone());
        let liar = Liar::start(move |asked, _| match asked.path.ends_with(&damaged) {
            true => {
                let mut blob = honest.layers[2].clone();
                let at = at.min(blob.len() - 1);
                blob[at] ^= 1;
                Answer::new(200, blob)
            }
            false => honest.answer(asked),
        });
        let home = Home::new();
        let line = home.fails(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
        assert!(line.contains(&format!("blob {third}")), "{at}: {line}");
        is_clean(&home);
    }
}

#[test]
fn a_wrong_layer_is_reported_before_those_above_it() {
    let (mut image, other) = (six(), Image::new(1));
    image.layers[1] = other.layers[0].clone();
    image.manifest["layers"][1] = other.manifest["layers"][0].clone();
    let liar = honest(&image);
    let home = Home::new();
    let line = home.fails(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
    let second = Digest::of(&image.layers[1]);
    assert!(line.contains(&format!("blob {second}: uncompressed layer: sha256:")), "{line}");
    is_clean(&home);
}

#[test]
fn a_connection_that_is_cut_in_the_middle_layer() {
    let image = six();
    let middle = Digest::of(&image.layers[3]).to_string();
    for is_for_good in [false, true] {
        let (honest, cut, times) = (image.clone(), middle.clone(), AtomicUsize::new(0));
        let liar = Liar::start(move |asked, _| {
            let answer = honest.answer(asked);
            match asked.path.ends_with(&cut) {
                true if times.fetch_add(1, Ordering::Relaxed) == 0 => answer.cut(70_000),
                true if is_for_good => answer.cut(0),
                _ => answer,
            }
        });
        let (home, name) = (Home::new(), format!("{}/x:1", liar.host()));
        if is_for_good {
            let line = home.fails(&["pull", "--plain-http", &name]);
            assert!(line.contains(&format!("blob {middle}: ")) && line.contains("disconnected"), "{line}");
        } else {
            home.ok(&["pull", "--plain-http", &name]);
            assert_eq!(home.ok(&["verify"]), "5 layers are sound\n");
        }
        is_clean(&home);
    }
}

/// The lowest layer is answered only after the one above it is unpacked.
#[test]
fn a_layer_is_unpacked_while_a_lower_one_is_arriving() {
    if std::thread::available_parallelism().unwrap().get() == 1 {
        return;
    }
    let (image, home) = (Image::new(2), Home::new());
    let lowest = Digest::of(&image.layers[0]).to_string();
    let (honest, tmp) = (image.clone(), home.path("store/tmp"));
    let liar = Liar::start(move |asked, _| {
        let patience = Instant::now() + Duration::from_secs(60);
        while asked.path.ends_with(&lowest) && !is_below(&tmp, "file-1") {
            if Instant::now() > patience {
                return Answer::new(404, "");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        honest.answer(asked)
    });
    home.ok(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
    assert_eq!(home.ok(&["verify"]), "2 layers are sound\n");
}

fn is_below(dir: &Path, name: &str) -> bool {
    // Directories come and go while they are looked at.
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| entry.file_name() == name || is_below(&entry.path(), name))
}
