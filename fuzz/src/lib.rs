//! Mutates tars so that they stay tars: blind changes of bytes end at the first checksum.
//!
//! A tar is taken apart into members (header block, payload), one of them is changed, and all are put together again with
//! right checksums and, mostly, right sizes. One in eight times the fuzzer changes bytes as it likes, and only checksums
//! are made right after it.

use libfuzzer_sys::fuzzer_mutate;

const BLOCK: usize = 512;

/// Where the fields of a header are: begin and length.
const FIELDS: [(usize, usize); 20] = [
    (0, 100),   // name
    (100, 8),   // mode
    (108, 8),   // uid
    (116, 8),   // gid
    (124, 12),  // size
    (124, 12),  // twice as often
    (136, 12),  // mtime
    (156, 1),   // type
    (156, 1),   // twice as often
    (157, 100), // link
    (257, 8),   // magic and version
    (329, 8),   // device
    (337, 8),   // device
    (345, 155), // prefix
    (386, 12),  // GNU: first offset
    (398, 12),  // GNU: first length
    (410, 24),  // GNU: second descriptor
    (482, 1),   // GNU: more follow
    (483, 12),  // GNU: real size
    (500, 12),  // what nobody uses
];
const TYPES: &[u8] = b"0000055xxxxggLLKKS1234567\0VMN";
const NUMBERS: [&[u8]; 18] = [
    b"0000000\0",
    b"0000001\0",
    b"0000777\0",
    b"0001000\0",
    b"0001001\0",
    b"   644 \0",
    b"77777777777\0",
    b"777777777777",
    b"\x80\0\0\0\0\0\0\0\0\0\x02\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\0\0\0\0\0\0\0\0\0\0\0\0",
    b"            ",
    b"-1\0",
    b"0x10\0",
    b"\x00001\0",
    b"00000000010 ",
];
const NAMES: [&[u8]; 12] = [
    b"a\0",
    b"dir/\0",
    b"a/b\0",
    b"./a\0",
    b"../a\0",
    b"/a\0",
    b".wh.a\0",
    b".wh..wh..opq\0",
    b"\0",
    b"\xff\xfe\0",
    b"././@LongLink\0",
    b"GNUSparseFile.0/a\0",
];
const MAGICS: [&[u8]; 5] = [b"ustar\x0000", b"ustar  \0", b"\0\0\0\0\0\0\0\0", b"ustar\0\0\0", b"ustar 00"];
const KEYS: [&str; 22] = [
    "path",
    "linkpath",
    "size",
    "size",
    "uid",
    "gid",
    "mtime",
    "atime",
    "comment",
    "hdrcharset",
    "SCHILY.xattr.user.x",
    "SCHILY.xattr.security.capability",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.realsize",
    "GNU.sparse.size",
    "GNU.sparse.map",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "GNU.sparse.numblocks",
    "",
];
const VALUES: [&[u8]; 22] = [
    b"",
    b"0",
    b"1",
    b"5",
    b"512",
    b"513",
    b"1024",
    b"-1",
    b"+1",
    b"1.5",
    b"-0.25",
    b"9223372036854775807",
    b"18446744073709551615",
    b"99999999999999999999",
    b"0,1,1024,511",
    b"0,512",
    b"a",
    b"a/b/",
    b"../../a",
    b"a\nb",
    b"11 path=b\n",
    b"\xff\0",
];
const PAYLOADS: [&[u8]; 7] = [
    b"x",
    b"1\n0\n512\n",
    b"2\n0\n1\n1024\n511\n",
    b"0\n",
    b"18446744073709551615\n",
    b"long/name/long/name/long/name/long/name/long/name/long/name/long/name/long/name/long/name/long/name/long/name\0",
    b"\0",
];

/// Numbers that are random enough (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

struct Member {
    header: [u8; BLOCK],
    /// With its padding.
    payload: Vec<u8>,
}

/// Changes a tar of `size` bytes in `data`; its new size.
pub fn mutate_tar(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut dice = Dice(u64::from(seed));
    if size < BLOCK || dice.roll(8) == 0 {
        let size = fuzzer_mutate(data, size, max_size);
        for at in (0..size.saturating_sub(BLOCK - 1)).step_by(BLOCK) {
            if &data[at + 257..at + 262] == b"ustar" {
                seal(&mut data[at..at + BLOCK]);
            }
        }
        return size;
    }
    let (mut members, mut tail) = take_apart(&data[..size]);
    for _ in 0..=dice.roll(3) {
        change(&mut members, &mut tail, &mut dice);
    }
    let mut out = Vec::with_capacity(size + 2 * BLOCK);
    for member in &mut members {
        seal(&mut member.header);
        out.extend_from_slice(&member.header);
        out.extend_from_slice(&member.payload);
    }
    out.extend_from_slice(&tail);
    out.truncate(max_size);
    data[..out.len()].copy_from_slice(&out);
    out.len()
}

