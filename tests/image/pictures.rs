//! Pictures of images: layers' changes as trees, wasted bytes, and the page for a browser.

use std::path::Path;

use serde_json::{Value, json};

use super::cli::{fails, ok};
use super::fixture::{config, tar_of};
use super::tar_build::Tar;

/// A store with `pic:1`: 1000 bytes in the lowest layer, of which the second one replaces 400 and deletes 100; 900
/// bytes in the topmost.
fn store(dir: &Path) -> std::path::PathBuf {
    let root = dir.join("store");
    let base = Tar::new()
        .dir("usr/")
        .file("usr/big", "x".repeat(400))
        .file("usr/gone", "x".repeat(100))
        .file("usr/<script>\u{1b}[31m", "x".repeat(500))
        .end();
    let top = Tar::new()
        .dir("usr/")
        .file("usr/big", "y".repeat(880))
        .file("usr/.wh.gone", "")
        .file("new", "y".repeat(20))
        .end();
    let layers = [base, top];
    let mut document: Value = serde_json::from_slice(&config(&layers, "RUN <b>make</b>")).unwrap();
    document["config"]["Labels"] = json!({"note": "</script><script>alert(1)</script>"});
    let document = serde_json::to_vec(&document).unwrap();
    let mut files: Vec<(String, Vec<u8>)> =
        layers.iter().enumerate().map(|(at, layer)| (format!("{at}.tar"), layer.clone())).collect();
    files.push(("c.json".to_owned(), document));
    let list = json!([{"Config": "c.json", "RepoTags": ["pic:1"], "Layers": ["0.tar", "1.tar"]}]);
    files.push(("manifest.json".to_owned(), list.to_string().into_bytes()));
    let archive = dir.join("in.tar");
    std::fs::write(&archive, tar_of(&files)).unwrap();
    ok(&root, &["load", "-q", "-i", archive.to_str().unwrap()]);
    root
}

#[test]
fn trees_show_what_layers_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    let tree = ok(&root, &["layers", "--tree", "pic:1"]);
    let (top, base) = tree.split_once("\n\n").unwrap();
    let lines: Vec<&str> = top.lines().collect();
    assert!(lines[0].ends_with("RUN <b>make</b>"), "{tree}");
    assert_eq!(
        &lines[1..],
        [
            "  900B in 2 files: 1 added, 1 replaced, 1 deleted; hides 500B",
            "  A  +20B         ├── new",
            "    +880B  -500B  └── usr/",
            "  C +880B  -400B      ├── big",
            "  D        -100B      └── gone",
        ],
        "{tree}"
    );
    assert!(base.contains("500B of it hidden by layers above"), "{tree}");
    assert!(base.contains("└── gone") && base.contains("<script>\\u{1b}[31m"), "{tree}");
    let folded = ok(&root, &["layers", "--tree", "--depth", "1", "pic:1"]);
    assert!(folded.contains("usr/  (2 inside)") && !folded.contains("big"), "{folded}");
}

#[test]
fn waste_is_counted_and_can_fail_a_build() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    let told = ok(&root, &["layers", "--wasted", "pic:1"]);
    assert!(told.ends_with("500B of 1.9kB are wasted (26.3%)\n") && told.lines().count() == 4, "{told}");
    assert!(told.contains("replaced by 2") && told.contains("deleted by 2") && told.contains("/usr/big"), "{told}");
    let value: Value = serde_json::from_str(&ok(&root, &["layers", "--wasted", "--json", "pic:1"])).unwrap();
    assert_eq!(
        (&value["Wasted"], &value["Size"], &value["Files"][0]["Path"]),
        (&500.into(), &1900.into(), &"/usr/big".into())
    );
    ok(&root, &["layers", "--max-wasted", "26.4%", "pic:1"]);
    let output = super::cli::strata(&root, &["layers", "--max-wasted", "26%", "pic:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "strata: pic:1: 26.3% of its bytes are wasted, more than 26%\n"
    );
    fails(&root, 2, &["layers", "--max-wasted", "much", "pic:1"]);
}

