//! Destinations of requests and what is sent with them: redirects, token servers, proxies, IPv6 addresses, files of passwords.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use serde_json::json;

use super::Home;
use super::fixture::docker_old;
use super::liar::{Answer, Image, Liar};
use super::quirky::{Quirk, start};

fn keep(home: &Home, file: &str, text: &str) {
    let path = home.path(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// me:secret
const SECRET: &str = "bWU6c2VjcmV0";

fn auths(keys: &[(&str, &str)]) -> String {
    let auths: serde_json::Map<_, _> =
        keys.iter().map(|(key, auth)| ((*key).to_owned(), json!({"auth": auth}))).collect();
    json!({ "auths": auths }).to_string()
}

/// The target of a redirect asks for the registry's password, in every way.
#[test]
fn a_challenge_of_another_server_is_not_answered() {
    let image = Image::new(1);
    for (status, challenge) in [
        (401, "Basic realm=\"x\""),
        (401, "Bearer realm=\"http://PLACE/token\",service=\"s\""),
        (401, "Bearer realm=\"/token\",service=\"s\""),
        (401, ""),
        (403, "Basic realm=\"x\""),
    ] {
        for wants_password in [false, true] {
            let challenge = challenge.to_owned();
            let stranger = Arc::new(Liar::start(move |asked, _| {
                let place = asked.header("host").unwrap();
                Answer::new(status, "").with("WWW-Authenticate", challenge.replace("PLACE", place))
            }));
            let (place, honest) = (stranger.host(), image.clone());
            let front = Liar::start(move |asked, _| match asked.header("authorization") {
                None if wants_password => Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
                _ if honest.is_layer(asked) => Answer::redirect(format!("http://{place}{}", asked.path)),
                _ => honest.answer(asked),
            });
            let home = Home::new();
            keep(&home, ".docker/config.json", &auths(&[(&front.host(), SECRET)]));
            let line = home.fails(&["pull", "--plain-http", &format!("{}/x:1", front.host())]);
            let told = format!("is at 127.0.0.1, which refuses it: status {status}");
            assert!(line.contains(&told), "{status} {wants_password}: {line}");
            let came = stranger.asked("");
            assert_eq!(came.len(), 1, "asked once, and no token of it: {came:?}");
            assert_eq!(came[0].header("authorization"), None);
            let to_front = front.asked("sha256");
            assert!(wants_password || to_front.iter().all(|asked| asked.header("authorization").is_none()));
        }
    }
}

#[test]
fn the_longest_key_of_the_first_file_is_used() {
    // me:team
    const TEAM: &str = "bWU6dGVhbQ==";
    let image = Image::new(1);
    let honest = image.clone();
    let front = Liar::start(move |asked, _| match asked.header("authorization") {
        None => Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => honest.answer(asked),
    });
    let host = front.host();
    let team = format!("{host}/team");
    let both = auths(&[(&host, SECRET), (&team, TEAM)]);
    type Variables<'v> = &'v [(&'v str, &'v str)];
    let none: Variables<'_> = &[];
    for (file, variables, repository, expected) in [
        (".docker/config.json", none, "team/a", TEAM),
        (".docker/config.json", none, "teams/a", SECRET),
        (".config/containers/auth.json", none, "team/a", TEAM),
        ("config/containers/auth.json", &[("XDG_CONFIG_HOME", "config")][..], "team/a", TEAM),
        ("run/containers/auth.json", &[("XDG_RUNTIME_DIR", "run")], "team/a/b", TEAM),
        ("there.json", &[("REGISTRY_AUTH_FILE", "there.json")], "team", TEAM),
        ("docker/config.json", &[("DOCKER_CONFIG", "docker")], "a", SECRET),
    ] {
        let home = Home::new();
        keep(&home, file, &both);
        let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
        command.envs(variables.iter().map(|(name, path)| (name, home.path(path))));
        let output = command.args(["pull", "--plain-http", &format!("{host}/{repository}:1")]).output().unwrap();
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        let last = front.asked(&format!("/{repository}/manifests/")).pop().unwrap();
        assert_eq!(last.header("authorization"), Some(&*format!("Basic {expected}")), "{file} {repository}");
    }
}

#[test]
fn a_helper_that_is_missing_or_fails_is_a_warning() {
    let image = Image::new(1);
    let front = Liar::start(move |asked, _| match asked.header("authorization") {
        None => Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => image.answer(asked),
    });
    let host = front.host();
    for (what, document, told) in [
        ("credsStore", json!({"credsStore": "not-there"}), "docker-credential-not-there: the credential helper is not"),
        (
            "credHelpers",
            json!({"credHelpers": {host.as_str(): "not-there"}}),
            "not-there: the credential helper is not",
        ),
        ("fails", json!({"credsStore": "fails"}), "docker-credential-fails: locked"),
        ("odd", json!({"credsStore": "odd"}), "docker-credential-odd: "),
    ] {
        let home = Home::new();
        keep(&home, "bin/docker-credential-fails", "#!/bin/sh\necho locked; exit 1\n");
        keep(&home, "bin/docker-credential-odd", "#!/bin/sh\necho what\n");
        for name in ["fails", "odd"] {
            let path = home.path(&format!("bin/docker-credential-{name}"));
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut document = document;
        document["auths"] = json!({host.as_str(): {"auth": SECRET}});
        keep(&home, ".docker/config.json", &document.to_string());
        let path = format!("{}:{}", home.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
        command.env("PATH", path).args(["pull", "--plain-http", &format!("{host}/x:1")]);
        let output = command.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && message.contains(told), "{what}: {message}");
    }
}

#[test]
fn a_registry_at_an_address_of_ipv6() {
    let image = Image::new(1);
    let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else { return };
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let liar = Liar::listen(&format!("[::1]:{port}"), move |asked, _| match asked.header("authorization") {
        None => Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => image.answer(asked),
    });
    let home = Home::new();
    let host = format!("[::1]:{}", liar.port());
    keep(&home, ".docker/config.json", &auths(&[(&host, SECRET)]));
    let name = format!("{host}/a/b:1");
    home.ok(&["pull", "--plain-http", &name]);
    assert_eq!(home.ok(&["images", "-q", &name]).lines().count(), 1);
    assert_eq!(liar.asked("/v2/a/b/manifests/1")[0].header("host"), Some(&*host));
    home.ok(&["tag", &name, &format!("{host}/c")]);
    home.ok(&["rmi", &name]);
}

/// A proxy that passes everything to one registry, in both ways of proxies.
fn pull_through(variables: &[(&str, &str)], host: &str) -> (Vec<String>, String) {
    let image = Image::new(1);
    let proxy = Liar::start(move |asked, _| match asked.path.strip_prefix("http://") {
        Some(rest) => {
            let path = rest.find('/').map_or("/", |slash| &rest[slash..]).to_owned();
            let mut asked = asked.clone();
            asked.path = path;
            image.answer(&asked)
        }
        None => Answer::new(404, ""),
    });
    let home = Home::new();
    let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
    for (name, value) in variables {
        command.env(name, value.replace("PROXY", &proxy.host()));
    }
    let output = command.args(["pull", "--plain-http", &format!("{host}/x:1")]).output().unwrap();
    let first = |asked: super::liar::Asked| {
        let secret = asked.header("proxy-authorization").unwrap_or_default().to_owned();
        format!("{} {} {secret}", asked.method, asked.path)
    };
    (proxy.asked("").into_iter().map(first).collect(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn requests_in_the_clear_are_given_to_the_proxy() {
    for (name, value) in [
        ("HTTP_PROXY", "http://PROXY"),
        ("http_proxy", "PROXY"),
        ("http_proxy", "http://PROXY/"),
        ("ALL_PROXY", "http://PROXY"),
    ] {
        let (asked, told) = pull_through(&[(name, value)], "registry.invalid");
        assert_eq!(asked.len(), 3, "{name} {value}: {asked:?} {told}");
        assert_eq!(asked[0], "GET http://registry.invalid/v2/x/manifests/1 ", "{name} {value}: {told}");
    }
    let (asked, _) = pull_through(&[("http_proxy", "http://me:p%40ss@PROXY")], "registry.invalid:5000");
    assert_eq!(asked[0], "GET http://registry.invalid:5000/v2/x/manifests/1 Basic bWU6cEBzcw==");
    // The proxy is not used for these.
    for (variables, host) in [
        (&[("HTTPS_PROXY", "http://PROXY")][..], "registry.invalid"),
        (&[("HTTP_PROXY", ""), ("http_proxy", "")], "registry.invalid"),
        (&[("HTTP_PROXY", "http://PROXY"), ("NO_PROXY", "other.example, registry.invalid")], "registry.invalid"),
        (&[("HTTP_PROXY", "http://PROXY"), ("no_proxy", ".invalid")], "registry.invalid"),
        (&[("HTTP_PROXY", "http://PROXY"), ("NO_PROXY", "*")], "registry.invalid"),
        (&[("HTTP_PROXY", "http://PROXY"), ("NO_PROXY", "240.0.0.0/8")], "240.0.0.1:1"),
        (&[("HTTP_PROXY", "http://PROXY")], "127.0.0.1:1"),
        (&[("HTTP_PROXY", "http://PROXY")], "localhost:1"),
        (&[("HTTP_PROXY", "http://PROXY")], "[::1]:1"),
    ] {
        let (asked, told) = pull_through(variables, host);
        assert!(asked.is_empty() && !told.is_empty(), "{variables:?} {host}: {asked:?}");
    }
}

#[test]
fn what_is_encrypted_goes_through_a_tunnel() {
    let proxy = Liar::start(|_, _| Answer::new(403, ""));
    let home = Home::new();
    let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
    command.env("HTTPS_PROXY", format!("http://{}", proxy.host())).env("HTTP_PROXY", "http://127.0.0.1:1");
    let output = command.args(["pull", "registry.invalid/x:1"]).output().unwrap();
    let asked = proxy.asked("");
    assert_eq!((asked.len(), asked[0].method.as_str()), (1, "CONNECT"));
    assert_eq!(asked[0].path, "registry.invalid:443");
    assert!(String::from_utf8_lossy(&output.stderr).contains("proxy server responded 403"), "{output:?}");
}

/// A SOCKS proxy is used by its own protocol. If it hangs up, this is an error and no panic.
#[test]
fn a_proxy_of_socks_is_asked() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("socks5://{}", listener.local_addr().unwrap());
    let first = std::thread::spawn(move || {
        use std::io::Read;
        let mut byte = [0];
        let (mut connection, _) = listener.accept().unwrap();
        connection.read_exact(&mut byte).unwrap();
        byte[0]
    });
    let home = Home::new();
    let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
    let output = command.env("ALL_PROXY", address).args(["pull", "registry.invalid/x:1"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!told.contains("panicked") && told.contains("strata: registry.invalid/x: "), "{told}");
    assert_eq!(first.join().unwrap(), 5, "the version of SOCKS");
}

/// A whole push and pull through a proxy: bodies and secrets too.
#[test]
fn a_push_goes_through_a_proxy() {
    let registry = Arc::new(start(Quirk::None, true));
    let behind = registry.host();
    let proxy = Liar::start(move |asked, body| {
        // Passed on as it is, to the registry that every name stands for here.
        let path = asked.path.strip_prefix("http://registry.invalid").unwrap_or("/nowhere");
        super::quirky::pass_on(&behind, path, asked, body)
    });
    let home = Home::new();
    keep(&home, ".docker/config.json", &auths(&[("registry.invalid", SECRET)]));
    home.load(&docker_old("tool:1"));
    for args in [
        &["push", "--plain-http", "tool:1", "registry.invalid/x:1"][..],
        &["pull", "--plain-http", "registry.invalid/x:1"],
    ] {
        let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
        let output = command.env("http_proxy", proxy.host()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
