//! Huffman codes as look-up tables (RFC 1951, section 3.2).
//!
//! A table is indexed with the next bits of the stream and holds all that a symbol means: the literal, or base and
//! number of extra bits of a length or distance. Codes longer than a table's index go on in a subtable behind it. The
//! layout of entries and the way tables are filled are those of libdeflate (Eric Biggers, `lib/deflate_decompress.c`);
//! which sets of lengths are codes is decided as in zlib (`inftrees.c`).
//!
//! An entry, from the lowest bit:
//!
//! | bits | |
//! |---|---|
//! | 0-7 | bits to use: code and extra bits |
//! | 8-11 | bits of the code, or of the index of a subtable |
//! | 12-15 | [`SUBTABLE`], [`END_OF_BLOCK`], [`EXCEPTION`] if it is one of these or no code at all |
//! | 16-30 | literal, base, or where the subtable begins |
//! | 31 | [`LITERAL`] |

use std::sync::LazyLock;

use super::error::GzipFlaw;

/// Longest code.
const CODE_BITS: usize = 15;
/// Literal and length symbols that may be used; two more exist in the fixed code.
pub(super) const LITERALS: usize = 286;
/// Distance symbols that may be used; two more exist in the fixed code.
pub(super) const DISTANCES: usize = 30;
/// Symbols of the code of code lengths.
pub(super) const LENGTH_SYMBOLS: usize = 19;

/// Index bits of the tables.
pub(super) const LITERAL_BITS: usize = 11;
pub(super) const DISTANCE_BITS: usize = 8;
pub(super) const LENGTH_CODE_BITS: usize = 7;

/// 2342 with all subtables for 288 symbols, by zlib's `enough 288 11 15`; rounded up so that a mask bounds an index.
pub(super) const LITERAL_ENTRIES: usize = 4096;
/// 402 by `enough 32 8 15`.
pub(super) const DISTANCE_ENTRIES: usize = 512;
const LENGTH_ENTRIES: usize = 1 << LENGTH_CODE_BITS;

pub(super) const LITERAL: u32 = 1 << 31;
pub(super) const EXCEPTION: u32 = 1 << 15;
pub(super) const SUBTABLE: u32 = 1 << 14;
pub(super) const END_OF_BLOCK: u32 = 1 << 13;
/// Bits that are no code: an exception that is nothing else.
const NO_CODE: u32 = EXCEPTION | 1;

/// The tables of a block.
pub(super) struct Tables {
    pub(super) literals: [u32; LITERAL_ENTRIES],
    pub(super) distances: [u32; DISTANCE_ENTRIES],
}

/// The fixed codes (section 3.2.6).
pub(super) static FIXED: LazyLock<Box<Tables>> = LazyLock::new(|| {
    let mut lengths = [8; 288];
    lengths[144..256].fill(9);
    lengths[256..280].fill(7);
    let mut tables = Box::new(Tables::new());
    tables.set_literals(&lengths).expect("the fixed code is complete");
    tables.set_distances(&[5; 32]).expect("the fixed code is complete");
    tables
});

impl Tables {
    pub(super) const fn new() -> Self {
        Self { literals: [0; LITERAL_ENTRIES], distances: [0; DISTANCE_ENTRIES] }
    }

    pub(super) fn set_literals(&mut self, lengths: &[u8]) -> Result<(), GzipFlaw> {
        build(&mut self.literals, LITERAL_BITS, lengths, &LITERAL_SYMBOLS, true).ok_or(GzipFlaw::LiteralCode)
    }

    pub(super) fn set_distances(&mut self, lengths: &[u8]) -> Result<(), GzipFlaw> {
        build(&mut self.distances, DISTANCE_BITS, lengths, &DISTANCE_SYMBOLS, true)
            .ok_or(GzipFlaw::DistanceCode)
    }
}

/// The table of the code of code lengths; the symbol lies in the upper half of an entry.
pub(super) fn length_code(lengths: &[u8; LENGTH_SYMBOLS]) -> Result<[u32; LENGTH_ENTRIES], GzipFlaw> {
    const SYMBOLS: [u32; LENGTH_SYMBOLS] = {
        let mut symbols = [0; LENGTH_SYMBOLS];
        let mut at = 0;
        while at < LENGTH_SYMBOLS {
            symbols[at] = (at as u32) << 16;
            at += 1;
        }
        symbols
    };
    let mut table = [0; LENGTH_ENTRIES];
    build(&mut table, LENGTH_CODE_BITS, lengths, &SYMBOLS, false).ok_or(GzipFlaw::LengthCode)?;
    Ok(table)
}

/// Entries of the 288 literal and length symbols, without their code.
const LITERAL_SYMBOLS: [u32; 288] = {
    const BASES: [u32; 29] = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163,
        195, 227, 258,
    ];
    const EXTRA: [u32; 29] =
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
    let mut symbols = [EXCEPTION; 288];
    let mut at = 0;
    while at < 256 {
        symbols[at] = LITERAL | (at as u32) << 16;
        at += 1;
    }
    symbols[256] = EXCEPTION | END_OF_BLOCK;
    at = 0;
    while at < BASES.len() {
        symbols[257 + at] = BASES[at] << 16 | EXTRA[at];
        at += 1;
    }
    symbols
};

