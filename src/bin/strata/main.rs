//! `strata`: container images on layer directories. Arguments, output and exit codes; the work is the library's.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. `run`, `start -a` and `exec` exit with the container's code, with 127 or
//! 126 if its program does not exist or cannot be run, and with 125 for any other failure (`exec` with 1 if the container does
//! not run).

mod archives;
mod args;
mod checkpoints;
mod complete;
mod condition;
mod containers;
mod cp;
mod doctor;
mod filters;
mod format;
mod generate;
mod help;
mod images;
mod inspect;
mod layers;
mod lifecycle;
mod logs;
mod mounts;
mod options;
mod output;
mod pictures;
mod progress;
mod ps;
mod registry;
mod running;
mod seen;
#[cfg(feature = "snapshotter")]
mod snapshotter;
mod stats;
mod upkeep;
mod usage;
mod volumes;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use stratafs::container::Container;
use stratafs::image::ImageError;
use stratafs::registry::RemoteImage;
use stratafs::store::Store;
use tracing_subscriber::EnvFilter;

use args::{Cli, OnlyLonger, Verb};

/// Variables that this program reads. Scripts unset them by setting them to an empty value.
const VARIABLES: [&str; 22] = [
    "STRATA_ROOT",
    "STRATA_DRIVER",
    "STRATA_RUNTIME",
    "STRATA_LOG",
    "SOURCE_DATE_EPOCH",
    "XDG_DATA_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "HOME",
    "TMPDIR",
    "NO_COLOR",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
];

fn main() -> ExitCode {
    stratafs::sys::environment::forget_empty(&VARIABLES);
    if let Err(error) = stratafs::sys::signals::start_program() {
        output::tell(&format!("strata: signals: {error}"));
        return ExitCode::FAILURE;
    }
    // Not among the verbs, or it would be suggested for misspelt ones.
    if let Some(words) = complete::asked() {
        complete::complete(&words);
        return ExitCode::SUCCESS;
    }
    let cli = match help::parse() {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(advice) = help::elsewhere(&error) {
                output::tell(&format!("strata: {advice}"));
                return ExitCode::from(125);
            }
            return wrong_usage(&error);
        }
    };
    let is_run = cli.verb.is_run();
    let wants_image = cli.verb.wants_image();
    let filter = EnvFilter::try_from_env("STRATA_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .without_time()
        .fmt_fields(output::log_fields())
        .with_target(false)
        .init();
    match run(cli) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::tell(&format!(
                "strata: {}{}",
                one_line(&error),
                if wants_image { remedy(&error) } else { String::new() }
            ));
            failure_code(&error, is_run)
        }
    }
}

/// Says where to get an image that is not in the store, unless its name is a misspelt one.
fn remedy(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        // An id can be parsed as a name too.
        Some(ImageError::NoSuchImage { name, near: None })
            if !name.starts_with("sha256:") && name.parse::<RemoteImage>().is_ok() =>
        {
            format!("; strata pull {name} gets one")
        }
        _ => String::new(),
    }
}

/// True if the words of a command line begin with `run`, `create` or `exec`, or with these below `container`.
fn is_verb_of_run<'w>(words: impl Iterator<Item = &'w str>) -> bool {
    let mut words = words.peekable();
    let mut verbs = std::iter::from_fn(|| {
        loop {
            match words.next()? {
                "--root" => drop(words.next()),
                option if option.starts_with('-') => {}
                verb => return Some(verb),
            }
        }
    });
    let verb = verbs.next().filter(|&verb| verb != "container").or_else(|| verbs.next());
    matches!(verb, Some("run" | "create" | "exec"))
}

/// Wrong usage of `run`, `create` and `exec` has its own exit code, as in docker, to distinguish it from the container's.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    match help::complaint(error) {
        Some(line) => output::tell(&format!("strata: {line}")),
        None => error.print().unwrap_or(()),
    }
    let words: Vec<_> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let is_run = is_verb_of_run(words.iter().map(String::as_str));
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if is_run => ExitCode::from(125),
        code => ExitCode::from(u8::try_from(code).unwrap_or(2)),
    }
}

