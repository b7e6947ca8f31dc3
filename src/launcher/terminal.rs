//! The caller's terminal joined to a container's.
//!
//! While attached, the caller's terminal is raw: keys (Ctrl-C too) go to the container as they are, output comes
//! back as it is, and changes of the window's size are passed on. Dropping it, also by a panic, restores the
//! terminal; `std::process::exit` drops nothing, so drop it before.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Why a terminal cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The caller's cannot be read or made raw.
    #[error("cannot {act} the caller's terminal")]
    Ours {
        /// What was tried.
        act: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A copying thread cannot be made.
    #[error("cannot start a thread for the terminal")]
    Thread(#[source] io::Error),
}

/// An attached terminal. See the module.
pub struct Terminal {
    restore: Option<Termios>,
    stop: Option<OwnedFd>,
    stop_sizes: Option<oneshot::Sender<()>>,
    output: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Joins standard input and output to the master of a container's terminal (`LinuxLauncher::terminal`).
    /// Standard input need not be a terminal: then nothing is made raw.
    ///
    /// # Errors
    /// [`TerminalError`]; the caller's terminal is as before then.
    pub fn attach(master: OwnedFd) -> Result<Self, TerminalError> {
        let thread = |source| TerminalError::Thread(source);
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|source| thread(source.into()))?;
        let mut terminal = Self { restore: None, stop: Some(stop), stop_sizes: None, output: None };
        if io::stdin().is_terminal() {
            terminal.restore = Some(raw_mode()?);
            copy_size(&master);
            terminal.stop_sizes = Some(follow_sizes(master.try_clone().map_err(thread)?)?);
        }
        let to = File::from(master.try_clone().map_err(thread)?);
        std::thread::Builder::new()
            .name("keelblock-tty-in".to_owned())
            .spawn(move || copy_in(to, stopped))
            .map_err(thread)?;
        let from = File::from(master);
        let output = std::thread::Builder::new()
            .name("keelblock-tty-out".to_owned())
            .spawn(move || copy_out(from))
            .map_err(thread)?;
        terminal.output = Some(output);
        Ok(terminal)
    }

    /// Waits until all output has come (the container's side is closed), then restores the caller's terminal.
    ///
    /// # Blocking
    /// For as long as any process holds the container's side open.
    pub fn finish(mut self) {
        if let Some(output) = self.output.take() {
            let _ = output.join();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.stop_sizes.take());
        if let Some(before) = &self.restore {
            // Nobody is left to tell.
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, before);
        }
    }
}

/// Makes standard input raw; answers how it was.
fn raw_mode() -> Result<Termios, TerminalError> {
    let stdin = io::stdin();
    let ours = |act| move |source: rustix::io::Errno| TerminalError::Ours { act, source: source.into() };
    let before = tcgetattr(&stdin).map_err(ours("read the mode of"))?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(&stdin, OptionalActions::Drain, &raw).map_err(ours("make raw"))?;
    Ok(before)
}

/// Rows and columns of the caller's terminal, if standard input is one: so a container's terminal has them from
/// the start, before it is attached.
pub(super) fn callers_size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdin()).ok()?;
    Some((size.ws_row, size.ws_col)).filter(|size| *size != (0, 0))
}

fn copy_size(master: &OwnedFd) {
    // Without a size programs take 80 by 24: no reason to fail.
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        let _ = tcsetwinsize(master, size);
    }
}

/// Passes on every change of size until the answered sender is dropped. On a runtime of its own: tokio shares the
/// handler of SIGWINCH with whoever else listens.
fn follow_sizes(master: OwnedFd) -> Result<oneshot::Sender<()>, TerminalError> {
    let (stop, mut stopped) = oneshot::channel();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(TerminalError::Thread)?;
    let follow = move || {
        runtime.block_on(async {
            let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
            // A change from before anyone listened.
            copy_size(&master);
            loop {
                tokio::select! {
                    change = changes.recv() => match change {
                        Some(()) => copy_size(&master),
                        None => return,
                    },
                    _ = &mut stopped => return,
                }
            }
        });
    };
    std::thread::Builder::new()
        .name("keelblock-tty-size".to_owned())
        .spawn(follow)
        .map_err(TerminalError::Thread)?;
    Ok(stop)
}

/// Standard input to the container until either ends or `stopped` is closed at its other end.
fn copy_in(mut master: File, stopped: OwnedFd) {
    let mut buffer = [0; 4096];
    loop {
        let stdin = io::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&stopped, PollFlags::empty())];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        }
        if !ready[1].revents().is_empty() {
            return;
        }
        match rustix::io::read(stdin.as_fd(), &mut buffer) {
            // The end of a file or pipe: for a program behind a terminal that is Ctrl-D.
            Ok(0) => {
                let _ = master.write_all(&[4]);
                return;
            }
            Ok(length) => {
                if master.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The container's output to ours until its side is closed (then reading fails with EIO).
fn copy_out(mut master: File) {
    let mut buffer = [0; 8192];
    let mut stdout = io::stdout();
    loop {
        match master.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if stdout.write_all(&buffer[..length]).and_then(|()| stdout.flush()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
