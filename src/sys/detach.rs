//! Leaving the process that started us, and whoever started that.

use std::io;

use super::process;

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that was started; it has nothing more to do.
    Parent,
    /// Its child, on its own.
    Child,
}

/// Goes on in a child that is in a session of its own and holds no descriptor beyond the three standard ones; whoever
/// waits for this process is free once it exits. To be called first thing, while the process has one thread and has
/// opened nothing.
pub(crate) fn detach() -> io::Result<Side> {
    // Whatever a careless caller let us inherit: a pipe whose end somebody waits for, a lock.
    // SAFETY: closes descriptors; nothing in this process has any beyond the standard ones yet.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if process::fork()? != 0 {
        return Ok(Side::Parent);
    }
    rustix::process::setsid()?;
    Ok(Side::Child)
}
