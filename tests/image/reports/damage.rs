//! A damaged item is reported, and does not affect others.

use std::fs;
use std::path::Path;

use super::super::container::worlds;
use super::*;

/// A way to damage a file, by name.
type Way = (&'static str, fn(&Path));

const WAYS: [Way; 7] = [
    ("empty", |path| fs::write(path, "").unwrap()),
    ("truncated", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("garbage", |path| fs::write(path, b"\0\xff\x1b[31m{").unwrap()),
    ("another shape", |path| fs::write(path, "[1,2]").unwrap()),
    ("empty object", |path| fs::write(path, "{}").unwrap()),
    ("missing", |path| fs::remove_file(path).unwrap()),
    ("a directory", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
];

#[test]
fn a_damaged_container_ends_nothing_else() {
    for world in worlds().into_iter().take(1) {
        for (way, damage) in WAYS {
            for name in ["bad", "good"] {
                world.ok(&["mount", "--name", name, "tool:1"]);
                world.ok(&["umount", name]);
            }
            damage(&world.root().join("containers/bad/container.json"));
            for args in [
                &["ps", "-a"][..],
                &["ps", "-a", "--json"],
                &["df"],
                &["mount"],
                &["images"],
                &["gc"],
                &["gc", "--untagged"],
                &["mount", "good"],
                &["umount", "good"],
                &["tag", "tool:1", "other:1"],
                &["rmi", "other:1"],
            ] {
                let output = world.run(args);
                assert!(output.status.success(), "{way}: {args:?}: {}", told(&output));
            }
            let listed = world.run(&["ps", "-a"]);
            assert!(String::from_utf8_lossy(&listed.stdout).contains("good"), "{way}");
            assert!(told(&listed).contains("bad"), "{way}: it is told: {}", told(&listed));
            let verified = world.run(&["verify"]);
            assert_eq!(verified.status.code(), Some(1), "{way}");
            assert!(told(&verified).contains("container bad"), "{way}: {}", told(&verified));
            let refused = world.run(&["rm", "bad"]);
            assert!(!refused.status.success() && told(&refused).contains("--force"), "{way}: {}", told(&refused));
            if way == "garbage" || way == "missing" {
                let repaired = world.run(&["verify", "--repair"]);
                let said = String::from_utf8_lossy(&repaired.stdout).into_owned();
                assert!(said.contains("Moved to") && said.contains("lost/bad"), "{way}: {said}");
                assert!(world.root().join("lost/bad/upper").exists() || world.root().join("lost/bad.1/upper").exists());
            } else {
                assert_eq!(world.ok(&["rm", "-f", "bad"]), "bad\n", "{way}");
            }
            world.ok(&["verify"]);
            assert_eq!(world.names(), "good\n", "{way}");
            world.ok(&["rm", "good"]);
            world.ok(&["run", "--rm", "tool:1", "true"]);
        }
        assert_eq!(world.mounts(), 0);
    }
}

#[test]
fn a_running_container_whose_record_is_lost_is_removed_by_force() {
    for world in worlds() {
        world.ok(&["run", "-d", "--name", "bad", "tool:1", "sleep 1000"]);
        fs::write(world.root().join("containers/bad/container.json"), "").unwrap();
        assert_eq!(world.run(&["verify", "--repair"]).status.code(), Some(1));
        assert!(world.root().join("containers/bad/upper").exists(), "{}: not while it is mounted", world.driver);
        world.ok(&["gc"]);
        world.ok(&["rm", "-f", "bad"]);
        super::super::container::wait_until("no mount", || world.mounts() == 0);
        assert_eq!(world.ok(&["ps", "-aq"]), "");
        world.ok(&["verify"]);
    }
}

/// A store with `x:1` and `z:1`, which share no layer.
fn two_images(dir: &Path) -> std::path::PathBuf {
    let root = dir.join("store");
    for (name, layer) in [("x:1", base_layer()), ("z:1", top_layer())] {
        let files = layout(
            &format!("docker.io/library/{name}"),
            &config(std::slice::from_ref(&layer), name),
            std::slice::from_ref(&layer),
        );
        let archive = dir.join(format!("{}.tar", &name[..1]));
        fs::write(&archive, tar_of(&files)).unwrap();
        ok(&root, &["load", "-qi", archive.to_str().unwrap()]);
    }
    root
}

/// The manifest and the configuration of an image, as blobs.
fn documents(root: &Path, name: &str) -> [std::path::PathBuf; 2] {
    let value: serde_json::Value = serde_json::from_str(&ok(root, &["inspect", name])).unwrap();
    ["Digest", "Id"].map(|field| root.join("blobs/sha256").join(&value[0][field].as_str().unwrap()[7..]))
}

#[test]
fn a_damaged_image_ends_nothing_else() {
    let kinds = ["manifest", "config"];
    for (number, kind) in kinds.into_iter().enumerate() {
        for (way, damage) in WAYS {
            let dir = tempfile::tempdir().unwrap();
            let root = two_images(dir.path());
            damage(&documents(&root, "x:1")[number]);
            for args in [&["images"][..], &["df"], &["gc"], &["history", "z:1"], &["layers", "z:1"], &["ps", "-a"]] {
                let output = strata(&root, args);
                assert!(output.status.success(), "{kind} {way}: {args:?}: {}", told(&output));
            }
            let listed = strata(&root, &["images"]);
            assert!(String::from_utf8_lossy(&listed.stdout).contains("z "), "{kind} {way}");
            assert!(told(&listed).contains("x:1"), "{kind} {way}: {}", told(&listed));
            let verified = strata(&root, &["verify"]);
            assert_eq!(verified.status.code(), Some(1), "{kind} {way}");
            assert!(told(&verified).contains("x:1"), "{kind} {way}: {}", told(&verified));
            match way {
                "garbage" | "missing" => {
                    strata(&root, &["verify", "--repair"]);
                }
                _ => {
                    assert!(ok(&root, &["rmi", "x:1"]).contains("Untagged: x:1"), "{kind} {way}");
                    strata(&root, &["verify", "--repair"]);
                }
            }
            ok(&root, &["verify"]);
            assert!(told(&strata(&root, &["images"])).is_empty(), "{kind} {way}");
            ok(&root, &["load", "-qi", dir.path().join("x.tar").to_str().unwrap()]);
            ok(&root, &["verify"]);
            assert_eq!(ok(&root, &["images", "-q"]).lines().count(), 2, "{kind} {way}");
        }
    }
}

#[test]
fn a_damaged_layer_ends_nothing_else() {
    for (way, damage) in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let root = two_images(dir.path());
        let hex = ok(&root, &["layers", "-q", "x:1"]).trim()[7..].to_owned();
        damage(&root.join("layers").join(&hex).join("layer.json"));
        for args in [&["images"][..], &["df"], &["gc"], &["history", "x:1"], &["layers", "z:1"], &["inspect", "x:1"]] {
            let output = strata(&root, args);
            assert!(output.status.success(), "{way}: {args:?}: {}", told(&output));
        }
        assert_eq!(ok(&root, &["images", "-q"]).lines().count(), 2, "{way}");
        let verified = strata(&root, &["verify"]);
        assert!(verified.status.code() == Some(1) && told(&verified).contains(&hex), "{way}: {}", told(&verified));
        strata(&root, &["verify", "--repair"]);
        ok(&root, &["load", "-qi", dir.path().join("x.tar").to_str().unwrap()]);
        ok(&root, &["verify"]);
    }
}

#[test]
fn strangers_in_the_store_end_nothing() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let root = two_images(dir.path());
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff\x1b[31m");
    for place in ["layers", "containers", "blobs/sha256"] {
        fs::write(root.join(place).join(odd), "").unwrap();
        fs::write(root.join(place).join("a file"), "").unwrap();
        fs::create_dir(root.join(place).join("0dir")).unwrap();
    }
    for args in [&["images"][..], &["df"], &["ps", "-a"], &["history", "x:1"], &["tag", "x:1", "w:1"], &["gc"]] {
        let output = strata(&root, args);
        assert!(output.status.success(), "{args:?}: {}", told(&output));
        assert!(!told(&output).contains('\u{1b}'), "{args:?}");
    }
    assert_eq!(ok(&root, &["images", "-q", "w"]).lines().count(), 1);
}

#[test]
fn a_lost_index_is_made_again() {
    for (way, damage) in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let root = two_images(dir.path());
        let ids = ok(&root, &["images", "-q", "--no-trunc"]);
        damage(&root.join("index.json"));
        if way == "empty object" {
            continue; // Which is an index of nothing.
        }
        let refused = strata(&root, &["gc"]);
        assert!(!refused.status.success() && told(&refused).contains("index.json"), "{way}: {}", told(&refused));
        assert_eq!(strata(&root, &["verify", "--repair"]).status.code(), Some(1), "{way}");
        let again = ok(&root, &["images", "-q", "--no-trunc"]);
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&again), sorted(&ids), "{way}");
        ok(&root, &["verify"]);
    }
}

