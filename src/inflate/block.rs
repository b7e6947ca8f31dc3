//! Block headers (RFC 1951, section 3.2.3 and 3.2.7).

use std::io::Read;

use super::error::{Fault, GzipFlaw};
use super::input::{Input, LOOKAHEAD, flaw};
use super::tables::{DISTANCES, LENGTH_CODE_BITS, LENGTH_SYMBOLS, LITERALS, Tables, length_code};

/// How a block goes on after its header.
pub(super) enum Block {
    /// So many bytes as they are.
    Stored(usize),
    /// Symbols of the fixed codes.
    Fixed,
    /// Symbols of the codes that are now in the tables.
    Dynamic,
}

/// Reads the header of a block: is it the last one, and how does it go on?
pub(super) fn header<R: Read>(input: &mut Input<R>, tables: &mut Tables) -> Result<(bool, Block), Fault> {
    input.look_ahead(LOOKAHEAD)?;
    let bits = input.take_bits(3)?;
    let block = match bits >> 1 {
        0 => {
            input.bits.settle();
            input.align();
            let [a, b, c, d] = input.take()?;
            let (length, complement) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            if length != !complement {
                return Err(GzipFlaw::StoredLength { length, complement }.into());
            }
            Block::Stored(usize::from(length))
        }
        1 => Block::Fixed,
        2 => {
            codes(input, tables)?;
            Block::Dynamic
        }
        _ => return flaw(input, GzipFlaw::BlockType),
    };
    input.bits.settle();
    input.check_end()?;
    Ok((bits & 1 == 1, block))
}

/// Repeats write this much past the lengths at most.
const OVERRUN: usize = 138;

fn codes<R: Read>(input: &mut Input<R>, tables: &mut Tables) -> Result<(), Fault> {
    const ORDER: [usize; LENGTH_SYMBOLS] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

    let counts = input.take_bits(14)?;
    let literals = (counts & 31) as usize + 257;
    let distances = (counts >> 5 & 31) as usize + 1;
    if literals > LITERALS || distances > DISTANCES {
        return flaw(
            input,
            GzipFlaw::SymbolCounts { literals: literals as u16, distances: distances as u16 },
        );
    }
    let mut code_lengths = [0; LENGTH_SYMBOLS];
    for symbol in &ORDER[..(counts >> 10) as usize + 4] {
        code_lengths[*symbol] = input.take_bits(3)? as u8;
    }
    let table = match length_code(&code_lengths) {
        Ok(table) => table,
        Err(wrong) => return flaw(input, wrong),
    };

    let all = literals + distances;
    let mut lengths = [0u8; LITERALS + DISTANCES + OVERRUN];
    let mut at = 0;
    while at < all {
        let bits = input.peek_bits(LENGTH_CODE_BITS as u32 + 7)?;
        let entry = table[bits as usize & (table.len() - 1)];
        let used = entry & 15;
        let (symbol, bits) = (entry >> 16, bits >> used);
        if symbol < 16 {
            lengths[at] = symbol as u8;
            at += 1;
            input.drop_bits(used);
            continue;
        }
        let (extra, repeats, length) = match symbol {
            16 => match at.checked_sub(1) {
                Some(last) => (2, 3 + (bits & 3), lengths[last]),
                None => return flaw(input, GzipFlaw::LengthRepeat),
            },
            17 => (3, 3 + (bits & 7), 0),
            _ => (7, 11 + (bits & 127), 0),
        };
        input.drop_bits(used + extra);
        let end = at + repeats as usize;
        lengths[at..end].fill(length);
        at = end;
    }
    if at > all {
        return flaw(input, GzipFlaw::LengthRepeat);
    }
    if lengths[256] == 0 {
        return flaw(input, GzipFlaw::NoEndOfBlock);
    }
    let built = tables
        .set_literals(&lengths[..literals])
        .and_then(|()| tables.set_distances(&lengths[literals..all]));
    match built {
        Ok(()) => Ok(()),
        Err(wrong) => flaw(input, wrong),
    }
}
