//! Man pages and completions, from the same definitions as the command line.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use stratafs::config::manual;

use super::args::{Cli, Completions, Man};
use super::output::tell;

pub fn completions(args: &Completions) -> Result<()> {
    clap_complete::generate(args.shell, &mut Cli::command(), "strata", &mut io::stdout());
    Ok(())
}

pub fn man(args: &Man) -> Result<()> {
    match &args.dir {
        Some(dir) => write_pages(dir),
        None => install(&share()?),
    }
}

/// Writes the page of `strata` and one for each verb.
fn write_pages(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write_page(&command, "strata", dir)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_page(verb, &format!("strata-{}", verb.get_name()), dir)?;
    }
    Ok(())
}

/// The directory for what a user or root installs beside the packages.
fn share() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/usr/local/share"));
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let share = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    share.context("neither XDG_DATA_HOME nor HOME is set; give a directory")
}

/// Manuals of both programs, and completions for the shells, in the places below `share` where they are looked for.
fn install(share: &Path) -> Result<()> {
    let pages = share.join("man/man1");
    write_pages(&pages)?;
    let page = manual::man_page(env!("CARGO_PKG_VERSION")).into_bytes();
    let mut files = vec![(pages.join("stratafs.1"), page)];
    let bash = share.join("bash-completion/completions");
    files.push((bash.join("stratafs"), manual::bash_completion().into_bytes()));
    for (shell, path) in [
        (Shell::Bash, bash.join("strata")),
        (Shell::Zsh, share.join("zsh/site-functions/_strata")),
        (Shell::Fish, share.join("fish/vendor_completions.d/strata.fish")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "strata", &mut text);
        files.push((path, text));
    }
    for (path, text) in files {
        let place = || path.display().to_string();
        path.parent().map_or(Ok(()), std::fs::create_dir_all).with_context(place)?;
        std::fs::write(&path, text).with_context(place)?;
    }
    tell(&format!("manuals and completions are below {}; read them with `man strata`", share.display()));
    Ok(())
}

/// The generator puts what follows the help under EXTRA; readers of manuals look for other headings.
fn write_page(command: &clap::Command, name: &str, dir: &Path) -> Result<()> {
    let source = concat!("strata ", env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name).source(source).render(&mut page)?;
    let page = String::from_utf8(page).context("man page")?;
    let page = page
        .replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n")
        .replace(".SH EXTRA\nExit codes: ", ".SH \"EXIT STATUS\"\n")
        .replace(".SH EXTRA\n", ".SH NOTES\n")
        .replace("\nExamples:\n", "\n.SH EXAMPLES\n");
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page).with_context(|| path.display().to_string())
}