#[test]
fn what_was_asked_for_beside_a_mistake_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let root = two_images(dir.path());
    let removed = strata(&root, &["rmi", "nope", "x:1", "neither:2"]);
    assert_eq!(removed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&removed.stdout).contains("Untagged: x:1"));
    assert!(told(&removed).contains("nope: no such image") && told(&removed).contains("neither:2: no such image"));
    let inspected = strata(&root, &["inspect", "nope", "z:1"]);
    assert_eq!(inspected.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(value[0]["RepoTags"][0], "z:1");
    let output = strata(&root, &["rm", "a", "b"]);
    assert!(told(&output).contains("a: no such container") && told(&output).contains("b: no such container"));
}

#[test]
fn a_layer_that_is_mounted_is_not_repaired_away() {
    for world in worlds() {
        let merged = world.ok(&["mount", "--name", "c", "tool:1"]);
        let hex = world.ok(&["layers", "-q", "tool:1"]).trim()[7..].to_owned();
        let layer = world.root().join("layers").join(&hex);
        fs::write(layer.join("diff/data/lower"), "damaged\n").unwrap();
        let output = world.run(&["verify", "--repair"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(told(&output).contains("container c has it mounted"), "{}: {}", world.driver, told(&output));
        assert!(layer.join("diff/bin/sh").exists(), "{}", world.driver);
        assert!(Path::new(merged.trim()).join("bin/sh").exists(), "{}", world.driver);
        world.ok(&["umount", "c"]);
        world.run(&["verify", "--repair"]);
        assert!(!layer.exists(), "{}", world.driver);
    }
}

/// If the image is loaded again between finding damage and repairing it, the undamaged layer stays.
#[test]
fn a_repair_looks_again() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("docker.io/library/x:1")).unwrap();
    let image = scratch.store.find("x:1").unwrap();
    let layer = scratch.store.layers_of(&image).unwrap().remove(0);
    let sound = fs::read(layer.diff().join("etc/issue")).unwrap();
    fs::write(layer.diff().join("etc/issue"), "damaged").unwrap();
    let found = scratch.store.verify().unwrap();
    assert!(!found.damages.is_empty());
    let time = fs::metadata(layer.diff().join("etc/passwd")).unwrap().modified().unwrap();
    fs::write(layer.diff().join("etc/issue"), sound).unwrap();
    fs::File::options().write(true).open(layer.diff().join("etc/issue")).unwrap().set_modified(time).unwrap();
    assert!(scratch.store.verify().unwrap().damages.is_empty(), "it is sound again");
    let repaired = scratch.store.repair(&found, &|_| false).unwrap();
    assert_eq!((repaired.layers, repaired.blobs), (0, 0));
    assert!(layer.diff().join("etc/issue").exists());
}

