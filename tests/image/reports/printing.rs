//! An image's history, comments, commands, paths and labels may hold escape sequences. None of them reaches the terminal.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::tar_build::Tar;
use super::*;

/// Sequences that have been smuggled into terminals: colours, a title, a cleared screen, a carriage return over
/// earlier text, C1 controls, directions of writing, line separators, invisible characters.
const HARMFUL: [&str; 12] = [
    "\u{1b}[31m",
    "\u{1b}]0;title\u{7}",
    "\u{1b}[2J",
    "\r",
    "\u{8}\u{8}",
    "\u{9b}31m",
    "\u{90}q\u{9c}",
    "\u{7f}",
    "\u{202e}",
    "\u{2066}",
    "\u{2028}",
    "\u{e0041}",
];

fn is_harmful(c: char) -> bool {
    let all: String = HARMFUL.concat();
    c.is_control() || (!c.is_ascii() && all.contains(c))
}

fn text(word: &str) -> String {
    HARMFUL.iter().map(|harmful| format!("{word}{harmful}")).collect()
}

/// A store with the image `harm:1` and the archive that it came from.
fn harmful_store(dir: &Path) -> PathBuf {
    let root = dir.join("store");
    let layer = Tar::new().dir("bin/").file("bin/sh", "#!").file("etc\u{1b}[31m/evil\u{9b}", "").end();
    let mut config: Value = serde_json::from_slice(&config(std::slice::from_ref(&layer), "old")).unwrap();
    config["history"] = json!([{"created_by": text("run"), "comment": text("note"), "author": text("who"),
        "created": "2024-01-01T00:00:00Z"}]);
    config["author"] = json!(text("author"));
    config["config"] = json!({"Labels": {(text("key")): text("value")}, "Cmd": [text("word")], "User": text("user"),
        "Env": [text("A=")], "WorkingDir": text("/")});
    let files = layout("docker.io/library/harm:1", &serde_json::to_vec(&config).unwrap(), &[layer]);
    let archive = dir.join("harm\u{1b}[31m.tar");
    std::fs::write(&archive, tar_of(&files)).unwrap();
    ok(&root, &["load", "-i", archive.to_str().unwrap()]);
    root
}

#[test]
fn nothing_harmful_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let root = harmful_store(dir.path());
    std::fs::write(dir.path().join("bad\u{1b}[2J.tar"), "none").unwrap();
    let (missing, bad) = (dir.path().join("no\u{1b}[31m"), dir.path().join("bad\u{1b}[2J.tar"));
    let (missing, bad) = (missing.to_str().unwrap(), bad.to_str().unwrap());
    let harmful_layer = Tar::new().file("../\u{1b}[31m\u{9b}", "").end();
    let mut no_layer: Value = serde_json::from_slice(&config(&[], "old")).unwrap();
    no_layer["rootfs"]["diff_ids"] = json!([text("sha256:")]);
    let list = json!([{"Config": "c\u{1b}[31m.json", "RepoTags": [text("tag"), "fine:1"], "Layers": []}]);
    let written = [
        ("names.tar", Tar::new().file("manifest.json", list.to_string()).file("c\u{1b}[31m.json", "{}").end()),
        ("config.tar", tar_of(&layout(&text("x:1"), &serde_json::to_vec(&no_layer).unwrap(), &[]))),
        ("layer.tar", tar_of(&layout("y:1", &config(std::slice::from_ref(&harmful_layer), "x"), &[harmful_layer]))),
        ("repositories.tar", Tar::new().file("repositories", json!({"a": {"b": text("id")}}).to_string()).end()),
    ];
    for (name, bytes) in &written {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let paths: Vec<String> = written.iter().map(|(name, _)| dir.path().join(name).display().to_string()).collect();
    let table: Vec<Vec<&str>> = vec![
        vec!["history", "harm:1"],
        vec!["history", "--no-trunc", "harm:1"],
        vec!["history", "--json", "harm:1"],
        vec!["inspect", "harm:1"],
        vec!["inspect", "--config", "harm:1"],
        vec!["images"],
        vec!["images", "--json"],
        vec!["layers", "harm:1"],
        vec!["df"],
        vec!["verify"],
        vec!["which", "harm:1", "/etc\u{1b}[31m"],
        vec!["which", "harm:1", "/nothing\u{1b}[31m"],
        vec!["load", "-i", missing],
        vec!["load", "-i", bad],
        vec!["load", "-i", &paths[0]],
        vec!["load", "-i", &paths[1]],
        vec!["load", "-i", &paths[2]],
        vec!["load", "-i", &paths[3]],
        vec!["import", bad, "x:1"],
        vec!["inspect", "no\u{1b}[31m"],
        vec!["rmi", "no\u{9b}"],
        vec!["rm", "no\u{202e}"],
        vec!["run", "--rm", "harm:1", "\u{1b}[31m"],
        vec!["diff", "harm:1", "fine:1"],
        vec!["ps", "-a"],
        vec!["ps", "-a", "--json"],
        vec!["images", "--format", "table {{.Repository}}\t{{.Labels}}"],
        vec!["inspect", "harm:1", "--format", "table {{.Author}}\t{{.Config.Env}}"],
    ];
    for args in table {
        let output = strata(&root, &args);
        // Without a terminal, the configuration is printed byte for byte; JSON itself escapes C0 controls.
        let exact = args.contains(&"--config");
        for (stream, bytes) in [("output", &output.stdout), ("errors", &output.stderr)] {
            let shown = String::from_utf8_lossy(bytes);
            let found: Vec<char> =
                shown.chars().filter(|&c| c != '\n' && if exact { c < ' ' } else { is_harmful(c) }).collect();
            assert!(found.is_empty(), "{args:?}: {stream} with {found:?}: {shown}");
        }
    }
}

