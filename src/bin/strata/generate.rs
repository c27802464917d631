//! Man pages and completions, from the same definitions as the command line.

use std::io;

use anyhow::{Context, Result};
use clap::CommandFactory;

use super::args::{Cli, Completions, Man};

pub fn completions(args: &Completions) {
    clap_complete::generate(args.shell, &mut Cli::command(), "strata", &mut io::stdout());
}

pub fn man(args: &Man) -> Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| args.dir.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), &args.dir).with_context(|| args.dir.display().to_string())
}
