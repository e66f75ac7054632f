//! The text that is in the KV cache, so that the next turn of a chat finds it there.
//!
//! Encoding a whole conversation anew can cut it into other tokens than the model once wrote
//! ("Assistant: " + "Once" against "Assistant:" + " Once"), and every position from there on would
//! have to be run again. So a conversation that goes on from what was said keeps its tokens, and
//! only what is new is encoded.

use crate::tokenizer::{Tokenizer, TokenizerError};

/// A prompt and what was drawn after it, as text and as tokens.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    bytes: Vec<u8>,
    ids: Vec<u32>,
    /// End of each drawn token in `bytes`.
    ends: Vec<usize>,
}

impl Transcript {
    pub fn new(prompt: &str, ids: Vec<u32>) -> Self {
        Transcript { bytes: prompt.as_bytes().to_vec(), ids, ends: Vec::new() }
    }

    /// Adds a drawn token.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) {
        self.bytes.extend_from_slice(tokenizer.token_bytes(id).unwrap_or_default());
        self.ids.push(id);
        self.ends.push(self.bytes.len());
    }

    /// The ids of `text`, keeping the tokens of as much of the transcript as it begins with.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if let Some(ids) = self.extend(tokenizer, text)? {
            return Ok(ids);
        }
        tokenizer.encode(text, false)
    }

    fn extend(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
    ) -> Result<Option<Vec<u32>>, TokenizerError> {
        let same = text.bytes().zip(&self.bytes).take_while(|(a, b)| a == *b).count();
        let drawn = self.ends.iter().take_while(|&&e| e <= same).count();
        let (Some(&at), prompt_ids) = (self.ends[..drawn].last(), self.ids.len() - self.ends.len())
        else {
            return Ok(None);
        };
        let Some(rest) = text.get(at..) else { return Ok(None) };
        let mut ids = self.ids[..prompt_ids + drawn].to_vec();
        ids.extend(tokenizer.encode(rest, false)?);
        // Tokenizers that add a mark to the start of a text would add it in the middle.
        let bytes = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default());
        Ok(bytes.eq(text.as_bytes()).then_some(ids))
    }
}
