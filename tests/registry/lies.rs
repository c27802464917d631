//! Registries that break the protocol are refused in one line, and nothing of theirs stays.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use stratafs::image::digest::Digest;

use super::Home;
use super::fixture::{descriptor, docker_old};
use super::liar::{Answer, Asked, Image, Liar};

/// Pulls from a registry that answers honestly unless `lie` returns an answer. Returns the message.
fn refusal(image: &Image, lie: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) -> String {
    let honest = image.clone();
    let liar = Liar::start(move |asked, _| lie(asked).unwrap_or_else(|| honest.answer(asked)));
    let home = Home::new();
    let line = home.fails(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
    assert!(line.starts_with(&format!("strata: {}/x: ", liar.host())), "{line}");
    assert_eq!(home.ok(&["images", "-q"]), "");
    home.ok(&["gc"]);
    assert_eq!(std::fs::read_dir(home.path("store/tmp")).unwrap().count(), 0);
    line
}

/// A lie about layers alone.
fn about_layers(image: &Image, lie: impl Fn(&[u8]) -> Answer + Send + Sync + 'static) -> String {
    let honest = image.clone();
    refusal(image, move |asked| honest.is_layer(asked).then(|| lie(honest.blob(&asked.path).unwrap())))
}

#[test]
fn lies_about_layers() {
    let image = Image::new(1);
    let size = image.layers[0].len();
    let line = about_layers(&image, |blob| {
        let mut other = blob.to_vec();
        *other.last_mut().unwrap() ^= 1;
        Answer::new(200, other)
    });
    assert!(line.contains("was promised, but it is sha256:") || line.contains("gzip"), "{line}");
    let line = about_layers(&image, |blob| Answer::new(200, [blob, b"more"].concat()));
    assert!(line.contains(&format!("{size} bytes were promised, but it has {}", size + 4)), "{line}");
    let line = about_layers(&image, |blob| Answer::new(200, &blob[..100]));
    assert!(line.contains(&format!("{size} bytes were promised, but it has 100")), "{line}");
    let line = about_layers(&image, |blob| Answer::new(200, blob).flooding());
    assert!(line.contains(&format!("goes on after the {size} bytes that were promised")), "{line}");
    let line = about_layers(&image, |_| Answer::new(200, "").flooding());
    assert!(line.contains("promised") || line.contains("tar"), "{line}");
    let line = about_layers(&image, |_| Answer::new(404, ""));
    assert!(line.contains("is not there"), "{line}");
}

#[test]
fn a_layer_that_is_not_the_one_of_the_config() {
    let mut image = Image::new(2);
    image.layers[1] = image.layers[0].clone();
    image.manifest["layers"][1] = image.manifest["layers"][0].clone();
    let liar = Liar::start({
        let image = image.clone();
        move |asked, _| image.answer(asked)
    });
    let home = Home::new();
    let line = home.fails(&["pull", "--plain-http", &format!("{}/x:1", liar.host())]);
    assert!(line.contains("uncompressed layer: sha256:"), "{line}");
}

#[test]
fn lies_about_manifests_and_configs() {
    let image = Image::new(1);
    let about_manifest = |bytes: Vec<u8>| {
        refusal(&image, move |asked| asked.path.contains("/manifests/").then(|| Answer::new(200, bytes.clone())))
    };
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = image.manifest.clone();
        change(&mut manifest);
        manifest.to_string().into_bytes()
    };
    assert!(about_manifest(b"<html>".to_vec()).contains("manifest: "));
    assert!(about_manifest(b"{}".to_vec()).contains("neither"));
    assert!(about_manifest(br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec()).contains("schema 1"));
    let both = changed(&|manifest| manifest["manifests"] = json!([]));
    assert!(about_manifest(both).contains("neither"));
    let artifact = changed(&|manifest| manifest["config"]["mediaType"] = json!("application/vnd.example.chart"));
    assert!(about_manifest(artifact).contains("is no image"));
    let fewer = changed(&|manifest| manifest["layers"] = json!([]));
    assert!(about_manifest(fewer).contains("its config names 1 layers, its manifest 0"));
    let huge = changed(&|manifest| manifest["config"]["size"] = json!(u64::MAX));
    let line = about_manifest(huge);
    assert!(line.contains("too large"), "{line}");
    let huge = changed(&|manifest| manifest["layers"][0]["size"] = json!(u64::MAX));
    assert!(about_manifest(huge).contains("too large"));
    let nested =
        json!({"schemaVersion": 2, "manifests": [descriptor("application/vnd.oci.image.index.v1+json", b"x")]});
    assert!(about_manifest(nested.to_string().into_bytes()).contains("was promised, but it is"));
    let flood = refusal(&image, |asked| asked.path.contains("/manifests/").then(|| Answer::new(200, "{").flooding()));
    assert!(flood.contains("larger than"), "{flood}");
    let bytes = image.manifest_bytes();
    let other = refusal(&image, move |asked| {
        let answer = || Answer::new(200, bytes.clone()).with("Docker-Content-Digest", Digest::of(b"x").to_string());
        asked.path.contains("/manifests/").then(answer)
    });
    assert!(other.contains("was promised, but it is"), "{other}");
}

