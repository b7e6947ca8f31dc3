//! Entries of layers and ACIs, from bytes that any change leaves a script.

use super::{seal, tar_header};

const NAMES: [&[u8]; 32] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"etc",
    b"passwd",
    b"link",
    b"lib",
    b"..",
    b".",
    b"",
    b"...",
    b".wh.a",
    b".wh.b",
    b".wh.link",
    b".wh.etc",
    b".wh..wh..opq",
    b".wh..wh.plnk",
    b".wh.",
    b".wh..",
    b".wh...",
    b".wh..wh.",
    b".wh..wh..opq.wh.",
    b"\xff\xfe",
    b"line\nbreak",
    b"canary",
    b"tree",
    b"store",
    b"layer.json",
    b"long-component-of-some-hundred-bytes-long-component-of-some-hundred-bytes-long-component-of-some-hundred",
    b"user.overlay.opaque",
    b" ",
];
/// Tops of an archive, right and wrong.
const TOPS: [&[u8]; 16] = [
    b"",
    b"./",
    b"./rootfs/",
    b"/rootfs/",
    b"rootfs",
    b"rootfs/../",
    b"../rootfs/",
    b"manifest/",
    b"manifest",
    b"./manifest",
    b"rootfs/.",
    b"rootfs//",
    b"rootfs/rootfs/",
    b"rootfs/manifest/",
    b".wh.rootfs/",
    b"rootfs/./",
];
const TARGETS: [&[u8]; 16] = [
    b"a",
    b"b",
    b"a/b",
    b"/a",
    b"..",
    b"../..",
    b"/",
    b"../../../../canary",
    b"../../../../canary/etc/passwd",
    b"../../../../../../../../../../etc",
    b"link",
    b"./a/../b",
    b"",
    b"etc/passwd",
    b"lib/..",
    b".wh.a",
];
const XATTRS: [(&str, &[u8]); 8] = [
    ("user.x", b"1\n\0"),
    ("trusted.overlay.opaque", b"y"),
    ("user.overlay.opaque", b"y"),
    ("trusted.overlay.redirect", b"/etc"),
    ("security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    (
        "system.posix_acl_default",
        b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff",
    ),
    ("trusted.x", b""),
    ("nonsense", b"y"),
];
/// The longest is one that is not left to a second thread.
const SIZES: [usize; 8] = [0, 1, 511, 512, 513, 5000, 131_073, 3];
const MODES: [u32; 8] = [0o644, 0o755, 0o4755, 0o2775, 0o1777, 0, 0o7777, 0o600];
const KINDS: [u8; 16] = *b"0000055522113460";

pub(super) struct Script<'a> {
    pub(super) left: &'a [u8],
    /// Whether paths begin with a name of the top of an ACI, most of them.
    pub(super) aci: bool,
}

impl Script<'_> {
    pub(super) fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.left.split_first() else { return 0 };
        self.left = rest;
        usize::from(*first)
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.byte() % from.len()]
    }

    /// One to four components, now and then with a slash in front or behind.
    fn path(&mut self) -> Vec<u8> {
        let form = self.byte();
        let parts: Vec<&[u8]> = (0..=form % 4).map(|_| self.pick(&NAMES)).collect();
        let mut path = parts.join(&b'/');
        if form & 0x30 == 0x30 {
            path.insert(0, b'/');
        }
        if form & 0xc0 == 0xc0 {
            path.push(b'/');
        }
        self.below_top(path)
    }

    fn below_top(&mut self, path: Vec<u8>) -> Vec<u8> {
        if !self.aci {
            return path;
        }
        let odd = self.byte();
        let top = if odd < 0xf0 { b"rootfs/" } else { TOPS[odd & 0xf] };
        [top, &path].concat()
    }
}

/// One entry with its extended headers; `op` chooses its kind and how it is written.
pub(super) fn entry(script: &mut Script<'_>, op: usize, tar: &mut Vec<u8>) {
    let kind = KINDS[op % KINDS.len()];
    let path = script.path();
    let detail = script.byte();
    let (target, device) = match kind {
        b'1' if detail & 1 == 0 => {
            let target = script.pick(&TARGETS).to_vec();
            (script.below_top(target), 0)
        }
        b'2' if detail & 1 == 0 => (script.pick(&TARGETS).to_vec(), 0),
        b'1' | b'2' => (script.path(), 0),
        b'3' | b'4' => (vec![], script.byte() % 3),
        _ => (vec![], 0),
    };
    let data = match kind {
        // No two files alike, nor two pieces of one.
        b'0' => (0..SIZES[detail % SIZES.len()]).map(|at| (tar.len() / 512 + at + at / 256) as u8).collect(),
        _ => vec![],
    };
    let mut records = Vec::new();
    let extra = if op & 0x20 != 0 { script.byte() } else { 0 };
    if extra & 1 != 0 {
        let (name, value) = script.pick(&XATTRS);
        records.extend_from_slice(&record(&format!("SCHILY.xattr.{name}"), value));
    }
    if extra & 2 != 0 {
        let mtime: &[u8] = script.pick(&[&b"-1.5"[..], b"1700000000.000000001", b"99999999999", b"0"]);
        records.extend_from_slice(&record("mtime", mtime));
    }
    let mut written = data.clone();
    if extra & 4 != 0 && kind == b'0' {
        let map: &[u8] =
            script.pick(&[&b"1\n0\n0\n"[..], b"1\n4096\n1\n", b"2\n0\n1\n1048576\n2\n", b"1\n512\n512\n"]);
        for (key, value) in [("major", &b"1"[..]), ("minor", b"0"), ("realsize", b"2000000")] {
            records.extend_from_slice(&record(&format!("GNU.sparse.{key}"), value));
        }
        written = map.to_vec();
        written.resize(512, 0);
        written.extend_from_slice(&data);
    }
    let long = path.len() > 100 || extra & 8 != 0;
    if long {
        records.extend_from_slice(&record("path", &path));
    }
    if !records.is_empty() {
        put(tar, tar_header(b"pax", b'x', b"", records.len()), &records);
    }
    if extra & 16 != 0 {
        let name = [&target[..], b"\0"].concat();
        put(tar, tar_header(b"././@LongLink", b'K', b"", name.len()), &name);
    }
    // Some entries that have no payload say that they have.
    let size = if extra & 32 != 0 && kind != b'0' { 512 } else { written.len() };
    let mut header = tar_header(&path, kind, &target, size);
    let mode = MODES[(detail >> 3) % MODES.len()];
    header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    let owner = [0, 0, 1000, 0o7_777_777][detail >> 6 & 3];
    header[108..116].copy_from_slice(format!("{owner:07o}\0").as_bytes());
    header[337..345].copy_from_slice(format!("{device:07o}\0").as_bytes());
    if extra & 64 != 0 {
        header[329..337].copy_from_slice(b"0000001\0");
    }
    seal(&mut header);
    put(tar, header, &written);
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

pub(super) fn put(tar: &mut Vec<u8>, header: [u8; 512], data: &[u8]) {
    tar.extend_from_slice(&header);
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
