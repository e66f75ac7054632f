//! [`wgsl!`]: the text of a shader as it is shipped.

/// The file at a path from this folder, without comments and spaces that nothing needs: more than half
/// of the text, which no page needs to load. Lines stay, so that a compiler's messages point into the file.
macro_rules! wgsl {
    ($path:expr) => {{
        const FILE: &str = include_str!($path);
        const LEN: usize = $crate::gpu::wgsl::shipped(FILE, &mut []);
        const BYTES: [u8; LEN] = {
            let mut bytes = [0; LEN];
            $crate::gpu::wgsl::shipped(FILE, &mut bytes);
            bytes
        };
        const TEXT: &str = match std::str::from_utf8(&BYTES) {
            Ok(text) => text,
            Err(_) => panic!("a comment ends inside a character"),
        };
        TEXT
    }};
}
pub(super) use wgsl;

/// The length of what is shipped of `file`, and in `out`, unless it is empty, the text.
pub(super) const fn shipped(file: &str, out: &mut [u8]) -> usize {
    let file = file.as_bytes();
    let (mut at, mut n) = (0, 0);
    // The last byte that is shipped.
    let mut last = b'\n';
    while at < file.len() {
        let byte = file[at];
        if byte == b'/' && at + 1 < file.len() && file[at + 1] == b'/' {
            while at < file.len() && file[at] != b'\n' {
                at += 1;
            }
            continue;
        }
        at += 1;
        if byte == b' ' && (at == file.len() || !parts(last, file[at])) {
            continue;
        }
        last = byte;
        if !out.is_empty() {
            out[n] = byte;
        }
        n += 1;
    }
    n
}

/// Whether a space between the two keeps them apart: two words, or two operators.
const fn parts(before: u8, after: u8) -> bool {
    const fn is_word(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || byte == b'_'
    }
    const fn is_operator(byte: u8) -> bool {
        matches!(byte, b'+' | b'-' | b'*' | b'/' | b'%' | b'&' | b'|' | b'^' | b'<' | b'>' | b'=')
    }
    is_word(before) && is_word(after) || is_operator(before) && is_operator(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_spaces_are_left_out_and_lines_are_not() {
        let file = "// what\nfn f() {\n    a /= b - -c; // why: ö\n\n    // c\n}\n//";
        let mut out = vec![0; shipped(file, &mut [])];
        assert_eq!(shipped(file, &mut out), out.len());
        assert_eq!(String::from_utf8(out).unwrap(), "\nfn f(){\na/=b- -c;\n\n\n}\n");
    }
}
