//! Progress of a pull on a terminal: a bar for each layer.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::progress::{LayerEvent, NoObserver, Observer};

/// Bars on standard error when that is a terminal and nobody asked for silence, else nothing. Layers that the store had
/// are shown only to those who asked for a pull.
pub(super) fn observer(quiet: bool, shows_reused: bool) -> Arc<dyn Observer> {
    if quiet || !std::io::stderr().is_terminal() {
        return Arc::new(NoObserver);
    }
    Arc::new(Bars { all: MultiProgress::new(), bars: Mutex::default(), shows_reused })
}

struct Bars {
    all: MultiProgress,
    /// By layer, or by the address of an archive.
    bars: Mutex<HashMap<String, ProgressBar>>,
    shows_reused: bool,
}

impl Observer for Bars {
    fn layer(&self, key: &LayerKey, event: LayerEvent) {
        self.show(key.to_string(), || short(key), event);
    }

    fn archive(&self, from: &str, event: LayerEvent) {
        self.show(from.to_owned(), || file_name(from), event);
    }
}

impl Bars {
    fn show(&self, what: String, prefix: impl FnOnce() -> String, event: LayerEvent) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        if event == LayerEvent::Reused && !self.shows_reused && !bars.contains_key(&what) {
            return;
        }
        let bar = bars.entry(what).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::no_length());
            bar.set_style(style("{prefix} {msg}"));
            bar.set_prefix(prefix());
            bar
        });
        match event {
            LayerEvent::Started { total } => {
                bar.set_style(style(match total {
                    Some(_) => "{prefix} [{bar:30}] {bytes:>10}/{total_bytes:<10} {bytes_per_sec} {msg}",
                    None => "{prefix} {spinner} {bytes} {bytes_per_sec} {msg}",
                }));
                bar.set_message("");
                bar.reset();
                if let Some(total) = total {
                    bar.set_length(total);
                }
            }
            LayerEvent::WaitingForOther => bar.set_message("another process is pulling it"),
            LayerEvent::Fetched { bytes } => {
                bar.inc(bytes);
                // It goes on again.
                if !bar.message().is_empty() {
                    bar.set_message("");
                }
            }
            LayerEvent::Retrying { retries } => bar.set_message(format!("retrying ({retries})")),
            // The bar counts what is read, and that is never read twice.
            LayerEvent::Resumed { .. } | LayerEvent::Again { .. } => {}
            LayerEvent::Reused => done(bar, "already here"),
            LayerEvent::Committed => done(bar, "done"),
            LayerEvent::Ended => done(bar, "ended"),
        }
    }
}

fn done(bar: &ProgressBar, message: &'static str) {
    bar.set_style(style("{prefix} {msg}"));
    bar.finish_with_message(message);
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// The end of an archive's address, cut.
fn file_name(from: &str) -> String {
    let end = from.rsplit('/').next().unwrap_or_default();
    end.chars().take(ARCHIVE_NAME_CHARS).collect()
}

/// Characters of an archive's name that are shown. 40: with the bar they fit on a line of 110.
const ARCHIVE_NAME_CHARS: usize = 40;

/// `sha256:e3b0c44298fc`: enough to tell layers apart.
fn short(key: &LayerKey) -> String {
    key.to_string().trim_start_matches("blob ").chars().take(19).collect()
}
