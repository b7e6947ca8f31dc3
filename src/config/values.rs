//! What the values of flags may look like. Each says in words what would do.

use std::path::PathBuf;
use std::time::Duration;

use keelblock_actors::launch::CapabilitySet;

use crate::puller::registry::Proxy;

pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("expected a path".to_owned());
    }
    std::path::absolute(text).map_err(|error| error.to_string())
}

/// A path below another place.
pub(super) fn below(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_below = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if is_below && !text.is_empty() {
        Ok(path)
    } else {
        Err("expected a relative path without '..'".to_owned())
    }
}

pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

pub(super) fn proxy(text: &str) -> Result<Proxy, String> {
    Proxy::parse(text, "it").map_err(|error| error.to_string())
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

pub(super) fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number".to_owned())
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    number(text).ok().filter(|&n| n > 0).ok_or_else(|| "expected a number from 1".to_owned())
}

pub(super) fn wide_number(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number from 1".to_owned())
}

/// `512`, `64K`, `4MiB`, `1G`: powers of 1024.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let shift = match text[digits..].trim().to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("expected bytes, as in 512, 64K, 4M or 1G".to_owned()),
    };
    let count: u64 =
        text[..digits].parse().map_err(|_| "expected bytes, as in 512, 64K, 4M or 1G".to_owned())?;
    count.checked_mul(1 << shift).filter(|&n| n > 0).ok_or_else(|| "out of range".to_owned())
}

/// `2`, `0.5`, `1.25`: in thousandths; what is finer is refused.
pub(crate) fn thousandths(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number above 0, as in 2 or 0.5, with at most three decimals".to_owned();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
    let all = whole.checked_mul(1000).and_then(|whole| whole.checked_add(fraction));
    all.filter(|all| *all > 0).ok_or_else(wrong)
}

pub(super) fn bytes_or_none(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { bytes(text) }
}

pub(super) fn small_bytes(text: &str) -> Result<usize, String> {
    usize::try_from(bytes(text)?).map_err(|_| "out of range".to_owned())
}

/// `10`, `10s`, `500ms`, `1min`, `1h` (Mesos writes `1mins`, `1hrs`).
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let wrong = || "expected a time, as in 10, 10s, 500ms, 1min or 1h".to_owned();
    let count: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let duration = match text[digits..].trim() {
        "" | "s" | "secs" => Duration::from_secs(count),
        "ms" => Duration::from_millis(count),
        "min" | "mins" => Duration::from_secs(count.checked_mul(60).ok_or_else(wrong)?),
        "h" | "hrs" => Duration::from_secs(count.checked_mul(3600).ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    if duration.is_zero() { Err("must be more than nothing".to_owned()) } else { Ok(duration) }
}

pub(super) fn capabilities(text: &str) -> Result<CapabilitySet, String> {
    crate::isolator::parse_capabilities(text).map_err(|error| error.to_string())
}
