//! Early write-back: what is written of a layer goes to the disk while the rest still comes, so that the sync at the end
//! finds little left to wait for.
//!
//! The kernel starts that by itself only after seconds, or when much is dirty. It is asked for on a thread of its own: a
//! disk with a full queue makes whoever asks wait, and the unpacking is not to wait for the disk.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::erofs::Watch;
use crate::sys::{priority, sync};

/// Bytes that are asked for at once. 8 MiB: large enough for a disk to write in one go, small enough that little is left
/// at the end.
const STEP_BYTES: u64 = 8 << 20;

/// A range of a file.
type Range = (u64, u64);

/// Watches one file being written from its beginning to its end. Dropping it ends its thread after the request under way.
#[derive(Debug, Default)]
pub(super) struct WriteBack {
    /// Asked for so far.
    asked: u64,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing was worth asking for yet.
    #[default]
    Idle,
    On(SyncSender<Range>),
    /// There is no disk behind it, or nobody to ask.
    Off,
}

impl Watch for WriteBack {
    /// Fails nobody: this is a hint, and who cannot give it loses only time.
    fn written(&mut self, file: &File, end: u64, _more: u64) -> io::Result<()> {
        if end.saturating_sub(self.asked) < STEP_BYTES {
            return Ok(());
        }
        if matches!(self.state, State::Idle) {
            self.state = start(file).map_or(State::Off, State::On);
        }
        let State::On(requests) = &self.state else { return Ok(()) };
        match requests.try_send((self.asked, end)) {
            Ok(()) => self.asked = end,
            // The disk is behind: the next request takes this range along.
            Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => self.state = State::Off,
        }
        Ok(())
    }
}

fn start(file: &File) -> Option<SyncSender<Range>> {
    if sync::is_in_memory(file) {
        return None;
    }
    let file = file.try_clone().ok()?;
    let (requests, ranges) = sync_channel(1);
    let thread = std::thread::Builder::new().name("keelblock-write-back".to_owned());
    thread.spawn(move || ask(&file, &ranges)).ok()?;
    Some(requests)
}

fn ask(file: &File, ranges: &Receiver<Range>) {
    priority::lower();
    while let Ok((from, end)) = ranges.recv() {
        if sync::start_write_back(file, from, end - from).is_err() {
            // A filesystem that knows no such thing. The sync will tell if the disk is broken.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn asks_in_steps_and_never_fails_the_writer() {
        let mut file = tempfile::tempfile().unwrap();
        let mut watch = WriteBack::default();
        let chunk = vec![7; 1 << 20];
        for written in 1..=20u64 {
            file.write_all(&chunk).unwrap();
            watch.written(&file, written << 20, 1 << 20).unwrap();
            assert!(watch.asked <= written << 20);
            assert!((watch.asked > 0) <= (written >= 8), "nothing below one step");
        }
        if sync::is_in_memory(&file) {
            assert!(matches!(watch.state, State::Off) && watch.asked == 0);
        } else {
            assert!(watch.asked >= STEP_BYTES);
        }
    }
}
