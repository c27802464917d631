use std::collections::BTreeSet;
use std::sync::Barrier;

use stratafs::snapshotter::{GID_MAPPING, Kind, SnapshotError, UID_MAPPING};

use super::*;

fn mount(kind: &str, source: &str, options: &[String]) -> Vec<Mount> {
    vec![Mount { kind: kind.to_owned(), source: source.to_owned(), options: options.to_vec() }]
}

#[test]
fn the_life_of_a_layer_and_of_a_container() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    let fs = |id: u64| scratch.root().join(format!("snapshots/{id}/fs")).display().to_string();
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();

    // The lowest layer: there is nothing to unite.
    let mounts = snapshotter.prepare(Kind::Active, "ns/1/extract-1 a", "", no_labels()).unwrap();
    assert_eq!(mounts, mount("bind", &fs(1), &words(&["rw", "rbind"])));
    std::fs::write(upper_of(&mounts).join("file"), "a").unwrap();
    snapshotter.commit("ns/2/a", "ns/1/extract-1 a", "", labels(&[("x", "1"), ("empty", "")])).unwrap();
    let stat = snapshotter.stat("ns/2/a").unwrap();
    assert_eq!((stat.kind, stat.parent.as_str(), stat.labels), (Kind::Committed, "", labels(&[("x", "1")])));
    assert!(matches!(snapshotter.stat("ns/1/extract-1 a"), Err(SnapshotError::NotFound(_))));

    // containerd unpacks the next one into the upper itself.
    let mounts = snapshotter.prepare(Kind::Active, "ns/3/extract-2 b", "ns/2/a", no_labels()).unwrap();
    let [unpacking] = mounts.as_slice() else { panic!("{mounts:?}") };
    assert_eq!((unpacking.kind.as_str(), upper_of(&mounts)), ("overlay", PathBuf::from(fs(2))));
    assert!(unpacking.options.contains(&format!("lowerdir={}", fs(1))), "{unpacking:?}");
    snapshotter.commit("ns/4/b", "ns/3/extract-2 b", "ns/2/a", no_labels()).unwrap();

    // A container.
    let mounts = snapshotter.prepare(Kind::Active, "ns/5/web", "ns/4/b", no_labels()).unwrap();
    let work = scratch.root().join("snapshots/3/work").display().to_string();
    let mut options =
        vec![format!("workdir={work}"), format!("upperdir={}", fs(3)), format!("lowerdir={}:{}", fs(2), fs(1))];
    options.push("xattr_permissions=0".to_owned());
    assert_eq!(mounts, mount("fuse3.stratafs", "stratafs", &options));
    assert_eq!(snapshotter.mounts("ns/5/web").unwrap(), mounts);
    // Before it was mounted, the layers had their inventories.
    for id in [1, 2] {
        assert!(Path::new(&fs(id)).with_file_name("fs.inventory").exists(), "{id}");
    }

    // Views, of one layer and of several.
    let mounts = snapshotter.prepare(Kind::View, "ns/6/one", "ns/2/a", no_labels()).unwrap();
    assert_eq!(mounts, mount("bind", &fs(1), &words(&["ro", "rbind"])));
    let mounts = snapshotter.prepare(Kind::View, "ns/7/two", "ns/4/b", no_labels()).unwrap();
    let options = [format!("lowerdir={}:{}", fs(2), fs(1)), "xattr_permissions=0".to_owned()];
    assert_eq!(mounts, mount("fuse3.stratafs", "stratafs", &options));

    // From the top down.
    for parent in ["ns/4/b", "ns/2/a"] {
        let error = snapshotter.remove(parent).unwrap_err();
        assert_eq!(error.to_string(), format!("snapshot {parent}: is the parent of another snapshot"));
    }
    for name in ["ns/5/web", "ns/6/one", "ns/7/two", "ns/4/b", "ns/2/a"] {
        snapshotter.remove(name).unwrap();
    }
    snapshotter.cleanup().unwrap();
    assert_eq!(directories(&scratch.root()), (BTreeSet::new(), 0));
}

