//! Checkpoints of containers with a running driver: the requests to it, and how its refusals are handled. The test plays
//! the driver and changes the disk as a driver would.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use stratafs::container::checkpoint::tidy;
use stratafs::container::{Container, CreateOptions};
use stratafs::control::{Answer, Lower, Request, Server};
use stratafs::marks::chain::Chain;
use stratafs::union::layer::chain::{chain_namespace, copy_root, read_chain, write_chain};

use super::checkpoint::shown;
use super::crashes::one_image;
use super::fixture::*;

/// The requests to the played driver, and its behaviour.
#[derive(Default)]
struct Role {
    asked: Mutex<Vec<Request>>,
    /// It refuses everything except `state`.
    refuses: Mutex<bool>,
    lowers: Mutex<Vec<String>>,
}

fn mark(dir: &Path) -> Option<Chain> {
    let dir = fs::File::open(dir).unwrap();
    read_chain(dir.as_fd(), chain_namespace(dir.as_fd()).unwrap()).unwrap()
}

/// Replaces the upper by an empty one.
fn pivot(upper: &Path, place: &Path, id: &str, root: &Path, below: Option<&Path>) {
    fs::create_dir(place).unwrap();
    let (from, empty) = (fs::File::open(root).unwrap(), fs::File::open(place).unwrap());
    copy_root(from.as_fd(), empty.as_fd()).unwrap();
    let below = below.and_then(mark).map(|mark| mark.id);
    let chain = Chain { id: id.parse().unwrap(), below };
    write_chain(empty.as_fd(), chain_namespace(empty.as_fd()).unwrap(), &chain).unwrap();
    renameat_with(CWD, place, CWD, upper, RenameFlags::EXCHANGE).unwrap();
}

/// The id of a layer of the store's, by its path.
fn id_in(path: &str) -> Option<String> {
    let id = Path::new(path).parent()?.file_name()?.to_str()?;
    (id.len() == 32).then(|| id.to_owned())
}

/// Answers in place of a container's driver.
fn play(container: &Container) -> (Arc<Role>, Server) {
    let role = Arc::new(Role::default());
    let (answering, upper) = (Arc::clone(&role), container.dir().join("upper"));
    let answer = move |request: Request| {
        // Every verb that reads the container's files requests this first.
        if request == Request::WriteBack {
            return Answer::done();
        }
        answering.asked.lock().unwrap().push(request.clone());
        if request != Request::State && *answering.refuses.lock().unwrap() {
            return Answer::refused("the disk is full");
        }
        let mut lowers = answering.lowers.lock().unwrap();
        match request {
            Request::Checkpoint { place, id, .. } => {
                pivot(&upper, Path::new(&place), &id, &upper, Some(&upper));
                lowers.insert(0, place);
            }
            Request::Switch { place, id, lowers: new, keep } => {
                if let Some((place, id)) = keep {
                    pivot(&upper, Path::new(&place), &id, &upper, Some(&upper));
                }
                pivot(&upper, Path::new(&place), &id, Path::new(&new[0]), Some(Path::new(&new[0])));
                *lowers = new;
            }
            Request::Share { .. } => {}
            Request::WriteBack => unreachable!("answered above"),
            // The driver keeps its layers.
            Request::Merged { .. } => return Answer::refused("no merged layers"),
            Request::State => {
                let lowers = lowers.iter().map(|path| Lower { path: path.clone(), id: id_in(path) }).collect();
                return Answer { lowers, writers: Some(0), pid: Some(1), ..Answer::done() };
            }
        }
        Answer::done()
    };
    let server = Server::start(&container.dir().join("work"), answer).unwrap();
    (role, server)
}

fn lab() -> (Scratch, Container) {
    let scratch = Scratch::new();
    scratch.load(&one_image("base:1", &layers())).unwrap();
    let image = scratch.store.find("base:1").unwrap();
    let options = CreateOptions { name: Some("web".to_owned()), ..CreateOptions::default() };
    let container = Container::create(&scratch.store, &image, &options).unwrap();
    (scratch, container)
}

fn write(container: &Container, name: &str) {
    fs::write(container.dir().join("upper").join(name), name).unwrap();
}

fn names(container: &Container, scratch: &Scratch) -> Vec<String> {
    container.checkpoints(&scratch.store).unwrap().into_iter().map(|checkpoint| checkpoint.name).collect()
}

