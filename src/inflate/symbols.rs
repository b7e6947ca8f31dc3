//! The symbols of a block: literals, matches, the end. All of the time goes by in here.
//!
//! The loop is libdeflate's (Eric Biggers, `lib/decompress_template.h`). It is safe Rust: buffers and tables are
//! arrays of constant size and indexes are masked or bounded by what the loop's conditions say of them, so that few
//! checks remain. Because a chunk has room past its end, and the input zeros past its own, there is no second, careful
//! loop: see [`FULL`] and [`Input::turn_limit`](super::input::Input::turn_limit).

use super::chunk::{BUFFER, FULL};
use super::error::GzipFlaw;
use super::input::{Bits, INPUT, INPUT_BYTES};
use super::tables::{
    DISTANCE_BITS, DISTANCE_ENTRIES, END_OF_BLOCK, EXCEPTION, LITERAL, LITERAL_BITS, LITERAL_ENTRIES,
    SUBTABLE, Tables,
};

/// Why decoding stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The input is used up but for less than a turn.
    Input,
    /// The chunk is full.
    Output,
    /// The block is over.
    Block,
    /// Something is wrong.
    Flaw(GzipFlaw),
}

/// Where output goes.
pub(super) struct Output<'a> {
    pub(super) buffer: &'a mut [u8; BUFFER],
    /// The next byte.
    pub(super) at: usize,
    /// Symbols begin before it only; at most [`FULL`].
    pub(super) limit: usize,
    /// Matches begin here at the earliest.
    pub(super) floor: usize,
}

#[inline(always)]
fn load<const N: usize>(buffer: &[u8], at: usize) -> [u8; N] {
    let mut block = [0; N];
    block.copy_from_slice(&buffer[at..at + N]);
    block
}

#[inline(always)]
fn store<const N: usize>(buffer: &mut [u8; BUFFER], at: usize, block: [u8; N]) {
    buffer[at..at + N].copy_from_slice(&block);
}