fn change(members: &mut Vec<Member>, tail: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.roll(members.len());
    if members.is_empty() {
        members.push(made(dice));
        return;
    }
    match dice.roll(16) {
        0..=4 => field(&mut members[at].header, dice),
        5 | 6 => {
            // A field as another member has it.
            let (begin, length) = dice.pick(&FIELDS);
            let from = members[dice.roll(members.len())].header;
            members[at].header[begin..begin + length].copy_from_slice(&from[begin..begin + length]);
        }
        7 | 8 => {
            let member = extended(dice);
            members.insert(at, member);
        }
        9 => {
            let member = made(dice);
            members.insert(at, member);
        }
        10 => drop(members.remove(at)),
        11 => {
            let other = dice.roll(members.len());
            members.swap(at, other);
        }
        12 => {
            let copy = Member { header: members[at].header, payload: members[at].payload.clone() };
            let to = dice.roll(members.len() + 1);
            members.insert(to, copy);
        }
        13 => {
            let payload = dice.pick(&PAYLOADS);
            set_payload(&mut members[at], payload, dice);
        }
        14 => {
            // Bytes of a payload, whatever they are.
            let payload = &mut members[at].payload;
            let length = payload.len();
            if length == 0 {
                return;
            }
            let size = fuzzer_mutate(payload, length, length);
            payload[size..].fill(0);
            payload.truncate(size.next_multiple_of(BLOCK).min(length));
        }
        _ => match dice.roll(4) {
            0 => tail.clear(),
            1 => tail.extend_from_slice(&[0; BLOCK]),
            2 => tail.truncate(tail.len().saturating_sub(1 + dice.roll(600))),
            _ => {
                let payload = &mut members[at].payload;
                payload.truncate(payload.len().saturating_sub(1 + dice.roll(600)));
            }
        },
    }
}

fn field(header: &mut [u8; BLOCK], dice: &mut Dice) {
    let (begin, length) = dice.pick(&FIELDS);
    let field = &mut header[begin..begin + length];
    if dice.roll(3) == 0 {
        let size = fuzzer_mutate(field, length, length);
        field[size..].fill(0);
        return;
    }
    let value: &[u8] = match begin {
        156 => &[dice.pick(TYPES)],
        482 => &[dice.roll(2) as u8],
        257 => dice.pick(&MAGICS),
        0 | 157 | 345 => dice.pick(&NAMES),
        _ => dice.pick(&NUMBERS),
    };
    let most = value.len().min(length);
    field[..most].copy_from_slice(&value[..most]);
}

fn set_payload(member: &mut Member, payload: &[u8], dice: &mut Dice) {
    member.payload = payload.to_vec();
    member.payload.resize(payload.len().next_multiple_of(BLOCK), 0);
    if dice.roll(8) != 0 {
        member.header[124..136].copy_from_slice(format!("{:011o}\0", payload.len()).as_bytes());
    }
}

fn plain(kind: u8, name: &[u8]) -> Member {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name);
    header[100..124].copy_from_slice(b"0000644\x000000000\x000000000\x00");
    header[124..148].copy_from_slice(b"00000000000\x0000007020100\x00");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    Member { header, payload: vec![] }
}

fn made(dice: &mut Dice) -> Member {
    let mut member = plain(dice.pick(TYPES), dice.pick(&NAMES));
    if member.header[156] == b'S' {
        member.header[257..265].copy_from_slice(b"ustar  \0");
    }
    if dice.roll(2) == 0 {
        let payload = dice.pick(&PAYLOADS);
        set_payload(&mut member, payload, dice);
    }
    member
}

fn extended(dice: &mut Dice) -> Member {
    let mut records = Vec::new();
    for _ in 0..=dice.roll(4) {
        let (key, value) = (dice.pick(&KEYS), dice.pick(&VALUES));
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        records.extend_from_slice(format!("{length} {key}=").as_bytes());
        records.extend_from_slice(value);
        records.push(b'\n');
    }
    let mut member = plain(if dice.roll(8) == 0 { b'g' } else { b'x' }, b"pax");
    set_payload(&mut member, &records, dice);
    member
}

/// Members, and what follows the last of them.
fn take_apart(mut bytes: &[u8]) -> (Vec<Member>, Vec<u8>) {
    let mut members = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<BLOCK>() {
        if header == &[0; BLOCK] || members.len() == 64 {
            break;
        }
        let digits =
            header[124..136].iter().take_while(|byte| **byte != 0).filter(|byte| byte.is_ascii_digit());
        let size =
            digits.fold(0usize, |value, digit| value.wrapping_mul(8).wrapping_add(usize::from(digit & 7)));
        let size = if header[156].is_ascii_digit() && !matches!(header[156], b'0' | b'7') { 0 } else { size };
        let length = size.checked_next_multiple_of(BLOCK).unwrap_or(0).min(rest.len());
        let (payload, after) = rest.split_at(length);
        members.push(Member { header: *header, payload: payload.to_vec() });
        bytes = after;
    }
    (members, bytes.to_vec())
}

/// Makes the checksum of a header right.
fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
