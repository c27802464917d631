//! Real registries: temporary failures are retried, unusual answers are understood, and a second repository that cannot
//! be read is no reason to fail. Each case pushes an image and pulls it again.

use std::time::{Duration, Instant};

use serde_json::json;

use super::fixture::docker_old;
use super::liar::Liar;
use super::quirky::{Class, Quirk, start};
use super::{Home, digest_in};

/// Runs cases a few at a time; each spends its time waiting.
fn in_parallel<C: Sync>(cases: &[C], run: impl Fn(&C) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    run(case);
                }
            });
        }
    });
}

fn keep_password(home: &Home, host: &str) {
    std::fs::create_dir_all(home.path(".docker")).unwrap();
    // me:secret
    let text = json!({"auths": {host: {"auth": "bWU6c2VjcmV0"}}}).to_string();
    std::fs::write(home.path(".docker/config.json"), text).unwrap();
}

fn home_for(registry: &Liar) -> Home {
    let home = Home::new();
    keep_password(&home, &registry.host());
    home.load(&docker_old("tool:1"));
    home
}

/// Pushes, pulls into a second store, and compares; returns the output of both.
fn there_and_back(home: &Home, registry: &Liar, what: &str) -> String {
    let name = format!("{}/a/tool:1", registry.host());
    let (out, pushed) = home.both(&["push", "--plain-http", "tool:1", &name]);
    let other = Home::new();
    keep_password(&other, &registry.host());
    let (back, pulled) = other.both(&["pull", "--plain-http", &name]);
    assert_eq!(digest_in(&out), digest_in(&back), "{what}");
    assert_eq!(other.ok(&["verify"]), "3 layers are sound\n", "{what}");
    pushed + &pulled
}

#[test]
fn what_passes_is_tried_again_whatever_is_asked() {
    use Class::*;
    let soon = || {
        let date = std::time::SystemTime::now() + Duration::from_secs(1);
        httpdate::fmt_http_date(date)
    };
    let mut cases = Vec::new();
    for class in [GetManifest, GetBlob, Token, HeadBlob, BeginUpload, SendBytes, EndUpload, PutManifest] {
        for status in [0, 408, 429, 500, 502, 503, 504] {
            cases.push((class, 1, status, None));
        }
        cases.push((class, 1, 429, Some("1".to_owned())));
        cases.push((class, 1, 503, Some(soon())));
        cases.push((class, 3, 503, None));
    }
    for class in [GetManifest, GetBlob, Token] {
        cases.push((class, 2, 1, None));
    }
    assert_eq!(cases.len(), 83);
    in_parallel(&cases, |(class, times, status, after)| {
        let what = format!("{class:?} {times} times {status} {after:?}");
        let registry = start(Quirk::Fails(*class, *times, *status, after.clone()), true);
        let home = home_for(&registry);
        let begun = Instant::now();
        let told = there_and_back(&home, &registry, &what);
        assert!(told.contains("trying again in"), "{what}: {told}");
        if after.as_deref() == Some("1") {
            assert!(begun.elapsed() >= Duration::from_secs(1), "{what}");
            assert!(told.contains("status 429; it asks for 1 s of patience"), "{what}: {told}");
        }
    });
}

#[test]
fn patience_has_an_end() {
    let cases = [
        // Requests are not repeated earlier than the server asks for.
        (Quirk::Fails(Class::GetManifest, 99, 429, Some("3600".to_owned())), 1, "it says to try again in 3600 s"),
        (Quirk::Fails(Class::GetManifest, 99, 429, None), 5, "too many requests for now"),
        (Quirk::Fails(Class::GetManifest, 99, 503, None), 5, "status 503"),
        (Quirk::Fails(Class::GetManifest, 99, 0, None), 5, "disconnected"),
        (Quirk::Fails(Class::GetManifest, 99, 501, None), 1, "status 501"),
        (Quirk::Fails(Class::GetManifest, 99, 400, None), 1, "status 400"),
    ];
    in_parallel(&cases, |(quirk, times, told)| {
        let registry = start(quirk.clone(), false);
        let line = Home::new().fails(&["pull", "--plain-http", &format!("{}/x:1", registry.host())]);
        assert!(line.contains(told), "{quirk:?}: {line}");
        assert_eq!(registry.asked("/manifests/").len(), *times, "{quirk:?}");
    });
}