#[test]
fn a_reference_by_digest_is_removed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = two_images(dir.path());
    let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
    let note = |references: &str| {
        let path = root.join("index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for entry in index["manifests"].as_array_mut().unwrap() {
            if entry["annotations"]["org.opencontainers.image.ref.name"] == "x:1" {
                entry["annotations"]["io.strata.repo-digests"] = references.into();
            }
        }
        fs::write(path, index.to_string()).unwrap();
    };
    let (one, two) = (format!("x@{}", digest(1)), format!("quay.io/y@{}", digest(2)));
    note(&format!("{one} {two}"));
    assert_eq!(ok(&root, &["rmi", &one]), format!("Untagged: {one}\n"));
    let shown: serde_json::Value = serde_json::from_str(&ok(&root, &["inspect", "x:1"])).unwrap();
    assert_eq!(shown[0]["RepoDigests"], serde_json::json!([two]));
    assert_eq!(ok(&root, &["rmi", &two]), format!("Untagged: {two}\n"));
    let shown: serde_json::Value = serde_json::from_str(&ok(&root, &["inspect", "x:1"])).unwrap();
    assert_eq!(shown[0]["RepoTags"], serde_json::json!(["x:1"]));
    assert!(!strata(&root, &["rmi", &one]).status.success(), "it is gone");
    ok(&root, &["verify"]);
}

