//! A filesystem in memory that takes notes of all that is done to it, spoken over `/dev/fuse` (linux/fuse.h, protocol 7.31).
//!
//! Every write comes through at once and in order, since the kernel is not asked to cache any. Nothing is ever forgotten:
//! the filesystem lives as long as one test.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::io::Errno;

use super::record::{Ino, Kind, Op, Recorder, Time};

const ROOT: Ino = 1;
/// Most bytes of one write.
const WRITE_BYTES_MAX: usize = 128 << 10;

/// The filesystem, mounted. Dropping it unmounts it.
pub(crate) struct Mounted {
    at: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Mounted {
    /// Mounts an empty one.
    pub(crate) fn new<T: Send + 'static>(at: &Path, recorder: Recorder<T>) -> std::io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        mount(Some("powercut"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str()))?;
        let mut tree =
            Tree { inodes: HashMap::new(), next: ROOT, lists: HashMap::new(), lists_made: 0, recorder };
        tree.make(Kind::Directory, 0o755, (0, 0));
        // It owns the device: should it panic, the kernel fails whatever waits for it.
        let server = std::thread::Builder::new().name("fuse".into()).spawn(move || serve(device, tree))?;
        Ok(Self { at: at.to_owned(), server: Some(server) })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = umount2(&self.at, MntFlags::MNT_DETACH);
        // It ends when the last descriptor into the filesystem is closed; one that leaked in a failing test never is.
        if let Some(server) = self.server.take()
            && unmounted.is_ok()
            && !std::thread::panicking()
        {
            server.join().expect("the filesystem failed");
        }
    }
}

fn serve<T>(mut device: File, mut tree: Tree<T>) {
    let mut buffer = vec![0; WRITE_BYTES_MAX + 4096];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Some(Errno::NODEV) => return,
                _ => panic!("cannot read from the kernel: {error}"),
            },
        };
        let mut input = Input(&buffer[..length]);
        let (_, opcode, unique, ino) = (input.u32(), input.u32(), input.u64(), input.u64());
        let owner = (input.u32(), input.u32());
        input.skip(8);
        let answer = match opcode {
            // FORGET, INTERRUPT and BATCH_FORGET are not answered.
            2 | 36 | 42 => continue,
            _ => tree.answer(opcode, ino, owner, input),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno.raw_os_error(), Vec::new()),
        };
        let mut out = Output::default();
        out.u32(16 + body.len() as u32).u32(error as u32).u64(unique);
        out.0.extend_from_slice(&body);
        match device.write(&out.0) {
            Ok(_) => {}
            // The request was interrupted, or the filesystem unmounted meanwhile.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NODEV)) => {}
            Err(error) => panic!("cannot answer the kernel (operation {opcode}): {error}"),
        }
    }
}

struct Inode {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    data: Vec<u8>,
    names: BTreeMap<Vec<u8>, Ino>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    mtime: Time,
    ctime: Time,
    links: u32,
}

struct Tree<T> {
    inodes: HashMap<Ino, Inode>,
    next: Ino,
    /// What an open directory is read as.
    lists: HashMap<u64, Vec<(Vec<u8>, Ino)>>,
    lists_made: u64,
    recorder: Recorder<T>,
}

type Answer = Result<Vec<u8>, Errno>;

