//! Base64 as others write it: padded or not, with whatever in the bits that are left over, as Go reads it.

use ::base64::Engine as _;
use ::base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use ::base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const fn engine(alphabet: &Alphabet) -> GeneralPurpose {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(alphabet, lenient)
}

const PLAIN: GeneralPurpose = engine(&STANDARD);
const FOR_ADDRESSES: GeneralPurpose = engine(&URL_SAFE);

/// RFC 4648 section 4, with padding.
pub(crate) fn encode(bytes: &[u8]) -> String {
    PLAIN.encode(bytes)
}

/// RFC 4648 section 4; `None` when it is something else.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    PLAIN.decode(text.trim()).ok()
}

/// In the alphabet for addresses, RFC 4648 section 5; `None` when it is something else.
pub(crate) fn decode_url(text: &str) -> Option<Vec<u8>> {
    FOR_ADDRESSES.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_bits_left_over_do_not_matter() {
        for (text, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(encode(text.as_bytes()), coded);
            for coded in [coded, coded.trim_end_matches('='), &format!(" {coded}\n")] {
                assert_eq!(decode(coded).unwrap(), text.as_bytes());
            }
        }
        assert_eq!(encode(&[0xfb, 0xff]), "+/8=");
        assert_eq!((decode("Zh=="), decode_url("-_8")), (Some(b"f".to_vec()), Some(vec![0xfb, 0xff])));
        for text in ["Z", "Zm9vY", "Zm 9v", "Zm9v-", "Z=g=", "\u{fc}"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
