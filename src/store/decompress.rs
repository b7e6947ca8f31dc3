//! From a blob to the bytes of its tar: gzip of any number of members, zstd of any number of frames with skippable
//! ones among them, or plain. Recognised by its first bytes; what the media type said is for the caller to compare.
//!
//! gzip, which is most of what comes and most of the work, is decompressed by [`crate::inflate`]. What follows the last
//! member or frame and is not another one is an error, zeros too, as in containerd and podman (Go's compress/gzip). zstd
//! frames may ask for a window of at most 128 MiB, the decoder's default.

use std::io::{self, BufReader, Read};

use keelblock_actors::image::plan::Compression;
use liblzma::stream::{CONCATENATED, Stream};

use crate::inflate::{Chunk, GzipDecoder};

/// Bytes asked of the source of a zstd stream at once: what its decoder asks for, with a block's header.
const BUFFER_BYTES: usize = 256 << 10;

/// Most memory of an xz decoder. 128 MiB, as of the zstd one; `xz -9` asks for 65.
const XZ_MEMORY_BYTES_MAX: u64 = 128 << 20;

/// Which compressions are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// Those of Docker and OCI layers.
    Layer,
    /// Those of ACIs: bzip2 and xz too.
    Aci,
}

/// The tar of a blob.
pub(crate) struct Decompressed<'a> {
    /// What its first bytes say.
    pub(crate) compression: Compression,
    /// What they say else, when they are neither gzip nor zstd; a tar may begin so by chance.
    pub(super) foreign: Option<&'static str>,
    /// At least so many bytes will come, where the beginning says it: what the first zstd frame says of its content.
    pub(super) content_bytes: Option<u64>,
    content: Content<'a>,
}

enum Content<'a> {
    Gzip(GzipDecoder<Box<dyn Read + 'a>>),
    Other(Box<dyn Read + 'a>),
}

impl Decompressed<'_> {
    /// Fills a chunk with the next bytes, and says how many; none at the end. Errors are the source's own or say what
    /// is wrong with the stream.
    pub(crate) fn fill(&mut self, chunk: &mut Chunk) -> io::Result<usize> {
        match &mut self.content {
            Content::Gzip(decoder) => Ok(decoder.next_chunk(chunk)?),
            Content::Other(reader) => chunk.read_from(reader),
        }
    }
}

/// Recognises a blob and opens it.
pub(crate) fn open<'a>(mut blob: impl Read + 'a, accepted: Accepted) -> io::Result<Decompressed<'a>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    blob.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let (compression, foreign) = (recognise(&head, accepted), super::foreign::name(&head));
    let content_bytes = zstd::zstd_safe::get_frame_content_size(&head).ok().flatten();
    let content_bytes = content_bytes.filter(|_| compression == Compression::Zstd);
    let whole = Box::new(io::Cursor::new(head).chain(blob));
    let content = match compression {
        Compression::None => Content::Other(whole),
        Compression::Gzip => Content::Gzip(GzipDecoder::new(whole)),
        Compression::Zstd => {
            let whole = BufReader::with_capacity(BUFFER_BYTES, whole);
            Content::Other(Box::new(zstd::stream::read::Decoder::with_buffer(whole)?))
        }
        Compression::Bzip2 => {
            let whole = BufReader::with_capacity(BUFFER_BYTES, whole);
            Content::Other(Box::new(bzip2::bufread::MultiBzDecoder::new(whole)))
        }
        Compression::Xz => {
            let whole = BufReader::with_capacity(BUFFER_BYTES, whole);
            let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, CONCATENATED)?;
            Content::Other(Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream)))
        }
    };
    Ok(Decompressed { compression, foreign, content_bytes, content })
}

/// As much as the largest zstd frame header has.
const HEAD_BYTES: usize = 18;

/// RFC 1952, section 2.3.1; RFC 8878, sections 3.1.1 and 3.1.2. A skippable frame counts as zstd: estargz and
/// zstd:chunked begin or end with one.
fn recognise(head: &[u8], accepted: Accepted) -> Compression {
    let aci = accepted == Accepted::Aci;
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] if aci => Compression::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] if aci => Compression::Xz,
        _ => Compression::None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 1).unwrap()
    }

    fn all(blob: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let mut opened = open(blob, Accepted::Aci)?;
        let (mut bytes, mut chunk) = (Vec::new(), Chunk::new());
        while opened.fill(&mut chunk)? > 0 {
            bytes.extend_from_slice(&chunk);
        }
        Ok((opened.compression, bytes))
    }

    #[test]
    fn every_member_and_frame_is_read() {
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        assert_eq!(all(b"plain").unwrap(), (Compression::None, b"plain".to_vec()));
        assert_eq!(all(b"").unwrap(), (Compression::None, vec![]));
        let members = [gzip(b"one"), gzip(b""), gzip(b"two")].concat();
        assert_eq!(all(&members).unwrap(), (Compression::Gzip, b"onetwo".to_vec()));
        let frames = [&skippable[..], &zstd(b"one"), &skippable, &zstd(b"two"), &skippable].concat();
        assert_eq!(all(&frames).unwrap(), (Compression::Zstd, b"onetwo".to_vec()));
    }

    #[test]
    fn cut_streams_and_what_follows_them_are_errors() {
        for whole in [gzip(&[7; 1000]), zstd(&[7; 1000])] {
            for cut in [5, whole.len() / 2, whole.len() - 1] {
                assert!(all(&whole[..cut]).is_err(), "cut at {cut} of {}", whole.len());
            }
            for tail in [&b"garbage"[..], &[0; 512]] {
                assert!(all(&[&whole, tail].concat()).is_err());
            }
        }
    }
}
