//! Verbs about registries.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use serde_json::{Value, json};
use stratafs::image::digest::Digest;
use stratafs::image::reference::Reference;
use stratafs::image::spec::Platform;
use stratafs::registry::credentials::Files;
use stratafs::registry::{self, Options, Progress, PushOptions, RemoteImage};
use stratafs::store::load::LoadOptions;
use stratafs::store::{Image, Store, short_id};

use super::archives::unpack_options;
use super::args::{Login, Logout, Pull, Push, RegistryArgs};
use super::output::{each, print_json, print_line};
use super::progress::bar_of;

/// Maximum length of a password.
const PASSWORD_LIMIT: u64 = 64 << 10;

/// Several layers at once: a bar for each on a terminal, otherwise a line for each when it is done.
struct Report {
    quiet: bool,
    all: MultiProgress,
    bars: Mutex<BTreeMap<Digest, ProgressBar>>,
}

impl Report {
    fn new(quiet: bool) -> Self {
        let target = match quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        Self { quiet, all: MultiProgress::with_draw_target(target), bars: Mutex::default() }
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            self.all.suspend(|| super::output::tell(line));
        }
    }

    fn bar(&self, layer: &Digest) -> Option<ProgressBar> {
        self.bars.lock().ok()?.get(layer).cloned()
    }
}

impl Progress for Report {
    fn skips(&self, layer: &Digest, why: &str) {
        if let Some(bar) = self.bars.lock().ok().and_then(|mut bars| bars.remove(layer)) {
            bar.finish_and_clear();
        }
        self.say(&format!("{}: {why}", short_id(layer)));
    }

    fn begins(&self, layer: &Digest, size: u64) {
        if let Ok(mut bars) = self.bars.lock() {
            let bar = bars.entry(*layer).or_insert_with(|| self.all.add(bar_of(layer, size)));
            // It may have shown the compression.
            bar.set_prefix(short_id(layer));
            bar.set_length(size);
        }
    }

    fn compresses(&self, layer: &Digest, position: u64, size: u64) {
        if let Ok(mut bars) = self.bars.lock() {
            let bar = bars.entry(*layer).or_insert_with(|| self.all.add(bar_of(layer, size)));
            bar.set_prefix(format!("{} compressing", short_id(layer)));
            bar.set_position(position);
        }
    }

    fn reaches(&self, layer: &Digest, position: u64) {
        if let Some(bar) = self.bar(layer) {
            bar.set_position(position);
        }
    }

    fn ends(&self, layer: &Digest, how: &str) {
        if let Some(bar) = self.bar(layer) {
            bar.finish_and_clear();
        }
        self.say(&format!("{}: {how}", short_id(layer)));
    }

    fn waits(&self, why: &str) {
        self.say(why);
    }
}

fn options(args: &RegistryArgs) -> Options {
    Options {
        plain_http: args.plain_http,
        certificates: args.cert_dir.clone(),
        credentials: Files::of_user(args.authfile.clone()),
    }
}

/// Pulls an image for a container. Reports only on standard error: standard output is the container's.
pub fn fetch(
    store: &Store,
    image: &RemoteImage,
    platform: Option<Platform>,
    args: &RegistryArgs,
    quiet: bool,
) -> Result<()> {
    let report = Report::new(quiet);
    report.say(&format!("Pulling {} from {}", image.name, image.name.domain()));
    let how = LoadOptions { platform, ..LoadOptions::default() };
    let mut transaction = store.begin()?;
    registry::pull(&mut transaction, image, &options(args), &how, &report)?;
    Ok(transaction.publish()?)
}

pub fn pull(store: &Store, args: &Pull) -> Result<()> {
    if args.artifact {
        let [name] = &args.names[..] else { bail!("--artifact is for one name") };
        return pull_artifact(args, name);
    }
    let mut pulled = Vec::new();
    let outcome = each(&args.names, |name| {
        pulled.push(pull_one(store, args, name)?);
        Ok(())
    });
    if args.json {
        print_json(&Value::Array(pulled))?;
    }
    outcome
}

/// A name with its tag, or with the digest that was requested.
fn asked(image: &RemoteImage) -> String {
    match &image.digest {
        Some(digest) => image.name.at_digest(digest),
        None => image.name.to_string(),
    }
}

fn pull_artifact(args: &Pull, name: &RemoteImage) -> Result<()> {
    let report = Report::new(args.quiet);
    report.say(&format!("Pulling {} from {}", asked(name), name.name.domain()));
    let dir = args.output.as_ref().context("--artifact needs --output")?;
    let written = registry::pull_artifact(name, dir, args.platform.as_ref(), &options(&args.registry), &report)?;
    if !args.quiet {
        print_line(&format!("Digest: {}", written.digest))?;
    }
    Ok(written.files.iter().try_for_each(|file| print_line(&dir.join(file).display().to_string()))?)
}

