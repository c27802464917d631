//! Documents that other tools wrote carelessly or long ago. They are read as moby reads them, keep their bytes until they
//! are changed, and are then written correctly, which skopeo checks.

use serde_json::{Value, json};
use stratafs::container::{Container, CreateOptions};
use stratafs::image::digest::Digest;
use stratafs::store::Store;

use super::super::interop::run;
use super::super::tar_build::Tar;
use super::*;

/// A docker-archive of one image with exactly this configuration and list.
fn archive(config: &[u8], list: &[u8], layers: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = Tar::new();
    for (number, layer) in layers.iter().enumerate() {
        tar = tar.file(format!("{number}.tar"), layer);
    }
    tar.file("c.json", config).file("manifest.json", list).end()
}

fn list_of(layers: usize) -> Value {
    let layers: Vec<String> = (0..layers).map(|number| format!("{number}.tar")).collect();
    json!([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": layers}])
}

/// A store with this archive in it.
fn loaded(dir: &Path, what: &str, bytes: &[u8]) -> std::path::PathBuf {
    let root = dir.join("store");
    let path = dir.join("in.tar");
    std::fs::write(&path, bytes).unwrap();
    let output = strata(&root, &["load", "-qi", path.to_str().unwrap()]);
    assert!(output.status.success(), "{what}: {}", told(&output));
    root
}

/// The configuration with `changes` applied; null stands for null, and `"-"` for a missing field.
fn configuration(layers: &[Vec<u8>], changes: &Value) -> Value {
    let mut document: Value = serde_json::from_slice(&config(layers, "old")).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("-") => drop(document.as_object_mut().unwrap().shift_remove(key)),
            _ => document[key] = value.clone(),
        }
    }
    document
}

/// Commits a container of `x:1` as `x:2` and returns the new configuration.
fn committed(root: &Path, changes: &[&str]) -> Value {
    let store = Store::open(root).unwrap();
    let options = CreateOptions { name: Some("c".to_owned()), ..CreateOptions::default() };
    Container::create(&store, &store.find("x:1").unwrap(), &options).unwrap();
    std::fs::write(root.join("containers/c/upper/new"), "new").unwrap();
    let mut args = vec!["commit"];
    changes.iter().for_each(|change| args.extend(["-c", change]));
    args.extend(["c", "x:2"]);
    ok(root, &args);
    serde_json::from_str(&ok(root, &["inspect", "--config", "x:2"])).unwrap()
}

/// skopeo turns the image into an OCI layout, which counts history and layers and reads every field.
fn skopeo_accepts(dir: &Path, root: &Path, what: &str) {
    let saved = dir.join("saved.tar");
    ok(root, &["save", "-o", saved.to_str().unwrap(), "x:2"]);
    let source = format!("docker-archive:{}", saved.display());
    let copy = format!("oci:{}:x", dir.join("copy").display());
    run("skopeo", &["copy", "--quiet", "--insecure-policy", &source, &copy]);
    let config: Value = serde_json::from_str(&run("skopeo", &["inspect", "--config", &copy])).expect(what);
    let told = config["history"].as_array().expect(what).iter().filter(|line| line["empty_layer"] != true).count();
    assert_eq!(told, config["rootfs"]["diff_ids"].as_array().expect(what).len(), "{what}");
}

