//! [`Pieces`]: what each id stands for, in bytes; [`DecodeStream`]: ids to text, one at a time.

use std::sync::Arc;

/// The bytes of every token, and which tokens are special.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// End of each token in `bytes`.
    ends: Vec<u32>,
    special: Vec<bool>,
    /// SentencePiece marks the start of a text with a space that is not part of it.
    pub(super) strip_leading_space: bool,
}

impl Pieces {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token, if there is one.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let i = id as usize;
        let end = *self.ends.get(i)? as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        self.bytes.get(start..end)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Appends the token with the next id. `None`: the bytes no longer fit 32-bit offsets.
    pub(super) fn push(&mut self, bytes: &[u8], special: bool) -> Option<()> {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(u32::try_from(self.bytes.len()).ok()?);
        self.special.push(special);
        Some(())
    }

    pub(super) fn mark_special(&mut self, id: u32) {
        if let Some(s) = self.special.get_mut(id as usize) {
            *s = true;
        }
    }
}

/// Turns ids into text as they come: pieces are whole characters, and all pieces together are the
/// text that decoding all ids at once gives (invalid UTF-8 becomes U+FFFD in both).
///
/// At most the three bytes of an unfinished character are held back.
#[derive(Clone, Debug)]
pub struct DecodeStream {
    pieces: Option<Arc<Pieces>>,
    skip_special: bool,
    /// Whether a space at this point is SentencePiece's mark of the start.
    at_start: bool,
    /// Bytes of an unfinished character.
    pending: Vec<u8>,
}

impl DecodeStream {
    pub(super) fn new(pieces: Arc<Pieces>, skip_special: bool, at_start: bool) -> Self {
        let at_start = at_start && pieces.strip_leading_space;
        DecodeStream { pieces: Some(pieces), skip_special, at_start, pending: Vec::new() }
    }

    /// A stream without text, for models whose tokenizer cannot be used.
    pub fn without_tokenizer() -> Self {
        DecodeStream { pieces: None, skip_special: true, at_start: false, pending: Vec::new() }
    }

    /// The text that `id` completes, possibly none. An id outside the vocabulary has no text.
    pub fn push(&mut self, id: u32) -> String {
        let Some(pieces) = &self.pieces else { return String::new() };
        if self.skip_special && pieces.is_special(id) {
            return String::new();
        }
        let mut bytes = pieces.get(id).unwrap_or_default();
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        self.take_whole_characters()
    }

    /// The end of the text: U+FFFD if a character was left unfinished, else nothing.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    fn take_whole_characters(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // Without a length, the bytes are the start of a character yet to come.
                    let Some(invalid) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}