/// 127 and 126, as in shells, if the container's program does not exist or cannot be run; otherwise 125 for `run` and
/// `exec`, and 1 for other verbs.
fn failure_code(error: &anyhow::Error, is_run: bool) -> ExitCode {
    match error.downcast_ref().map(ImageError::exit_code) {
        Some(125) | None if !is_run => ExitCode::FAILURE,
        code => ExitCode::from(code.unwrap_or(125)),
    }
}

/// The error and its causes; most errors of the library include their cause.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line = if line.is_empty() { cause } else { format!("{line}: {cause}") };
        }
    }
    line.replace('\n', " ")
}

/// True for verbs that mount and run, and write no file for the user.
fn is_about_containers(verb: &Verb) -> bool {
    matches!(
        verb,
        Verb::Mount(_)
            | Verb::Umount(_)
            | Verb::Run(_)
            | Verb::Create(_)
            | Verb::Start(_)
            | Verb::Restart(_)
            | Verb::Exec(_)
            | Verb::Stop(_)
            | Verb::Rm(_)
            | Verb::Checkpoint(_)
            | Verb::Rollback(_)
            | Verb::Fork(_)
            | Verb::Supervise(_)
    )
}

/// A closed pipe (`strata images | head -1`) is not a failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    error.chain().any(broken) && output::is_abandoned()
}

