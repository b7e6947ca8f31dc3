//! The xattrs of one file, by their full names.

use super::error::Error;
use super::format::NAME_BYTES_MAX;

/// The namespaces that the format has numbers for.
const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
/// Names that are a number as a whole.
const WHOLE: [(u8, &[u8]); 2] = [(2, b"system.posix_acl_access"), (3, b"system.posix_acl_default")];

/// See the module. ACLs have the form in which setxattr(2) takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs {
    /// In the order in which they were first set.
    all: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Xattrs {
    /// Sets one, in place of what it was.
    pub fn set(&mut self, name: &[u8], value: Vec<u8>) {
        match self.all.iter_mut().find(|(there, _)| there == name) {
            Some((_, there)) => *there = value,
            None => self.all.push((name.to_vec(), value)),
        }
    }

    /// The value of one.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.all.iter().find(|(there, _)| there == name).map(|(_, value)| &value[..])
    }

    /// Takes one away.
    pub fn remove(&mut self, name: &[u8]) {
        self.all.retain(|(there, _)| there != name);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.all.iter().map(|(name, value)| (&name[..], &value[..]))
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        let each = |(name, value): &(Vec<u8>, Vec<u8>)| 64 + name.capacity() + value.capacity();
        self.all.iter().map(each).sum()
    }
}

/// An xattr as it is on disk, inline or shared.
pub(super) fn encode(name: &[u8], value: &[u8]) -> Result<Vec<u8>, Error> {
    let cannot = || Error::Xattr { name: String::from_utf8_lossy(name).into_owned(), bytes: value.len() };
    let whole = WHOLE.iter().find(|(_, whole)| *whole == name).map(|(number, _)| (*number, &b""[..]));
    let prefixed =
        || PREFIXES.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)));
    let (number, rest) = whole.or_else(prefixed).ok_or_else(cannot)?;
    let length = u16::try_from(value.len()).map_err(|_| cannot())?;
    if name.len() > NAME_BYTES_MAX || (rest.is_empty() && whole.is_none()) {
        return Err(cannot());
    }
    let mut raw = Vec::with_capacity((4 + rest.len() + value.len()).next_multiple_of(4));
    raw.extend_from_slice(&[rest.len() as u8, number]);
    raw.extend_from_slice(&length.to_le_bytes());
    raw.extend_from_slice(rest);
    raw.extend_from_slice(value);
    raw.resize(raw.len().next_multiple_of(4), 0);
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xattr_has_the_number_of_its_namespace_and_the_rest_of_its_name() {
        assert_eq!(encode(b"user.a", b"xyz").unwrap(), b"\x01\x01\x03\0axyz");
        assert_eq!(encode(b"trusted.ab", b"").unwrap(), b"\x02\x04\0\0ab\0\0");
        assert_eq!(encode(b"system.posix_acl_access", b"v").unwrap(), b"\x00\x02\x01\0v\0\0\0");
        for bad in [&b"user."[..], b"system.x", b"com.apple.x", b"user", b""] {
            assert!(matches!(encode(bad, b""), Err(Error::Xattr { .. })));
        }
        assert!(encode(b"user.a", &[0; 65_535]).is_ok());
        assert!(encode(b"user.a", &[0; 65_536]).is_err());
    }
}