#[test]
fn careless_configurations() {
    // The change in a good configuration, and the resulting `config` after a commit.
    let table = [
        (json!({"config": null}), json!(null)),
        (json!({"config": "-"}), json!(null)),
        (json!({"config": {}}), json!({})),
        (
            json!({"config": {"Cmd": null, "Env": null, "Volumes": null, "Labels": null, "ExposedPorts": null}}),
            json!({}),
        ),
        (json!({"config": {"Cmd": "ls", "Entrypoint": "/bin/sh"}}), json!({"Cmd": ["ls"], "Entrypoint": ["/bin/sh"]})),
        (json!({"config": {"Cmd": "", "Entrypoint": []}}), json!({"Cmd": [], "Entrypoint": []})),
        (json!({"config": {"cmd": ["a"], "ENTRYPOINT": ["b"]}}), json!({"Cmd": ["a"], "Entrypoint": ["b"]})),
        (json!({"config": {"Env": ["A", "B=1", "=x", ""]}}), json!({"Env": ["A=", "B=1"]})),
        (json!({"config": {"Env": "A=1"}}), json!({"Env": ["A=1"]})),
        (json!({"config": {"User": 1000, "WorkingDir": "srv"}}), json!({"User": "1000", "WorkingDir": "srv"})),
        (json!({"config": {"User": "me:"}}), json!({"User": "me:"})),
        (json!({"config": {"ExposedPorts": {}, "Volumes": {}}}), json!({"ExposedPorts": {}, "Volumes": {}})),
        (
            json!({"config": {"Volumes": ["/a"], "ExposedPorts": ["80/tcp"]}}),
            json!({"Volumes": {"/a": {}}, "ExposedPorts": {"80/tcp": {}}}),
        ),
        (
            json!({"config": {"Labels": {"n": 1, "t": true, "z": null}}}),
            json!({"Labels": {"n": "1", "t": "true", "z": ""}}),
        ),
        (
            json!({"config": {"Healthcheck": null, "StopSignal": 15, "StopTimeout": "10"}}),
            json!({"StopSignal": "15", "StopTimeout": 10}),
        ),
        (
            json!({"config": {"Healthcheck": {"Test": "NONE", "Interval": "30"}}}),
            json!({"Healthcheck": {"Test": ["NONE"], "Interval": 30}}),
        ),
        (
            json!({"config": {"OnBuild": null, "Tty": true, "x-Odd": {"kept": null}}}),
            json!({"Tty": true, "x-Odd": {"kept": null}}),
        ),
        (json!({"created": null, "history": null, "architecture": "-"}), json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]})),
        (json!({"created": "0001-01-01T00:00:00Z", "os": "-"}), json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]})),
        (json!({"created": "0000-01-01T00:00:00Z", "os": null}), json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]})),
        (json!({"created": "20240-01-01T00:00:00Z", "author": 5}), json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]})),
        (
            json!({"created": 1_700_000_000, "os": "", "architecture": ""}),
            json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]}),
        ),
        (json!({"history": "-", "author": null}), json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]})),
        (json!({"history": []}), json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]})),
        (json!({"history": [{"created_by": "one"}]}), json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]})),
        (
            json!({"history": [{"created": "10000-01-01T00:00:00Z"}, null, {}, {"empty_layer": "true"}, {}]}),
            json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]}),
        ),
        (json!({"history": [{}, {}, {}, {}, {}, {}]}), json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]})),
        (
            json!({"history": [{"created": "0001-01-01T00:00:00Z", "created_by": 7, "empty_layer": null}]}),
            json!({"Cmd": ["/usr/tool"], "Env": ["A=1"]}),
        ),
    ];
    let layers = layers();
    for (changes, expected) in table {
        let what = changes.to_string();
        let dir = tempfile::tempdir().unwrap();
        let bytes = serde_json::to_vec(&configuration(&layers, &changes)).unwrap();
        let list = list_of(layers.len()).to_string();
        let root = loaded(dir.path(), &what, &archive(&bytes, list.as_bytes(), &layers));
        assert_eq!(ok(&root, &["inspect", "--config", "x:1"]).into_bytes(), bytes, "{what}: untouched");
        assert_eq!(ok(&root, &["images", "-q", "--no-trunc"]).trim(), Digest::of(&bytes).to_string(), "{what}");
        for args in [&["history", "x:1"][..], &["images"], &["inspect", "x:1"], &["images", "--json"]] {
            ok(&root, args);
        }
        let written = committed(&root, &[]);
        let process = written.get("config").cloned().unwrap_or_default();
        assert_eq!(process, expected, "{what}");
        skopeo_accepts(dir.path(), &root, &what);
    }
}

