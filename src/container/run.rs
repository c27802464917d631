//! Prepares a container for an OCI runtime: the bundle's configuration and mountpoints.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use serde_json::{Value, json};

use super::bundle::{RunOptions, Setting, Volume, configuration};
use super::paths::{ContainerView, Place};
use super::runtime::in_path;
use super::state::ProcessId;
use super::users::Identity;
use super::{Container, devices, program, rootless, stubs, users};
use crate::image::{ImageError, IoContext, Result, spec};
use crate::store::Store;

/// Checks that the program in a runtime's configuration can be started.
pub(super) fn check_program(view: &ContainerView<'_>, process: &Value) -> Result<()> {
    let working_dir = process["cwd"].as_str().unwrap_or("/");
    let env = process["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let path = env.iter().filter_map(|line| line.as_str()?.strip_prefix("PATH=")).next_back().unwrap_or_default();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let user = &process["user"];
    let identity = Identity {
        uid: id(&user["uid"]).unwrap_or(0),
        gid: id(&user["gid"]).unwrap_or(0),
        additional_gids: user["additionalGids"].as_array().into_iter().flatten().filter_map(id).collect(),
        home: String::new(),
    };
    program::check_working_dir(view, working_dir)?;
    program::check(view, process["args"][0].as_str().unwrap_or_default(), path, working_dir, &identity)
}

/// Checks that one more process can be started. For the first one, the runtime makes a missing working directory.
pub(super) fn check_further(view: &ContainerView<'_>, process: &Value) -> Result<()> {
    let working_dir = process["cwd"].as_str().unwrap_or("/");
    match view.resolve(Path::new(working_dir)) {
        Ok(Place::Missing(_)) => {
            let reason = "no such directory to start in".to_owned();
            Err(ImageError::CannotRun { program: working_dir.to_owned(), reason, missing: true })
        }
        _ => check_program(view, process),
    }
}

/// Makes a small program the first process; it starts the container's own.
fn put_init_first(document: &mut Value) -> Result<()> {
    const INSIDE: &str = "/dev/init";
    let found = ["catatonit", "tini-static", "docker-init", "tini"].into_iter().find_map(in_path);
    let program =
        found.ok_or_else(|| ImageError::refused("--init", "no such program here; apt-get install catatonit"))?;
    let mount = json!({"destination": INSIDE, "type": "bind", "source": program, "options": ["bind", "ro"]});
    if let Some(mounts) = document["mounts"].as_array_mut() {
        mounts.push(mount);
    }
    if let Some(words) = document["process"]["args"].as_array_mut() {
        words.insert(0, json!("--"));
        words.insert(0, json!(INSIDE));
    }
    Ok(())
}

/// The namespaces of running containers that this one shares.
fn joined(store: &Store, options: &RunOptions) -> Result<Vec<(String, String)>> {
    let mut joined = Vec::new();
    for (kind, id) in &options.shared {
        let other = Container::open(store, id)?;
        let Some(pid) = other.state()?.process.as_ref().and_then(ProcessId::alive) else {
            return Err(ImageError::refused(other.name(), format!("does not run; the container shares its {kind}")));
        };
        let file = if kind == "network" { "net" } else { kind };
        joined.push((kind.clone(), format!("/proc/{}/ns/{file}", pid.as_raw_nonzero())));
    }
    Ok(joined)
}

impl Container {
    /// Writes the bundle's `config.json` for a mounted container.
    ///
    /// # Errors
    /// When the image lacks the user, there is no command, or the command is no program.
    pub fn prepare_run(&mut self, store: &Store) -> Result<()> {
        let options = &self.record.options.clone();
        let image = self.config(store)?.process();
        if options.words(&image).is_empty() {
            return Err(ImageError::refused(&self.record.image_name, "has no default command; give one"));
        }
        let mountpoint = &self.record.mountpoint;
        let root = File::open(mountpoint).at(mountpoint)?;
        let mut identity = users::resolve(root.as_fd(), options.user.as_deref().unwrap_or(&image.user))?;
        for group in &options.groups {
            identity.additional_gids.push(users::resolve(root.as_fd(), &format!("0:{group}"))?.gid);
        }
        stubs::check(&root, &self.record.image_name)?;
        let mut volumes = self.network_files(options.hostname.as_deref().unwrap_or(&self.name))?;
        let anonymous: Vec<String> = image.volumes.iter().chain(&options.anonymous_volumes).cloned().collect();
        volumes.extend(self.make_image_volumes(&root, &anonymous, &options.volumes)?);
        self.fill_named_volumes(&root, &options.volumes)?;
        let parent = options.cgroup_parent.as_deref().unwrap_or_default().trim_matches('/');
        let cgroup = Path::new("/").join(parent).join(format!("strata-{}", self.runtime_id())).display().to_string();
        let joined = joined(store, options)?;
        let setting = Setting {
            name: &self.name,
            root: mountpoint,
            cgroup: &cgroup,
            image: &image,
            identity: &identity,
            joined: &joined,
            volumes: &volumes,
        };
        let mut document = configuration(options, &setting)?;
        devices::add(&mut document, &options.devices, self.record.rootless)?;
        if options.privileges.privileged {
            devices::add_all(&mut document, self.record.rootless)?;
        }
        if self.record.rootless {
            rootless::adapt(&mut document);
            if let Some(kept) = options.keep_id {
                rootless::keep_id(&mut document, kept);
            }
        }
        self.check_startable(&root, options, &volumes, &document)?;
        if options.init {
            put_init_first(&mut document)?;
        }
        let path = self.dir.join("config.json");
        fs::write(&path, spec::serialize("config.json", &document)?).at(&path)?;
        let mounts = document["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.record.stubs = stubs::make(&root, mounts).at(mountpoint)?;
        self.save_record()
    }

    fn check_startable(&self, root: &File, options: &RunOptions, own: &[Volume], document: &Value) -> Result<()> {
        for volume in &options.volumes {
            fs::symlink_metadata(&volume.source).at(&volume.source)?;
        }
        let volumes = own.iter().chain(&options.volumes);
        let view = ContainerView::new(root.as_fd(), volumes.map(|volume| (&*volume.source, &*volume.destination)));
        check_program(&view.at(&self.record.mountpoint)?, &document["process"])
    }

    /// Removes mountpoints that were made for the runtime and are still empty.
    ///
    /// # Errors
    /// When the mount does not answer.
    pub fn remove_stubs(&self) -> Result<()> {
        let mountpoint = &self.record.mountpoint;
        let root = File::open(mountpoint).at(mountpoint)?;
        stubs::remove(&root, &self.record.stubs).at(mountpoint)
    }
}
