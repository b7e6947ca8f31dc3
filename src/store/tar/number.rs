//! Numbers as tar writes them: octal text, base-256, and decimal text in extended headers.

/// A numeric field of a header: octal digits among spaces and NULs, or base-256 when its top bit is set (GNU tar
/// manual, "Basic Tar Format"). Blank is 0, as Go's archive/tar and GNU tar read it. `None` = neither, or beyond
/// 63 bits.
pub(super) fn field(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    // Some writers put NULs first.
    let begins = field.iter().position(|byte| !matches!(byte, 0 | b' ')).unwrap_or(field.len());
    let text = field[begins..].split(|byte| *byte == 0).next().unwrap_or_default();
    // Spaces only: to Go other white space is no number, to GNU tar no end of one that has not begun.
    let digits = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    text[..digits].iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big-endian, the top bit of the first byte being the mark and the next one the sign.
fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    // At most 12 bytes, so 96 bits.
    let first = if negative { i128::from((first | 0x80) as i8) } else { i128::from(first & 0x7f) };
    let value = rest
        .iter()
        .try_fold(first, |value, byte| value.checked_mul(256).map(|value| value + i128::from(*byte)))?;
    i64::try_from(value).ok()
}

/// Decimal text.
pub(super) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Decimal seconds with a fraction, perhaps negative (pax: `mtime`), as whole seconds and nanoseconds after them.
/// Digits beyond nanoseconds are cut.
pub(super) fn seconds(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let negative = whole.starts_with('-');
    let seconds: i64 = match whole {
        "" | "-" => 0,
        whole => whole.parse().ok()?,
    };
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = nanos.fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    if negative && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_are_read_with_any_padding() {
        for (text, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0xyz\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"-1      ", None),
            // Found by the fuzz target `tar`: it passed for 0.
            (b"\x0c\x0000001\0", None),
            (b"\t644   \0", None),
            (b"644\n   \0", None),
            (b"0x1f   \0", None),
            (b"8888888\0", None),
        ] {
            assert_eq!(field(text), value, "{text:?}");
        }
    }

    #[test]
    fn base_256_fields_hold_large_and_negative_numbers() {
        assert_eq!(field(&[0x80, 0, 0, 0, 0, 0, 0, 5]), Some(5));
        assert_eq!(field(&[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]), Some(1 << 40));
        assert_eq!(field(&[0xff; 12]), Some(-1));
        let mut minus_1000 = [0xff; 12];
        minus_1000[10..].copy_from_slice(&(-1000i16).to_be_bytes());
        assert_eq!(field(&minus_1000), Some(-1000));
        assert_eq!(field(&[0xbf, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]), None);
        let mut largest = [0u8; 12];
        largest[0] = 0x80;
        largest[4..].copy_from_slice(&i64::MAX.to_be_bytes());
        assert_eq!(field(&largest), Some(i64::MAX));
    }

    #[test]
    fn seconds_round_towards_the_past() {
        assert_eq!(seconds(b"1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(seconds(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(seconds(b"0.0000000019"), Some((0, 1)));
        assert_eq!(seconds(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(seconds(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(seconds(b"-3"), Some((-3, 0)));
        for bad in [&b"1.2.3"[..], b"x", b"1.-5", b"1e9", b"\xff"] {
            assert_eq!(seconds(bad), None);
        }
    }
}
