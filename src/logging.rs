//! The one root logger. Everything below gets a child of it; nothing logs through a global.

use std::io::IsTerminal;

use slog::{Drain, Logger, o};

/// Lines that may wait for the writer; what comes on top is dropped and counted.
const LINES_QUEUED_MAX: usize = 4096;

/// A logger to standard error, in text (coloured only on a terminal) or as one JSON object a line, at `level`
/// and above. Writing happens on a thread of its own; the guard flushes it when dropped. When the writer falls
/// behind, lines are dropped and their number is logged: a log never blocks the engine.
pub fn to_stderr(level: slog::Level, json: bool) -> (Logger, impl Drop) {
    let (core, guard) = if json {
        let drain = slog_json::Json::new(std::io::stderr())
            .add_key_value(o!(
                "time" => slog::FnValue(|_| rfc3339()),
                "level" => slog::FnValue(|record| record.level().as_str()),
                "msg" => slog::PushFnValue(|record, out| out.emit(record.msg())),
            ))
            .set_newlines(true)
            .build();
        slog_async::AsyncCore::custom(drain.fuse()).chan_size(LINES_QUEUED_MAX).build_with_guard()
    } else if std::io::stderr().is_terminal() {
        let drain = slog_term::FullFormat::new(slog_term::TermDecorator::new().stderr().build()).build();
        slog_async::AsyncCore::custom(drain.fuse()).chan_size(LINES_QUEUED_MAX).build_with_guard()
    } else {
        let decorator = slog_term::PlainSyncDecorator::new(std::io::stderr());
        let drain = slog_term::FullFormat::new(decorator).use_utc_timestamp().build();
        slog_async::AsyncCore::custom(drain.fuse()).chan_size(LINES_QUEUED_MAX).build_with_guard()
    };
    (Logger::root(core.filter_level(level).ignore_res(), o!()), guard)
}

/// Now, as `2026-01-31T23:59:59.123Z`.
fn rfc3339() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    rfc3339_of(now.as_millis().try_into().unwrap_or(u64::MAX))
}

/// A time in milliseconds since 1970, as `2026-01-31T23:59:59.123Z`.
pub fn rfc3339_of(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Days to civil date, Howard Hinnant's algorithm: years begin in March, eras have 400 years.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (rest / 3_600_000, rest / 60_000 % 60);
    let (second, milli) = (rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::rfc3339_of;

    #[test]
    fn times_are_civil_dates() {
        assert_eq!(rfc3339_of(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339_of(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339_of(1_767_225_599_999), "2025-12-31T23:59:59.999Z");
    }
}
