//! Passwords, certificates, credential helpers.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::fixture::docker_old;
use super::liar::{Answer, Liar};
use super::pty::Terminal;
use super::readme::block_run_by;
use super::server::{Server, Wants};
use super::{Home, digest_in};

fn log_in(home: &Home, password: &str, args: &[&str]) -> std::process::Output {
    let mut child = home
        .command(env!("CARGO_BIN_EXE_strata"))
        .args(["login", "-u", "me", "--password-stdin"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_password_is_asked_for_kept_and_forgotten() {
    let server = Server::start(Wants { password: true, tls: true });
    let trusted = server.certificates().join("trusted");
    let (host, name, trust) = (server.host(), server.name("a/tool:1"), format!("--cert-dir={}", trusted.display()));
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    let line = home.fails(&["push", &trust, "tool:1", &name]);
    assert!(line.contains(&format!("wants a password; strata login {host}")), "{line}");
    let wrong = log_in(&home, "wrong", &[&trust, &host]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("the name or the password is wrong"), "{wrong:?}");
    assert!(!home.path(".docker/config.json").exists(), "a wrong one is not kept");
    assert!(log_in(&home, "pa:ss", &[&trust, &host]).status.success());
    let kept = home.path(".docker/config.json");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let digest = digest_in(&home.ok(&["push", &trust, "tool:1", &name]));
    let other = home.ok(&["pull", &trust, &name]);
    assert_eq!(digest_in(&other), digest);
    // skopeo reads the same file.
    let config = format!("--authfile={}", kept.display());
    let trusted = format!("--cert-dir={}", trusted.display());
    home.skopeo(&["inspect", &config, &trusted, &format!("docker://{name}")]);
    home.ok(&["logout", &host]);
    assert!(home.fails(&["logout", &host]).contains("no password is kept"));
    assert!(home.fails(&["pull", &trust, &name]).contains("wants a password"));
}

#[test]
fn a_password_may_be_for_some_repositories() {
    let server = Server::start(Wants { password: true, tls: false });
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    let team = format!("{}/team", server.host());
    let login = log_in(&home, "pa:ss", &["--plain-http", &team]);
    assert!(login.status.success(), "{login:?}");
    home.ok(&["push", "--plain-http", "tool:1", &format!("{team}/tool:1")]);
    let line = home.fails(&["push", "--plain-http", "tool:1", &server.name("teams/tool:1")]);
    assert!(line.contains("wants a password"), "{line}");
    // podman's way of writing the same file.
    let kept = std::fs::read_to_string(home.path(".docker/config.json")).unwrap();
    assert!(kept.contains(&format!("\"{team}\"")), "{kept}");
    home.skopeo(&[
        "inspect",
        &format!("--authfile={}", home.path(".docker/config.json").display()),
        "--tls-verify=false",
        &format!("docker://{team}/tool:1"),
    ]);
    home.ok(&["logout", &team]);
    assert!(home.fails(&["logout", &team]).contains("no password is kept"));
}

#[test]
fn a_credential_helper_is_asked() {
    let server = Server::start(Wants { password: true, tls: false });
    let (host, name) = (server.host(), server.name("tool:1"));
    let home = Home::new();
    let bin = home.path("bin");
    std::fs::create_dir_all(home.path(".docker")).unwrap();
    std::fs::create_dir(&bin).unwrap();
    let kept = home.path("secret");
    let helper = format!(
        "#!/bin/sh\nkept={}\ncase $1 in\nstore) cat >$kept ;;\nget) cat >/dev/null; [ -e $kept ] && cat $kept && exit 0\n\
         echo credentials not found in native keychain; exit 1 ;;\nerase) rm $kept ;;\nesac\n",
        kept.display()
    );
    std::fs::write(bin.join("docker-credential-test"), helper).unwrap();
    std::fs::set_permissions(bin.join("docker-credential-test"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(home.path(".docker/config.json"), r#"{"credsStore": "test"}"#).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let run = |args: &[&str]| {
        let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
        command.env("PATH", &path).args(args);
        command
    };
    home.load(&docker_old("tool:1"));
    let push = ["push", "--plain-http", "tool:1", &name];
    let refused = run(&push).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("wants a password"), "{refused:?}");
    let mut login = run(&["login", "--plain-http", "-u", "me", "--password-stdin", &host]);
    let mut login = login.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    login.stdin.take().unwrap().write_all(b"pa:ss").unwrap();
    let told = login.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).contains("kept in docker-credential-test"), "{told:?}");
    let config = std::fs::read_to_string(home.path(".docker/config.json")).unwrap();
    assert_eq!(config, r#"{"credsStore": "test"}"#, "no secret in the file");
    assert!(run(&push).status().unwrap().success());
    assert!(run(&["logout", &host]).status().unwrap().success());
    assert!(!kept.exists());
    assert!(!run(&push).output().unwrap().status.success());
}

#[test]
fn certificates_are_checked() {
    let server = Server::start(Wants { password: false, tls: true });
    let name = server.name("tool:1");
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    let line = home.fails(&["push", "tool:1", &name]);
    assert!(line.contains("invalid peer certificate") && line.contains("--cert-dir"), "{line}");
    let trusted = server.certificates().join("trusted");
    home.ok(&["push", "--cert-dir", trusted.to_str().unwrap(), "tool:1", &name]);
    let mut pull = home.command(env!("CARGO_BIN_EXE_strata"));
    let pull = pull.env("SSL_CERT_FILE", trusted.join("ca.crt")).args(["pull", &name]);
    assert!(pull.output().unwrap().status.success(), "the system's own place for certificates");
    let line = home.fails(&["pull", "--plain-http", &name]);
    assert!(line.contains("status 400"), "{line}");
    std::fs::write(home.path("bad.crt"), "-----BEGIN CERTIFICATE-----\nx\n").unwrap();
    let line = home.fails(&["pull", "--cert-dir", home.dir.path().to_str().unwrap(), &name]);
    assert!(line.contains("bad.crt"), "{line}");
}

/// A registry without TLS may keep its blobs on a host with TLS, whose certificate is checked nevertheless.
#[test]
fn a_redirect_from_plain_http_to_tls_is_checked() {
    let server = Server::start(Wants { password: false, tls: true });
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    let trusted = server.certificates().join("trusted");
    let trust = ["--cert-dir", trusted.to_str().unwrap()];
    home.ok(&[&["push"], &trust[..], &["tool:1", &server.name("x:1")]].concat());
    let place = server.host();
    let front = Liar::start(move |asked, _| Answer::redirect(format!("https://{place}{}", asked.path)));
    let name = format!("{}/x:1", front.host());
    let line = home.fails(&["pull", "--plain-http", &name]);
    assert!(line.contains("invalid peer certificate"), "{line}");
    home.ok(&[&["pull", "--plain-http"], &trust[..], &[&name]].concat());
}

#[test]
fn plain_http_is_never_used_unasked() {
    let server = Server::start(Wants::default());
    let home = Home::new();
    home.load(&docker_old("tool:1"));
    for args in [&["pull", &server.name("x:1")][..], &["push", "tool:1", &server.name("x:1")]] {
        assert!(home.fails(args).contains("does not speak TLS; --plain-http allows that"));
    }
    let login = log_in(&home, "secret", &[&server.host()]);
    assert!(!login.status.success());
    for bad in ["https://", "a b", "me@example.org", "example.org/X", "example.org/a b"] {
        assert!(!home.strata(&["login", "-u", "me", "--password-stdin", bad]).status.success(), "{bad}");
    }
}

/// The lines of docs/registries.md, with this registry instead of theirs and a typed password.
#[test]
fn the_lines_about_registries() {
    let server = Server::start(Wants { password: true, tls: true });
    let home = Home::new();
    home.load(&docker_old("docker.io/library/debian:jq"));
    let block = block_run_by("the_lines_about_registries");
    let script = block
        .replace("strata login", "echo pa:ss | strata login -u me --password-stdin")
        .replace("strata pull", "strata push debian:jq registry.example/team/base:1\nstrata pull")
        .replace("registry.example", &server.host());
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_strata")).parent().unwrap();
    let mut command = home.command("bash");
    command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    command.env("SSL_CERT_FILE", server.certificates().join("ca.crt"));
    let output = command.args(["-euo", "pipefail", "-c", &script]).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {told}");
    assert!(told.contains("Login succeeded") && told.contains("Status: ") && told.contains("Mounted from"), "{told}");
}

#[test]
fn a_password_is_typed_unseen() {
    let server = Server::start(Wants { password: true, tls: false });
    let home = Home::new();
    let mut command = home.command(env!("CARGO_BIN_EXE_strata"));
    command.args(["login", "--plain-http", &server.host()]);
    let mut terminal = Terminal::run(&command);
    terminal.waits_for("Username: ");
    terminal.types("me\n");
    terminal.waits_for("Password: ");
    terminal.becomes("silent", |terminal| !terminal.echoes());
    terminal.types("pa:ss\n");
    terminal.waits_for("Login succeeded");
    assert_eq!(terminal.ends(), Some(0));
    assert!(!terminal.shown().contains("pa:ss"), "{:?}", terminal.shown());
    assert!(terminal.echoes());

    let mut terminal = Terminal::run(&command);
    terminal.waits_for("Username: ");
    terminal.types("me\n");
    terminal.waits_for("Password: ");
    terminal.becomes("silent", |terminal| !terminal.echoes());
    terminal.types("half a pass\x03");
    terminal.waits_for("interrupted");
    assert_eq!(terminal.ends(), Some(1));
    assert!(terminal.echoes(), "the terminal speaks again");
}
