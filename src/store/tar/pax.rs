//! Records of a PAX extended header: `length keyword=value\n` (POSIX pax, "pax Extended Header").
//!
//! Split by their lengths, never at line breaks: values are bytes, and a file capability may well hold one. (The
//! iterator of the tar crate splits at line breaks, so it cannot read those.)

/// The records of one header in order. `None` inside = the rest is malformed.
pub(super) struct Records<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Option<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.split();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record)
    }
}

impl<'a> Records<'a> {
    fn split(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().take(20).position(|byte| *byte == b' ')?;
        let digits = &self.0[..space];
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let length: usize = super::number::decimal(digits)?;
        let (record, rest) = self.0.split_at_checked(length)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        // Xattr values are any bytes; every other value is text of some kind (Go: archive/tar, validPAXRecord).
        let text = !key.starts_with(super::extended::XATTR.as_bytes());
        if key.is_empty() || key.contains(&0) || (text && value.contains(&0)) {
            return None;
        }
        self.0 = rest;
        Some((key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
        Records(bytes).collect()
    }

    #[test]
    fn records_are_split_by_length() {
        let bytes = b"11 path=a/b\n22 comment=a\nb=c\n30 x\n";
        assert_eq!(all(&bytes[..12]).as_deref(), None);
        assert_eq!(
            all(b"12 path=a/b\n9 a=b\nc=\n"),
            Some(vec![(&b"path"[..], &b"a/b"[..]), (b"a", b"b\nc=")])
        );
        assert_eq!(all(b""), Some(vec![]));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"x path=a\n"[..],
            b"99 path=a\n",
            b"8 path=a\n",
            b"10 path=ab",
            b"6 abcd\n",
            b"-9 path=a\n",
            b"+9 path=a\n",
            b"99999999999999999999999999 path=a\n",
            b" 10 path=a\n",
            b"11 path=a\0\n",
            b"0 path=a\n",
            b"2 path=a\n",
        ] {
            assert_eq!(all(bytes), None, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn an_xattr_value_may_hold_anything() {
        let bytes = b"28 SCHILY.xattr.user.x=\0\n\n=\n";
        assert_eq!(bytes.len(), 28);
        assert_eq!(all(bytes), Some(vec![(&b"SCHILY.xattr.user.x"[..], &b"\0\n\n="[..])]));
    }
}
