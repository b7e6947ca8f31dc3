//! The reader alone: how the bytes arrive changes nothing, and no bytes make it panic.

use proptest::prelude::*;

use super::*;

/// Bytes in pieces of the given lengths, over and over.
struct Pieces<'a> {
    bytes: &'a [u8],
    lengths: Vec<usize>,
    at: usize,
    left: usize,
}

impl Source for Pieces<'_> {
    fn fill(&mut self) -> Result<&[u8], Flaw> {
        if self.left == 0 {
            self.left = self.lengths[self.at % self.lengths.len()];
            self.at += 1;
        }
        Ok(&self.bytes[..self.left.min(self.bytes.len())])
    }

    fn consume(&mut self, bytes: usize) {
        self.bytes = &self.bytes[bytes..];
        self.left -= bytes;
    }

    fn lend(&mut self, bytes: usize) -> Bytes {
        let lent = Bytes::copy_from_slice(&self.bytes[..bytes]);
        self.consume(bytes);
        lent
    }
}

const BOUNDS: Bounds =
    Bounds { entries_max: 100, path_bytes_max: 4096, xattr_bytes_max: 1000, pax_bytes_max: 10_000 };

/// Everything a tar says, or why it says nothing.
fn read(bytes: &[u8], lengths: Vec<usize>) -> Result<String, String> {
    let mut reader = Reader::new(Pieces { bytes, lengths, at: 0, left: 0 }, BOUNDS);
    let mut said = String::new();
    let mut all = || -> Result<(), Flaw> {
        while let Some(member) = reader.next()? {
            said += &format!("{member:?}");
            // Every third payload is left for the reader to skip.
            if member.mtime.0 % 3 == 0 {
                continue;
            }
            loop {
                let payload = reader.payload(1000)?;
                if payload.is_empty() {
                    break;
                }
                said += &format!("{payload:?}").replace("][", ", ");
                let length = payload.len();
                reader.advance(length);
            }
        }
        Ok(())
    };
    all().map_err(|flaw| format!("{flaw:?}"))?;
    let whole = reader.place() + reader.source.bytes.len() as u64;
    assert_eq!(whole, bytes.len() as u64, "every byte is counted once");
    assert!(reader.finish().is_ok_and(|source| source.bytes.is_empty()));
    Ok(said.replace("][", ", "))
}

fn sample() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let capability: &[u8] = b"\x01\n\0";
    for (at, name) in ["a", "b/c", &("long/".repeat(60) + "x"), "d"].into_iter().enumerate() {
        let content = vec![at as u8; at * 700];
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(at as u64);
        if at == 1 {
            let records = [
                ("SCHILY.xattr.security.capability", capability),
                ("GNU.sparse.map", b"0,700"),
                ("size", b"700"),
            ];
            builder.append_pax_extensions(records).unwrap();
        }
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn pieces_of_any_length_say_the_same() {
    let bytes = sample();
    let whole = read(&bytes, vec![usize::MAX >> 1]).unwrap();
    assert!(whole.contains("size: 2100"), "{whole}");
    for lengths in [vec![1], vec![511, 2], vec![512], vec![513], vec![7, 10_000, 1]] {
        assert_eq!(read(&bytes, lengths).unwrap(), whole);
    }
}

#[test]
fn the_tar_crate_reads_the_same_names_and_content() {
    let bytes = sample();
    let mut archive = tar::Archive::new(&bytes[..]);
    let theirs: Vec<(Vec<u8>, u64)> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.path_bytes().into_owned(), entry.size()))
        .collect();
    let source = Pieces { bytes: &bytes, lengths: vec![4096], at: 0, left: 0 };
    let mut reader = Reader::new(source, BOUNDS);
    let mut ours = Vec::new();
    while let Some(member) = reader.next().unwrap() {
        ours.push((member.path, member.size));
    }
    assert_eq!(ours, theirs);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_bytes_makes_it_panic_or_depend_on_the_pieces(
        changes in proptest::collection::vec((0..6000usize, any::<u8>()), 1..20),
        cut in 0..8000usize,
        lengths in proptest::collection::vec(1..2000usize, 1..5),
    ) {
        let mut bytes = sample();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        // Checksums made right again, so that the changes get past them.
        for block in bytes.chunks_exact_mut(512) {
            if &block[257..262] == b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 2).max(cut));
        prop_assert_eq!(read(&bytes, vec![100_000]), read(&bytes, lengths));
    }
}
