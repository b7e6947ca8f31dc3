//! Extended headers of a tar: long names of GNU tar, records of POSIX pax. Only what an index needs is read.

use tar::EntryType;

/// Records that belong to the header that follows them.
#[derive(Default)]
pub(super) struct Pending {
    /// By GNU tar's long headers, which win over records whatever their order, as in Go's archive/tar.
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// By records.
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Whether any record was there, of whatever meaning.
    any: bool,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// The name, where it is not that of the header.
    pub(super) fn path(&self) -> Option<&[u8]> {
        self.long_path.as_deref().or(self.path.as_deref())
    }

    /// The target of a link, likewise.
    pub(super) fn link(&self) -> Option<&[u8]> {
        self.long_link.as_deref().or(self.link.as_deref())
    }

    /// Takes an extension header's data; `None` when it is malformed.
    pub(super) fn take(&mut self, kind: EntryType, bytes: &[u8]) -> Option<()> {
        if kind.is_pax_global_extensions() {
            // Comments of `git archive` and the like; a global path or size makes no sense.
            return Some(());
        }
        self.any = true;
        // An empty name counts as none.
        let until_nul = || bytes.split(|&byte| byte == 0).next().filter(|name| !name.is_empty());
        if kind.is_gnu_longname() {
            self.long_path = until_nul().map(<[u8]>::to_vec);
        } else if kind.is_gnu_longlink() {
            self.long_link = until_nul().map(<[u8]>::to_vec);
        } else {
            // Of two in a row the first counts for nothing.
            (self.path, self.link, self.size) = (None, None, None);
            for record in pax_records(bytes) {
                let (key, value) = record?;
                // An empty value takes an earlier record back.
                let some = (!value.is_empty()).then_some(value);
                match key {
                    b"path" => self.path = some.map(<[u8]>::to_vec),
                    b"linkpath" => self.link = some.map(<[u8]>::to_vec),
                    b"size" => {
                        let number = |value| std::str::from_utf8(value).ok()?.parse().ok();
                        self.size = some.map(|value| number(value).ok_or(())).transpose().ok()?;
                    }
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