/// Runs the program as an unprivileged user that owns the store.
fn as_user(root: &Path, args: &[&str]) -> Output {
    use std::os::unix::process::CommandExt;
    command(root, args).uid(4242).gid(4242).env("HOME", root).env_remove("XDG_RUNTIME_DIR").output().unwrap()
}

/// A user's store with `x:1`, or none where tests do not run as root.
fn store_of_user() -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(4242), Some(4242)).unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let archive = dir.path().join("in.tar");
    fs::write(&archive, docker_old("x:1")).unwrap();
    let loaded = as_user(&dir.path().join("store"), &["load", "-qi", archive.to_str().unwrap()]);
    assert!(loaded.status.success(), "{}", told(&loaded));
    Some(dir)
}

/// Files that a user may not read are not known to be damaged or missing: no verb removes anything because of them. In a
/// layer's content the modes are verified too, so such a mode is damage there.
#[test]
fn what_may_not_be_read_is_not_removed() {
    use std::os::unix::fs::PermissionsExt;
    let Some(dir) = store_of_user() else { return };
    let root = dir.path().join("store");
    let first = |dir: &str| fs::read_dir(root.join(dir)).unwrap().next().unwrap().unwrap().path();
    let blobs: Vec<_> = fs::read_dir(root.join("blobs/sha256")).unwrap().map(|blob| blob.unwrap().path()).collect();
    let mut places = vec![
        root.join("blobs/sha256"),
        root.join("blobs"),
        root.join("layers"),
        root.join("containers"),
        first("layers"),
    ];
    places.push(first("layers").join("layer.json"));
    places.push(first("layers").join("recipe"));
    places.push(root.join("index.json"));
    places.extend(blobs);
    for place in places {
        let permissions = fs::metadata(&place).unwrap().permissions();
        // A directory that can be listed but not searched differs from one that can be neither.
        for mode in [0o000, 0o400] {
            if mode == 0o400 && place.is_file() {
                continue;
            }
            fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
            let mut said = String::new();
            for args in [&["gc"][..], &["gc", "--untagged"], &["verify", "--repair"], &["rmi", "none:1"], &["gc"]] {
                said += &told(&as_user(&root, args));
            }
            fs::set_permissions(&place, permissions.clone()).unwrap();
            let verified = as_user(&root, &["verify"]);
            assert!(verified.status.success(), "{} {mode:o}: {}; {said}", place.display(), told(&verified));
            let listed = as_user(&root, &["images"]);
            assert!(String::from_utf8_lossy(&listed.stdout).contains("x "), "{} {mode:o}: {said}", place.display());
            // There is no container whose record could be missing.
            let is_told = said.contains("Permission denied") || (mode == 0o400 && place.ends_with("containers"));
            assert!(is_told, "{} {mode:o}: it is told: {said}", place.display());
        }
    }
}

/// Containers of a user run in a namespace of their own, and an inventory is valid in one namespace: `verify` checks
/// those that were made there by `run`.
#[test]
fn inventories_that_a_users_repair_made_stay_used() {
    let Some(dir) = store_of_user() else { return };
    let root = dir.path().join("store");
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let made: Vec<_> =
        fs::read_dir(root.join("layers")).unwrap().map(|dir| dir.unwrap().path().join("diff.inventory")).collect();
    made.iter().for_each(|path| fs::remove_file(path).unwrap());
    let repaired = as_user(&root, &["verify", "--repair"]);
    let said = String::from_utf8_lossy(&repaired.stdout).into_owned();
    assert_eq!(said.matches("made its inventory again").count(), made.len(), "{said} {}", told(&repaired));
    let before: Vec<_> = made.iter().map(|path| inode(path)).collect();
    // Whether or not a user may mount here, `run` makes unusable inventories again before it mounts.
    as_user(&root, &["run", "--rm", "x:1", "/true"]);
    assert_eq!(made.iter().map(|path| inode(path)).collect::<Vec<_>>(), before, "run uses those of the repair");
    let verified = as_user(&root, &["verify"]);
    assert_eq!(told(&verified), "", "verify believes them too");
    as_user(&root, &["verify", "--repair"]);
    assert_eq!(made.iter().map(|path| inode(path)).collect::<Vec<_>>(), before, "a second repair leaves them");
}
