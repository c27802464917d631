//! Progress of a load: a bar for each layer on a terminal, otherwise a line for each layer.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use stratafs::image::digest::Digest;
use stratafs::store::load::Progress;
use stratafs::store::short_id;

/// The bar of one layer.
pub fn bar_of(layer: &Digest, size: u64) -> ProgressBar {
    bar(short_id(layer), Some(size))
}

/// A bar for a known number of bytes; a count if the number is not known.
fn bar(what: String, size: Option<u64>) -> ProgressBar {
    // Decimal units, as in other output.
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{prefix}: [{bar:40}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}",
        ),
        None => (ProgressBar::no_length(), "{prefix}: {decimal_bytes} {decimal_bytes_per_sec}"),
    };
    let bar = bar.with_prefix(what);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The progress of one piece of work: a bar on a terminal, nothing elsewhere. It is removed when this is dropped.
pub struct Meter(ProgressBar);

impl Meter {
    /// `what` names the work; `size` is its number of bytes, if known.
    pub fn new(what: &str, size: Option<u64>) -> Self {
        Self(bar(what.to_owned(), size))
    }

    /// The function to call with the number of bytes done since its last call.
    pub fn advance(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let bar = self.0.clone();
        move |bytes| bar.inc(bytes)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
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
