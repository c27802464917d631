//! Connections that are cut off, in both directions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use stratafs::image::digest::Digest;

use super::Home;
use super::fixture::docker_old;
use super::liar::{Answer, Image, Liar};

#[test]
fn a_pull_goes_on_where_it_was_cut() {
    let image = Image::new(1);
    let size = image.layers[0].len();
    let honest = image.clone();
    let liar = Liar::start(move |asked, _| {
        let answer = honest.answer(asked);
        // A third at a time.
        if honest.is_layer(asked) && asked.from() < 200_000 { answer.cut(100_000) } else { answer }
    });
    let home = Home::new();
    home.ok(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
    assert_eq!(home.ok(&["verify"]), "1 layers are sound\n");
    let layer = Digest::of(&image.layers[0]).to_string();
    let starts: Vec<usize> = liar.asked(&layer).iter().map(|asked| asked.from()).collect();
    assert!(size > 250_000 && starts == [0, 100_000, 200_000], "{starts:?} of {size}");
}

#[test]
fn a_server_without_ranges_begins_again() {
    let image = Image::new(1);
    let (honest, times) = (image.clone(), AtomicUsize::new(0));
    let liar = Liar::start(move |asked, _| match honest.is_layer(asked) {
        true if times.fetch_add(1, Ordering::Relaxed) < 2 => Answer::new(200, honest.layers[0].clone()).cut(150_000),
        true => Answer::new(200, honest.layers[0].clone()),
        false => honest.answer(asked),
    });
    let home = Home::new();
    home.ok(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
    assert_eq!(home.ok(&["verify"]), "1 layers are sound\n");
}

#[test]
fn no_more_is_asked_of_a_server_that_gives_nothing() {
    let image = Image::new(1);
    let layer = Digest::of(&image.layers[0]).to_string();
    for (status, told) in [(200, "disconnected"), (503, "status 503")] {
        let honest = image.clone();
        let liar = Liar::start(move |asked, _| match honest.is_layer(asked) {
            true => Answer::new(status, honest.layers[0].clone()).cut(0),
            false => honest.answer(asked),
        });
        let line = Home::new().fails(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
        assert!(line.contains(&layer) && line.contains(told), "{line}");
        assert_eq!(liar.asked(&layer).len(), 5, "{told}");
    }
}

#[test]
fn a_range_of_other_bytes_is_refused() {
    let image = Image::new(1);
    let honest = image.clone();
    let liar = Liar::start(move |asked, _| match (honest.is_layer(asked), asked.from()) {
        (true, 0) => honest.answer(asked).cut(1000),
        (true, _) => honest.answer(asked).with("Content-Range", "bytes 7-9/10"),
        (false, _) => honest.answer(asked),
    });
    let line = Home::new().fails(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
    assert!(line.contains("goes on at another place"), "{line}");
}

/// Each of three layers is answered only when all three have been asked for.
#[test]
fn layers_come_at_the_same_time() {
    let image = Image::new(3);
    let (honest, waiting) = (image.clone(), Arc::new((Mutex::new(0), Condvar::new())));
    let liar = Liar::start(move |asked, _| {
        if honest.is_layer(asked) {
            let (count, changed) = &*waiting;
            let mut count = count.lock().unwrap();
            *count += 1;
            changed.notify_all();
            let (count, _) = changed.wait_timeout_while(count, Duration::from_secs(60), |count| *count < 3).unwrap();
            if *count < 3 {
                return Answer::new(500, "");
            }
        }
        honest.answer(asked)
    });
    let home = Home::new();
    home.ok(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
    assert_eq!(home.ok(&["verify"]), "3 layers are sound\n");
}

/// A registry that takes blobs, but loses the first connection of each after some bytes.
#[test]
fn a_push_goes_on_where_it_was_cut() {
    type Uploads = HashMap<String, Vec<u8>>;
    let (uploads, blobs) = (Arc::new(Mutex::new(Uploads::new())), Arc::new(Mutex::new(Uploads::new())));
    let (begun, kept) = (Arc::clone(&uploads), Arc::clone(&blobs));
    let liar = Liar::start(move |asked, body| {
        let place = asked.path.split('?').next().unwrap().to_owned();
        let mut begun = begun.lock().unwrap();
        let upload = begun.get(&place).cloned().unwrap_or_default();
        let so_far = |upload: &Vec<u8>, status| {
            let range = format!("0-{}", upload.len().saturating_sub(1));
            Answer::new(status, "").with("Location", place.clone()).with("Range", range)
        };
        match asked.method.as_str() {
            "HEAD" => Answer::new(404, ""),
            "POST" => {
                let place = format!("/v2/x/blobs/uploads/{}", begun.len());
                begun.insert(place.clone(), Vec::new());
                Answer::new(202, "").with("Location", place)
            }
            "GET" => so_far(&upload, 204),
            "PATCH" if upload.is_empty() => {
                let mut some = vec![0; 700];
                body.read_exact(&mut some).unwrap();
                begun.insert(place.clone(), some);
                Answer::new(502, "")
            }
            "PATCH" => {
                let mut whole = upload;
                assert_eq!(asked.header("content-range"), Some(&*format!("700-{}", 699 + body_length(asked))));
                body.read_to_end(&mut whole).unwrap();
                begun.insert(place.clone(), whole.clone());
                so_far(&whole, 202)
            }
            "PUT" if asked.path.contains("/manifests/") => Answer::new(201, ""),
            "PUT" => {
                let digest = Digest::of(&upload).to_string();
                if !asked.path.ends_with(&format!("?digest={digest}")) {
                    return Answer::new(400, "");
                }
                kept.lock().unwrap().insert(digest, upload);
                Answer::new(201, "")
            }
            _ => Answer::new(405, ""),
        }
    });
    let home = Home::new();
    // Layers of more than 700 bytes, and a config of fewer than that is made longer by its notes.
    let rootfs = home.path("rootfs.tar");
    std::fs::write(&rootfs, super::tar_build::Tar::new().file("a", super::fixture::noise(50_000, 3)).end()).unwrap();
    let label = format!("LABEL long={}", "x".repeat(900));
    home.ok(&["import", "-c", &label, rootfs.to_str().unwrap(), "tool:1"]);
    let (_, told) = home.both(&["push", "--plain-http", "tool:1", &format!("{}/x:1", liar.host())]);
    assert_eq!(told.matches(": Pushed").count(), 1, "{told}");
    assert_eq!(blobs.lock().unwrap().len(), 2, "the layer and the config, each with its own digest");
    assert_eq!(liar.asked("/uploads/").iter().filter(|asked| asked.method == "PATCH").count(), 4);
}

fn body_length(asked: &super::liar::Asked) -> usize {
    asked.header("content-length").unwrap().parse().unwrap()
}

#[test]
fn an_upload_that_always_fails_is_given_up() {
    let liar = Liar::start(|asked, body| match asked.method.as_str() {
        "HEAD" => Answer::new(404, ""),
        "POST" => Answer::new(202, "").with("Location", "/v2/x/blobs/uploads/1"),
        _ => {
            std::io::copy(body, &mut std::io::sink()).unwrap();
            Answer::new(500, "")
        }
    });
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    let line = home.fails(&["push", "--plain-http", "tool:1", &format!("{}/x:1", liar.host())]);
    assert!(line.contains("taking a blob: status 500"), "{line}");
}
