//! Descriptors that are made for a child before it is: standard streams, sockets.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use keelblock_actors::launch::{LaunchPlan, StdioSpec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::error::LauncherError;
use super::launched;

/// Descriptors that the parent opened for the child.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Channels {
    /// Standard streams, where they are not the caller's.
    pub(super) streams: Option<[RawFd; 3]>,
    /// `/dev/null`, for what follows a terminal.
    pub(super) null: Option<RawFd>,
    /// Where the terminal's master goes.
    pub(super) terminal: Option<RawFd>,
    /// Its rows and columns at first.
    pub(super) size: Option<(u16, u16)>,
}

/// Our end and theirs.
pub(super) fn socket_pair(kind: SocketType) -> Result<(OwnedFd, OwnedFd), LauncherError> {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(|source| LauncherError::Channel { what: "a socket pair", source: source.into() })
}

/// `/dev/null`, to read and write.
pub(super) fn null() -> Result<OwnedFd, LauncherError> {
    let path = Path::new("/dev/null");
    let file = File::options().read(true).write(true).open(path);
    file.map(OwnedFd::from).map_err(|source| LauncherError::File {
        act: "open",
        path: path.to_owned(),
        source,
    })
}

/// Opens what the standard streams shall be; `None` = the caller's own.
pub(super) fn streams(
    plan: &LaunchPlan,
    keep: &mut Vec<OwnedFd>,
) -> Result<Option<[RawFd; 3]>, LauncherError> {
    let null = Path::new("/dev/null");
    let mut open = |path: &Path, write: bool, create: bool| {
        let mut options = File::options();
        options.read(!write).append(write && create).write(write).create(create).mode(0o644);
        // The sandbox may be the container's to write: never through its links.
        options.custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NOCTTY).bits() as i32);
        let file = options.open(path).map_err(|source| LauncherError::File {
            act: "open",
            path: path.to_owned(),
            source,
        })?;
        let file = OwnedFd::from(file);
        let raw = launched::raw(&file);
        keep.push(file);
        Ok::<_, LauncherError>(raw)
    };
    Ok(match plan.stdio {
        StdioSpec::Inherit => None,
        StdioSpec::Null => {
            Some([open(null, false, false)?, open(null, true, false)?, open(null, true, false)?])
        }
        StdioSpec::Sandbox => Some([
            open(null, false, false)?,
            open(&plan.sandbox.join("stdout"), true, true)?,
            open(&plan.sandbox.join("stderr"), true, true)?,
        ]),
    })
}
