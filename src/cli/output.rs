//! What people and programs read on standard output.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::Serialize;

/// Standard output: tables for people, or one JSON document for programs.
#[derive(Clone)]
pub(super) struct Output {
    json: bool,
    /// Standard output as it was, when a container was given another.
    aside: Arc<std::sync::Mutex<Option<OwnedFd>>>,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json, aside: Arc::default() }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// With `--json` the document is all that may appear on standard output: what containers print there goes
    /// to standard error from now on.
    pub(super) fn keep_containers_off(&self) -> std::io::Result<()> {
        if !self.json {
            return Ok(());
        }
        let ours = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3)?;
        nix::unistd::dup2_stdout(std::io::stderr())?;
        if let Ok(mut aside) = self.aside.lock() {
            *aside = Some(ours);
        }
        Ok(())
    }

    /// One document, with `--json`; else these lines as they are.
    pub(super) fn print(&self, document: &impl Serialize, text: impl FnOnce() -> String) {
        let text = if self.json {
            let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
            text.push('\n');
            text
        } else {
            text()
        };
        let aside =
            self.aside.lock().ok().and_then(|aside| aside.as_ref().and_then(|fd| fd.try_clone().ok()));
        // A reader that closed its end has read enough.
        let _ = match aside {
            Some(fd) => std::fs::File::from(fd).write_all(text.as_bytes()),
            None => std::io::stdout().write_all(text.as_bytes()),
        };
    }

    /// The document of a command that failed.
    pub(super) fn failure(&self, error: &str, exit_status: u8) {
        if self.json {
            self.print(&serde_json::json!({ "error": error, "exit_status": exit_status }), String::new);
        }
    }
}

/// Foreign text on one line: control characters escaped, so that no terminal obeys them.
pub(super) fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

/// Rows below a head, columns aligned, each line ended.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Bytes as people read them: `1.5 MiB`.
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A time in milliseconds since 1970 as people read it: `5 minutes ago`.
pub(super) fn ago(ms: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).saturating_sub(ms) / 1000;
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_has_no_trailing_blanks() {
        let rows = [vec!["docker".to_owned(), "a".to_owned()], vec!["oci".to_owned(), "long".to_owned()]];
        assert_eq!(table(&["KIND", "NAME"], &rows), "KIND    NAME\ndocker  a\noci     long\n");
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
    }
}