fn run(cli: Cli) -> Result<ExitCode> {
    let verb = match cli.verb.plain() {
        Ok(verb) => verb,
        Err(verb) => return run_only_longer(cli.root, &verb),
    };
    let done = match &verb {
        Verb::Unpack(unpack) => archives::unpack(unpack),
        Verb::Snapshot(snapshot) => archives::snapshot(snapshot),
        Verb::Inventory(inventory) => archives::inventory(inventory),
        Verb::Man(man) => generate::man(man),
        Verb::Completions(completions) => generate::completions(completions),
        Verb::Login(login) => registry::login(login),
        Verb::Logout(logout) => registry::logout(logout),
        Verb::Mounts(mounts) => mounts::run(mounts),
        Verb::Checkpoint(checkpoint) if let Some((mountpoint, dir)) = checkpoint.of_mount() => {
            checkpoints::of_mount(mountpoint, dir)
        }
        #[cfg(feature = "snapshotter")]
        Verb::Snapshotter(arguments) => snapshotter::run(arguments),
        Verb::Version(version) => usage::version(version),
        Verb::Doctor(doctor) => return doctor::run(cli.root, doctor),
        _ => return run_on_store(cli.root, verb),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn root_of(wanted: Option<PathBuf>) -> Result<PathBuf> {
    Ok(wanted.map_or_else(Store::default_root, Ok)?)
}

fn run_only_longer(root: Option<PathBuf>, verb: &OnlyLonger) -> Result<ExitCode> {
    let root = root_of(root)?;
    let store = match verb {
        OnlyLonger::ContainerExists(_) | OnlyLonger::ImageExists(_) => Store::open_for_reading(&root)?,
        _ => Store::open(&root)?,
    };
    match verb {
        OnlyLonger::PruneContainers(prune) => upkeep::prune_containers(&store, prune)?,
        OnlyLonger::PruneImages(prune) => upkeep::prune_images(&store, prune)?,
        OnlyLonger::PruneSystem(prune) => upkeep::prune_system(&store, prune)?,
        OnlyLonger::ContainerExists(exists) => {
            return Ok(volumes::found(!store.is_nothing() && Container::open(&store, &exists.name).is_ok()));
        }
        OnlyLonger::ImageExists(exists) => return Ok(volumes::found(store.find(&exists.name).is_ok())),
    }
    Ok(ExitCode::SUCCESS)
}

fn run_on_store(root: Option<PathBuf>, verb: Verb) -> Result<ExitCode> {
    let root = root_of(root)?;
    let store = match verb.only_reads() {
        true => Store::open_for_reading(&root)?,
        false => Store::open(&root)?,
    };
    if is_about_containers(&verb) {
        // The caller's umask must not affect files made for a container.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    }
    match verb {
        Verb::Pull(pull) => registry::pull(&store, &pull)?,
        Verb::Push(push) => registry::push(&store, &push)?,
        Verb::Load(load) => archives::load(&store, &load)?,
        Verb::Import(import) => archives::import(&store, &import)?,
        Verb::Save(save) => archives::save(&store, &save)?,
        Verb::Export(export) => archives::export(&store, &export)?,
        Verb::Flatten(flatten) => archives::flatten(&store, &flatten)?,
        Verb::Commit(commit) => archives::commit(&store, &commit)?,
        Verb::Images(list) => images::list(&store, &list)?,
        Verb::Inspect(inspect) => inspect::inspect(&store, &inspect)?,
        Verb::History(history) => inspect::history(&store, &history)?,
        Verb::Tag(tag) => images::tag(&store, &tag)?,
        Verb::Rmi(rmi) => images::remove(&store, &rmi)?,
        Verb::Layers(layers) => layers::layers(&store, &layers)?,
        Verb::Report(report) => pictures::report(&store, &report)?,
        Verb::Which(which) => layers::which(&store, &which)?,
        Verb::Gc(gc) => upkeep::gc(&store, &gc)?,
        Verb::Verify(verify) => return upkeep::verify(&store, &verify),
        Verb::Df(df) => usage::usage(&store, &df)?,
        Verb::Info(info) => usage::info(&store, &info)?,
        Verb::Mount(mount) => containers::mount(&store, &mount)?,
        Verb::Umount(umount) => containers::umount(&store, &umount)?,
        Verb::Run(run) => return running::run(&store, *run),
        Verb::Exec(exec) => return running::exec(&store, exec),
        Verb::Ps(ps) => ps::list(&store, &ps)?,
        Verb::Stats(stats) => stats::run(&store, &stats)?,
        Verb::Create(create) => running::create(&store, *create)?,
        Verb::Start(start) => return running::start(&store, &start),
        Verb::Attach(attach) => return running::attach(&store, &attach),
        Verb::Stop(stop) => lifecycle::stop(&store, &stop)?,
        Verb::Restart(restart) => return lifecycle::restart(&store, &restart),
        Verb::Kill(kill) => lifecycle::kill(&store, &kill)?,
        Verb::Wait(wait) => lifecycle::wait(&store, &wait)?,
        Verb::Rename(rename) => lifecycle::rename(&store, &rename)?,
        Verb::Pause(pause) => lifecycle::pause(&store, &pause, true)?,
        Verb::Unpause(unpause) => lifecycle::pause(&store, &unpause.pause, false)?,
        Verb::Port(port) => lifecycle::port(&store, &port)?,
        Verb::Volume(volume) => return volumes::run(&store, &volume),
        Verb::Top(top) => return lifecycle::top(&store, &top),
        Verb::Rm(rm) => containers::remove(&store, &rm)?,
        Verb::Logs(logs) => logs::logs(&store, &logs)?,
        Verb::Cp(cp) => cp::run(&store, &cp)?,
        Verb::Diff(diff) => containers::diff(&store, &diff)?,
        Verb::Supervise(supervise) => return running::supervise(&store, &supervise),
        Verb::Checkpoint(checkpoint) => checkpoints::run(&store, &checkpoint)?,
        Verb::Rollback(rollback) => checkpoints::rollback(&store, &rollback)?,
        Verb::Fork(fork) => checkpoints::fork(&store, &fork)?,
        // These need no store, or are other names of verbs.
        Verb::Login(_)
        | Verb::Logout(_)
        | Verb::Unpack(_)
        | Verb::Snapshot(_)
        | Verb::Inventory(_)
        | Verb::Man(_)
        | Verb::Completions(_)
        | Verb::Doctor(_)
        | Verb::Mounts(_)
        | Verb::Version(_)
        | Verb::Container(_)
        | Verb::Image(_)
        | Verb::System(_) => {}
        #[cfg(feature = "snapshotter")]
        Verb::Snapshotter(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_that_run_are_told_by_their_place() {
        for (line, expected) in [
            ("run image", true),
            ("--root /s exec -it c sh", true),
            ("--root=/s create image", true),
            ("container run image", true),
            ("checkpoint create web", false),
            ("volume create v", false),
            ("rm run", false),
            ("--root run", false),
            ("", false),
        ] {
            assert_eq!(is_verb_of_run(line.split(' ')), expected, "{line}");
        }
    }
}
