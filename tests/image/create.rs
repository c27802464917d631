//! New images: import and commit.

use std::fs;
use std::os::fd::AsFd;

use stratafs::container::{Container, CreateOptions, Driver};
use stratafs::image::digest::Digest;
use stratafs::image::spec::Platform;
use stratafs::image::unpack::UnpackOptions;
use stratafs::store::create::{self, Authoring};

use super::fixture::*;
use super::layer_dirs::tree;
use super::tar_build::Tar;

fn authoring(name: &str, changes: &[&str]) -> Authoring {
    Authoring {
        names: vec![name.parse().unwrap()],
        message: Some("why".to_owned()),
        author: Some("me".to_owned()),
        created_by: None,
        changes: changes.iter().map(|change| change.parse().unwrap()).collect(),
        source_date_epoch: Some(1_700_000_000),
        ..Authoring::default()
    }
}

fn import(scratch: &Scratch, tar: &[u8]) -> Digest {
    let mut transaction = scratch.store.begin().unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let authoring = authoring("base:1", &["CMD [\"/bin/sh\"]"]);
    let id = create::import(&mut transaction, &mut &tar[..], "tar", &platform, &authoring, &UnpackOptions::default())
        .unwrap();
    transaction.publish().unwrap();
    id
}

#[test]
fn import_is_deterministic_and_keeps_the_tar() {
    let scratch = Scratch::new();
    let id = import(&scratch, &base_layer());
    assert_eq!(id, import(&scratch, &gzip(&base_layer())), "compression changes nothing");
    assert_eq!(scratch.store.images().unwrap().len(), 1);
    let image = scratch.store.find("base:1").unwrap();
    assert_eq!(image.config.diff_ids(), [Digest::of(&base_layer())]);
    assert_eq!(image.config.process().cmd, ["/bin/sh"]);
    assert_eq!(image.config.created().unwrap().to_string(), "2023-11-14T22:13:20Z");
    assert_eq!(image.config.history().len(), 1);
}

/// A container of `base:1` with an upper directory filled like that of a union file system.
fn changed_container(scratch: &Scratch, name: &str) -> Container {
    let image = scratch.store.find("base:1").unwrap();
    let options = CreateOptions {
        name: Some(name.to_owned()),
        image_name: "base:1".to_owned(),
        driver: Driver::Overlay,
        ..CreateOptions::default()
    };
    let container = Container::create(&scratch.store, &image, &options).unwrap();
    let upper = container.dir().join("upper");
    fs::create_dir(upper.join("etc")).unwrap();
    let device =
        std::process::Command::new("mknod").arg(upper.join("etc/issue")).args(["c", "0", "0"]).status().unwrap();
    assert!(device.success());
    fs::write(upper.join("new"), "n").unwrap();
    fs::hard_link(upper.join("new"), upper.join("new2")).unwrap();
    container
}

fn commit(scratch: &Scratch, container: &Container, name: &str) -> Digest {
    let mut transaction = scratch.store.begin().unwrap();
    let upper = container.open_upper().unwrap();
    let parent = container.config(&scratch.store).unwrap();
    let stack = container.layers(&scratch.store).unwrap();
    let authoring = authoring(name, &["ENV X=1"]);
    let id = create::commit(&mut transaction, &parent, &stack, upper.as_fd(), &authoring, &UnpackOptions::default())
        .unwrap();
    transaction.publish().unwrap();
    id
}

#[test]
fn a_commit_is_one_more_layer() {
    let scratch = Scratch::new();
    import(&scratch, &base_layer());
    let container = changed_container(&scratch, "c");
    let id = commit(&scratch, &container, "child:1");
    assert_eq!(id, commit(&scratch, &container, "child:1"), "the same changes give the same image");
    let (parent, child) = (scratch.store.find("base:1").unwrap(), scratch.store.find("child:1").unwrap());
    assert_eq!(child.config.diff_ids()[..1], parent.config.diff_ids()[..]);
    assert_eq!((child.config.diff_ids().len(), child.config.history().len()), (2, 2));
    assert_eq!(child.config.history()[1].comment.as_deref(), Some("why"));
    assert_eq!(child.config.process().env, ["X=1"]);
    let layer = scratch.store.layers_of(&child).unwrap().pop().unwrap();
    let paths: Vec<String> = tree(&layer.diff()).into_keys().collect();
    assert_eq!(paths, [".", "etc", "etc/issue", "new", "new2"]);
    assert!(layer.verify().unwrap().is_empty());
    let saved = scratch.save(
        &["child:1"],
        stratafs::store::save::Format::DockerArchive,
        stratafs::tar::compression::Compression::None,
    );
    let other = Scratch::new();
    assert_eq!(other.load(&saved).unwrap()[0].id, id);
    assert_eq!(other.trees(&other.store.find("child:1").unwrap()), scratch.trees(&child));
}

#[test]
fn a_container_keeps_its_image_from_being_removed() {
    let scratch = Scratch::new();
    import(&scratch, &base_layer());
    let container = changed_container(&scratch, "c");
    let error = scratch.store.remove("base:1", false).unwrap_err().to_string();
    assert!(error.contains("container c is made of it"), "{error}");
    scratch.store.remove("base:1", true).unwrap();
    scratch.store.gc(true).unwrap();
    commit(&scratch, &container, "child:1");
    container.remove(&scratch.store).unwrap();
    scratch.store.remove("child:1", false).unwrap();
    assert_eq!(scratch.store.all_layers().unwrap().len(), 0);
}

#[test]
fn container_names() {
    let scratch = Scratch::new();
    import(&scratch, &base_layer());
    let image = scratch.store.find("base:1").unwrap();
    let create = |name: Option<&str>| {
        let options = CreateOptions { name: name.map(str::to_owned), ..CreateOptions::default() };
        Container::create(&scratch.store, &image, &options).map(|container| container.name().to_owned())
    };
    assert_eq!(create(None).unwrap(), "base-1");
    assert_eq!(create(None).unwrap(), "base-2");
    assert_eq!(create(Some("web")).unwrap(), "web");
    assert!(create(Some("web")).unwrap_err().to_string().contains("already"));
    for bad in ["", "..", "a/b", "-x", ".x", "a b"] {
        assert!(create(Some(bad)).is_err(), "{bad}");
    }
    let near = Container::open(&scratch.store, "wbb").unwrap_err().to_string();
    assert_eq!(near, "wbb: no such container; did you mean web?");
    assert_eq!(fs::read_dir(scratch.store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn the_upper_root_looks_like_the_image_root() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    let tar = Tar::new().entry(super::tar_build::spec("./", b'5').mode(0o1711).owner(5, 6)).file("a", "").end();
    import(&scratch, &tar);
    let image = scratch.store.find("base:1").unwrap();
    let container = Container::create(&scratch.store, &image, &CreateOptions::default()).unwrap();
    let meta = fs::metadata(container.dir().join("upper")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()), (0o1711, 5, 6, 1_000_000_000));
}
