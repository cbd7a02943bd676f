//! Text files as they come: byte order marks, UTF-16, and the line ends of three systems.

use std::path::Path;

use crate::{Error, Result};

/// Reads a text file in UTF-8, or in UTF-16 with a byte order mark. The mark is removed.
pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, "read", source))?;
    decode(path, &bytes)
}

/// Decodes the first bytes of a file, of which characters may be damaged.
pub(super) fn decode_start(bytes: &[u8]) -> String {
    let units = |unit: fn([u8; 2]) -> u16| -> Vec<u16> {
        bytes[2..].as_chunks::<2>().0.iter().map(|&pair| unit(pair)).collect()
    };
    match bytes {
        [0xff, 0xfe, ..] => String::from_utf16_lossy(&units(u16::from_le_bytes)),
        [0xfe, 0xff, ..] => String::from_utf16_lossy(&units(u16::from_be_bytes)),
        _ => String::from_utf8_lossy(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)).into_owned(),
    }
}

/// Decodes a file's bytes. Errors name the line with the first byte that is not text.
fn decode(path: &Path, bytes: &[u8]) -> Result<String> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            Err(Error::file(path, "is UTF-32 text; save the file as UTF-8"))
        }
        [0xff, 0xfe, rest @ ..] => utf16(path, rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(path, rest, u16::from_be_bytes),
        _ => {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            let line = |end: usize| format!("line {}", line_of(&bytes[..end]));
            if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
                let message = "contains a zero byte: the file is binary, or UTF-16 without a byte order mark; save it as \
                               UTF-8 text";
                return Err(Error::file_at(path, line(at), message));
            }
            match std::str::from_utf8(bytes) {
                Ok(text) => Ok(text.to_owned()),
                Err(error) => Err(Error::file_at(
                    path,
                    line(error.valid_up_to()),
                    "is not UTF-8 text; save the file as UTF-8",
                )),
            }
        }
    }
}

fn utf16(path: &Path, bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Error::file(path, "is UTF-16 text with half a character at its end; save it as UTF-8"));
    }
    let mut text = String::with_capacity(bytes.len());
    for character in char::decode_utf16(pairs.iter().map(|&pair| unit(pair))) {
        match character {
            Ok(character) => text.push(character),
            Err(_) => {
                let line = format!("line {}", line_of(text.as_bytes()));
                let message = "contains half a UTF-16 surrogate pair; save the file as UTF-8";
                return Err(Error::file_at(path, line, message));
            }
        }
    }
    Ok(text)
}

/// Number of the line, counted from 1, that the text after these bytes is on.
pub(super) fn line_of(before: &[u8]) -> usize {
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// Splits a text into numbered lines. A text without line feeds is split at carriage returns.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = if text.contains('\n') { '\n' } else { '\r' };
    text.split(end).enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> std::result::Result<String, String> {
        decode(Path::new("x"), bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn encodings_with_a_mark_are_read() {
        let units: Vec<u16> = "a\nü😀".encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for bytes in [
            [b"\xff\xfe".as_slice(), &little].concat(),
            [b"\xfe\xff".as_slice(), &big].concat(),
            [b"\xef\xbb\xbf".as_slice(), "a\nü😀".as_bytes()].concat(),
        ] {
            assert_eq!(decoded(&bytes).unwrap(), "a\nü😀");
        }
    }

    #[test]
    fn what_is_not_text_is_refused_with_its_line() {
        assert!(decoded(b"a\nb\n\xff").unwrap_err().starts_with("x (line 3): is not UTF-8 text"));
        assert!(decoded(b"a\nb\0c\0").unwrap_err().starts_with("x (line 2): contains a zero byte"));
        assert!(decoded(b"\xff\xfea").unwrap_err().contains("half a character"));
        assert!(decoded(b"\xff\xfe\n\0\0\xd8a\0").unwrap_err().starts_with("x (line 2): contains half"));
        assert!(decoded(b"\xff\xfe\0\0a\0\0\0").unwrap_err().contains("UTF-32"));
    }

    #[test]
    fn lines_end_as_on_any_system() {
        let numbered = |text: &'static str| lines(text).collect::<Vec<_>>();
        assert_eq!(numbered("a\r\nb"), [(1, "a\r"), (2, "b")]);
        assert_eq!(numbered("a\rb"), [(1, "a"), (2, "b")]);
    }
}
