//! Memory that a supervisor keeps when it sheds that of the launching process: what its hooks, and a command that
//! follows hooks, are made of.
//!
//! It is filled before the clone and sealed: read-only mappings are not shed. What lies in it points into it and to
//! nothing else. Its pages go with the supervisor; the launching process unmaps its own once it has cloned.

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use super::{Groups, Op, Process, StringArray};

/// One process of a story, before it is laid down.
pub(crate) struct Scene {
    /// What it does before exec; of the ops for the file tree, none.
    pub(crate) ops: Vec<Op>,
    /// Files to try to execute, in order.
    pub(crate) candidates: StringArray,
    /// `argv`.
    pub(crate) argv: StringArray,
    /// `envp`.
    pub(crate) environment: StringArray,
}

/// All processes of a container with hooks, in their order.
pub(crate) struct Story {
    _arena: Arena,
    seen: Seen,
}

/// What of a story is on the supervisor's stack.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    processes: *const Process,
    /// How many pre-start hooks there are; the command follows them.
    pub(super) before: usize,
    /// How many post-stop hooks there are, after the command.
    pub(super) after: usize,
    /// Where failures of post-stop hooks are told.
    pub(super) late: RawFd,
    /// Capabilities that the supervisor needs to fork them.
    pub(super) capabilities: u64,
}

// SAFETY: the pointers lead into the arena, which is sealed and goes with the story.
unsafe impl Send for Story {}
// SAFETY: as above; shared reads only.
unsafe impl Sync for Story {}

impl Story {
    /// Lays a story down.
    pub(crate) fn new(
        before: &[Scene],
        command: &Scene,
        after: &[Scene],
        late: RawFd,
        capabilities: u64,
    ) -> io::Result<Self> {
        let scenes: Vec<&Scene> = before.iter().chain([command]).chain(after).collect();
        let room: usize = scenes.iter().map(|scene| scene.room()).sum();
        let mut arena = Arena::new(room + scenes.len() * size_of::<Process>() + ALIGNED)?;
        let processes = scenes.iter().map(|scene| scene.lay(&mut arena)).collect::<Option<Vec<_>>>();
        let processes = processes.and_then(|processes| arena.put(processes));
        let processes =
            processes.ok_or_else(|| io::Error::other("a hook is made of what does not fit its memory"))?;
        arena.seal()?;
        let seen = Seen { processes, before: before.len(), after: after.len(), late, capabilities };
        Ok(Self { _arena: arena, seen })
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen
    }
}

impl Seen {
    /// One process: first the pre-start hooks, then the command, then the post-stop hooks.
    pub(super) fn process(&self, number: usize) -> Process {
        debug_assert!(number <= self.before + self.after);
        // SAFETY: so many lie there, and the arena is mapped as long as this process is.
        unsafe { *self.processes.add(number) }
    }
}

/// What aligning one thing takes at most.
const ALIGNED: usize = 16;

impl Scene {
    /// Bytes it takes at most.
    fn room(&self) -> usize {
        let strings = [&self.candidates, &self.argv, &self.environment].map(|array| {
            let bytes: usize =
                array.strings.iter().map(|text| text.as_bytes_with_nul().len() + ALIGNED).sum();
            bytes + array.pointers.len() * size_of::<*const c_char>() + ALIGNED
        });
        let groups: usize = self
            .ops
            .iter()
            .map(|op| match op {
                Op::Groups(groups) => groups.count * size_of::<libc::gid_t>() + ALIGNED,
                _ => 0,
            })
            .sum();
        self.ops.len() * size_of::<Op>() + ALIGNED + groups + strings.iter().sum::<usize>()
    }

    fn lay(&self, arena: &mut Arena) -> Option<Process> {
        let ops = self.ops.iter().map(|op| flat(op, arena)).collect::<Option<Vec<_>>>()?;
        Some(Process {
            ops_count: ops.len(),
            ops: arena.put(ops)?,
            candidates: array(&self.candidates, arena)?,
            argv: array(&self.argv, arena)?,
            environment: array(&self.environment, arena)?,
        })
    }
}

fn array(array: &StringArray, arena: &mut Arena) -> Option<*const *const c_char> {
    let text =
        |text: &CStr, arena: &mut Arena| arena.put(text.to_bytes_with_nul().to_vec()).map(<*const u8>::cast);
    let mut pointers = array.strings.iter().map(|one| text(one, arena)).collect::<Option<Vec<_>>>()?;
    pointers.push(std::ptr::null());
    arena.put(pointers)
}

