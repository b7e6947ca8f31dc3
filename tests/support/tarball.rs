//! Builds tars byte by byte, so that they can be as odd as a stranger's, and puts them into stores.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::io::Write;
use std::path::Path;

use keelblock::limits::Limits;
use keelblock::store::{DiskStore, LayerForm, Privileges, StoreSettings};
use keelblock_actors::error::UnpackError;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{BlobSpec, Compression, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::ports::{Claim, Store, StoredLayer};
use keelblock_actors::stop::Stop;

/// A tar in the making.
#[derive(Clone, Default)]
pub(crate) struct Tarball(pub(crate) Vec<u8>);

/// One header, ustar unless `raw` says otherwise, owned by this process, mode 0644, time 1_000_000.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: Option<u64>,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) data: Vec<u8>,
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) raw: Vec<(usize, Vec<u8>)>,
    /// Whole blocks between the header and the payload: more of a sparse map.
    pub(crate) blocks: Vec<u8>,
}

pub(crate) fn entry(kind: u8, name: impl AsRef<[u8]>) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        kind,
        link: vec![],
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: rustix::process::geteuid().as_raw().into(),
        gid: rustix::process::getegid().as_raw().into(),
        size: None,
        mtime: 1_000_000,
        device: (0, 0),
        data: vec![],
        pax: vec![],
        raw: vec![],
        blocks: vec![],
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    Entry { data: data.as_ref().to_vec(), ..entry(b'0', name) }
}

pub(crate) fn dir(name: impl AsRef<[u8]>) -> Entry {
    entry(b'5', name)
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..entry(b'2', name) }
}

pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..entry(b'1', name) }
}

/// A global extended header.
pub(crate) fn global(key: &str, value: impl AsRef<[u8]>) -> Entry {
    file("pax_global_header", pax_records(&[(key.into(), value.as_ref().to_vec())])).kind(b'g')
}

/// GNU tar's header for a name that does not fit.
pub(crate) fn long_name(name: impl AsRef<[u8]>) -> Entry {
    file("././@LongLink", [name.as_ref(), b"\0"].concat()).gnu().kind(b'L')
}

/// GNU tar's header for a link target that does not fit.
pub(crate) fn long_link(target: impl AsRef<[u8]>) -> Entry {
    file("././@LongLink", [target.as_ref(), b"\0"].concat()).gnu().kind(b'K')
}

/// A file of this size with runs of `(offset, bytes)`, as old GNU tar writes it: four runs in the header, 21 in each
/// block that follows.
pub(crate) fn old_sparse(name: impl AsRef<[u8]>, size: u64, runs: &[(u64, Vec<u8>)]) -> Entry {
    let payload: Vec<u8> = runs.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let number = |number: u64| format!("{number:011o}\0").into_bytes();
    let descriptors: Vec<Vec<u8>> =
        runs.iter().map(|(offset, bytes)| [number(*offset), number(bytes.len() as u64)].concat()).collect();
    let mut sparse = file(name, payload).gnu().kind(b'S').raw(483, number(size));
    for (at, descriptor) in descriptors.iter().take(4).enumerate() {
        sparse = sparse.raw(386 + 24 * at, descriptor);
    }
    let more: Vec<_> = descriptors.iter().skip(4).collect();
    if !more.is_empty() {
        sparse = sparse.raw(482, [1]);
    }
    let blocks = more.chunks(21).count();
    for (at, chunk) in more.chunks(21).enumerate() {
        let mut block: Vec<u8> = chunk.iter().flat_map(|descriptor| descriptor.iter().copied()).collect();
        block.resize(512, 0);
        block[504] = u8::from(at + 1 < blocks);
        sparse.blocks.extend_from_slice(&block);
    }
    sparse
}

/// A number as base-256, for a field of so many bytes.
pub(crate) fn base256(number: i64, width: usize) -> Vec<u8> {
    let mut field = vec![if number < 0 { 0xff } else { 0 }; width];
    let bytes = number.to_be_bytes();
    let room = width.min(8);
    field[width - room..].copy_from_slice(&bytes[8 - room..]);
    field[0] |= 0x80;
    field
}

impl Entry {
    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn kind(self, kind: u8) -> Self {
        self.raw(156, [kind])
    }

    /// With the magic of GNU tar, and its device fields blank.
    pub(crate) fn gnu(self) -> Self {
        self.raw(257, b"ustar  \0").raw(329, [0; 16])
    }

    /// Of the time before ustar: nothing after the link name.
    pub(crate) fn v7(self) -> Self {
        self.raw(257, [0; 255])
    }