#[test]
fn redirects_that_lead_nowhere_good() {
    let image = Image::new(1);
    for target in ["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher:x"] {
        let line = about_layers(&image, move |_| Answer::redirect(target));
        assert!(line.contains("which is not followed") || line.contains("is no address"), "{target}: {line}");
    }
    let line = about_layers(&image, |_| Answer::redirect("/v2/x/round"));
    assert!(line.contains("is not there"), "{line}");
    let rounds = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rounds);
    let line = refusal(&image, move |asked| {
        asked.path.contains("sha256").then(|| {
            counted.fetch_add(1, Ordering::Relaxed);
            Answer::redirect(asked.path.clone())
        })
    });
    assert!(line.contains("redirects more than 5 times"), "{line}");
    assert_eq!(rounds.load(Ordering::Relaxed), 6);
    let line = about_layers(&image, |_| Answer::redirect("http://me:secret@127.0.0.1/x"));
    assert!(line.contains("is no address to go to"), "{line}");
}

fn keep_password(home: &Home, host: &str) {
    std::fs::create_dir_all(home.path(".docker")).unwrap();
    // me:secret
    let text = json!({"auths": {host: {"auth": "bWU6c2VjcmV0"}}}).to_string();
    std::fs::write(home.path(".docker/config.json"), text).unwrap();
}

#[test]
fn a_redirect_takes_no_password_along() {
    let image = Image::new(1);
    let honest = image.clone();
    let storage = Arc::new(Liar::start(move |asked, _| honest.answer(asked)));
    let (place, honest) = (storage.host(), image.clone());
    let front = Liar::start(move |asked, _| match asked.header("authorization") {
        None => Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) if honest.is_layer(asked) => Answer::redirect(format!("http://{place}{}", asked.path)),
        Some(_) => honest.answer(asked),
    });
    let home = Home::new();
    keep_password(&home, &front.host());
    home.ok(&["pull", "--plain-http", &format!("{}/x:1", front.host())]);
    assert_eq!(front.asked("sha256")[0].header("authorization"), Some("Basic bWU6c2VjcmV0"));
    let came = storage.asked("");
    assert_eq!(came.len(), 1);
    assert_eq!(came[0].header("authorization"), None);
}