/// Decodes symbols until one of the limits is reached or the block ends.
#[inline(never)]
pub(super) fn decode(
    tables: &Tables,
    input: &[u8; INPUT],
    input_limit: usize,
    bits: &mut Bits,
    output: &mut Output<'_>,
) -> Stopped {
    let (literals, distances) = (&tables.literals, &tables.distances);
    let Bits { at: mut next, buffer: mut word, mut count } = *bits;
    let out = &mut *output.buffer;
    let mut at = output.at;
    let input_limit = input_limit.min(INPUT_BYTES);
    let limit = output.limit.min(FULL);
    let floor = output.floor;

    macro_rules! refill {
        () => {
            word |= u64::from_le_bytes(load(input, next)) << (count & 63);
            next += 7;
            next -= (count >> 3 & 7) as usize;
            count |= 56;
        };
    }
    macro_rules! consume {
        ($entry:expr) => {
            word >>= $entry & 63;
            // Only the low byte of `count` is ever looked at, so what lies above the low byte of the entry may stay.
            count = count.wrapping_sub(u64::from($entry));
        };
    }
    macro_rules! literal {
        () => {
            literals[word as usize & ((1 << LITERAL_BITS) - 1)]
        };
    }

    let stopped = 'stopped: {
        if next >= input_limit {
            break 'stopped Stopped::Input;
        }
        if at >= limit {
            break 'stopped Stopped::Output;
        }
        refill!();
        let mut entry = literal!();
        loop {
            let mut saved = word;
            consume!(entry);
            if entry & LITERAL != 0 {
                // Two more may follow without a refill, and still leave bits enough for a match.
                let byte = (entry >> 16) as u8;
                entry = literal!();
                saved = word;
                consume!(entry);
                out[at] = byte;
                at += 1;
                if entry & LITERAL != 0 {
                    let byte = (entry >> 16) as u8;
                    entry = literal!();
                    saved = word;
                    consume!(entry);
                    out[at] = byte;
                    at += 1;
                    if entry & LITERAL != 0 {
                        let byte = (entry >> 16) as u8;
                        entry = literal!();
                        refill!();
                        out[at] = byte;
                        at += 1;
                        if next >= input_limit {
                            break 'stopped Stopped::Input;
                        }
                        if at >= limit {
                            break 'stopped Stopped::Output;
                        }
                        continue;
                    }
                }
            }
            if entry & EXCEPTION != 0 {
                if entry & END_OF_BLOCK != 0 {
                    break 'stopped Stopped::Block;
                }
                if entry & SUBTABLE == 0 {
                    break 'stopped Stopped::Flaw(GzipFlaw::Literal);
                }
                let index = (entry >> 16) as usize + (word & ((1 << (entry >> 8 & 15)) - 1)) as usize;
                entry = literals[index & (LITERAL_ENTRIES - 1)];
                saved = word;
                consume!(entry);
                if entry & LITERAL != 0 {
                    let byte = (entry >> 16) as u8;
                    entry = literal!();
                    refill!();
                    out[at] = byte;
                    at += 1;
                    if next >= input_limit {
                        break 'stopped Stopped::Input;
                    }
                    if at >= limit {
                        break 'stopped Stopped::Output;
                    }
                    continue;
                }
                if entry & END_OF_BLOCK != 0 {
                    break 'stopped Stopped::Block;
                }
            }
            let extra = (saved & !(u64::MAX << (entry & 63))) >> (entry >> 8 & 63);
            let length = (entry >> 16 & 511) as usize + extra as usize;

            entry = distances[word as usize & ((1 << DISTANCE_BITS) - 1)];
            if entry & EXCEPTION != 0 {
                if entry & SUBTABLE == 0 {
                    break 'stopped Stopped::Flaw(GzipFlaw::Distance);
                }
                if (count as u8) < 28 + LITERAL_BITS as u8 - 1 {
                    refill!();
                }
                word >>= DISTANCE_BITS;
                count = count.wrapping_sub(DISTANCE_BITS as u64);
                let index = (entry >> 16) as usize + (word & ((1 << (entry >> 8 & 15)) - 1)) as usize;
                entry = distances[index & (DISTANCE_ENTRIES - 1)];
            } else if (count as u8) < (DISTANCE_BITS + 13 + LITERAL_BITS - 1) as u8 {
                refill!();
            }
            saved = word;
            consume!(entry);
            let extra = (saved & !(u64::MAX << (entry & 63))) >> (entry >> 8 & 63);
            let distance = (entry >> 16) as usize + extra as usize;

            if distance > at - floor {
                break 'stopped Stopped::Flaw(GzipFlaw::TooFarBack {
                    distance: distance as u32,
                    available: (at - floor) as u32,
                });
            }
            let mut from = at - distance;
            let mut to = at;
            at += length;
            // The next entry is on its way while the match is copied.
            entry = literal!();
            refill!();

            if distance >= 16 {
                store::<16>(out, to, load(out, from));
                store::<16>(out, to + 16, load(out, from + 16));
                if length > 32 {
                    to += 32;
                    from += 32;
                    while to < at {
                        store::<16>(out, to, load(out, from));
                        store::<16>(out, to + 16, load(out, from + 16));
                        to += 32;
                        from += 32;
                    }
                }
            } else if distance >= 8 {
                while to < at {
                    store::<8>(out, to, load(out, from));
                    store::<8>(out, to + 8, load(out, from + 8));
                    to += 16;
                    from += 16;
                }
            } else if distance == 1 {
                let block = [out[from]; 16];
                while to < at {
                    store::<16>(out, to, block);
                    store::<16>(out, to + 16, block);
                    to += 32;
                }
            } else {
                while to < at {
                    store::<8>(out, to, load(out, from));
                    to += distance;
                    from += distance;
                }
            }
            if next >= input_limit {
                break 'stopped Stopped::Input;
            }
            if at >= limit {
                break 'stopped Stopped::Output;
            }
        }
    };
    output.at = at;
    *bits = Bits { at: next, buffer: word, count };
    bits.settle();
    stopped
}
