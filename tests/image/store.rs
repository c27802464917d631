//! Promises of the store.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use stratafs::container::named::NamedVolume;
use stratafs::image::digest::Digest;
use stratafs::image::reference::Reference;
use stratafs::store::Store;
use stratafs::store::save::Format;
use stratafs::tar::compression::Compression;

use super::fixture::*;
use super::tar_build::Tar;

#[test]
fn its_root_is_private_and_not_something_else() {
    let scratch = Scratch::new();
    let mode = std::fs::metadata(scratch.store.root()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    std::fs::write(scratch.dir.path().join("file"), "").unwrap();
    let error = Store::open(scratch.dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("is not empty and not a store"), "{error}");
    assert!(Store::open(&scratch.dir.path().join("file")).is_err());
    Store::open(scratch.store.root()).unwrap();
    // One that is not complete any more is completed.
    NamedVolume::create(&scratch.store, "kept", &BTreeMap::new()).unwrap();
    std::fs::remove_dir(scratch.store.root().join("tmp")).unwrap();
    let again = Store::open(scratch.store.root()).unwrap();
    assert_eq!(NamedVolume::list(&again).unwrap().len(), 1);
}

#[test]
fn several_processes_may_make_it() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        std::thread::scope(|scope| {
            let makers: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Store::open(&root).and_then(|store| store.images()))).collect();
            for maker in makers {
                assert!(maker.join().unwrap().unwrap().is_empty());
            }
        });
    }
}

#[test]
fn names_and_ids() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("localhost/tool:1")).unwrap();
    let image = scratch.store.find("localhost/tool:1").unwrap();
    let id = image.id().hex();
    for text in ["tool:1", "localhost/tool:1", &id, &id[..3], &format!("sha256:{id}"), &format!("sha256:{}", &id[..9])]
    {
        assert_eq!(scratch.store.find(text).expect(text).id(), image.id());
    }
    assert_eq!(scratch.store.find(&format!("tool:1@{}", image.descriptor.digest)).unwrap().id(), image.id());
    assert!(scratch.store.find(&format!("tool:1@{}", image.id())).is_err(), "another digest");
    assert_eq!(scratch.store.find("tol:1").unwrap_err().to_string(), "tol:1: no such image");
    assert_eq!(
        scratch.store.find("localhost/tol:1").unwrap_err().to_string(),
        "localhost/tol:1: no such image; did you mean localhost/tool:1?"
    );
    for bad in ["", "UPPER", "a b", "../x", "sha256:"] {
        assert!(scratch.store.find(bad).is_err(), "{bad}");
    }
}

#[test]
fn tagging_and_removing() {
    let scratch = Scratch::new();
    let empty = scratch.listing();
    scratch.load(&docker_old("x:1")).unwrap();
    let image = scratch.store.find("x:1").unwrap();
    let second: Reference = "y:2".parse().unwrap();
    scratch.store.tag(&image, &second).unwrap();
    let error = scratch.store.remove(&image.id().hex(), false).unwrap_err().to_string();
    assert!(error.contains("several names (x:1, y:2)"), "{error}");
    let removed = scratch.store.remove("x:1", false).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted), (1, None));
    assert_eq!(scratch.store.layers_of(&image).unwrap().len(), 3);
    let removed = scratch.store.remove(&image.id().hex()[..12], false).unwrap();
    assert_eq!(removed.deleted, Some(image.id()));
    assert_eq!(removed.freed.layers, 3);
    assert_eq!(scratch.listing(), empty);
}

#[test]
fn a_shared_layer_stays_with_the_other_image() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let other = Scratch::new();
    other.load(&docker_old("x:1")).unwrap();
    let files = vec![
        ("c.json".to_owned(), config(&[base_layer()], "small")),
        ("l.tar".to_owned(), base_layer()),
        ("manifest.json".to_owned(), br#"[{"Config":"c.json","RepoTags":["small:1"],"Layers":["l.tar"]}]"#.to_vec()),
    ];
    scratch.load(&tar_of(&files)).unwrap();
    assert_eq!(scratch.store.remove("x:1", false).unwrap().freed.layers, 2);
    assert_eq!(scratch.trees(&scratch.store.find("small:1").unwrap()).len(), 1);
    assert_eq!(scratch.store.gc(false).unwrap().layers, 0);
}