#[test]
fn careless_bytes_of_documents() {
    let layers = layers();
    let good = String::from_utf8(config(&layers, "old")).unwrap();
    let list = list_of(layers.len()).to_string();
    let with = |from: &str, to: &str| good.replace(from, to).into_bytes();
    let configs: [(&str, Vec<u8>); 9] = [
        ("a byte order mark", [b"\xef\xbb\xbf", good.as_bytes()].concat()),
        ("white space around it", format!(" \r\n{good}\r\n\t \n").into_bytes()),
        ("a key twice", with("\"os\":\"linux\"", "\"os\":\"plan9\",\"os\":\"linux\"")),
        ("another case", with("\"rootfs\"", "\"RootFS\"")),
        ("another case inside", with("\"diff_ids\"", "\"DIFF_IDS\"")),
        ("half a surrogate", with("\"old\"", "\"\\ud83d\"")),
        ("an escaped slash", with("\"/usr/tool\"", "\"\\/usr\\/tool\"")),
        ("no UTF-8", {
            let at = good.find("old").unwrap();
            [&good.as_bytes()[..at], b"\xff", &good.as_bytes()[at..]].concat()
        }),
        ("numbers of every kind", with("\"os\"", "\"x-n\":[1e300,18446744073709551616,-0.0],\"os\"")),
    ];
    for (what, bytes) in configs {
        let dir = tempfile::tempdir().unwrap();
        let root = loaded(dir.path(), what, &archive(&bytes, list.as_bytes(), &layers));
        assert_eq!(ok(&root, &["images", "-q", "--no-trunc"]).trim(), Digest::of(&bytes).to_string(), "{what}");
        let value: Value = serde_json::from_str(&ok(&root, &["inspect", "x:1"])).unwrap();
        assert_eq!((&value[0]["Os"], &value[0]["Config"]["Cmd"][0]), (&json!("linux"), &json!("/usr/tool")), "{what}");
        assert!(committed(&root, &[])["rootfs"]["diff_ids"].as_array().unwrap().len() == 4, "{what}");
        skopeo_accepts(dir.path(), &root, what);
    }
}

#[test]
fn careless_lists_of_archives() {
    let layers = layers();
    let config = config(&layers, "old");
    let members = json!(["0.tar", "1.tar", "2.tar"]);
    let table = [
        ("null tags", json!([{"Config": "c.json", "RepoTags": null, "Layers": members}]), 0),
        ("no tags", json!([{"Config": "c.json", "Layers": members}]), 0),
        ("one tag", json!([{"Config": "c.json", "RepoTags": "x:1", "Layers": members}]), 1),
        ("docker's word for none", json!([{"Config": "c.json", "RepoTags": ["<none>:<none>"], "Layers": members}]), 0),
        ("empty and bad tags", json!([{"Config": "c.json", "RepoTags": ["", "UPPER:1", "x:1"], "Layers": members}]), 1),
        ("null in a list", json!([{"Config": "c.json", "RepoTags": [null, "x:1"], "Layers": members}]), 1),
        ("another case", json!([{"config": "c.json", "repotags": ["x:1"], "LAYERS": members}]), 1),
        ("not in a list", json!({"Config": "c.json", "RepoTags": ["x:1"], "Layers": members}), 1),
        (
            "more than is known",
            json!([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": members, "Parent": null,
            "LayerSources": {"a": 1}}]),
            1,
        ),
        (
            "paths with a dot",
            json!([{"Config": "./c.json", "RepoTags": ["x:1"],
            "Layers": ["./0.tar", "1.tar", "x/../2.tar"]}]),
            1,
        ),
    ];
    for (what, list, names) in table {
        let dir = tempfile::tempdir().unwrap();
        let root = loaded(dir.path(), what, &archive(&config, list.to_string().as_bytes(), &layers));
        let value: Value = serde_json::from_str(&ok(&root, &["images", "--json"])).unwrap();
        assert_eq!(value[0]["RepoTags"].as_array().unwrap().len(), names, "{what}");
    }
    for (what, list) in [
        ("no config", json!([{"RepoTags": ["x:1"], "Layers": members}])),
        ("too few layers", json!([{"Config": "c.json", "Layers": ["0.tar"]}])),
        ("null layers", json!([{"Config": "c.json", "Layers": null}])),
        ("nothing", json!(null)),
        ("a number", json!(7)),
        ("a list of numbers", json!([7])),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.tar");
        std::fs::write(&path, archive(&config, list.to_string().as_bytes(), &layers)).unwrap();
        let output = strata(&dir.path().join("store"), &["load", "-i", path.to_str().unwrap()]);
        assert_eq!((output.status.code(), told(&output).lines().count()), (Some(1), 1), "{what}: {}", told(&output));
    }
}