impl<T> Tree<T> {
    fn answer(&mut self, opcode: u32, ino: Ino, owner: (u32, u32), mut input: Input<'_>) -> Answer {
        match opcode {
            1 => {
                let child = self.child(ino, input.text())?;
                self.entry(child)
            }
            3 => self.attributes(ino),
            4 => self.set_attributes(ino, input),
            5 => match &self.inode(ino)?.kind {
                Kind::Symlink(target) => Ok(target.clone()),
                _ => Err(Errno::INVAL),
            },
            6 => {
                let (name, target) = (input.text().to_vec(), input.text().to_vec());
                self.make_at(ino, &name, Kind::Symlink(target), 0o777, owner)
            }
            8 => {
                let (mode, rdev) = (input.u32(), input.u32());
                input.skip(8);
                let kind = match mode & 0o170_000 {
                    0o100_000 => Kind::File,
                    other => Kind::Node(other, rdev),
                };
                self.make_at(ino, input.text(), kind, mode & 0o7777, owner)
            }
            9 => {
                let mode = input.u32();
                input.skip(4);
                self.make_at(ino, input.text(), Kind::Directory, mode & 0o7777, owner)
            }
            10 | 11 => self.remove(ino, input.text(), opcode == 11),
            12 | 45 => {
                let to = input.u64();
                let flags = if opcode == 45 { input.u64() as u32 } else { 0 };
                let (old, new) = (input.text().to_vec(), input.text().to_vec());
                self.rename((ino, old), (to, new), flags)
            }
            13 => {
                let target = input.u64();
                let name = input.text().to_vec();
                if self.child(ino, &name).is_ok() {
                    return Err(Errno::EXIST);
                }
                self.inode(target)?.links += 1;
                self.set_names(vec![(ino, name, Some(target))])?;
                self.entry(target)
            }
            // RELEASE, FLUSH, DESTROY.
            18 | 25 | 38 => Ok(Vec::new()),
            14 => self.open(0),
            27 => {
                self.lists_made += 1;
                self.open(self.lists_made)
            }
            29 => {
                self.lists.remove(&input.u64());
                Ok(Vec::new())
            }
            15 => {
                let (_, offset, size) = (input.u64(), input.u64() as usize, input.u32() as usize);
                let data = &self.inode(ino)?.data;
                Ok(data.get(offset..data.len().min(offset + size)).unwrap_or_default().to_vec())
            }
            16 => self.write(ino, input),
            17 => Ok(Output::default().u64s(&[1 << 20; 5]).u32s(&[4096, 255, 4096, 0]).u32s(&[0; 6]).take()),
            20 | 30 => {
                self.recorder.push(Op::Sync(ino));
                Ok(Vec::new())
            }
            21..=24 => self.xattr(opcode, ino, input),
            26 => {
                input.skip(8);
                let (read_ahead, offered) = (input.u32(), input.u32());
                // BIG_WRITES, PARALLEL_DIROPS.
                let flags = offered & (1 << 5 | 1 << 18);
                let mut out = Output::default();
                out.u32s(&[7, 31, read_ahead, flags]).u32(16 | 12 << 16).u32(WRITE_BYTES_MAX as u32);
                Ok(out.u32(1).u32(0).u32s(&[0; 8]).take())
            }
            28 => self.read_directory(ino, input),
            35 => {
                let (_, mode) = (input.u32(), input.u32());
                input.skip(8);
                let name = input.text().to_vec();
                let mut body = self.make_at(ino, &name, Kind::File, mode & 0o7777, owner)?;
                body.extend(self.open(0)?);
                Ok(body)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn inode(&mut self, ino: Ino) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::STALE)
    }

    fn child(&mut self, dir: Ino, name: &[u8]) -> Result<Ino, Errno> {
        self.inode(dir)?.names.get(name).copied().ok_or(Errno::NOENT)
    }

    fn make(&mut self, kind: Kind, mode: u32, owner: (u32, u32)) -> Ino {
        let ino = self.next;
        self.next += 1;
        let links = if kind == Kind::Directory { 2 } else { 1 };
        self.recorder.push(Op::Make { ino, kind: kind.clone(), mode, owner });
        let (data, names, xattrs) = Default::default();
        let inode = Inode { kind, mode, owner, data, names, xattrs, mtime: now(), ctime: now(), links };
        self.inodes.insert(ino, inode);
        ino
    }

    fn make_at(&mut self, dir: Ino, name: &[u8], kind: Kind, mode: u32, owner: (u32, u32)) -> Answer {
        if self.child(dir, name).is_ok() {
            return Err(Errno::EXIST);
        }
        let ino = self.make(kind, mode, owner);
        self.set_names(vec![(dir, name.to_vec(), Some(ino))])?;
        self.entry(ino)
    }

    fn set_names(&mut self, names: Vec<(Ino, Vec<u8>, Option<Ino>)>) -> Result<(), Errno> {
        for (dir, name, to) in &names {
            let dir = self.inode(*dir)?;
            match to {
                Some(ino) => dir.names.insert(name.clone(), *ino),
                None => dir.names.remove(name),
            };
            (dir.mtime, dir.ctime) = (now(), now());
        }
        self.recorder.push(Op::Names(names));
        Ok(())
    }

    fn remove(&mut self, dir: Ino, name: &[u8], directory: bool) -> Answer {
        let ino = self.child(dir, name)?;
        let inode = self.inode(ino)?;
        match (inode.kind == Kind::Directory, directory) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            _ if !inode.names.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        inode.links = inode.links.saturating_sub(1);
        self.set_names(vec![(dir, name.to_vec(), None)])?;
        Ok(Vec::new())
    }

    fn rename(&mut self, from: (Ino, Vec<u8>), to: (Ino, Vec<u8>), flags: u32) -> Answer {
        const NOREPLACE: u32 = 1;
        let ino = self.child(from.0, &from.1)?;
        let replaced = self.child(to.0, &to.1);
        match (flags, replaced) {
            (NOREPLACE, Ok(_)) => return Err(Errno::EXIST),
            (0 | NOREPLACE, Err(_)) => {}
            (0, Ok(replaced)) => {
                let replaced = self.inode(replaced)?;
                if !replaced.names.is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
                replaced.links = replaced.links.saturating_sub(1);
            }
            _ => return Err(Errno::INVAL),
        }
        self.inode(ino)?.ctime = now();
        self.set_names(vec![(from.0, from.1, None), (to.0, to.1, Some(ino))])?;
        Ok(Vec::new())
    }

    fn write(&mut self, ino: Ino, mut input: Input<'_>) -> Answer {
        let (_, offset, size) = (input.u64(), input.u64(), input.u32() as usize);
        input.skip(20);
        let data = input.0[..size].to_vec();
        let inode = self.inode(ino)?;
        let end = offset as usize + size;
        if inode.data.len() < end {
            inode.data.resize(end, 0);
        }
        inode.data[offset as usize..end].copy_from_slice(&data);
        (inode.mtime, inode.ctime) = (now(), now());
        self.recorder.push(Op::Write { ino, offset, data });
        Ok(Output::default().u32(size as u32).u32(0).take())
    }

    fn set_attributes(&mut self, ino: Ino, mut input: Input<'_>) -> Answer {
        let valid = input.u32();
        input.skip(12);
        let size = input.u64();
        input.skip(8);
        let (_atime, mtime, _ctime) = (input.u64(), input.u64(), input.u64());
        let (_, mtime_nsec, _, mode) = (input.u32(), input.u32(), input.u32(), input.u32());
        input.skip(4);
        let (uid, gid) = (input.u32(), input.u32());
        let has = |bit: u32| valid & (1 << bit) != 0;
        let inode = self.inode(ino)?;
        inode.ctime = now();
        let mut ops = Vec::new();
        if has(0) {
            inode.mode = mode & 0o7777;
            ops.push(Op::Mode { ino, mode: inode.mode });
        }
        if has(1) || has(2) {
            inode.owner =
                (if has(1) { uid } else { inode.owner.0 }, if has(2) { gid } else { inode.owner.1 });
            ops.push(Op::Owner { ino, owner: inode.owner });
        }
        if has(3) {
            inode.data.resize(size as usize, 0);
            ops.push(Op::Size { ino, size });
        }
        if has(5) {
            inode.mtime = if has(8) { now() } else { (mtime as i64, mtime_nsec) };
            ops.push(Op::Times { ino, mtime: inode.mtime });
        }
        ops.into_iter().for_each(|op| self.recorder.push(op));
        self.attributes(ino)
    }

    fn xattr(&mut self, opcode: u32, ino: Ino, mut input: Input<'_>) -> Answer {
        let size = if opcode == 24 { 0 } else { input.u32() as usize };
        if opcode != 24 {
            input.skip(4);
        }
        let found = match opcode {
            21 => {
                let name = input.text().to_vec();
                let value = input.0[..size].to_vec();
                self.inode(ino)?.xattrs.insert(name.clone(), value.clone());
                self.recorder.push(Op::Xattr { ino, name, value: Some(value) });
                return Ok(Vec::new());
            }
            24 => {
                let name = input.text().to_vec();
                self.inode(ino)?.xattrs.remove(&name).ok_or(Errno::NODATA)?;
                self.recorder.push(Op::Xattr { ino, name, value: None });
                return Ok(Vec::new());
            }
            22 => self.inode(ino)?.xattrs.get(input.text()).cloned().ok_or(Errno::NODATA)?,
            _ => self.inode(ino)?.xattrs.keys().flat_map(|name| [name, &b"\0"[..]].concat()).collect(),
        };
        match size {
            0 => Ok(Output::default().u32(found.len() as u32).u32(0).take()),
            size if size < found.len() => Err(Errno::RANGE),
            _ => Ok(found),
        }
    }

    fn read_directory(&mut self, ino: Ino, mut input: Input<'_>) -> Answer {
        let (list, offset, size) = (input.u64(), input.u64() as usize, input.u32() as usize);
        if offset == 0 {
            let names = self.inode(ino)?.names.iter().map(|(name, ino)| (name.clone(), *ino)).collect();
            self.lists.insert(list, names);
        }
        let mut out = Output::default();
        let names = self.lists.get(&list).cloned().unwrap_or_default();
        for (at, (name, ino)) in names.into_iter().enumerate().skip(offset) {
            let padded = name.len().next_multiple_of(8);
            if out.0.len() + 24 + padded > size {
                break;
            }
            let kind = self.inode(ino).map_or(0, |inode| type_bits(&inode.kind) >> 12);
            out.u64(ino).u64(at as u64 + 1).u32(name.len() as u32).u32(kind);
            out.0.extend_from_slice(&name);
            out.0.resize(out.0.len() + padded - name.len(), 0);
        }
        Ok(out.take())
    }

    fn open(&self, handle: u64) -> Answer {
        Ok(Output::default().u64(handle).u64(0).take())
    }

    fn entry(&mut self, ino: Ino) -> Answer {
        let attributes = self.raw_attributes(ino)?;
        let mut out = Output::default();
        // No time for which it holds: the kernel asks again.
        out.u64s(&[ino, 0, 0, 0, 0]);
        out.0.extend(attributes);
        Ok(out.take())
    }

    fn attributes(&mut self, ino: Ino) -> Answer {
        let attributes = self.raw_attributes(ino)?;
        let mut out = Output::default();
        out.u64s(&[0, 0]);
        out.0.extend(attributes);
        Ok(out.take())
    }

    fn raw_attributes(&mut self, ino: Ino) -> Answer {
        let inode = self.inode(ino)?;
        let rdev = if let Kind::Node(_, rdev) = inode.kind { rdev } else { 0 };
        let size = match &inode.kind {
            Kind::Symlink(target) => target.len(),
            _ => inode.data.len(),
        } as u64;
        let (mtime, ctime) = (inode.mtime, inode.ctime);
        let mut out = Output::default();
        out.u64s(&[ino, size, size.div_ceil(512), mtime.0 as u64, mtime.0 as u64, ctime.0 as u64]);
        out.u32s(&[mtime.1, mtime.1, ctime.1, type_bits(&inode.kind) | inode.mode, inode.links]);
        out.u32s(&[inode.owner.0, inode.owner.1, rdev, 4096, 0]);
        Ok(out.take())
    }
}

fn type_bits(kind: &Kind) -> u32 {
    match kind {
        Kind::File => 0o100_000,
        Kind::Directory => 0o040_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::Node(bits, _) => *bits,
    }
}

fn now() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs() as i64, now.subsec_nanos())
}

/// A request, from where it was read so far.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn skip(&mut self, bytes: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(bytes);
        self.0 = rest;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.skip(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.skip(8).try_into().unwrap())
    }

    /// Up to a zero byte.
    fn text(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        let text = self.skip(end);
        self.skip(usize::from(!self.0.is_empty()));
        text
    }
}

/// An answer.
#[derive(Default)]
struct Output(Vec<u8>);

impl Output {
    fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend_from_slice(&number.to_ne_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_ne_bytes());
        self
    }

    fn u32s(&mut self, numbers: &[u32]) -> &mut Self {
        numbers.iter().fold(self, |out, number| out.u32(*number))
    }

    fn u64s(&mut self, numbers: &[u64]) -> &mut Self {
        numbers.iter().fold(self, |out, number| out.u64(*number))
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}
