//! `df`, `info` and `version`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use stratafs::container::stratafs_program;
use stratafs::image::digest::Digest;
use stratafs::image::spec::Platform;
use stratafs::store::{Store, StoredLayer, short_id};

use super::args::{Df, Info, Version};
use super::doctor::in_path;
use super::format::{Headings, Template};
use super::images::{content_size, users};
use super::output::{print_json, print_line, print_table, size};
use super::ps::{self, Listed};

const HEADINGS: Headings = &[
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

const TABLE: &str = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";

/// The contents of the store, counted.
struct Usage {
    images: usize,
    images_in_use: usize,
    containers: Vec<Listed>,
    layers: Vec<StoredLayer>,
    /// Number of images with each layer.
    users: Vec<usize>,
    /// Layers that neither an image nor a container needs.
    idle: Vec<bool>,
    /// Number of checkpoints, and their size.
    checkpoints: (usize, u64),
}

impl Usage {
    fn of(store: &Store) -> Result<Self> {
        let users = users(store)?;
        let layers = store.all_layers()?;
        let containers = ps::with_conditions(store)?;
        let needed: BTreeSet<Digest> =
            containers.iter().flat_map(|listed| listed.container.record.layers.iter().copied()).collect();
        let counts: Vec<usize> = layers.iter().map(|layer| users.get(&layer.id()).map_or(0, Vec::len)).collect();
        let idle =
            layers.iter().zip(&counts).map(|(layer, &count)| count == 0 && !needed.contains(&layer.id())).collect();
        let images = store.images()?;
        let in_use = |id| containers.iter().any(|listed| listed.container.record.image == id);
        let images_in_use = images.iter().filter(|image| in_use(image.id())).count();
        let checkpoints = if store.is_nothing() { (0, 0) } else { store.checkpoints_size()? };
        Ok(Self { images: images.len(), images_in_use, containers, layers, users: counts, idle, checkpoints })
    }

    /// Size of the selected layers' contents; `select` gets the number of images that have the layer.
    fn layer_bytes(&self, select: impl Fn(usize) -> bool) -> u64 {
        let chosen = self.layers.iter().zip(&self.users).filter(|(_, count)| select(**count));
        chosen.map(|(layer, _)| layer.record.content_size).sum()
    }

    /// Size of layers that belong only to images without containers.
    fn idle_bytes(&self) -> u64 {
        self.layers.iter().zip(&self.idle).filter(|(_, idle)| **idle).map(|(layer, _)| layer.record.content_size).sum()
    }

    fn inventories(&self) -> Vec<u64> {
        self.layers.iter().map(StoredLayer::inventory_size).filter(|&bytes| bytes > 0).collect()
    }

    fn container_bytes(&self, select: impl Fn(&Listed) -> bool) -> u64 {
        self.containers.iter().filter(|listed| select(listed)).map(|listed| ps::written(&listed.container)).sum()
    }

    fn rows(&self) -> Vec<Value> {
        let row = |what: &str, total: usize, active: usize, bytes: u64, reclaimable: u64| {
            let share = (reclaimable * 100).checked_div(bytes).unwrap_or(0);
            json!({"Type": what, "TotalCount": total.to_string(), "Active": active.to_string(), "Size": size(bytes),
                "Reclaimable": format!("{} ({share}%)", size(reclaimable))})
        };
        let needed = |layer: &StoredLayer| {
            self.containers.iter().any(|listed| listed.container.record.layers.contains(&layer.id()))
        };
        let all: u64 = self.layer_bytes(|_| true);
        let spare: u64 = self.layers.iter().filter(|layer| !needed(layer)).map(|layer| layer.record.content_size).sum();
        let (inventories, up) = (self.inventories(), |listed: &Listed| listed.condition.is_up());
        let idle = self.idle.iter().filter(|idle| **idle).count();
        let shared = self.users.iter().filter(|count| **count > 1).count();
        vec![
            row("Images", self.images, self.images_in_use, all, spare),
            row(
                "Containers",
                self.containers.len(),
                self.containers.iter().filter(|listed| up(listed)).count(),
                self.container_bytes(|_| true),
                self.container_bytes(|listed| !up(listed)),
            ),
            row("Checkpoints", self.checkpoints.0, self.checkpoints.0, self.checkpoints.1, 0),
            row("Layers", self.layers.len(), self.layers.len() - idle, all, self.idle_bytes()),
            row("Shared layers", shared, shared, self.layer_bytes(|count| count > 1), 0),
            row("Inventories", inventories.len(), inventories.len(), inventories.iter().sum(), 0),
        ]
    }
}

pub fn usage(store: &Store, args: &Df) -> Result<()> {
    let usage = Usage::of(store)?;
    let all = usage.layer_bytes(|_| true);
    let (checkpoints, in_checkpoints) = usage.checkpoints;
    if args.json {
        return Ok(print_json(&json!({"Images": usage.images, "Containers": usage.containers.len(),
            "Checkpoints": checkpoints, "CheckpointsSize": in_checkpoints,
            "Layers": usage.layers.len(), "Size": all, "Shared": usage.layer_bytes(|count| count > 1),
            "Unused": usage.layer_bytes(|count| count == 0), "Reclaimable": usage.idle_bytes(),
            "ContainersSize": usage.container_bytes(|_| true),
            "Inventories": usage.inventories().iter().sum::<u64>()}))?);
    }
    if args.quiet {
        return Ok(print_line(&all.to_string())?);
    }
    if args.verbose {
        return verbose(store, &usage);
    }
    match &args.format {
        Some(template) => template.print(&usage.rows(), HEADINGS),
        None => Template::built_in(TABLE)?.print(&usage.rows(), HEADINGS),
    }
}

fn verbose(store: &Store, usage: &Usage) -> Result<()> {
    print_line("Images space usage:")?;
    let users = users(store)?;
    let mut rows = Vec::new();
    for image in store.images()? {
        let layers = store.layers_of(&image).unwrap_or_default();
        let is_shared = |layer: &&StoredLayer| users.get(&layer.id()).is_some_and(|users| users.len() > 1);
        let shared: u64 = layers.iter().filter(is_shared).map(|layer| layer.record.content_size).sum();
        let bytes = content_size(store, &image);
        let containers = usage.containers.iter().filter(|listed| listed.container.record.image == image.id()).count();
        rows.push(vec![
            image.label(),
            short_id(&image.id()),
            size(bytes),
            size(shared),
            size(bytes.saturating_sub(shared)),
            containers.to_string(),
        ]);
    }
    print_table(&["IMAGE", "IMAGE ID", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"], &rows)?;
    print_line("\u{a0}")?;
    print_line("Containers space usage:")?;
    let row = |listed: &Listed| {
        let container = &listed.container;
        vec![
            container.name().to_owned(),
            container.record.image_name.clone(),
            size(ps::written(container)),
            listed.condition.status.clone(),
        ]
    };
    print_table(&["NAME", "IMAGE", "SIZE", "STATUS"], &usage.containers.iter().map(row).collect::<Vec<_>>())?;
    Ok(())
}

/// The first line of a program's version output; `None` if it cannot be run.
pub fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").current_dir("/").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned).filter(|_| output.status.success())
}

/// The default OCI runtime.
fn runtime_program() -> Option<PathBuf> {
    ["runc", "crun"].iter().find_map(|name| in_path(Path::new(name)))
}

fn print_document(document: &Value, format: Option<&Template>, json: bool) -> Result<bool> {
    match format {
        Some(template) => template.print(std::slice::from_ref(document), &[]).map(|()| true),
        None if json => Ok(print_json(document).map(|()| true)?),
        None => Ok(false),
    }
}

pub fn version(args: &Version) -> Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let driver = version_of(&stratafs_program());
    let runtime = runtime_program().and_then(|program| version_of(&program));
    let platform = Platform::host().to_string();
    let (os, arch) = platform.split_once('/').unwrap_or(("linux", "unknown"));
    // There is no server; scripts that ask for its version get that of the program.
    let part = json!({"Version": own, "ApiVersion": "", "Os": os, "Arch": arch, "Driver": driver, "Runtime": runtime});
    let document = json!({"Client": part, "Server": part});
    if print_document(&document, args.format.as_ref(), args.json)? {
        return Ok(());
    }
    print_line(&format!("strata    {own} ({platform})"))?;
    print_line(&format!("stratafs  {}", driver.as_deref().unwrap_or("not found").trim_start_matches("stratafs ")))?;
    Ok(print_line(&format!("runtime   {}", runtime.as_deref().unwrap_or("not found; install runc or crun")))?)
}

pub fn info(store: &Store, args: &Info) -> Result<()> {
    let usage = Usage::of(store)?;
    let state = |wanted: &str| usage.containers.iter().filter(|listed| listed.condition.state == wanted).count();
    let (running, paused) = (state("running"), state("paused"));
    let uname = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    let rootless = !rustix::process::geteuid().is_root();
    let document = json!({
        "Containers": usage.containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": usage.containers.len() - running - paused,
        "Images": usage.images,
        "Driver": "stratafs",
        "DockerRootDir": store.root().display().to_string(),
        "DefaultRuntime": runtime_program().map(|program| program.display().to_string()),
        "KernelVersion": uname.release().to_string_lossy(),
        "OperatingSystem": system,
        "OSType": "linux",
        "Architecture": uname.machine().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": memory.totalram * u64::from(memory.mem_unit),
        "Name": uname.nodename().to_string_lossy(),
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "CgroupVersion": if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" },
        "SecurityOptions": if rootless { json!(["name=rootless"]) } else { json!([]) },
    });
    if print_document(&document, args.format.as_ref(), args.json)? {
        return Ok(());
    }
    let text = |key: &str| match &document[key] {
        Value::String(text) => text.clone(),
        Value::Null => "none; install runc or crun".to_owned(),
        other => other.to_string(),
    };
    for (what, key) in [
        ("Containers", "Containers"),
        (" Running", "ContainersRunning"),
        (" Paused", "ContainersPaused"),
        (" Stopped", "ContainersStopped"),
        ("Images", "Images"),
        ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"),
        ("Cgroup Version", "CgroupVersion"),
        ("Default Runtime", "DefaultRuntime"),
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
    ] {
        print_line(&format!("{what}: {}", text(key)))?;
    }
    print_line(&format!("Total Memory: {}", size(document["MemTotal"].as_u64().unwrap_or(0))))?;
    print_line(&format!("Name: {}", text("Name")))?;
    Ok(print_line(&format!("Store: {}", text("DockerRootDir")))?)
}
