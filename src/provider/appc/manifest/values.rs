//! Texts that have a form: versions, times, addresses.

/// Checks the version of the specification (SemVer 2.0.0) that a manifest was written for; else says what it may be.
pub(super) fn version(text: &str) -> Result<(), &'static str> {
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
    let is_number = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'))
    };
    let is_word = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_pre = |text: &str| {
        let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        is_word(text) && (!is_digits || is_number(text))
    };
    let numbers: Vec<_> = core.split('.').collect();
    let good = numbers.len() == 3
        && numbers.iter().all(|number| is_number(number))
        && pre.is_none_or(|pre| pre.split('.').all(is_pre))
        && build.is_none_or(|build| build.split('.').all(is_word));
    match good {
        false => Err("a version as in 0.8.11 (SemVer 2.0.0)"),
        true if core == "0.0.0" => Err("a version above 0.0.0"),
        true if numbers[0] != "0" => Err("a version whose first number is 0, as in 0.8.11"),
        true => Ok(()),
    }
}

/// Whether a text is a time in the form of RFC 3339, section 5.6, with a `T`.
pub(super) fn is_date(text: &str) -> bool {
    date(text).is_some()
}

fn date(text: &str) -> Option<()> {
    let digits = |from: usize, to: usize| {
        let part = text.get(from..to)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u32>().ok())?
    };
    let is = |at: usize, byte: u8| (text.as_bytes().get(at) == Some(&byte)).then_some(());
    let within = |value: u32, most: u32| (value <= most).then_some(());
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    for (at, byte) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
        is(at, byte)?;
    }
    (1..=days).contains(&day).then_some(())?;
    within(digits(11, 13)?, 23)?;
    within(digits(14, 16)?, 59)?;
    // A leap second is one.
    within(digits(17, 19)?, 60)?;
    let mut rest = text.get(19..)?;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.bytes().take_while(u8::is_ascii_digit).count();
        (end > 0).then_some(())?;
        rest = &fraction[end..];
    }
    if rest == "Z" {
        return Some(());
    }
    let at = text.len() - rest.len();
    (rest.len() == 6 && rest.starts_with(['+', '-'])).then_some(())?;
    is(at + 3, b':')?;
    within(digits(at + 1, at + 3)?, 23)?;
    within(digits(at + 4, at + 6)?, 59)
}

/// Whether a text is an address of the web.
pub(super) fn is_web_address(text: &str) -> bool {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
        && !rest.is_empty()
        && !rest.starts_with(['/', '?', '#'])
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_semantic_and_of_major_version_zero() {
        for text in ["0.8.11", "0.1.0", "0.8.11+git", "0.5.1-rc.1+b-1.2", "0.0.1", "0.10.0-alpha"] {
            assert_eq!(version(text), Ok(()), "{text}");
        }
        for text in [
            "", "0", "0.8", "0.8.11.1", "0.08.1", "v0.8.1", "0.8.x", "0.8.1-", "0.8.1+", "0.8.1-01", "0.8.1 ",
        ] {
            assert!(version(text).is_err(), "{text}");
        }
        assert_eq!(version("0.0.0"), Err("a version above 0.0.0"));
        assert!(version("1.0.0").unwrap_err().contains("first number is 0"));
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        for text in [
            "2014-10-27T19:32:27.67021798Z",
            "2015-05-18T13:49:28.351729952-04:00",
            "2016-02-29T00:00:00Z",
            "2000-02-29T23:59:60+23:59",
        ] {
            assert!(is_date(text), "{text}");
        }
        for text in [
            "",
            "2014-10-27",
            "2014-10-27 19:32:27Z",
            "2014-10-27T19:32:27",
            "2014-13-27T19:32:27Z",
            "2015-02-29T19:32:27Z",
            "1900-02-29T19:32:27Z",
            "2014-10-27T24:32:27Z",
            "2014-10-27T19:32:27.Z",
            "2014-10-27T19:32:27+0400",
            "2014-10-27T19:32:27Zx",
            "2014-1é-27T19:32:27Z",
        ] {
            assert!(!is_date(text), "{text}");
        }
    }

    #[test]
    fn addresses_are_of_the_web() {
        for text in ["https://example.com/docs", "http://e", "HTTPS://e.com"] {
            assert!(is_web_address(text), "{text}");
        }
        for text in ["", "example.com", "ftp://e.com", "https://", "https:///x", "http://a b", "javascript:x"]
        {
            assert!(!is_web_address(text), "{text}");
        }
    }
}