#[test]
fn a_token_is_got_from_the_own_house_alone() {
    let image = Image::new(1);
    let other = Liar::start(|_, _| Answer::new(200, r#"{"token": "t"}"#));
    let challenge = |realm: String| format!("Bearer realm=\"{realm}\",service=\"a service\"");
    // By another name of the same machine: it cannot be recognized as the same.
    let elsewhere = challenge(format!("http://localhost:{}/token", other.port()));
    let front = Liar::start(move |_, _| Answer::new(401, "").with("WWW-Authenticate", elsewhere.clone()));
    let home = Home::new();
    keep_password(&home, &front.host());
    let line = home.fails(&["pull", "--plain-http", &format!("{}/x:1", front.host())]);
    assert!(line.contains("wants the password to be sent to localhost, which is not done"), "{line}");
    assert!(other.asked("").is_empty());

    // From a token server of its own.
    let tokens = Liar::start(|asked, _| match asked.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => Answer::new(200, r#"{"access_token": "t1", "expires_in": 60}"#),
        _ => Answer::new(401, ""),
    });
    let own = challenge(format!("http://{}/token?fixed=1", tokens.host()));
    let front = Liar::start(move |asked, _| match asked.header("authorization") {
        Some("Bearer t1") => image.answer(asked),
        _ => Answer::new(401, "").with("WWW-Authenticate", own.clone()),
    });
    let name = format!("{}/a/x:1", front.host());
    let line = home.fails(&["pull", "--plain-http", &name]);
    assert!(line.contains("gives no token (status 401)"), "{line}");
    keep_password(&home, &front.host());
    home.ok(&["pull", "--plain-http", &name]);
    let asked = tokens.asked("token").pop().unwrap();
    assert_eq!(asked.path, "/token?fixed=1&service=a%20service&scope=repository%3Aa%2Fx%3Apull");
    assert_eq!(front.asked("manifests").len(), 1 + 2, "once refused for good, once refused and then answered");
}

#[test]
fn an_identity_token_is_exchanged_for_an_access_token() {
    let image = Image::new(1);
    let tokens = Liar::start(|asked, body| {
        let mut form = String::new();
        body.read_to_string(&mut form).unwrap();
        let expected =
            "service=s&scope=repository%3Ax%3Apull&grant_type=refresh%5Ftoken&client_id=strata&refresh_token=i%2Ft";
        match asked.method == "POST" && form == expected {
            true => Answer::new(200, r#"{"access_token": "t2"}"#),
            false => Answer::new(403, form),
        }
    });
    let challenge = format!("Bearer realm=\"http://{}/token\",service=s", tokens.host());
    let front = Liar::start(move |asked, _| match asked.header("authorization") {
        Some("Bearer t2") => image.answer(asked),
        _ => Answer::new(401, "").with("WWW-Authenticate", challenge.clone()),
    });
    let home = Home::new();
    std::fs::create_dir_all(home.path(".docker")).unwrap();
    let text = json!({"auths": {front.host(): {"identitytoken": "i/t"}}}).to_string();
    std::fs::write(home.path(".docker/config.json"), text).unwrap();
    home.ok(&["pull", "--plain-http", &format!("{}/x:1", front.host())]);
}

/// A manifest may name any blob as a layer that is already in the store, because such a layer is not fetched. It must
/// not be trusted when that layer is pushed.
#[test]
fn a_blob_that_was_never_seen_is_not_taken_for_a_layer() {
    let image = Image::new(1);
    let bogus = Digest::of(b"never seen");
    let mut evil = image.clone();
    evil.manifest["layers"][0]["digest"] = json!(bogus.to_string());
    evil.manifest["layers"][0]["annotations"] = json!({"a": "b"});
    let sent = Arc::new(Mutex::new(Vec::new()));
    let (kept, both) = (Arc::clone(&sent), (image.clone(), evil));
    let liar = Liar::start(move |asked, body| match asked.method.as_str() {
        "GET" if asked.path.contains("/evil/") => both.1.answer(asked),
        "GET" => both.0.answer(asked),
        // It claims to have the blob, which was never verified.
        "HEAD" => Answer::new(if asked.path.ends_with(&bogus.to_string()) { 200 } else { 404 }, ""),
        "POST" => Answer::new(202, "").with("Location", "/v2/to/blobs/uploads/1"),
        "PATCH" => {
            std::io::copy(body, &mut std::io::sink()).unwrap();
            Answer::new(202, "").with("Location", "/v2/to/blobs/uploads/1")
        }
        _ => {
            body.read_to_end(&mut kept.lock().unwrap()).unwrap();
            Answer::new(201, "")
        }
    });
    let (home, name) = (Home::new(), |name: &str| format!("{}/{name}", liar.host()));
    home.ok(&["pull", "--plain-http", &name("good:1")]);
    let (_, told) = home.both(&["pull", "--plain-http", &name("evil:1")]);
    assert!(told.contains("Already exists"), "{told}");
    for from in ["evil:1", "good:1"] {
        sent.lock().unwrap().clear();
        home.ok(&["push", "--plain-http", &name(from), &name("to:1")]);
        let manifest = String::from_utf8(sent.lock().unwrap().clone()).unwrap();
        assert!(manifest.contains("layers") && !manifest.contains(&bogus.to_string()), "{from}: {manifest}");
    }
}

#[test]
fn layers_are_sent_to_the_registry_alone() {
    let elsewhere = Liar::start(|_, _| Answer::new(202, ""));
    let place = format!("http://localhost:{}/upload", elsewhere.port());
    let front = Liar::start(move |asked, _| match asked.method.as_str() {
        "HEAD" => Answer::new(404, ""),
        _ => Answer::new(202, "").with("Location", place.clone()),
    });
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    let line = home.fails(&["push", "--plain-http", "tool:1", &format!("{}/x:1", front.host())]);
    assert!(line.contains("wants layers to be sent to localhost, which is not done"), "{line}");
    assert!(elsewhere.asked("").is_empty());
    let silent = Liar::start(|asked, _| match asked.method.as_str() {
        "HEAD" => Answer::new(404, ""),
        _ => Answer::new(418, r#"{"errors": [{"message": "a \u001b[31mpot"}]}"#),
    });
    let line = home.fails(&["push", "--plain-http", "tool:1", &format!("{}/x:1", silent.host())]);
    assert!(line.contains("status 418: a [31mpot"), "no control characters: {line:?}");
}
