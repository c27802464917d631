//! The program: exit codes, one-line errors, and kills.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::fixture::*;
use super::tar_build::{Tar, spec};

pub(super) fn strata(root: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strata")).arg("--root").arg(root).args(args).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn every_verb_has_help_with_two_examples() {
    let dir = tempfile::tempdir().unwrap();
    let help = ok(dir.path(), &["--help"]);
    let verbs: Vec<&str> = help
        .lines()
        .take_while(|line| *line != "Options:")
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .collect();
    assert!(verbs.len() > 25, "{verbs:?}");
    for verb in verbs {
        let help = ok(dir.path(), &[verb, "--help"]);
        let (_, examples) = help.split_once("Examples:\n").expect(verb);
        assert!(examples.lines().filter(|line| line.contains("strata ")).count() >= 2, "{verb}: {help}");
    }
}

/// Runs a command that must succeed; returns its output.
pub(super) fn ok(root: &Path, args: &[&str]) -> String {
    let output = strata(root, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail; returns its message.
pub(super) fn fails(root: &Path, code: i32, args: &[&str]) -> String {
    let output = strata(root, args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    // `inspect` prints the array of what it found, as docker does.
    let printed: &[u8] = if args.contains(&"inspect") { b"[]\n" } else { b"" };
    assert_eq!(output.stdout, printed, "{args:?}");
    if code == 1 {
        assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
        assert!(message.starts_with("strata: "), "{message}");
    }
    message
}

#[test]
fn a_tour() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let archive = dir.path().join("in.tar");
    let archive = archive.to_str().unwrap();
    std::fs::write(archive, docker_old("x:1")).unwrap();
    assert_eq!(ok(&root, &["load", "-i", archive]), "Loaded image: x:1\n");
    let loaded: serde_json::Value = serde_json::from_str(&ok(&root, &["load", "--json", "-i", archive])).unwrap();
    assert_eq!(loaded[0]["RepoTags"], serde_json::json!(["x:1"]));
    let again = strata(&root, &["load", "-i", archive]);
    assert_eq!(String::from_utf8(again.stderr).unwrap().matches("Already exists").count(), 3);
    let images = ok(&root, &["images"]);
    assert!(images.starts_with("REPOSITORY   TAG   IMAGE ID "), "{images}");
    let id = ok(&root, &["images", "-q"]);
    let id = id.trim();
    assert_eq!(id.len(), 12);
    ok(&root, &["tag", &id[..4], "y:2"]);
    assert_eq!(ok(&root, &["images", "-q", "y"]), format!("{id}\n"));
    let document: serde_json::Value = serde_json::from_str(&ok(&root, &["inspect", "y:2"])).unwrap();
    assert_eq!(document[0]["RootFS"]["Layers"].as_array().unwrap().len(), 3);
    assert_eq!(ok(&root, &["inspect", "--config", "y:2"]).into_bytes(), config(&layers(), "old"));
    assert_eq!(ok(&root, &["history", "y:2"]).lines().count(), 4);
    assert_eq!(ok(&root, &["layers", "y:2"]).lines().count(), 4);
    let out = dir.path().join("out.tar");
    ok(&root, &["save", "-o", out.to_str().unwrap(), "y:2"]);
    let other = dir.path().join("other");
    assert_eq!(ok(&other, &["load", "-i", out.to_str().unwrap()]), "Loaded image: y:2\n");
    assert_eq!(ok(&root, &["verify"]), "3 layers are sound\n");
    assert_eq!(ok(&root, &["rmi", "x:1"]), "Untagged: x:1\n");
    assert!(ok(&root, &["rmi", "y:2"]).contains("Deleted: sha256:"));
    assert_eq!(ok(&root, &["gc"]), "Removed 0 layers and 0 blobs, 0B\n");
    ok(&root, &["load", "-q", "-i", archive]);
    assert!(fails(&root, 1, &["which", "x:1", "/usr/tool"]).contains("/usr/tool: not in x:1"));
    assert!(ok(&root, &["which", "x:1", "/usr/new"]).contains("file"));
    assert!(ok(&root, &["completions", "bash"]).contains("_strata"));
    let man = dir.path().join("man");
    ok(&root, &["man", man.to_str().unwrap()]);
    assert!(std::fs::read_to_string(man.join("strata-run.1")).unwrap().contains("Run a command in a new container"));
    let unpacked = dir.path().join("unpacked");
    let unpacked = unpacked.to_str().unwrap();
    assert_eq!(ok(&root, &["unpack", archive, unpacked]), format!("lowerdir={unpacked}/3:{unpacked}/2:{unpacked}/1\n"));
    assert!(Path::new(unpacked).join("1/etc/issue").exists());
    let upper = format!("{unpacked}/3");
    let layer = dir.path().join("layer.tar");
    let diff_id = ok(&root, &["snapshot", &upper, "-o", layer.to_str().unwrap(), "--lower", &format!("{unpacked}/1")]);
    let digest = stratafs::image::digest::Digest::of(&std::fs::read(&layer).unwrap());
    assert_eq!(diff_id, format!("{digest}\n"));
}

#[test]
fn what_lists_can_be_read_by_programs() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let archive = dir.path().join("in.tar");
    std::fs::write(&archive, docker_old("x:1")).unwrap();
    ok(&root, &["load", "-q", "-i", archive.to_str().unwrap()]);
    let layers: Vec<String> =
        layers().iter().rev().map(|layer| stratafs::image::digest::Digest::of(layer).to_string()).collect();
    let id = ok(&root, &["images", "-q"]);
    let table: [(&[&str], usize, String); 8] = [
        (&["images"], 1, id.clone()),
        (&["history", "x:1"], 3, format!("{id}<missing>\n<missing>\n")),
        (&["layers", "x:1"], 3, layers.iter().map(|layer| format!("{layer}\n")).collect()),
        (&["which", "x:1", "/usr/new"], 1, format!("{}\n", layers[0])),
        (&["which", "x:1", "/pad"], 1, format!("{}\n", layers[2])),
        (&["ps"], 0, String::new()),
        (&["mount"], 0, String::new()),
        (&["df"], 0, String::new()),
    ];
    for (verb, length, quiet) in table {
        let json: serde_json::Value = serde_json::from_str(&ok(&root, &[verb, &["--json"]].concat())).unwrap();
        let told = ok(&root, &[verb, &["--quiet"]].concat());
        match verb {
            ["df"] => assert!(json.is_object() && told.trim().parse::<u64>().is_ok(), "{told}"),
            _ => assert_eq!((json.as_array().unwrap().len(), told), (length, quiet), "{verb:?}"),
        }
        fails(&root, 2, &[verb, &["--quiet", "--json"]].concat());
    }
    let doctor = strata(&root, &["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let all_well = checks.as_array().unwrap().iter().all(|check| check["Ok"] == true || check["Optional"] == true);
    let quiet = strata(&root, &["doctor", "--quiet"]);
    assert_eq!((all_well, all_well), (quiet.status.success(), quiet.stdout.is_empty()));
}

#[test]
fn near_words_are_suggested() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let archive = dir.path().join("in.tar");
    std::fs::write(&archive, docker_old("debian:12")).unwrap();
    ok(&root, &["load", "-q", "-i", archive.to_str().unwrap()]);
    for (verb, near) in [("imgaes", "images"), ("comit", "commit"), ("pul", "pull"), ("inspct", "inspect")] {
        let told = fails(&root, 2, &[verb]);
        assert!(told.contains(&format!("'{near}'")), "{told}");
    }
    assert!(fails(&root, 2, &["images", "--qiet"]).contains("--quiet"));
    assert!(
        fails(&root, 125, &["run", "--pull", "never", "debain:12"])
            .ends_with("no such image; did you mean debian:12?\n")
    );
    assert!(fails(&root, 1, &["mount", "fedora"]).ends_with("no such image; strata pull fedora gets one\n"));
    assert!(fails(&root, 1, &["inspect", "fedora"]).ends_with("fedora: no such image\n"));
    let text = root.join("text");
    std::fs::write(&text, "hello\n").unwrap();
    assert!(fails(&root, 1, &["import", text.to_str().unwrap(), "x:1"]).ends_with("not a tar archive\n"));
    std::fs::write(&text, "a longer text\n".repeat(1000)).unwrap();
    assert!(fails(&root, 1, &["import", text.to_str().unwrap(), "x:1"]).contains("not a tar archive"));
    assert!(!fails(&root, 2, &["complete"]).contains("__"), "what is no verb for people is not suggested");
    let told = fails(&root, 1, &["save", "-o", "/missing/x", "debian:12"]);
    assert!(told.starts_with("strata: /missing: No such file"), "{told}");
    assert!(fails(&root, 1, &["inspect", "sha256:00"]).ends_with("sha256:00: no such image\n"));
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let dir = tempfile::tempdir().unwrap();
    let on_terminal = |no_color: bool| {
        let line = format!("{} imgaes; {0} --help", env!("CARGO_BIN_EXE_strata"));
        let mut command = Command::new("script");
        command.args(["-qc", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR").current_dir(dir.path());
        if no_color {
            command.env("NO_COLOR", "1");
        }
        String::from_utf8(command.stdin(Stdio::null()).output().unwrap().stdout).unwrap()
    };
    assert!(on_terminal(false).contains('\x1b'));
    assert!(!on_terminal(true).contains('\x1b'));
    assert!(!fails(dir.path(), 2, &["imgaes"]).contains('\x1b'));
}

#[test]
fn manuals_and_completions_know_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man");
    ok(dir.path(), &["man", man.to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(man.join(name)).unwrap();
    assert!(page("strata.1").contains(".SH \"EXIT STATUS\"\n0 done, 1 failed, 2 wrong usage"));
    let verbs: Vec<String> = std::fs::read_dir(&man)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            Some(name.strip_prefix("strata-")?.strip_suffix(".1")?.to_owned())
        })
        .collect();
    assert!(verbs.len() > 30 && verbs.iter().any(|verb| verb == "pull"), "{verbs:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(dir.path(), &["completions", shell]);
        for verb in &verbs {
            assert!(script.contains(verb.as_str()), "{shell}: {verb}");
            assert!(page(&format!("strata-{verb}.1")).contains(".SH EXAMPLES\n  strata"), "{verb}");
        }
    }
}

#[test]
fn wrong_use_and_failures() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    fails(&root, 2, &["frobnicate"]);
    fails(&root, 2, &["save"]);
    fails(&root, 2, &["import", "x", "UPPER"]);
    fails(&root, 2, &["import", "-c", "RUN x", "x"]);
    fails(&root, 125, &["run", "-v", "relative", "x"]);
    assert!(fails(&root, 1, &["load", "-i", "/nonexistent"]).contains("/nonexistent: No such file"));
    assert!(fails(&root, 1, &["load"]).contains("standard input: is empty"));
    assert!(fails(&root, 1, &["inspect", "nothing"]).contains("nothing: no such image"));
    for args in [&["rmi", "fedora"][..], &["layers", "fedora"], &["history", "fedora"], &["diff", "fedora"]] {
        let told = fails(&root, 1, args);
        assert!(told.ends_with("no such image\n") || told.ends_with("no such container\n"), "{args:?}: {told}");
    }
    assert_eq!(ok(&root, &["rmi", "-f", "nothing", "sha256:00"]), "", "what is wanted is so");
    assert!(fails(&root, 1, &["umount", "nothing"]).contains("nothing: no such container"));
    assert!(fails(&root, 1, &["commit", "nothing", "x"]).contains("no such container"));
    assert!(fails(&root, 1, &["snapshot", "/nonexistent"]).contains("/nonexistent"));
    assert!(fails(&root, 1, &["snapshot", "/etc/passwd"]).contains("not a directory"));
    assert!(fails(&root, 1, &["unpack", "/etc/passwd", "x"]).contains("is not a tar archive"));
    assert_eq!(ok(&root, &["images", "-q"]), "");
}

#[test]
fn damage_is_told_and_repaired_by_loading_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let archive = dir.path().join("in.tar");
    std::fs::write(&archive, docker_old("x:1")).unwrap();
    ok(&root, &["load", "-i", archive.to_str().unwrap()]);
    let layer = stratafs::image::digest::Digest::of(&base_layer());
    std::fs::write(root.join(format!("layers/{}/diff/var/cache/a", layer.hex())), "A").unwrap();
    let config = stratafs::image::digest::Digest::of(&config(&layers(), "old"));
    let blob = root.join(format!("blobs/sha256/{}", config.hex()));
    std::fs::write(&blob, "{}").unwrap();
    let output = strata(&root, &["verify"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains(&format!("layer {layer}: ")) && told.contains("var/cache/a"), "{told}");
    assert!(told.contains(&config.hex()), "{told}");
    let output = strata(&root, &["verify", "--repair"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("Removed 1 damaged layers and 1 blobs"));
    ok(&root, &["load", "-i", archive.to_str().unwrap()]);
    assert_eq!(ok(&root, &["verify"]), "3 layers are sound\n");
    ok(&root, &["inspect", "x:1"]);
}

#[test]
fn two_images_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let archive = dir.path().join("in.tar");
    std::fs::write(&archive, docker_old("x:1")).unwrap();
    ok(&root, &["load", "-i", archive.to_str().unwrap()]);
    for (name, layer) in [("base:1", base_layer()), ("other:1", other_layer())] {
        let rootfs = dir.path().join("rootfs.tar");
        std::fs::write(&rootfs, layer).unwrap();
        ok(&root, &["import", rootfs.to_str().unwrap(), name]);
    }
    let grown = "C /etc\nD /etc/issue\nA /etc/passwd-\nA /bin2\nC /usr\nA /usr/new\nD /usr/tool\n\
                 C /var/cache\nD /var/cache/a\nD /var/cache/b\nA /var/cache/c\n";
    assert_eq!(sorted(&ok(&root, &["diff", "base:1", "x:1"])), sorted(grown));
    let shrunk = grown.replace("A ", "X ").replace("D ", "A ").replace("X ", "D ");
    assert_eq!(sorted(&ok(&root, &["diff", "x:1", "base:1"])), sorted(&shrunk));
    assert_eq!(ok(&root, &["diff", "x:1", "x:1"]), "");
    // The same tree made of other layers, with a link, a time, a mode and a type that differ.
    let other = "C /bin\nA /bin/deep\nA /bin/deep/er\nC /etc/issue\nC /null\nC /usr/tool\nD /pad\n";
    assert_eq!(sorted(&ok(&root, &["diff", "base:1", "other:1"])), sorted(other));
    assert_eq!(
        sorted(&ok(&root, &["diff", "other:1", "base:1"])),
        sorted("C /bin\nC /etc/issue\nC /null\nC /usr/tool\nA /pad\n")
    );
    let json: serde_json::Value = serde_json::from_str(&ok(&root, &["diff", "--json", "base:1", "other:1"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 7);
    fails(&root, 1, &["diff", "base:1", "nothing:1"]);
}

fn sorted(lines: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    lines
}

/// [`base_layer`] with some differences.
fn other_layer() -> Vec<u8> {
    Tar::new()
        .dir("./")
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n")
        .file("etc/issue", "longer\n")
        .dir("usr/")
        .entry(spec("usr/tool", b'0').content("#!/bin/true\n").mode(0o755))
        .dir("bin/")
        .dir("bin/deep/")
        .file("bin/deep/er", "")
        .dir("var/")
        .dir("var/cache/")
        .file("var/cache/a", "a")
        .file("var/cache/b", "b")
        .entry(spec("null", b'3').device(1, 5).mode(0o666))
        .end()
}

#[test]
fn a_flattened_image_has_one_layer_and_the_same_tree() {
    if !super::overlayfs_for("a_flattened_image_has_one_layer_and_the_same_tree") {
        return;
    }
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let root = scratch.store.root();
    let flatten = ["flatten", "--source-date-epoch", "1700000000", "x:1", "flat:1"];
    let id = ok(root, &flatten);
    assert_eq!(ok(root, &flatten), id, "the same bytes again");
    let (image, flat) = (scratch.store.find("x:1").unwrap(), scratch.store.find("flat:1").unwrap());
    assert_eq!((flat.config.diff_ids().len(), flat.config.history().len()), (1, 1));
    assert_eq!(flat.config.process(), image.config.process());
    assert_eq!(flat.config.document()["x-unknown"], image.config.document()["x-unknown"]);
    assert_eq!(ok(root, &["diff", "x:1", "flat:1"]), "");
    assert_eq!(super::interop::flattened(&scratch, "flat:1"), super::interop::flattened(&scratch, "x:1"));
    assert_eq!(ok(root, &["ps", "-aq"]), "");
}

#[test]
fn every_part_of_a_layer_that_is_damaged_is_told_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("in.tar");
    std::fs::write(&archive, docker_old("x:1")).unwrap();
    let archive = archive.to_str().unwrap();
    let layer = stratafs::image::digest::Digest::of(&base_layer()).hex();
    let of_another = stratafs::image::digest::Digest::of(b"another").hex();
    type Harm<'a> = (&'a str, &'a dyn Fn(&Path));
    let harms: [Harm<'_>; 11] = [
        ("layer.json", &|dir| std::fs::write(dir.join("layer.json"), "{").unwrap()),
        ("layer.json", &|dir| std::fs::remove_file(dir.join("layer.json")).unwrap()),
        ("its record is that of layer", &|dir| {
            let record = std::fs::read_to_string(dir.join("layer.json")).unwrap().replace(&layer, &of_another);
            std::fs::write(dir.join("layer.json"), record).unwrap();
        }),
        ("recipe", &|dir| std::fs::write(dir.join("recipe"), "no recipe").unwrap()),
        ("recipe", &|dir| std::fs::remove_file(dir.join("recipe")).unwrap()),
        ("diff", &|dir| std::fs::remove_dir_all(dir.join("diff")).unwrap()),
        ("pad", &|dir| std::fs::remove_file(dir.join("diff/pad")).unwrap()),
        ("pad: its mode is 600", &|dir| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(dir.join("diff/pad"), mode).unwrap();
        }),
        ("etc: its owner is 7:0", &|dir| std::os::unix::fs::chown(dir.join("diff/etc"), Some(7), None).unwrap()),
        ("etc/new: it was added", &|dir| std::fs::write(dir.join("diff/etc/new"), "").unwrap()),
        ("is not unpacked", &|dir| std::fs::remove_dir_all(dir).unwrap()),
    ];
    for (number, (told, harm)) in harms.iter().enumerate() {
        let root = dir.path().join(format!("store-{number}"));
        ok(&root, &["load", "-i", archive]);
        harm(&root.join("layers").join(&layer));
        for args in [&["verify"][..], &["verify", "--repair"]] {
            let output = strata(&root, args);
            let message = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{number}: {message}");
            assert!(message.contains(told) && message.contains("faults were found"), "{number}: {message}");
        }
        ok(&root, &["load", "-i", archive]);
        assert_eq!(ok(&root, &["verify"]), "3 layers are sound\n", "{number}");
        assert_eq!(ok(&root, &["verify", "x:1"]), "3 layers are sound\n", "{number}");
    }
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let mut tar = Tar::new();
    for number in 0..3000 {
        tar = tar.file(format!("file-{number}"), format!("{number}").repeat(50));
    }
    let rootfs = dir.path().join("rootfs.tar");
    std::fs::write(&rootfs, tar.end()).unwrap();
    let small = dir.path().join("small.tar");
    std::fs::write(&small, docker_old("kept:1")).unwrap();
    ok(&root, &["load", "-i", small.to_str().unwrap()]);
    for round in 0..12 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_strata"))
            .arg("--root")
            .arg(&root)
            .args(["import", rootfs.to_str().unwrap(), &format!("big:{round}")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 * round + 5));
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        let images = ok(&root, &["images"]);
        assert!(images.contains("kept"), "{images}");
        let tag = format!("{round} ");
        let listed =
            images.lines().any(|line| line.starts_with("big") && line.split_whitespace().nth(1) == Some(tag.trim()));
        assert!(listed || !finished, "round {round}: {images}");
        assert!(ok(&root, &["verify"]).contains("layers are sound"));
    }
    ok(&root, &["import", rootfs.to_str().unwrap(), "big:last"]);
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0, "rubbish is gone");
    ok(&root, &["gc", "--untagged"]);
    assert!(ok(&root, &["verify"]).contains("layers are sound"));
}
