//! Maps of sparse files: old GNU, and PAX 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").
//!
//! A map says where the payload goes in the file; everything else is a hole. Maps are trusted no further than
//! [`fits`] allows: ascending, inside the file, and using up the payload exactly.

use super::number;

/// A run of payload and its place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Segment {
    /// First byte in the file.
    pub(in crate::store) offset: u64,
    /// Bytes.
    pub(in crate::store) length: u64,
}

/// What the `GNU.sparse.` records of one extended header say.
#[derive(Default)]
pub(super) struct Records {
    some: bool,
    pub(super) name: Option<Vec<u8>>,
    /// `size` (0.x) or `realsize` (1.0).
    pub(super) size: Option<Vec<u8>>,
    major: Option<Vec<u8>>,
    minor: Option<Vec<u8>>,
    count: Option<Vec<u8>>,
    /// 0.1: one record.
    map: Option<Vec<u8>>,
    /// 0.0: a record for each number; an offset waits for its length.
    listed: Vec<Segment>,
    offset: Option<u64>,
    wrong: bool,
}

/// Where the map is.
pub(super) enum Form {
    /// In the records.
    Records,
    /// At the head of the payload.
    Payload,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        !self.some
    }

    /// Takes a record, the prefix cut off.
    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) {
        self.some = true;
        let some = || (!value.is_empty()).then(|| value.to_vec());
        match name {
            b"name" => self.name = some(),
            b"size" | b"realsize" => self.size = some(),
            b"major" => self.major = some(),
            b"minor" => self.minor = some(),
            b"map" => self.map = some(),
            b"offset" => match (self.offset, number::decimal(value)) {
                (None, Some(offset)) => self.offset = Some(offset),
                _ => self.wrong = true,
            },
            b"numbytes" => match (self.offset.take(), number::decimal(value)) {
                (Some(offset), Some(length)) => self.listed.push(Segment { offset, length }),
                _ => self.wrong = true,
            },
            b"numblocks" => self.count = some(),
            _ => {}
        }
    }

    /// `None` = a version that nobody has described.
    pub(super) fn form(&self) -> Option<Form> {
        match (self.major.as_deref(), self.minor.as_deref()) {
            (Some(b"1"), Some(b"0")) => Some(Form::Payload),
            (None | Some(b"0"), None | Some(b"0" | b"1")) => Some(Form::Records),
            _ => None,
        }
    }

    /// The map of versions 0.0 and 0.1.
    pub(super) fn map(self) -> Result<Vec<Segment>, &'static str> {
        if self.wrong || self.offset.is_some() {
            return Err("an offset or a length is missing or no number");
        }
        let map = match &self.map {
            None => self.listed,
            Some(text) => {
                let numbers: Option<Vec<u64>> =
                    text.split(|byte| *byte == b',').map(number::decimal).collect();
                let numbers = numbers.ok_or("an offset or a length is no number")?;
                if numbers.len() % 2 != 0 {
                    return Err("an offset has no length");
                }
                numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect()
            }
        };
        // Go's archive/tar insists on the count; where it is missing, nothing contradicts the map.
        match self.count.as_deref().map(number::decimal::<usize>) {
            Some(count) if count != Some(map.len()) => Err("it has not as many runs as it says"),
            _ => Ok(map),
        }
    }
}

/// Adds the descriptors of an old GNU header or extension block, which says whether more blocks follow; whether they do.
/// GNU tar ends the map at a descriptor without a length, Go's archive/tar at one without an offset, and goes on in the next
/// block all the same: what they would read differently is refused. A wrong one becomes a segment that fits nowhere.
pub(super) fn old_descriptors(
    descriptors: &[tar::GnuSparseHeader],
    extended: bool,
    map: &mut Vec<Segment>,
) -> Result<bool, &'static str> {
    for descriptor in descriptors {
        match (descriptor.offset[0] == 0, descriptor.numbytes[0] == 0) {
            (false, false) => {}
            (true, true) if extended => return Err("it ends before the blocks it is said to have"),
            (true, true) => return Ok(false),
            _ => return Err("an offset has no length, or a length no offset"),
        }
        let number = |field: &[u8]| number::field(field).and_then(|number| u64::try_from(number).ok());
        let (offset, length) = (number(&descriptor.offset), number(&descriptor.numbytes));
        map.push(Segment { offset: offset.unwrap_or(u64::MAX), length: length.unwrap_or(u64::MAX) });
    }
    Ok(extended)
}

/// Parser for the map of version 1.0: a count, then so many pairs, one number a line.
#[derive(Default)]
pub(super) struct Lines {
    count: Option<u64>,
    offset: Option<u64>,
    map: Vec<Segment>,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn is_done(&self) -> bool {
        self.count == Some(self.map.len() as u64)
    }

    /// Takes bytes; those after the end of the map are padding.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for byte in bytes {
            if self.is_done() {
                break;
            }
            if *byte != b'\n' {
                // No number in range has more digits.
                if !byte.is_ascii_digit() || self.line.len() > 20 {
                    return Err("a line is no number");
                }
                self.line.push(*byte);
                continue;
            }
            let number: u64 = number::decimal(&self.line).ok_or("a line is no number")?;
            self.line.clear();
            if self.count.is_none() {
                self.count = Some(number);
            } else if let Some(offset) = self.offset.take() {
                self.map.push(Segment { offset, length: number });
            } else {
                self.offset = Some(number);
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<Segment> {
        self.map
    }
}

/// The map, if it can be that of a file of this size with this much payload; empty segments are left out.
pub(super) fn fits(mut map: Vec<Segment>, size: u64, payload: u64) -> Result<Vec<Segment>, &'static str> {
    let (mut end, mut total) = (0, 0u64);
    for segment in &map {
        if segment.offset < end {
            return Err("its runs overlap or are out of order");
        }
        end = segment.offset.checked_add(segment.length).ok_or("a run ends beyond every file")?;
        if end > size {
            return Err("a run ends beyond its file");
        }
        total += segment.length;
    }
    if total != payload {
        return Err("its runs are not as long as what the tar holds of the file");
    }
    map.retain(|segment| segment.length > 0);
    Ok(map)
}