#[test]
fn the_driver_is_asked() {
    let (scratch, web) = lab();
    let store = &scratch.store;
    let (role, server) = play(&web);
    let image: Vec<String> = {
        let layers = web.layers(store).unwrap();
        layers.iter().rev().map(|layer| layer.diff().to_str().unwrap().to_owned()).collect()
    };
    *role.lowers.lock().unwrap() = image.clone();
    write(&web, "one");
    let first = shown(store, "web", None);
    let one = web.create_checkpoint(store, "one").unwrap();
    assert_eq!(shown(store, "web", None), first);
    write(&web, "two");
    let second = shown(store, "web", None);
    web.rollback(store, "one", Some("two")).unwrap().unwrap().remove().unwrap();
    assert_eq!((shown(store, "web", None), shown(store, "web", Some("two"))), (first.clone(), second.clone()));
    let asked = std::mem::take(&mut *role.asked.lock().unwrap());
    let [Request::State, Request::Checkpoint { place, sync: true, .. }, Request::State, Request::Switch { lowers, .. }] =
        asked.as_slice()
    else {
        panic!("{asked:?}")
    };
    assert_eq!(Path::new(place), one.layer.dir());
    assert_eq!(lowers, &[vec![place.clone()], image.clone()].concat());
    // Abandoned files are removed, and none of them were the driver's to remove.
    write(&web, "lost");
    let abandoned = web.rollback(store, "two", None).unwrap().unwrap();
    assert_eq!(shown(store, "web", None), second);
    abandoned.remove().unwrap();
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    // A fork tells the mounts that use its layers.
    role.asked.lock().unwrap().clear();
    let web2 = web.fork(store, Some("two"), "web2").unwrap();
    assert_eq!(shown(store, "web2", None), second);
    let shared = role.asked.lock().unwrap().clone();
    let two = web.find_checkpoint(store, "two").unwrap().layer.dir();
    let dirs: Vec<String> = [&two, &one.layer.dir()].map(|dir| dir.to_str().unwrap().to_owned()).into();
    assert_eq!(shared, [Request::Share { layers: dirs.clone() }]);
    // A merge tells them too. The mount keeps files that it has open, and its upper takes part in no merge.
    role.asked.lock().unwrap().clear();
    web.remove_checkpoint(store, "one").unwrap();
    tidy(store, true).unwrap();
    assert_eq!(web.chain(store).unwrap().len(), 1);
    let both = vec![dirs[1].clone(), dirs[0].clone()];
    assert!(role.asked.lock().unwrap().contains(&Request::Share { layers: both }));
    let one = PathBuf::from(&dirs[1]);
    let old = one.parent().unwrap().with_file_name(format!("merged-{}", id_in(&dirs[1]).unwrap()));
    tidy(store, true).unwrap();
    assert!(one.exists() && old.join("layer/two").exists());
    assert_eq!((shown(store, "web", None), shown(store, "web2", None)), (second.clone(), second.clone()));
    web2.remove(store).unwrap();
    web.remove_checkpoint(store, "two").unwrap();
    tidy(store, true).unwrap();
    assert_eq!((web.chain(store).unwrap().len(), shown(store, "web", None)), (1, second.clone()));
    assert_eq!(store.chain_faults().unwrap(), Vec::<String>::new());
    drop(server);
    tidy(store, true).unwrap();
    assert!(!one.exists() && !old.exists());
    assert_eq!((web.chain(store).unwrap().len(), shown(store, "web", None)), (0, second));
}

#[test]
fn a_driver_that_refuses_changes_nothing() {
    let (scratch, web) = lab();
    let store = &scratch.store;
    let (role, server) = play(&web);
    write(&web, "one");
    web.create_checkpoint(store, "one").unwrap();
    write(&web, "two");
    web.create_checkpoint(store, "two").unwrap();
    write(&web, "three");
    *role.refuses.lock().unwrap() = true;
    let before = (scratch.listing(), shown(store, "web", None));
    let told = |done: stratafs::image::Result<()>| done.unwrap_err().to_string();
    assert_eq!(told(web.create_checkpoint(store, "three").map(drop)), "web: the disk is full");
    assert_eq!(told(web.rollback(store, "one", None).map(drop)), "web: the disk is full");
    assert_eq!(told(web.rollback(store, "one", Some("kept")).map(drop)), "web: the disk is full");
    assert_eq!(told(web.fork(store, Some("one"), "web2").map(drop)), "web: the disk is full");
    assert_eq!((scratch.listing(), shown(store, "web", None)), before);
    // Layers are not merged below a driver that may change files in them.
    web.remove_checkpoint(store, "one").unwrap();
    tidy(store, true).unwrap();
    assert_eq!((web.chain(store).unwrap().len(), shown(store, "web", None)), (2, before.1.clone()));
    assert_eq!(names(&web, &scratch), ["two"]);
    // After it has ended, everything works without it.
    drop(server);
    tidy(store, true).unwrap();
    assert_eq!((web.chain(store).unwrap().len(), shown(store, "web", None)), (1, before.1));
}

