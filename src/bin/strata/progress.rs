//! How a load is going: a bar for each layer on a terminal, else a line for each layer.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use stratafs::image::digest::Digest;
use stratafs::store::load::Progress;
use stratafs::store::short_id;

/// The bar of one layer.
pub fn bar_of(layer: &Digest, size: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}: [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = ProgressBar::new(size).with_prefix(short_id(layer));
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

/// Reports on standard error.
pub struct Report {
    quiet: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
    size: u64,
}

impl Report {
    pub fn new(quiet: bool) -> Self {
        Self { quiet, terminal: std::io::stderr().is_terminal(), bar: None, size: 0 }
    }

    fn say(&self, diff_id: &Digest, what: &str) {
        if !self.quiet {
            super::output::tell(&format!("{}: {what}", short_id(diff_id)));
        }
    }
}

impl Progress for Report {
    fn exists(&mut self, diff_id: &Digest) {
        self.say(diff_id, "Already exists");
    }

    fn begins(&mut self, diff_id: &Digest, size: u64) {
        self.size = size;
        if self.terminal && !self.quiet {
            self.bar = Some(bar_of(diff_id, size));
        }
    }

    fn advances(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn ends(&mut self, diff_id: &Digest) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.say(diff_id, &format!("Loaded {}", super::output::size(self.size)));
    }
}