/// Entries of the 32 distance symbols, without their code.
const DISTANCE_SYMBOLS: [u32; 32] = {
    let mut symbols = [EXCEPTION; 32];
    let mut base = 1;
    let mut at = 0;
    while at < DISTANCES {
        let extra = if at < 4 { 0 } else { at as u32 / 2 - 1 };
        symbols[at] = base << 16 | extra;
        base += 1 << extra;
        at += 1;
    }
    symbols
};

/// Fills a table from the code lengths of its symbols. `None` if the lengths are no code: over-subscribed, or
/// incomplete, save that `one_may_do` allows a single code of one bit, or none at all.
fn build<const ENTRIES: usize>(
    table: &mut [u32; ENTRIES],
    bits: usize,
    lengths: &[u8],
    symbols: &[u32],
    one_may_do: bool,
) -> Option<()> {
    let mut counts = [0u16; CODE_BITS + 1];
    for length in lengths {
        counts[usize::from(length & 15)] += 1;
    }
    let used = lengths.len() - usize::from(counts[0]);
    counts[0] = 0;

    // What is left of the code space, in codes of the length at hand.
    let mut left = 1i32;
    let mut next = [0u16; CODE_BITS + 2];
    for length in 1..=CODE_BITS {
        left = (left << 1) - i32::from(counts[length]);
        if left < 0 {
            return None;
        }
        next[length + 1] = next[length] + counts[length];
    }
    if left > 0 {
        return incomplete(table, bits, lengths, symbols, used, one_may_do);
    }

    // Symbols by code: shorter ones first, those of one length by value.
    let mut sorted = [0u16; 512];
    for (symbol, length) in lengths.iter().enumerate() {
        if *length != 0 {
            let place = &mut next[usize::from(length & 15)];
            sorted[usize::from(*place & 511)] = symbol as u16;
            *place += 1;
        }
    }
    let mut sorted = sorted[..used].iter().map(|symbol| symbols[usize::from(*symbol)]);

    // Codes come from the stream with their first bit lowest, so the entries of one lie 2^length apart. The table is
    // therefore filled as if it had 2^length entries, and doubled whenever codes become longer.
    let mut length = 1;
    let mut end = 2;
    let mut code = 0;
    loop {
        for _ in 0..counts[length] {
            let symbol = sorted.next()?;
            table[code & (ENTRIES - 1)] = symbol + (length << 8 | length) as u32;
            if code == end - 1 {
                while end < 1 << bits {
                    table.copy_within(0..end, end);
                    end <<= 1;
                }
                return Some(());
            }
            code = next_code(code, end - 1);
        }
        if length == bits {
            break;
        }
        table.copy_within(0..end, end);
        end <<= 1;
        length += 1;
    }

    // Longer codes: a subtable for all that begin alike.
    let mut prefix = usize::MAX;
    let mut start = 0;
    loop {
        length += 1;
        for done in 0..counts[length] {
            if code & ((1 << bits) - 1) != prefix {
                prefix = code & ((1 << bits) - 1);
                start = end;
                // As long as the shortest code in it needs, or longer ones that share it.
                let mut index_bits = length - bits;
                let mut space = usize::from(counts[length] - done);
                while space < 1 << index_bits {
                    index_bits += 1;
                    space = (space << 1) + usize::from(counts[bits + index_bits]);
                }
                end = start + (1 << index_bits);
                table[prefix] = (start << 16) as u32 | EXCEPTION | SUBTABLE | (index_bits << 8 | bits) as u32;
            }
            let rest = length - bits;
            let entry = sorted.next()? + (rest << 8 | rest) as u32;
            let mut at = start + (code >> bits);
            while at < end {
                table[at] = entry;
                at += 1 << rest;
            }
            if code == (1 << length) - 1 {
                return Some(());
            }
            code = next_code(code, (1 << length) - 1);
        }
    }
}

/// The code after this one, of those of one length (`mask`, all ones, is the last of them), first bit lowest: the
/// highest zero becomes one and the ones above it zero.
fn next_code(code: usize, mask: usize) -> usize {
    let bit = 1 << (code ^ mask).ilog2();
    code & (bit - 1) | bit
}

/// A code that leaves bits without meaning. zlib allows it only if it has no other length than one bit.
fn incomplete<const ENTRIES: usize>(
    table: &mut [u32; ENTRIES],
    bits: usize,
    lengths: &[u8],
    symbols: &[u32],
    used: usize,
    one_may_do: bool,
) -> Option<()> {
    let only = lengths.iter().position(|length| *length != 0);
    if !one_may_do || used > 1 || only.is_some_and(|symbol| lengths[symbol] != 1) {
        return None;
    }
    let zero = only.map_or(NO_CODE, |symbol| symbols[symbol] + (1 << 8 | 1));
    for pair in table[..1 << bits].chunks_exact_mut(2) {
        pair.copy_from_slice(&[zero, NO_CODE]);
    }
    Some(())
}