/// The same op without anything outside the arena. `None` = there is no such.
fn flat(op: &Op, arena: &mut Arena) -> Option<Op> {
    Some(match op {
        Op::Session => Op::Session,
        Op::OwnGroup => Op::OwnGroup,
        Op::Keyring => Op::Keyring,
        Op::ControlTerminal => Op::ControlTerminal,
        Op::TerminalStreams => Op::TerminalStreams,
        Op::OomScoreAdj { digits, length } => Op::OomScoreAdj { digits: *digits, length: *length },
        Op::Stream { from, to } => Op::Stream { from: *from, to: *to },
        Op::OwnStreams { uid, files_too } => Op::OwnStreams { uid: *uid, files_too: *files_too },
        Op::DropBounding(set) => Op::DropBounding(*set),
        Op::KeepCapabilities => Op::KeepCapabilities,
        Op::Groups(groups) => {
            let at = arena.put(groups._own.clone())?;
            Op::Groups(Groups { _own: Vec::new(), at, count: groups.count })
        }
        Op::Group(gid) => Op::Group(*gid),
        Op::User(uid) => Op::User(*uid),
        Op::Capabilities { permitted, inheritable } => {
            Op::Capabilities { permitted: *permitted, inheritable: *inheritable }
        }
        Op::Ambient(set) => Op::Ambient(*set),
        Op::NoNewPrivileges => Op::NoNewPrivileges,
        Op::DieWithParent => Op::DieWithParent,
        _ => return None,
    })
}

/// A mapping of its own.
struct Arena {
    start: NonNull<u8>,
    length: usize,
    used: usize,
}

impl Arena {
    fn new(length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, length, used: 0 }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Moves things there, one after the other; they are never dropped. `None` = there is no room for all.
    fn put<T>(&mut self, things: Vec<T>) -> Option<*const T> {
        let begin = self.used.next_multiple_of(align_of::<T>());
        let end = begin.checked_add(things.len().checked_mul(size_of::<T>())?)?;
        if end > self.length {
            return None;
        }
        self.used = end;
        // SAFETY: `begin` is within the mapping, and all things are, up to `end`; it is aligned, as the mapping is to
        // a page; nothing else lies there.
        unsafe {
            let at = self.start.as_ptr().add(begin).cast::<T>();
            for (number, thing) in things.into_iter().enumerate() {
                at.add(number).write(thing);
            }
            Some(at)
        }
    }

    fn seal(&self) -> io::Result<()> {
        // SAFETY: our own mapping; nobody writes there any more.
        match unsafe { libc::mprotect(self.start.as_ptr().cast(), self.length, libc::PROT_READ) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: our own mapping; what points into it goes with it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> StringArray {
        StringArray::new(texts.iter().map(|text| std::ffi::CString::new(*text).expect("no null")).collect())
    }

    fn scene(ops: Vec<Op>) -> Scene {
        let long = "x".repeat(100_000);
        Scene {
            ops,
            candidates: strings(&["/bin/a", "/sbin/a"]),
            argv: strings(&["a", "", &long]),
            environment: strings(&[]),
        }
    }

    fn read(mut at: *const *const c_char) -> Vec<String> {
        let mut texts = Vec::new();
        // SAFETY: an array of C strings with a null pointer behind it.
        unsafe {
            while !(*at).is_null() {
                texts.push(CStr::from_ptr(*at).to_string_lossy().into_owned());
                at = at.add(1);
            }
        }
        texts
    }

    #[test]
    fn a_story_reads_back_when_all_it_was_made_of_is_gone() {
        let story = {
            let before = [scene(vec![Op::Session, Op::Groups(Groups::new(vec![4, 5, 6]))])];
            let after = [scene(vec![Op::User(7)]), scene(Vec::new())];
            Story::new(&before, &scene(vec![Op::Group(9)]), &after, 3, 0b100).expect("laid down")
        };
        let seen = story.seen();
        assert_eq!((seen.before, seen.after, seen.late, seen.capabilities), (1, 2, 3, 0b100));
        for (number, ops) in [2, 1, 1, 0].into_iter().enumerate() {
            let process = seen.process(number);
            assert_eq!(process.ops_count, ops);
            assert_eq!(read(process.candidates), ["/bin/a", "/sbin/a"]);
            assert_eq!(read(process.argv)[2].len(), 100_000);
            assert!(read(process.environment).is_empty());
        }
        // SAFETY: two ops lie there.
        let ops = unsafe { std::slice::from_raw_parts(seen.process(0).ops, 2) };
        let Op::Groups(groups) = &ops[1] else { panic!("another op") };
        // SAFETY: three numbers lie there.
        assert_eq!(unsafe { std::slice::from_raw_parts(groups.at, groups.count) }, [4, 5, 6]);
    }

    #[test]
    fn what_would_point_elsewhere_is_refused() {
        let tree = scene(vec![Op::Mask(c"/x".to_owned())]);
        assert!(Story::new(&[], &tree, &[], -1, 0).is_err());
    }
}
