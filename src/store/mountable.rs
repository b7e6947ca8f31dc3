//! Whether images of layers can be mounted here: tried with one that has nothing in it, in the directory where layers are
//! made. The mount is attached nowhere, so that none is left whatever moment the process dies.

use std::fs::File;
use std::io;
use std::path::Path;

use super::layout::IMAGE;
use super::shown::mount_image;
use super::stage::Stage;
use crate::erofs::{NoWatch, Options, Writer};

/// Tries it in a staging directory, which may be used afterwards. Some ten system calls.
///
/// # Errors
/// What the kernel says: that it does not know the file system, that it mounts no files and has no loop devices, or that this
/// process may not mount.
pub(super) fn try_it(stage: &Stage) -> io::Result<()> {
    let path = stage.path().join(IMAGE);
    let tried = make(&path).and_then(|()| mount_image(&path).map(drop));
    std::fs::remove_file(&path)?;
    tried
}

fn make(path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    let writer = Writer::new(file, None, Options::default(), Box::new(NoWatch));
    writer.finish().map(drop).map_err(io::Error::other)
}