    /// Says a long name by an extended header.
    pub(crate) fn long(self) -> Self {
        let name = self.name.clone();
        self.pax("path", name)
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    pub(crate) fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    pub(crate) fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    pub(crate) fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Bytes to put over the header before its checksum is made.
    pub(crate) fn raw(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.raw.push((at, bytes.as_ref().to_vec()));
        self
    }

    fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.uid).as_bytes());
        put(116, format!("{:07o}", self.gid).as_bytes());
        put(124, format!("{:011o}", self.size.unwrap_or(self.data.len() as u64)).as_bytes());
        put(136, format!("{:011o}", self.mtime).as_bytes());
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        for (at, bytes) in &self.raw {
            put(*at, bytes);
        }
        put(148, b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

/// Records of an extended header.
pub(crate) fn pax_records(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        bytes.extend_from_slice(format!("{length} ").as_bytes());
        bytes.extend_from_slice(key);
        bytes.push(b'=');
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}

impl Tarball {
    pub(crate) fn of(entries: impl IntoIterator<Item = Entry>) -> Self {
        entries.into_iter().fold(Self::default(), Self::with)
    }

    pub(crate) fn with(mut self, entry: Entry) -> Self {
        if !entry.pax.is_empty() {
            self = self.with(file("pax", pax_records(&entry.pax)).raw(156, b"x"));
        }
        self.0.extend_from_slice(&entry.header());
        self.0.extend_from_slice(&entry.blocks);
        self.data(&entry.data)
    }

    /// Payload, padded.
    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

pub(crate) fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(vec![], bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(vec![], 0);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A zstd frame that says nothing.
pub(crate) fn skippable(bytes: &[u8]) -> Vec<u8> {
    [&[0x5a, 0x2a, 0x4d, 0x18], &(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

pub(crate) fn quiet() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

pub(crate) fn store_with(dir: &Path, limits: Limits) -> DiskStore {
    store_of(dir, limits, LayerForm::Tree)
}

/// A store that keeps layers as images; for root.
pub(crate) fn image_store(dir: &Path, limits: Limits) -> DiskStore {
    store_of(dir, limits, LayerForm::Erofs)
}

/// Why layers cannot be kept as images by this process on the filesystem of this directory, if they cannot.
pub(crate) fn no_images(within: &Path) -> Option<String> {
    let home = tempfile::tempdir_in(within).unwrap();
    let store = image_store(&home.path().join("store"), Limits::default());
    let claimed = store.claim(&spec(b"").key);
    claimed.err().map(|error| keelblock_actors::error::chain(&error))
}

/// Whether this process can keep layers as images; says so when not.
pub(crate) fn images() -> bool {
    if !root() {
        return false;
    }
    let why = no_images(&std::env::temp_dir());
    if let Some(why) = &why {
        eprintln!("skipped: {why}");
    }
    why.is_none()
}

pub(crate) fn store_of(dir: &Path, limits: Limits, form: LayerForm) -> DiskStore {
    let settings = StoreSettings { form, ..StoreSettings::new(limits, Privileges::detect().unwrap()) };
    DiskStore::open_with(dir, settings, quiet()).unwrap()
}

/// What `fsck.erofs` has against an image, where it is installed.
pub(crate) fn fsck(image: &Path) -> Option<String> {
    let output = std::process::Command::new("fsck.erofs").arg(image).output().ok()?;
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn store(dir: &Path) -> DiskStore {
    store_with(dir, Limits::default())
}

/// What a truthful manifest says of this tar, sent as it is.
pub(crate) fn spec(tar: &[u8]) -> LayerSpec {
    spec_of(tar, tar, Compression::None)
}

/// What a truthful manifest says of this tar and its blob.
pub(crate) fn spec_of(tar: &[u8], blob: &[u8], compression: Compression) -> LayerSpec {
    LayerSpec {
        key: LayerKey::Diff(DiffId(Digest::of(tar))),
        blob: BlobSpec {
            digest: Some(Digest::of(blob)),
            size: Some(blob.len() as u64),
            compression: Some(compression),
            media_type: Some("application/x-test".to_owned()),
        },
        source: LayerSource::File { path: "/test".into() },
        aci: None,
        access: None,
    }
}

/// Claims and unpacks.
pub(crate) fn put(store: &DiskStore, spec: &LayerSpec, mut blob: &[u8]) -> Result<StoredLayer, UnpackError> {
    match store.claim(&spec.key).unwrap() {
        Claim::Mine(staging) => staging.unpack(spec, &mut blob, &Stop::default()),
        Claim::Here(layer) => Ok(layer),
        Claim::Elsewhere => panic!("claimed elsewhere"),
    }
}

pub(crate) fn put_tar(store: &DiskStore, tar: &[u8]) -> Result<StoredLayer, UnpackError> {
    put(store, &spec(tar), tar)
}

/// Whether this process may do what root may; says so when not.
pub(crate) fn root() -> bool {
    let privileges = Privileges::detect().unwrap();
    let root = rustix::process::geteuid().is_root() && !privileges.in_user_namespace;
    if !root {
        eprintln!("skipped: needs real root");
    }
    root
}
