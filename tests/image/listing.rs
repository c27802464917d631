//! The output of verbs that list: docker's fields through `--format`, filters, the longer names of verbs, and pruning.

use std::path::Path;

use super::cli::{fails, ok};
use super::fixture::docker_old;

/// A store with `x:1` and the same image as `team/y:2`.
fn store(dir: &Path) -> std::path::PathBuf {
    let root = dir.join("store");
    let archive = dir.join("in.tar");
    std::fs::write(&archive, docker_old("x:1")).unwrap();
    ok(&root, &["load", "-q", "-i", archive.to_str().unwrap()]);
    ok(&root, &["tag", "x:1", "team/y:2"]);
    root
}

#[test]
fn formats_have_the_fields_of_docker() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    let id = ok(&root, &["images", "-q", "x:1"]);
    let id = id.trim();
    for (args, expected) in [
        (&["images", "--format", "{{.Repository}}:{{.Tag}}"][..], "x:1\nteam/y:2\n".to_owned()),
        (&["image", "ls", "--format", "{{.ID}} {{.CreatedAt}}", "x"], format!("{id} 2024-01-02 03:04:05 +0000 UTC\n")),
        (
            &["images", "--format", "table {{.Tag}}\t{{.Repository}}"],
            "TAG   REPOSITORY\n1     x\n2     team/y\n".to_owned(),
        ),
        (&["images", "-q", "--filter", "reference=team/*"], format!("{id}\n")),
        (&["images", "-q", "--filter", "dangling=true"], String::new()),
        (&["images", "-q", "--filter", "until=2024-01-02"], String::new()),
        (&["images", "-q", "--filter", "until=2024-01-03"], format!("{id}\n")),
        (&["images", "-q", "--filter", "label=none"], String::new()),
        (&["history", "--format", "{{.CreatedBy}}", "x:1"], "old\nold\nold\n".to_owned()),
        (&["history", "--human=false", "--format", "{{.CreatedSince}}", "x:1"], "2024-01-01T00:00:00Z\n".repeat(3)),
        (
            &["inspect", "--format", "{{.Os}}/{{.Architecture}} {{join .Config.Cmd \",\"}}", "x:1"],
            "linux/amd64 /usr/tool\n".to_owned(),
        ),
        (&["image", "inspect", "-f", "{{len .RootFS.Layers}} {{.RepoTags}}", "x:1"], "3 [x:1 team/y:2]\n".to_owned()),
        (&["version", "--format", "{{.Client.Version}}"], format!("{}\n", env!("CARGO_PKG_VERSION"))),
        (&["info", "--format", "{{.Images}} {{.DockerRootDir}}"], format!("1 {}\n", root.display())),
        (
            &["system", "df", "--format", "{{.Type}} {{.TotalCount}}"],
            "Images 1\nContainers 0\nCheckpoints 0\nLayers 3\nShared layers 0\nInventories 3\n".to_owned(),
        ),
        (&["ps", "-a", "--format", "{{.Names}}"], String::new()),
        (&["stats", "--no-stream", "--format", "{{.Name}}"], String::new()),
        (&["container", "ls", "-aq"], String::new()),
    ] {
        assert_eq!(ok(&root, args), expected, "{args:?}");
    }
    let lines = ok(&root, &["images", "--format", "json"]);
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&line["Repository"], &line["ID"]), (&"x".into(), &id.into()));
}

#[test]
fn templates_and_filters_that_are_wrong_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    for (code, args, why) in [
        (1, &["images", "--format", "{{.Repo}}"][..], "no field .Repo; did you mean .Repository?"),
        (2, &["images", "--format", "{{.ID"], "}} is missing"),
        (1, &["images", "--filter", "colour=red"], "there are dangling label"),
        (1, &["images", "--filter", "dangling=maybe"], "neither true nor false"),
        (2, &["images", "--filter", "dangling"], "KEY=VALUE"),
        (1, &["inspect", "--type", "container", "x"], "no such container"),
        (1, &["image", "inspect", "nothing"], "no such image"),
        (1, &["image", "prune"], "--force"),
    ] {
        let told = fails(&root, code, args);
        assert!(told.contains(why), "{args:?}: {told}");
    }
}

#[test]
fn pruning_removes_what_nothing_needs() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    assert_eq!(ok(&root, &["image", "prune", "-f"]), "Total reclaimed space: 0B\n", "it has names");
    let id = ok(&root, &["images", "-q", "--no-trunc", "x:1"]);
    assert_eq!(ok(&root, &["image", "prune", "-af", "--filter", "until=2024-01-01"]), "Total reclaimed space: 0B\n");
    let told = ok(&root, &["system", "prune", "-af"]);
    assert!(told.starts_with("Untagged: x:1\nUntagged: team/y:2\n"), "{told}");
    assert!(told.contains(&format!("Deleted: {}", id.trim())) && !told.contains("space: 0B"), "{told}");
    assert_eq!(ok(&root, &["images", "-q"]), "");
}

/// A verb that only reads makes no store, and finds none.
#[test]
fn verbs_that_read_make_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("none");
    for args in [
        &["images"][..],
        &["ps", "-a"],
        &["df"],
        &["info"],
        &["version"],
        &["images", "--json"],
        &["stats", "--no-stream"],
    ] {
        ok(&root, args);
        assert!(!root.exists(), "{args:?}");
    }
    for args in [&["inspect", "x"][..], &["history", "x"], &["layers", "x"], &["which", "x", "/"]] {
        assert!(fails(&root, 1, args).contains("no such image"), "{args:?}");
        assert!(!root.exists(), "{args:?}");
    }
}
