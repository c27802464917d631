//! Man pages and completions, from the same definitions as the command line.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;

use super::args::{Cli, Completions, Man};

pub fn completions(args: &Completions) {
    clap_complete::generate(args.shell, &mut Cli::command(), "strata", &mut io::stdout());
}

pub fn man(args: &Man) -> Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| args.dir.display().to_string())?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write_page(&command, "strata", &args.dir)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_page(verb, &format!("strata-{}", verb.get_name()), &args.dir)?;
    }
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