#[test]
fn json_output_is_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let root = harmful_store(dir.path());
    let value: Value = serde_json::from_str(&ok(&root, &["inspect", "harm:1"])).unwrap();
    assert_eq!(value[0]["Config"]["Labels"], json!({(text("key")): text("value")}));
    let value: Value = serde_json::from_str(&ok(&root, &["history", "--json", "harm:1"])).unwrap();
    assert_eq!((&value[0]["CreatedBy"], &value[0]["Comment"]), (&json!(text("run")), &json!(text("note"))));
}

#[test]
fn columns_are_as_wide_as_they_look() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let layers = layers();
    let mut config: Value = serde_json::from_slice(&config(&layers, "old")).unwrap();
    let commands = ["ascii", "日本語", "e\u{301}e\u{301}", "\u{1b}[31mred", &"日本語".repeat(20), &"x".repeat(80)];
    let line = |command: &&str| json!({"created_by": command, "empty_layer": true, "comment": "END"});
    config["history"] = commands.iter().map(line).collect();
    let files = layout("docker.io/library/wide:1", &serde_json::to_vec(&config).unwrap(), &layers);
    std::fs::write(dir.path().join("in.tar"), tar_of(&files)).unwrap();
    ok(&root, &["load", "-i", dir.path().join("in.tar").to_str().unwrap()]);
    let table = ok(&root, &["history", "wide:1"]);
    let column = |line: &str| stratafs::text::width(&line[..line.find("END").or(line.find("COMMENT")).unwrap()]);
    let columns: Vec<usize> = table.lines().map(column).collect();
    assert_eq!(columns.len(), commands.len() + 1);
    assert!(columns.iter().all(|at| *at == columns[0]), "{columns:?}: {table}");
}

