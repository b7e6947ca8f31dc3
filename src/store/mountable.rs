//! Whether images of layers can be mounted here: tried.

use std::io;

use super::stage::Stage;

pub(super) fn try_it(_: &Stage) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