/// The real driver: a container is mounted all the time while a process writes to one of its files.
#[test]
fn a_mounted_container_goes_on() {
    let Some(lab) = super::checkpoint::labs().into_iter().find(|lab| lab.driver == "stratafs") else { return };
    let merged = lab.ok(&["mount", "--name", "web", "base:1"]);
    let merged = Path::new(merged.trim());
    fs::write(merged.join("etc/first"), "1").unwrap();
    let mut log = fs::File::options().create(true).append(true).open(merged.join("log")).unwrap();
    use std::io::Write;
    log.write_all(b"before\n").unwrap();
    lab.ok(&["checkpoint", "create", "web", "one"]);
    log.write_all(b"after\n").unwrap();
    fs::remove_file(merged.join("etc/first")).unwrap();
    fs::rename(merged.join("usr"), merged.join("moved")).unwrap();
    assert_eq!(fs::read_to_string(merged.join("log")).unwrap(), "before\nafter\n");
    assert_eq!(lab.ok(&["diff", "web@one", "web"]), "C /etc\nD /etc/first\nC /log\nA /moved\nA /moved/new\nD /usr\n");
    lab.ok(&["checkpoint", "create", "web", "two"]);
    assert!(
        lab.refused(&["checkpoint", "create", "web", "two"], 1).contains("there is a checkpoint of that name already")
    );
    drop(log);
    lab.ok(&["umount", "web"]);
    lab.change("web", |at| {
        assert_eq!(fs::read_to_string(at.join("log")).unwrap(), "before\nafter\n");
        assert!(!at.join("etc/first").exists() && at.join("moved/new").exists());
    });
    lab.ok(&["rollback", "web", "one"]);
    lab.change("web", |at| assert_eq!(fs::read_to_string(at.join("log")).unwrap(), "before\n"));
    lab.ok(&["verify"]);
}

/// A mount that belongs to no store.
#[test]
fn a_mount_without_a_store() {
    if !super::fuse_for("a_mount_without_a_store") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("strata-test-").tempdir().unwrap();
    for name in ["lower", "upper", "work", "merged", "layers"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("lower/base"), "b").unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).current_dir(dir.path()).output().unwrap();
        let (out, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.success(), out, told)
    };
    let (stratafs, strata) = (env!("CARGO_BIN_EXE_stratafs"), env!("CARGO_BIN_EXE_strata"));
    let writable = ",upperdir=upper,workdir=work";
    let mount = |lowers: &str| run(stratafs, &["-o", &format!("{lowers}{writable}"), "merged"]);
    assert!(mount("lowerdir=lower").0);
    fs::write(dir.path().join("merged/new"), "n").unwrap();
    let args = ["checkpoint", "create", "--mount", "merged", "layers/monday"];
    let (done, lowers, told) = run(strata, &args);
    assert!(done, "{told}");
    let at = |name: &str| dir.path().join(name).canonicalize().unwrap().display().to_string();
    assert_eq!(lowers, format!("lowerdir={}:{}\n", at("layers/monday"), at("lower")));
    assert_eq!(fs::read_to_string(dir.path().join("layers/monday/new")).unwrap(), "n");
    let (done, _, told) = run(strata, &args);
    assert!(!done && told.contains("exists already") && told.lines().count() == 1, "{told}");
    fs::write(dir.path().join("merged/new"), "m").unwrap();
    assert!(run("umount", &["merged"]).0);
    let (done, _, told) = mount("lowerdir=lower");
    assert!(!done && told.contains("needs the checkpoint layer") && told.lines().count() == 1, "{told}");
    assert!(mount(lowers.trim()).0);
    assert_eq!(fs::read_to_string(dir.path().join("merged/new")).unwrap(), "m");
    assert!(run("umount", &["merged"]).0);
    let (done, _, told) = run(strata, &["checkpoint", "create", "--mount", "merged", "layers/tuesday"]);
    assert!(!done && told.contains("not a mount of stratafs") && told.lines().count() == 1, "{told}");
}

/// Forked and rolled back while it is mounted.
#[test]
fn a_mounted_container_is_forked() {
    let Some(lab) = super::checkpoint::labs().into_iter().find(|lab| lab.driver == "stratafs") else { return };
    let merged = lab.ok(&["mount", "--name", "web", "base:1"]);
    let merged = Path::new(merged.trim());
    fs::write(merged.join("log"), "before\n").unwrap();
    let open = fs::File::options().append(true).open(merged.join("log")).unwrap();
    lab.ok(&["checkpoint", "create", "web", "one"]);
    std::io::Write::write_all(&mut &open, b"after\n").unwrap();
    fs::rename(merged.join("usr"), merged.join("moved")).unwrap();
    let forked = lab.ok(&["fork", "--mount", "web@one", "web2"]);
    let forked = Path::new(forked.trim());
    assert_eq!(fs::read_to_string(forked.join("log")).unwrap(), "before\n");
    fs::write(forked.join("log"), "fork\n").unwrap();
    std::io::Write::write_all(&mut &open, b"later\n").unwrap();
    assert_eq!(fs::read_to_string(merged.join("log")).unwrap(), "before\nafter\nlater\n");
    lab.ok(&["rollback", "--keep", "two", "web", "one"]);
    assert!(!merged.join("moved").exists() && merged.join("usr/new").exists());
    std::io::Write::write_all(&mut &open, b"lost\n").unwrap();
    assert_eq!(fs::read_to_string(merged.join("log")).unwrap(), "before\n");
    drop(open);
    lab.ok(&["umount", "web"]);
    lab.ok(&["checkpoint", "rm", "web", "one"]);
    assert_eq!(fs::read_to_string(forked.join("log")).unwrap(), "fork\n");
    lab.ok(&["umount", "web2"]);
    let again = lab.ok(&["mount", "web"]);
    assert_eq!(fs::read_to_string(Path::new(again.trim()).join("log")).unwrap(), "before\n");
    lab.ok(&["umount", "web"]);
    lab.ok(&["verify"]);
}