#[test]
fn a_name_that_moves_leaves_its_image_for_gc() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let files = vec![
        ("c.json".to_owned(), config(&[top_layer()], "new")),
        ("l.tar".to_owned(), top_layer()),
        ("manifest.json".to_owned(), br#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["l.tar"]}]"#.to_vec()),
    ];
    scratch.load(&tar_of(&files)).unwrap();
    assert_eq!(scratch.store.images().unwrap().len(), 2);
    assert_eq!(scratch.store.gc(false).unwrap().layers, 0);
    assert_eq!(scratch.store.gc(true).unwrap().layers, 2);
    assert_eq!(scratch.store.images().unwrap().len(), 1);
}

#[test]
fn an_entry_of_another_tool_is_carried_along() {
    let scratch = Scratch::new();
    let path = scratch.store.root().join("index.json");
    let foreign =
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha512:00","size":1,"later":true}],"note":1}"#;
    std::fs::write(&path, foreign).unwrap();
    scratch.load(&docker_old("x:1")).unwrap();
    scratch.store.remove("x:1", false).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
}

#[test]
fn parallel_loads_and_gc_leave_a_whole_store() {
    let scratch = Scratch::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loaders: Vec<_> = (0..4)
            .map(|number| {
                let scratch = &scratch;
                scope.spawn(move || {
                    for round in 0..5 {
                        scratch.load(&docker_old(&format!("x:{number}-{round}"))).unwrap();
                    }
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                scratch.store.gc(true).unwrap();
                std::thread::yield_now();
            }
        });
        for loader in loaders {
            loader.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        collector.join().unwrap();
    });
    let images = scratch.store.images().unwrap();
    assert_eq!((images.len(), images[0].names.len()), (1, 20));
    assert!(scratch.store.all_layers().unwrap().iter().all(|layer| layer.verify().unwrap().is_empty()));
    assert_eq!(scratch.store.all_layers().unwrap().len(), 3);
}

/// Overlapping writers must not starve it: each of two threads releases the lock when the other has it, or after waiting
/// for a while.
#[test]
fn a_collector_gets_its_turn_among_loads() {
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};
    let scratch = Scratch::new();
    let (done, held, end) = (AtomicBool::new(false), AtomicU32::new(0), Instant::now() + Duration::from_secs(60));
    let over = || done.load(Ordering::Relaxed) || Instant::now() > end;
    let wait = |number: u32, most: Duration| {
        let until = Instant::now() + most;
        while held.load(Ordering::Relaxed) < number && Instant::now() < until && !over() {
            std::thread::yield_now();
        }
    };
    let hold = |first: u32| {
        let mut number = first;
        while !over() {
            wait(number - 1, Duration::from_secs(60));
            let _lock = scratch.store.lock_shared().unwrap();
            held.store(number, Ordering::Relaxed);
            wait(number + 1, Duration::from_millis(200));
            number += 2;
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| hold(1));
        scope.spawn(|| hold(2));
        std::thread::sleep(Duration::from_millis(100));
        scratch.store.gc(true).unwrap();
        done.store(true, Ordering::Relaxed);
    });
    assert!(Instant::now() < end, "it waited until there were no more writers");
}

/// A holder of the lock may wait for a process that wants it.
#[test]
fn a_waiting_collector_does_not_block_others_for_ever() {
    let scratch = Scratch::new();
    let held = scratch.store.lock_shared().unwrap();
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| scratch.store.gc(true).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(scratch.store.lock_shared().unwrap());
        assert!(!collector.is_finished());
        drop(held);
    });
}

#[test]
fn what_is_shared_is_counted_once() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    scratch.load(&docker_old("y:1")).unwrap();
    let other = Tar::new().file("only/here", "o".repeat(5000)).end();
    scratch.load(&super::crashes::one_image("z:1", &[base_layer(), other])).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_strata"))
        .arg("--root")
        .arg(scratch.store.root())
        .args(["df", "--json"])
        .output()
        .unwrap();
    let usage: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let size = |tar: &[u8]| {
        let layers = scratch.store.all_layers().unwrap();
        layers.iter().find(|layer| layer.record.diff_id == Digest::of(tar)).unwrap().record.content_size
    };
    let own: u64 = layers().iter().map(|tar| size(tar)).sum();
    // `y:1` is the same image as `x:1`.
    assert_eq!((usage["Images"].as_u64(), usage["Layers"].as_u64()), (Some(2), Some(4)));
    assert_eq!((usage["Size"].as_u64(), usage["Shared"].as_u64()), (Some(own + 5000), Some(size(&base_layer()))));
    assert_eq!(usage["Unused"].as_u64(), Some(0));
}