#[test]
fn a_mapping_of_ids_is_left_to_the_driver() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    layer(&snapshotter, "base", "");
    let mapped = labels(&[(UID_MAPPING, "0:100000:65536"), (GID_MAPPING, "0:1000:1,1:200000:9")]);
    let expected = ["uidmapping=0:100000:65536", "gidmapping=0:1000:1:1:200000:9"];
    for (kind, parent) in [(Kind::Active, "base"), (Kind::View, "base"), (Kind::Active, ""), (Kind::View, "")] {
        let key = format!("{kind:?} above '{parent}'");
        let mounts = snapshotter.prepare(kind, &key, parent, mapped.clone()).unwrap();
        assert_eq!(mounts[0].kind, "fuse3.stratafs", "{key}");
        for option in expected {
            assert!(mounts[0].options.iter().any(|found| found == option), "{key}: {mounts:?}");
        }
        if parent.is_empty() {
            let empty = format!("lowerdir={}", scratch.root().join("empty").display());
            assert!(mounts[0].options.contains(&empty), "{key}: {mounts:?}");
        }
    }
    let bad = labels(&[(UID_MAPPING, "5:1:1")]);
    let told = format!("label {UID_MAPPING}=5:1:1: does not map id 0, which owns the root of an image");
    let error = snapshotter.prepare(Kind::Active, "bad", "base", bad.clone()).unwrap_err();
    assert_eq!(error.to_string(), told);
    assert!(matches!(snapshotter.stat("bad"), Err(SnapshotError::NotFound(_))));
    // Nor later: it could not be mounted any more.
    let key = "Active above 'base'";
    let error = snapshotter.update(key, &bad, &[format!("labels.{UID_MAPPING}")]).unwrap_err();
    assert_eq!(error.to_string(), told);
    assert_eq!(snapshotter.stat(key).unwrap().labels, mapped);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    layer(&snapshotter, "base", "");
    layer(&snapshotter, "other", "");
    snapshotter.prepare(Kind::Active, "active", "base", no_labels()).unwrap();
    snapshotter.prepare(Kind::View, "view", "base", no_labels()).unwrap();
    let before = snapshotter.list(&[]).unwrap();
    let field = ["parent".to_owned()];
    type Call<'a> = Box<dyn Fn() -> Result<(), SnapshotError> + 'a>;
    let table: Vec<(&str, Call<'_>)> = vec![
        (
            "snapshot gone: not found",
            Box::new(|| snapshotter.prepare(Kind::Active, "k", "gone", no_labels()).map(drop)),
        ),
        (
            "parent active: is not a committed snapshot",
            Box::new(|| snapshotter.prepare(Kind::View, "k", "active", no_labels()).map(drop)),
        ),
        (
            "snapshot active: already exists",
            Box::new(|| snapshotter.prepare(Kind::Active, "active", "base", no_labels()).map(drop)),
        ),
        (
            "snapshot base: already exists",
            Box::new(|| snapshotter.prepare(Kind::View, "base", "base", no_labels()).map(drop)),
        ),
        ("snapshot: the key is empty", Box::new(|| snapshotter.prepare(Kind::Active, "", "", no_labels()).map(drop))),
        ("snapshot gone: not found", Box::new(|| snapshotter.mounts("gone").map(drop))),
        ("snapshot base: is committed; it has no mounts", Box::new(|| snapshotter.mounts("base").map(drop))),
        ("snapshot gone: not found", Box::new(|| snapshotter.commit("new", "gone", "", no_labels()))),
        ("snapshot base: already exists", Box::new(|| snapshotter.commit("base", "active", "", no_labels()))),
        ("snapshot view: is not active", Box::new(|| snapshotter.commit("new", "view", "", no_labels()))),
        ("snapshot base: is not active", Box::new(|| snapshotter.commit("new", "base", "", no_labels()))),
        ("snapshot: the name is empty", Box::new(|| snapshotter.commit("", "active", "", no_labels()))),
        (
            "snapshot active: cannot be given the parent other",
            Box::new(|| snapshotter.commit("new", "active", "other", no_labels())),
        ),
        ("snapshot gone: not found", Box::new(|| snapshotter.remove("gone"))),
        ("snapshot base: is the parent of another snapshot", Box::new(|| snapshotter.remove("base"))),
        ("snapshot gone: not found", Box::new(|| snapshotter.usage("gone").map(drop))),
        ("snapshot gone: not found", Box::new(|| snapshotter.update("gone", &no_labels(), &[]).map(drop))),
        (
            "snapshot base: the field parent cannot be changed",
            Box::new(|| snapshotter.update("base", &no_labels(), &field).map(drop)),
        ),
    ];
    for (expected, call) in table {
        assert_eq!(call().unwrap_err().to_string(), expected);
        assert_eq!(snapshotter.list(&[]).unwrap(), before, "{expected}");
    }
    snapshotter.cleanup().unwrap();
    assert_agreed(&snapshotter, &scratch.root(), "after refusals");
}