/// A layout whose documents were changed before their digests were computed.
fn changed_layout(manifest: impl Fn(&mut Value), entry: impl Fn(&mut Value)) -> Files {
    let layers = layers();
    let config = config(&layers, "old");
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let bytes = add_manifest(&mut files, &config, &layers, &|layer| layer.to_vec(), "");
    let mut document: Value = serde_json::from_slice(&bytes).unwrap();
    manifest(&mut document);
    let bytes = document.to_string().into_bytes();
    files.push((blob_name(&bytes), bytes.clone()));
    let mut described = descriptor("application/vnd.oci.image.manifest.v1+json", &bytes);
    described["annotations"] = json!({"org.opencontainers.image.ref.name": "docker.io/library/x:1"});
    entry(&mut described);
    files.push((
        "index.json".to_owned(),
        json!({"schemaVersion": 2, "manifests": [described]}).to_string().into_bytes(),
    ));
    files
}

#[test]
fn careless_manifests_and_indexes() {
    type Edit = fn(&mut Value);
    let nothing: Edit = |_| {};
    let table: Vec<(&str, Edit, Edit)> = vec![
        ("no media type in the index", nothing, |e| e["mediaType"] = json!("")),
        ("null media type", nothing, |e| e["mediaType"] = json!(null)),
        ("application/json", nothing, |e| e["mediaType"] = json!("application/json")),
        ("text/html", nothing, |e| e["mediaType"] = json!("text/html; charset=utf-8")),
        ("application/octet-stream", nothing, |e| e["mediaType"] = json!("application/octet-stream")),
        ("a parameter", nothing, |e| {
            e["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json; charset=utf-8");
        }),
        ("capitals", nothing, |e| e["mediaType"] = json!("Application/Vnd.OCI.Image.Manifest.v1+JSON")),
        (
            "docker's manifest",
            |m| m["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json"),
            |e| {
                e["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
            },
        ),
        ("a size that is text", nothing, |e| e["size"] = json!(e["size"].to_string())),
        ("a size that is a fraction", nothing, |e| e["size"] = json!(e["size"].as_f64().unwrap())),
        ("null annotations", |m| m["annotations"] = json!(null), nothing),
        ("annotations that are no texts", |m| m["annotations"] = json!({"a": 1, "b": null, "c": []}), nothing),
        ("no version", |m| drop(m.as_object_mut().unwrap().shift_remove("schemaVersion")), nothing),
        ("a version that is text", |m| m["schemaVersion"] = json!("2"), nothing),
        ("null media type of the manifest", |m| m["mediaType"] = json!(null), nothing),
        ("a config of no type", |m| m["config"]["mediaType"] = json!(""), nothing),
        (
            "a config of application/octet-stream",
            |m| m["config"]["mediaType"] = json!("application/octet-stream"),
            nothing,
        ),
        ("a config of text/html", |m| m["config"]["mediaType"] = json!("text/html"), nothing),
        ("a config of application/json", |m| m["config"]["mediaType"] = json!("application/json"), nothing),
        (
            "docker's config",
            |m| {
                m["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
            },
            nothing,
        ),
        (
            "layers of unknown types",
            |m| {
                for layer in m["layers"].as_array_mut().unwrap() {
                    layer["mediaType"] = json!("application/x-tar");
                }
            },
            nothing,
        ),
        (
            "layers of no type",
            |m| {
                for layer in m["layers"].as_array_mut().unwrap() {
                    layer.as_object_mut().unwrap().shift_remove("mediaType");
                }
            },
            nothing,
        ),
        (
            "other cases",
            |m| {
                let layers = m["layers"].take();
                m.as_object_mut().unwrap().shift_remove("layers");
                m["Layers"] = layers;
            },
            |e| {
                let digest = e["digest"].take();
                e.as_object_mut().unwrap().shift_remove("digest");
                e["Digest"] = digest;
            },
        ),
        ("a null platform", nothing, |e| e["platform"] = json!(null)),
        ("a platform of nothing", nothing, |e| e["platform"] = json!({"os": null, "architecture": null})),
    ];
    for (what, manifest, entry) in table {
        let dir = tempfile::tempdir().unwrap();
        let files = changed_layout(manifest, entry);
        let root = loaded(dir.path(), what, &tar_of(&files));
        let id = Digest::of(&config(&layers(), "old")).to_string();
        assert_eq!(ok(&root, &["images", "-q", "--no-trunc"]).trim(), id, "{what}");
        // Also as a directory, and once more from the store.
        let copy = dir.path().join("layout");
        write_dir(&files, &copy);
        ok(&dir.path().join("other"), &["load", "-qi", copy.to_str().unwrap()]);
        ok(&root, &["tag", "x:1", "x:2"]);
        skopeo_accepts(dir.path(), &root, what);
    }
    for (what, manifest) in [
        ("both an index and a manifest", (|m| m["manifests"] = json!([])) as Edit),
        ("layers that are no list", |m| m["layers"] = json!({})),
        ("no config", |m| m["config"] = json!(null)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.tar");
        std::fs::write(&path, tar_of(&changed_layout(manifest, nothing))).unwrap();
        let output = strata(&dir.path().join("store"), &["load", "-i", path.to_str().unwrap()]);
        assert_eq!((output.status.code(), told(&output).lines().count()), (Some(1), 1), "{what}: {}", told(&output));
    }
}

#[test]
fn changes_are_applied_as_a_dockerfile_is() {
    let layers = layers();
    let base = json!({"config": {"Env": ["PATH=/bin", "A=0"], "Cmd": ["old"], "WorkingDir": "/srv"}});
    let table = [
        ("ENV PATH=/opt/x:$PATH", json!({"Env": ["PATH=/opt/x:/bin", "A=0"], "Cmd": ["old"], "WorkingDir": "/srv"})),
        (
            "ENV B=${A:-x}${X:-y}${A:+z} C='$A' D=\"$A q\"",
            json!({"Env": ["PATH=/bin", "A=0", "B=0yz", "C=$A", "D=0 q"], "Cmd": ["old"], "WorkingDir": "/srv"}),
        ),
        (
            "LABEL x=$A y=\"a b\"",
            json!({"Env": ["PATH=/bin", "A=0"], "Cmd": ["old"], "WorkingDir": "/srv", "Labels": {"x": "0", "y": "a b"}}),
        ),
        ("WORKDIR sub/$A", json!({"Env": ["PATH=/bin", "A=0"], "Cmd": ["old"], "WorkingDir": "/srv/sub/0"})),
        ("USER $A:0", json!({"Env": ["PATH=/bin", "A=0"], "Cmd": ["old"], "WorkingDir": "/srv", "User": "0:0"})),
        (
            "EXPOSE 8$A 53/udp",
            json!({"Env": ["PATH=/bin", "A=0"], "Cmd": ["old"], "WorkingDir": "/srv",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        ),
        (
            "VOLUME /v$A",
            json!({"Env": ["PATH=/bin", "A=0"], "Cmd": ["old"], "WorkingDir": "/srv", "Volumes": {"/v0": {}}}),
        ),
        ("ENTRYPOINT [\"e\"]", json!({"Env": ["PATH=/bin", "A=0"], "WorkingDir": "/srv", "Entrypoint": ["e"]})),
        (
            "CMD echo $A",
            json!({"Env": ["PATH=/bin", "A=0"], "Cmd": ["/bin/sh", "-c", "echo $A"], "WorkingDir": "/srv"}),
        ),
    ];
    for (change, expected) in table {
        let dir = tempfile::tempdir().unwrap();
        let bytes = serde_json::to_vec(&configuration(&layers, &base)).unwrap();
        let list = list_of(layers.len()).to_string();
        let root = loaded(dir.path(), change, &archive(&bytes, list.as_bytes(), &layers));
        assert_eq!(committed(&root, &[change])["config"], expected, "{change}");
    }
}
