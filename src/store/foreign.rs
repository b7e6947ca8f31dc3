//! Formats that no layer comes in, by their first bytes: so that an error can say what to do, and not only that a blob is
//! no tar.

/// Its name; `None` = nothing that is known. A tar may begin so, too, if the name of its first file does.
pub(super) fn name(head: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &'static str); 8] = [
        (b"\xfd7zX", "xz"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x5d\0\0", "lzma"),
        (b"LZIP", "lzip"),
        (b"\x1f\x9d", "compress"),
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf", "7z"),
    ];
    known.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}
