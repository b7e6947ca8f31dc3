//! How deep a document may be nested, also in fields that nobody reads: others read them, and recurse.

use super::error::BadJson;

/// 128: what serde_json follows in fields that it reads. Real manifests have 4 levels, configs 5.
const DEPTH_MAX: usize = 128;

/// Whether a document is nested no deeper; that it is JSON at all is for its parser to find out.
pub(super) fn check(bytes: &[u8]) -> Result<(), BadJson> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(BadJson::too_deep(DEPTH_MAX));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_count_where_they_are_no_text() {
        let nested = |levels: usize| format!("{}{}", "[{\"a\":".repeat(levels), "}]".repeat(levels));
        check(nested(64).as_bytes()).unwrap();
        check(nested(65).as_bytes()).unwrap_err();
        check(format!("[{}]", vec!["[]"; 1000].join(",")).as_bytes()).unwrap();
        check(format!("{{\"a\\\"{0}\": \"{0}\\\\\"}}", "[{".repeat(200)).as_bytes()).unwrap();
    }
}
