//! Extended headers of a tar: long names of GNU tar, records of POSIX pax. Only what an index needs is read.

use tar::EntryType;

/// Records that belong to the header that follows them.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Whether any record was there, of whatever meaning.
    any: bool,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Takes an extension header's data; `None` when it is malformed.
    pub(super) fn take(&mut self, kind: EntryType, bytes: &[u8]) -> Option<()> {
        if kind.is_pax_global_extensions() {
            // Comments of `git archive` and the like; a global path or size makes no sense.
            return Some(());
        }
        self.any = true;
        let until_nul = || bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
        if kind.is_gnu_longname() {
            self.path = Some(until_nul());
        } else if kind.is_gnu_longlink() {
            self.link = Some(until_nul());
        } else {
            for record in pax_records(bytes) {
                let (key, value) = record?;
                match key {
                    // An empty value takes an earlier record back.
                    b"path" | b"linkpath" | b"size" if value.is_empty() => {}
                    b"path" => self.path = Some(value.to_vec()),
                    b"linkpath" => self.link = Some(value.to_vec()),
                    b"size" => self.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                    _ => {}
                }
            }
        }
        Some(())
    }
}

/// `length key=value\n`, the length counting itself (POSIX pax, "extended header"). `None` = malformed.
fn pax_records(mut bytes: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let record = (|| {
            let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|&byte| byte == b'=')?;
            bytes = &bytes[length..];
            Some((&record[..equals], &record[equals + 1..]))
        })();
        if record.is_none() {
            bytes = &[];
        }
        Some(record)
    })
}

/// Whether a header of this kind describes the one that follows it.
pub(super) fn extends(kind: EntryType) -> bool {
    kind.is_gnu_longname()
        || kind.is_gnu_longlink()
        || kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
}
