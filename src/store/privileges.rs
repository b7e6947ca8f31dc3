//! What this process may do to files, as far as unpacking depends on it.

use std::io;

/// See [`Privileges::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Whether its user IDs are mapped: then some owners cannot be set, devices cannot be made and `trusted.` and
    /// `security.` xattrs mean nothing, which is counted in the layer's record instead of failing the layer.
    pub in_user_namespace: bool,
}

impl Privileges {
    /// Those of this process: it is in a user namespace when its ID map is any but the full one
    /// (user_namespaces(7), "User and group ID mappings").
    pub fn detect() -> io::Result<Self> {
        match std::fs::read_to_string("/proc/self/uid_map") {
            Ok(map) => Ok(Self::of_uid_map(&map)),
            // A kernel without user namespaces.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { in_user_namespace: false }),
            Err(error) => Err(error),
        }
    }

    fn of_uid_map(map: &str) -> Self {
        let full = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        Self { in_user_namespace: !full }
    }
}

/// The umask of this process. It is not changed here, even for a moment: all threads share it. If it cannot be
/// learnt, a mask of everything, with which every mode is set explicitly.
pub(super) fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_full_map_is_no_user_namespace() {
        let of = |map| Privileges::of_uid_map(map).in_user_namespace;
        assert!(!of("         0          0 4294967295\n"));
        assert!(of("         0       1000          1\n"));
        assert!(of("0 1000 1\n1 100000 65536\n"));
        assert!(of(""));
    }

    #[test]
    fn the_umask_is_read_and_not_changed() {
        assert_eq!(umask(), umask());
        assert!(umask() <= 0o777);
    }
}