/// Every verb that shows text of an image, a container or a volume, on a terminal and elsewhere. The container has a file
/// with such a name, and everything has such labels.
#[test]
fn no_verb_prints_what_others_wrote_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = harmful_store(dir.path());
    let evil = "no\u{1b}[31m\u{9b}";
    let label = format!("--label={}={}", text("key"), text("value"));
    ok(&root, &["create", "--name", "c", &label, "-e", &text("E="), "harm:1", &text("word")]);
    ok(&root, &["volume", "create", &label, "v"]);
    let upper = root.join("containers/c/upper");
    std::fs::write(upper.join(format!("new{evil}")), "x").unwrap();
    std::fs::create_dir(upper.join("etc\u{1b}[31m")).unwrap();
    std::fs::write(upper.join("etc\u{1b}[31m/evil\u{9b}"), "changed").unwrap();
    ok(&root, &["checkpoint", "create", "c", "before"]);
    std::fs::write(upper.join(format!("later{evil}")), "x").unwrap();
    ok(&root, &["commit", "-m", &text("message"), "-a", &text("author"), "c", "harm:2"]);
    let everything = "{{json .}}";
    let table: Vec<Vec<&str>> = vec![
        vec!["ps", "-a", "--no-trunc"],
        vec!["ps", "-a", "--format", "{{.Labels}} {{.Command}}"],
        vec!["ps", "-a", "--format", everything],
        vec!["ps", "-a", "--format", "table {{.Labels}}\t{{.Command}}"],
        vec!["inspect", "c"],
        vec!["inspect", "-f", "{{.Config.Labels}} {{.Config.Env}}", "c"],
        vec!["inspect", "harm:2"],
        vec!["inspect", "--config", "harm:2"],
        vec!["diff", "c"],
        vec!["diff", "-q", "c"],
        vec!["diff", "--json", "c"],
        vec!["diff", "--tree", "c"],
        vec!["diff", "harm:1", "c"],
        vec!["diff", "c@before", "c"],
        vec!["layers", "harm:2"],
        vec!["layers", "--tree", "harm:2"],
        vec!["layers", "--wasted", "--all", "harm:2"],
        vec!["history", "--no-trunc", "harm:2"],
        vec!["history", "--format", "{{.CreatedBy}} {{.Comment}}", "harm:2"],
        vec!["images", "--format", "{{.Labels}}"],
        vec!["images", "--format", everything],
        vec!["image", "ls", "--digests"],
        vec!["volume", "ls"],
        vec!["volume", "ls", "--format", "{{.Labels}}"],
        vec!["volume", "inspect", "v"],
        vec!["checkpoint", "ls", "c"],
        vec!["df", "-v"],
        vec!["info"],
        vec!["stats", "-a", "--no-stream"],
        vec!["verify"],
        vec!["which", "harm:2", "/etc\u{1b}[31m/evil\u{9b}"],
        vec!["export", evil],
        vec!["port", evil],
        vec!["top", evil],
        vec!["logs", evil],
        vec!["start", evil],
        vec!["stop", evil],
        vec!["kill", "-s", evil, "c"],
        vec!["wait", evil],
        vec!["rename", "c", evil],
        vec!["attach", evil],
        vec!["exec", evil, evil],
        vec!["umount", evil],
        vec!["mount", evil],
        vec!["commit", evil],
        vec!["rollback", "c", evil],
        vec!["fork", evil, "d"],
        vec!["volume", "rm", evil],
        vec!["volume", "inspect", evil],
        vec!["volume", "create", evil],
        vec!["create", "--name", evil, "harm:1"],
        vec!["create", "-v", "/nonexistent\u{1b}[31m:/x", "harm:1"],
        vec!["run", "--rm", "-u", evil, "harm:1"],
        vec!["run", "--rm", "--security-opt", evil, "harm:1"],
        vec!["layers", evil],
        vec!["report", evil],
        vec!["flatten", evil],
        vec!["save", evil],
        vec!["push", evil],
        vec!["tag", evil, "x:1"],
        vec!["unpack", evil, "x"],
        vec!["snapshot", evil],
        vec!["inventory", evil],
        vec!["mounts", evil],
        vec!["images", "--filter", "colour=\u{1b}[31m"],
    ];
    for args in table {
        let output = super::super::cli::strata(&root, &args);
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.arg("--root").arg(&root).args(&args).env("NO_COLOR", "1");
        let mut terminal = super::super::pty::Terminal::run(&command);
        assert_eq!(terminal.ends(), output.status.code(), "{args:?}");
        // Without a terminal, a template prints text unchanged, as scripts want it; so does `--config`.
        let is_exact = args.iter().any(|arg| *arg == "--config" || arg.starts_with("{{."));
        let piped = [output.stdout, output.stderr].concat();
        let piped = String::from_utf8_lossy(&piped);
        assert!(is_exact || !piped.contains(|c| c != '\n' && is_harmful(c)), "{args:?}: {piped:?}");
        let shown = terminal.shown().replace("\r\n", "\n");
        assert!(!shown.contains(|c| c != '\n' && is_harmful(c)), "{args:?} on a terminal: {shown:?}");
    }
}
