//! ASCII armour (RFC 9580, section 6.2): the blocks of a text, decoded.
//!
//! Text around blocks says nothing, as with gpg. The checksum of old armour is not looked at: RFC 9580 forbids to reject
//! anything for it, and what signatures do not cover, they do not cover.

use super::error::FormatError;
use crate::base64;

/// What a block says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Signature,
    PublicKey,
    PrivateKey,
    Other,
}

/// A block of armour.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN PGP ";
const END: &str = "-----END PGP ";
const DASHES: &str = "-----";

/// What stands between the words and the dashes of a line that begins or ends a block.
fn label<'a>(line: &'a str, words: &str) -> Option<&'a str> {
    line.strip_prefix(words)?.strip_suffix(DASHES)
}

/// All blocks, at most `blocks_max`.
pub(super) fn blocks(text: &[u8], blocks_max: usize) -> Result<Vec<Block>, FormatError> {
    // Comments may be in any encoding; what counts is ASCII.
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().map(str::trim_end);
    let mut blocks = Vec::new();
    while let Some(line) = lines.next() {
        let Some(name) = label(line, BEGIN) else { continue };
        if blocks.len() == blocks_max {
            return Err(FormatError::TooMany { what: "blocks of armour", max: blocks_max });
        }
        // Headers, up to a blank line.
        loop {
            match lines.next() {
                Some("") => break,
                Some(header) if header.contains(':') && !header.starts_with(DASHES) => {}
                Some(_) => {
                    return Err(FormatError::Malformed("no blank line follows the head of its armour"));
                }
                None => return Err(FormatError::CutOff),
            }
        }
        let mut body = String::new();
        loop {
            match lines.next() {
                Some(line) if line.starts_with(DASHES) => match label(line, END) {
                    Some(end) if end == name => break,
                    _ => return Err(FormatError::Malformed("its armour does not end as it begins")),
                },
                // The checksum; nothing but the end may follow, which the dashes above see to.
                Some(line) if line.starts_with('=') => {}
                Some(line) => body.push_str(line.trim_start()),
                None => return Err(FormatError::CutOff),
            }
        }
        let bytes = base64::decode(&body).ok_or(FormatError::Malformed("its armour is no base64"))?;
        let kind = match name {
            "SIGNATURE" => Kind::Signature,
            "PUBLIC KEY BLOCK" => Kind::PublicKey,
            "PRIVATE KEY BLOCK" => Kind::PrivateKey,
            _ => Kind::Other,
        };
        blocks.push(Block { kind, bytes });
    }
    if blocks.is_empty() { Err(FormatError::NotArmored) } else { Ok(blocks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "text\n-----BEGIN PGP SIGNATURE-----\r\nComment: \u{e9}: x\r\n\r\nAQID\r\nBA==\r\n=abcd\r\n-----END PGP SIGNATURE-----\r\nmore";

    #[test]
    fn blocks_are_found_in_text_and_decoded() {
        let blocks = blocks(GOOD.as_bytes(), 2).unwrap();
        assert_eq!((blocks[0].kind, blocks[0].bytes.as_slice()), (Kind::Signature, [1, 2, 3, 4].as_slice()));
        assert_eq!(blocks.len(), 1);
        let twice = super::blocks(format!("{GOOD}\n{GOOD}").as_bytes(), 2).unwrap();
        assert_eq!(twice.len(), 2);
        assert!(matches!(
            super::blocks(format!("{GOOD}\n{GOOD}").as_bytes(), 1),
            Err(FormatError::TooMany { .. })
        ));
    }

    #[test]
    fn what_is_cut_off_or_none_is_said_to_be() {
        for end in 0..GOOD.len() {
            let Some(text) = GOOD.get(..end) else { continue };
            let refused = blocks(text.as_bytes(), 2);
            // Its last line may lose what follows the dashes.
            let whole = end >= GOOD.rfind("-----\r\nmore").unwrap() + 5;
            assert_eq!(refused.is_ok(), whole, "{text:?}");
        }
        assert!(matches!(blocks(&[0x88, 0x5d, 4, 0], 2), Err(FormatError::NotArmored)));
        let wrong = GOOD.replace("END PGP SIGNATURE", "END PGP MESSAGE");
        assert!(matches!(blocks(wrong.as_bytes(), 2), Err(FormatError::Malformed(_))));
        assert!(matches!(blocks(GOOD.replace("AQID", "A!ID").as_bytes(), 2), Err(FormatError::Malformed(_))));
    }
}
