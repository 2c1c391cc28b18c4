//! UTF-8 checked as it arrives, in pieces cut anywhere.

/// The bytes are not UTF-8, whatever may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not valid UTF-8")]
pub struct Utf8Error;

/// Checks a text that arrives in pieces and fails at the first byte that no continuation could save.
///
/// Between pieces it keeps the at most three bytes of a character that has not all arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Utf8 {
    begun: [u8; 3],
    begun_bytes: u8,
}

impl Utf8 {
    /// Checks the next piece.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), Utf8Error> {
        while self.begun_bytes > 0 {
            let Some((&byte, rest)) = piece.split_first() else { return Ok(()) };
            self.push_to_begun(byte)?;
            piece = rest;
        }
        match std::str::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(Utf8Error),
            Err(error) => {
                // The standard library reports an unfinished character only if it could still become
                // a valid one, so that nothing hopeless is ever kept here.
                let begun = &piece[error.valid_up_to()..];
                self.begun[..begun.len()].copy_from_slice(begun);
                self.begun_bytes = begun.len() as u8;
                Ok(())
            }
        }
    }

    fn push_to_begun(&mut self, byte: u8) -> Result<(), Utf8Error> {
        let begun_bytes = usize::from(self.begun_bytes);
        let mut character = [0; 4];
        character[..begun_bytes].copy_from_slice(&self.begun[..begun_bytes]);
        character[begun_bytes] = byte;
        match std::str::from_utf8(&character[..=begun_bytes]) {
            Ok(_) => self.begun_bytes = 0,
            Err(error) if error.error_len().is_some() => return Err(Utf8Error),
            Err(_) => {
                self.begun[begun_bytes] = byte;
                self.begun_bytes += 1;
            }
        }
        Ok(())
    }

    /// Whether the text may end here, between two characters.
    pub fn is_complete(self) -> bool {
        self.begun_bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where checking byte by byte first fails, and whether the whole is complete.
    fn first_bad(bytes: &[u8]) -> (Option<usize>, bool) {
        let mut utf8 = Utf8::default();
        for (at, byte) in bytes.iter().enumerate() {
            if utf8.push(&[*byte]).is_err() {
                return (Some(at), false);
            }
        }
        (None, utf8.is_complete())
    }

    #[test]
    fn pieces_cut_anywhere_give_the_same_verdict_as_the_whole() {
        let texts: &[&[u8]] = &[
            "κόσμε, 𝄞 and plain text long enough for the fast path".as_bytes(),
            b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
            b"\xf4\x90\x80\x80",
            b"abc\xff",
            b"\xc0\xaf",
            b"\xf0\x9d\x84",
            b"",
        ];
        for text in texts {
            let whole = std::str::from_utf8(text).is_ok();
            for cut in 0..=text.len() {
                for cut_again in cut..=text.len() {
                    let mut utf8 = Utf8::default();
                    let pieces = [&text[..cut], &text[cut..cut_again], &text[cut_again..]];
                    let valid = pieces.iter().all(|piece| utf8.push(piece).is_ok()) && utf8.is_complete();
                    assert_eq!(valid, whole, "{text:x?} cut at {cut} and {cut_again}");
                }
            }
        }
    }

    /// RFC 3629: a surrogate is wrong at its second byte, a code point above U+10FFFF too.
    #[test]
    fn fails_at_the_first_byte_that_nothing_can_save() {
        assert_eq!(first_bad(b"\xed\xa0\x80"), (Some(1), false));
        assert_eq!(first_bad(b"\xf4\x90\x80\x80"), (Some(1), false));
        assert_eq!(first_bad(b"\xc0"), (Some(0), false));
        assert_eq!(first_bad(b"\xe1\xbd"), (None, false));
        assert_eq!(first_bad(b"\xf0\x9d\x84\x9e"), (None, true));
    }
}