/// The page needs no other file and holds as data everything that it shows, so that no text of the image becomes a part
/// of the page.
#[test]
fn the_page_is_whole_and_quotes_what_others_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    let path = dir.path().join("report.html");
    assert!(ok(&root, &["report", "-o", path.to_str().unwrap(), "pic:1"]).ends_with("pic:1, 3 files\n"));
    let page = std::fs::read_to_string(&path).unwrap();
    assert_eq!(ok(&root, &["report", "pic:1"]), page, "standard output gets the same");
    assert_eq!(page.matches("<script").count(), 2, "data and code");
    assert_eq!(page.matches("</script>").count(), 2);
    for outside in ["http://", "https://", "src=", "@import", "url(", "\u{1b}", "<b>make"] {
        assert!(!page.contains(outside), "{outside}");
    }
    for place in ["layers", "treemap", "waste", "files", "history", "search", "config", "theme"] {
        assert!(page.contains(&format!("id=\"{place}\"")), "{place}");
    }
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("default-src 'none'"));
    let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(
        (&data["bytes"], &data["wasted"], data["layers"].as_array().unwrap().len()),
        (&1900.into(), &500.into(), 2)
    );
    assert_eq!(data["layers"][1]["command"], "RUN <b>make</b>");
    assert_eq!(data["config"]["Labels"]["note"], "</script><script>alert(1)</script>");
    let usr = data["tree"][2].as_array().unwrap().iter().find(|entry| entry[0] == "usr").unwrap();
    let names: Vec<&str> = usr[2].as_array().unwrap().iter().map(|entry| entry[0].as_str().unwrap()).collect();
    assert_eq!(names, ["<script>\\u{1b}[31m", "big"]);
    assert!(!ok(&root, &["report", "-o", path.to_str().unwrap(), "pic:1"]).is_empty(), "it replaces a page");
    assert!(fails(&root, 1, &["report", "-o", "/nonexistent/x.html", "pic:1"]).contains("/nonexistent/x.html"));
}

#[test]
fn differences_can_be_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    let archive = dir.path().join("flat.tar");
    std::fs::write(&archive, Tar::new().dir("usr/").file("usr/big", "z".repeat(7)).end()).unwrap();
    ok(&root, &["import", archive.to_str().unwrap(), "flat:1"]);
    let drawn = ok(&root, &["diff", "--tree", "pic:1", "flat:1"]);
    assert!(drawn.contains("C +7B") && drawn.contains("D") && drawn.contains("└── usr/"), "{drawn}");
    assert!(drawn.contains("    ├── <script>\\u{1b}[31m"), "{drawn}");
}

/// A browser runs the page's script to the end and draws every part, in both colour schemes.
#[test]
#[ignore = "needs chromium; scripts/soak runs it"]
fn a_browser_draws_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let root = store(dir.path());
    let path = dir.path().join("report.html");
    ok(&root, &["report", "-o", path.to_str().unwrap(), "pic:1"]);
    for scheme in ["0", "1"] {
        let output = std::process::Command::new("timeout")
            .args(["120", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"])
            .args([&format!("--blink-settings=preferredColorScheme={scheme}"), "--dump-dom"])
            .arg(format!("file://{}", path.display()))
            .output()
            .unwrap();
        let drawn = String::from_utf8(output.stdout).unwrap();
        assert!(drawn.contains("data-ready=\"true\""), "the script did not end: {drawn}");
        for part in ["usr/ 1.38kB", "26.3%", "replaced by 2", "&lt;script&gt;", "RUN &lt;b&gt;make&lt;/b&gt;"] {
            assert!(drawn.contains(part), "{part}: {drawn}");
        }
        assert!(!drawn.contains("<b>make"), "{drawn}");
    }
}