#[test]
fn labels_are_changed_one_by_one_or_all() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    snapshotter.prepare(Kind::Active, "k", "", labels(&[("a", "1"), ("b", "2")])).unwrap();
    let fields = |fields: &[&str]| fields.iter().map(|&field| field.to_owned()).collect::<Vec<_>>();
    type Pairs = [(&'static str, &'static str)];
    let table: &[(&[&str], &Pairs, &Pairs)] = &[
        (&["labels.a"], &[("a", "3"), ("b", "9")], &[("a", "3"), ("b", "2")]),
        // A label that is named but has no value is removed.
        (&["labels.b"], &[], &[("a", "3")]),
        (&["labels.x.y/z"], &[("x.y/z", "4")], &[("a", "3"), ("x.y/z", "4")]),
        (&["labels"], &[("c", "5")], &[("c", "5")]),
        (&[], &[("d", "6"), ("e", "")], &[("d", "6")]),
        (&[], &[], &[]),
    ];
    for (paths, given, expected) in table {
        let updated = snapshotter.update("k", &labels(given), &fields(paths)).unwrap();
        assert_eq!(updated.labels, labels(expected), "{paths:?}");
        assert!(updated.updated >= updated.created);
        assert_eq!(snapshotter.stat("k").unwrap(), updated);
    }
}

#[test]
fn many_at_once_get_directories_of_their_own() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    layer(&snapshotter, "base", "");
    let (threads, rounds) = (8, 6);
    let start = Barrier::new(threads);
    let won: usize = std::thread::scope(|scope| {
        let work = |thread: usize| {
            start.wait();
            let mut won = 0;
            for round in 0..rounds {
                let mine = format!("{thread}-{round}");
                let upper = upper_of(&snapshotter.prepare(Kind::Active, &mine, "base", no_labels()).unwrap());
                std::fs::write(upper.join(&mine), "").unwrap();
                match snapshotter.prepare(Kind::Active, &format!("all-{round}"), "base", no_labels()) {
                    Ok(_) => won += 1,
                    Err(SnapshotError::Exists(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                match round % 3 {
                    0 => snapshotter.commit(&format!("layer-{mine}"), &mine, "", no_labels()).unwrap(),
                    1 => snapshotter.remove(&mine).unwrap(),
                    _ => {}
                }
                if thread == 0 {
                    snapshotter.cleanup().unwrap();
                }
            }
            won
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(won, rounds);
    let found = snapshotter.list(&["kind==committed,name~=^layer".to_owned(), "name~=^[0-9]".to_owned()]).unwrap();
    assert_eq!(found.len(), threads * rounds * 2 / 3);
    for snapshot in found {
        let name = snapshot.name.trim_start_matches("layer-");
        assert!(scratch.root().join(format!("snapshots/{}/fs/{name}", snapshot.id)).exists(), "{name}");
    }
    snapshotter.cleanup().unwrap();
    assert_agreed(&snapshotter, &scratch.root(), "after many at once");
}

#[test]
fn a_mounted_snapshot_stays() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    layer(&snapshotter, "base", "");
    let upper = upper_of(&snapshotter.prepare(Kind::Active, "k", "base", no_labels()).unwrap());
    // Locked, as a driver locks its upper.
    let held = std::fs::File::open(&upper).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (committed, removed) = std::thread::scope(|scope| {
        let commit = scope.spawn(|| snapshotter.commit("new", "k", "", no_labels()));
        let removed = snapshotter.remove("k");
        (commit.join().unwrap(), removed)
    });
    for outcome in [committed, removed] {
        assert_eq!(outcome.unwrap_err().to_string(), "snapshot k: is mounted");
    }
    assert!(upper.exists());
    drop(held);
    snapshotter.remove("k").unwrap();
    snapshotter.cleanup().unwrap();
    assert!(!upper.exists());
}