fn pull_one(store: &Store, args: &Pull, name: &RemoteImage) -> Result<Value> {
    let asked = asked(name);
    let options_of_load = LoadOptions {
        platform: args.platform.clone(),
        keep_blobs: args.keep_blobs,
        unpack: unpack_options(&args.limits),
    };
    let report = Report::new(args.quiet);
    report.say(&format!("Pulling {asked} from {}", name.name.domain()));
    let before = store.find(&asked).ok().map(|image| image.id());
    let mut transaction = store.begin()?;
    let pulled = registry::pull(&mut transaction, name, &options(&args.registry), &options_of_load, &report)?;
    transaction.publish()?;
    let is_new = before != Some(pulled.id);
    if args.quiet {
        print_line(&asked)?;
    } else if !args.json {
        let status = if is_new { "Downloaded newer image for" } else { "Image is up to date for" };
        print_line(&format!("Digest: {}", pulled.digest))?;
        print_line(&format!("Status: {status} {asked}"))?;
        print_line(&pulled.id.to_string())?;
    }
    let tags = if name.digest.is_some() { Vec::new() } else { vec![&asked] };
    Ok(json!({"Id": pulled.id, "RepoTags": tags, "RepoDigests": [name.name.at_digest(&pulled.digest)],
        "Digest": pulled.digest, "Downloaded": is_new}))
}

pub fn push(store: &Store, args: &Push) -> Result<()> {
    let image = store.find(&args.image)?;
    let name = args.name.clone().map_or_else(|| name_of(&image, &args.image), Ok)?;
    let report = Report::new(args.quiet);
    report.say(&format!("Pushing {name} to {}", name.domain()));
    let options_of_push = PushOptions { compression: args.compression.map(Into::into) };
    let pushed = registry::push(store, &image, &name, &options(&args.registry), options_of_push, &report)?;
    if args.quiet {
        return Ok(print_line(&pushed.digest.to_string())?);
    }
    Ok(print_line(&format!("{}: digest: {} size: {}", name.tag(), pushed.digest, pushed.size))?)
}

/// The name by which the image was given; an error for an id.
fn name_of(image: &Image, text: &str) -> Result<Reference> {
    let asked: Option<Reference> = text.split('@').next().and_then(|name| name.parse().ok());
    let local = asked.as_ref().and_then(Reference::at_localhost);
    let name = [asked, local].into_iter().flatten().find(|name| image.names.contains(name));
    name.with_context(|| format!("{text}: is no name to push it as; give one after it"))
}

/// The name of a registry in images' names, and the path of the repositories that a password is for, if it is not for
/// all of them.
fn check_host(host: &str) -> Result<(String, String)> {
    let host = host.strip_prefix("https://").unwrap_or(host).trim_end_matches('/');
    let (domain, path) = host.split_once('/').map_or((host, ""), |(domain, path)| (domain, path));
    let domain = if matches!(domain, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { domain };
    let key = if path.is_empty() { domain.to_owned() } else { format!("{domain}/{path}") };
    match format!("{key}/x").parse::<Reference>() {
        Ok(name) if name.domain() == domain => Ok((domain.to_owned(), key)),
        _ => bail!("{host}: a registry reads HOST[:PORT][/PATH]"),
    }
}

pub fn login(args: &Login) -> Result<()> {
    let (host, key) = check_host(&args.host)?;
    let options = options(&args.registry);
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask("Username: ", true)?,
    };
    let password = match args.password_stdin {
        true => {
            let mut text = String::new();
            io::stdin().take(PASSWORD_LIMIT).read_to_string(&mut text)?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        false => ask("Password: ", false)?,
    };
    if user.is_empty() || user.contains(':') || password.is_empty() {
        bail!("{host}: a name (without a colon) and a password are needed");
    }
    registry::log_in(&host, &user, &password, &options, &Report::new(false))?;
    let place = options.credentials.keep(&key, &user, &password)?;
    Ok(print_line(&format!("Login succeeded; the password is kept in {place}"))?)
}

pub fn logout(args: &Logout) -> Result<()> {
    let (_, key) = check_host(&args.host)?;
    match Files::of_user(args.authfile.clone()).forget(&key)? {
        true => Ok(print_line(&format!("Removed the password for {key}"))?),
        false => bail!("{key}: no password is kept for it"),
    }
}

/// Asks on the terminal; a secret does not appear there.
fn ask(question: &str, shown: bool) -> Result<String> {
    const INTERRUPT: u8 = 3;
    let tty = File::options().read(true).write(true).open("/dev/tty").ok().filter(|_| io::stdin().is_terminal());
    let tty = tty.context("no terminal to ask for a password; give -u NAME --password-stdin")?;
    (&tty).write_all(question.as_bytes())?;
    let before = tcgetattr(&tty)?;
    if !shown {
        let mut silent = before.clone();
        // An interrupt ends the line instead of this process, which must restore the terminal's echo.
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(&tty, OptionalActions::Flush, &silent)?;
    }
    let mut line = Vec::new();
    let mut byte = [0];
    let read = loop {
        match (&tty).read(&mut byte) {
            Ok(0) => break Ok(()),
            Ok(_) if byte == *b"\n" || line.len() as u64 > PASSWORD_LIMIT => break Ok(()),
            Ok(_) if byte == [INTERRUPT] => break Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    if !shown {
        tcsetattr(&tty, OptionalActions::Flush, &before)?;
        (&tty).write_all(b"\n")?;
    }
    read?;
    String::from_utf8(line).context("what was typed")
}