#[test]
fn damage_is_found_and_not_saved() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let image = scratch.store.find("x:1").unwrap();
    let layers = scratch.store.layers_of(&image).unwrap();
    assert!(layers.iter().all(|layer| layer.verify().unwrap().is_empty()));
    std::fs::write(layers[0].diff().join("var/cache/a"), "A").unwrap();
    let problems = layers[0].verify().unwrap();
    assert!(problems.iter().any(|problem| problem.contains("var/cache/a")), "{problems:?}");
    let selection = stratafs::store::save::select(&scratch.store, &["x:1".to_owned()]).unwrap();
    let path = scratch.dir.path().join("out.tar");
    let options = stratafs::store::save::SaveOptions { format: Format::DockerArchive, compression: Compression::None };
    let target = stratafs::store::save::Target::Path(&path);
    assert!(stratafs::store::save::save(&scratch.store, &selection, target, options).is_err());
    assert!(!path.exists(), "no half archive");
}

#[test]
fn a_path_is_traced_through_the_layers() {
    let scratch = Scratch::new();
    scratch.load(&docker_old("x:1")).unwrap();
    let layers = scratch.store.layers_of(&scratch.store.find("x:1").unwrap()).unwrap();
    let traced = |path: &str| -> Vec<String> {
        let number = |diff_id| layers.iter().position(|layer| layer.record.diff_id == diff_id).unwrap() + 1;
        let line = |step: stratafs::store::trace::Traced| {
            format!("{} {}{}", number(step.diff_id), step.what, if step.hidden { ", hidden" } else { "" })
        };
        stratafs::store::trace::trace(&layers, path.as_ref()).unwrap().into_iter().map(line).collect()
    };
    assert_eq!(traced("/usr/new"), ["3 file"]);
    assert_eq!(traced("usr/tool"), ["3 whiteout", "1 file, hidden"]);
    assert_eq!(traced("/etc"), ["2 directory", "1 directory"]);
    assert_eq!(traced("/etc/issue"), ["2 whiteout", "1 file, hidden"]);
    assert_eq!(traced("/var/cache"), ["2 opaque directory", "1 directory, hidden"]);
    assert_eq!(traced("/var/cache/a"), ["2 hidden by a parent", "1 file, hidden"]);
    assert_eq!(traced("/bin/x"), ["1 hidden by a parent"]);
    assert_eq!(traced("/nowhere"), Vec::<String>::new());
    assert!(stratafs::store::trace::trace(&layers, "/etc/../x".as_ref()).is_err());
}

/// `gc` follows nested indexes to any depth: images of other tools are never taken for unused.
#[test]
fn gc_keeps_what_a_deeply_nested_index_refers_to() {
    let scratch = Scratch::new();
    let root = scratch.store.root();
    let place = |bytes: &[u8]| root.join("blobs/sha256").join(Digest::of(bytes).hex());
    let put = |bytes: &[u8]| std::fs::write(place(bytes), bytes).unwrap();
    let entry = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}.v1+json"), "digest": digest,
            "size": bytes.len()})
    };
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let manifest = serde_json::json!({"schemaVersion": 2, "config": entry("config", config), "layers": []});
    let manifest = manifest.to_string().into_bytes();
    let mut blobs = vec![config.to_vec(), manifest.clone()];
    let mut inner = entry("manifest", &manifest);
    for _ in 0..40 {
        // Named twice, once as if it were a layer: neither hides the other.
        let other = serde_json::json!({"mediaType": "application/octet-stream", "digest": inner["digest"], "size": 1});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [inner, other]}).to_string().into_bytes();
        inner = entry("index", &index);
        blobs.push(index);
    }
    blobs.iter().for_each(|blob| put(blob));
    let unused = b"nothing refers to this";
    put(unused);
    let outermost = serde_json::json!({"schemaVersion": 2, "manifests": [inner]});
    std::fs::write(root.join("index.json"), outermost.to_string()).unwrap();
    scratch.store.gc(false).unwrap();
    assert!(!place(unused).exists());
    for (number, blob) in blobs.iter().enumerate() {
        assert!(place(blob).exists(), "blob {number} is gone");
    }
}