#[test]
fn quirks_of_registries() {
    let cases = [
        Quirk::None,
        Quirk::LosesTheEnd,
        Quirk::CutsUploads,
        Quirk::CutsUploadsAndForgets,
        Quirk::CutsUploadsAndMiscounts,
        Quirk::Location("/v2/a/tool/blobs/uploads/ID"),
        Quirk::Location("/v2/a/tool/blobs/uploads/ID?"),
        Quirk::Location("/v2/a/tool/blobs/uploads/ID?_state=x%2By%3D&z"),
        Quirk::Location("http://HOST/v2/a/tool/blobs/uploads/ID?_state=1"),
        Quirk::Location("//HOST/v2/a/tool/blobs/uploads/ID"),
        // Relative to the address that begins an upload, and to that of the upload itself.
        Quirk::Location("ID"),
        Quirk::Location("./ID?_state=1"),
        Quirk::Location("../uploads/ID"),
        Quirk::Location("?id=ID"),
        // Below no repository at all, as Google's.
        Quirk::Location("/artifacts-uploads/namespaces/p/ID?upload_id=1"),
        Quirk::NoLocation,
        Quirk::ShortTokens(10),
        Quirk::ShortTokens(5),
        Quirk::Empty,
        Quirk::RelativeRealm,
        Quirk::HidesFromStrangers(401),
        Quirk::HidesFromStrangers(403),
        Quirk::HidesFromStrangers(404),
        Quirk::RedirectsPosts,
        Quirk::SaysBusyInWords(2),
    ];
    in_parallel(&cases, |quirk| {
        let registry = start(quirk.clone(), true);
        there_and_back(&home_for(&registry), &registry, &format!("{quirk:?}"));
    });
}

#[test]
fn a_blob_whose_end_was_lost_is_not_sent_twice() {
    let registry = start(Quirk::LosesTheEnd, false);
    there_and_back(&home_for(&registry), &registry, "lost");
    let sent = registry.asked("/uploads/").into_iter().filter(|asked| asked.method == "PATCH").count();
    assert_eq!(sent, 4, "three layers and a config");
}

#[test]
fn a_second_repository_that_may_not_be_read_is_sent_to() {
    let mut cases: Vec<Quirk> = [401, 403].map(Quirk::RefusesScopes).to_vec();
    cases.extend([400, 401, 403, 404, 405, 501].map(Quirk::RefusesMounts));
    in_parallel(&cases, |quirk| {
        let registry = start(quirk.clone(), true);
        let home = home_for(&registry);
        there_and_back(&home, &registry, &format!("{quirk:?}"));
        let second = format!("{}/b/tool:1", registry.host());
        let (_, told) = home.both(&["push", "--plain-http", "tool:1", &second]);
        assert_eq!(told.matches(": Pushed").count(), 3, "{quirk:?}: {told}");
    });
    let registry = start(Quirk::None, true);
    let home = home_for(&registry);
    there_and_back(&home, &registry, "mount");
    let second = format!("{}/b/tool:1", registry.host());
    let (_, told) = home.both(&["push", "--plain-http", "tool:1", &second]);
    assert_eq!(told.matches("Mounted from a/tool").count(), 3, "{told}");
}

#[test]
fn what_is_signed_for_reading_is_there() {
    let registry = start(Quirk::SignsForGet, false);
    let home = home_for(&registry);
    there_and_back(&home, &registry, "signed");
    let (_, told) = home.both(&["push", "--plain-http", "tool:1", &format!("{}/a/tool:2", registry.host())]);
    assert_eq!(told.matches("Layer already exists").count(), 3, "{told}");
}
