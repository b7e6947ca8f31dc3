//! Whether images of layers can be mounted here: tried.

use std::io;

use super::layout::Layout;

pub(super) fn try_it(_: &Layout) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
