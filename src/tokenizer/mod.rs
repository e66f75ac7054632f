//! Text to token ids and back, and the chat templates that make prompts of conversations.
//!
//! [`Tokenizer`] is read from GGUF metadata or from Hugging Face files; both end in the same
//! checked vocabulary (`bpe`). Encoding is the `tokenizers` crate's; decoding is a table, because
//! it must also work byte by byte ([`DecodeStream`], constrained decoding).
//!
//! Not for: prompts as such (the session), word lists, training. May import: `format`.

mod bpe;
mod chat;
mod clock;
mod error;
mod gguf;
mod hf;
mod normalize;
mod pieces;
mod pre;

pub use chat::{ChatOptions, ChatTemplate, Message, TemplateOrigin};
pub use error::TokenizerError;
pub use pieces::DecodeStream;

use crate::format::Metadata;
use bpe::{Definition, Encoder};
use pieces::Pieces;
use std::sync::Arc;

/// Tokens that end a turn in chat models, whatever the metadata names as the end of a text: the
/// published files often name only one of them.
///
/// # Source
/// llama.cpp `src/llama-vocab.cpp`, the list of end-of-generation tokens.
const END_OF_TURN: [&str; 9] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "</s>",
];

/// A vocabulary with its rules, its special tokens and its chat template.
pub struct Tokenizer {
    encoder: Encoder,
    pieces: Arc<Pieces>,
    bos: Option<u32>,
    eos: Option<u32>,
    eos_ids: Vec<u32>,
    add_bos: bool,
    template: ChatTemplate,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos_ids", &self.eos_ids)
            .field("add_bos", &self.add_bos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer that a GGUF file describes (`tokenizer.ggml.*`).
    ///
    /// # Errors
    /// Missing or malformed metadata, unknown kinds of tokenizers, contradictions.
    pub fn from_gguf(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
        gguf::read(metadata)
    }

    /// The tokenizer of a Hugging Face model, from the contents of `tokenizer.json` and, where
    /// there are such files, `tokenizer_config.json` and `generation_config.json`.
    ///
    /// # Errors
    /// Invalid JSON, unknown kinds of tokenizers, contradictions.
    pub fn from_hf(
        tokenizer: &str,
        tokenizer_config: Option<&str>,
        generation_config: Option<&str>,
    ) -> Result<Tokenizer, TokenizerError> {
        hf::read(tokenizer, tokenizer_config, generation_config)
    }

    /// The common end of all ways to read a tokenizer.
    fn build(
        definition: Definition,
        bos: Option<u32>,
        eos: Option<u32>,
        ends: &[u32],
        add_bos: bool,
        template: impl FnOnce(chat::Tokens<'_>) -> ChatTemplate,
    ) -> Result<Tokenizer, TokenizerError> {
        let (encoder, mut pieces) = definition.build()?;
        let mut eos_ids = ends.to_vec();
        eos_ids.extend(END_OF_TURN.iter().filter_map(|t| encoder.added_id(t)));
        eos_ids.sort_unstable();
        eos_ids.dedup();
        eos_ids.iter().chain(&bos).for_each(|&id| pieces.mark_special(id));
        let text = |id: Option<u32>| {
            let bytes = id.and_then(|id| pieces.get(id)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let template = template(chat::Tokens {
            bos: text(bos),
            eos: text(eos),
            has: &|token| encoder.added_id(token).is_some(),
        });
        let add_bos = add_bos && bos.is_some();
        let pieces = Arc::new(pieces);
        Ok(Tokenizer { encoder, pieces, bos, eos, eos_ids, add_bos, template })
    }

    /// Ids of a text. Special tokens written in it, such as `<|eot_id|>`, become their ids.
    ///
    /// # Errors
    /// [`TokenizerError::TextTooLong`].
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, add_bos, true)
    }

    /// Ids of a text in which special tokens are nothing special: for text that is not trusted.
    ///
    /// # Errors
    /// [`TokenizerError::TextTooLong`].
    pub fn encode_plain(&self, text: &str, add_bos: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, add_bos, false)
    }

    fn encode_with(
        &self,
        text: &str,
        add_bos: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encoder.encode(text, parse_special)?;
        if let Some(bos) = self.bos.filter(|_| add_bos) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of ids; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let vocab = self.pieces.len();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(TokenizerError::UnknownId { id, vocab });
        }
        let mut stream = DecodeStream::new(self.pieces.clone(), skip_special, true);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// Decodes ids as they come, without special tokens, as the continuation of some text.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream::new(self.pieces.clone(), true, false)
    }

    /// Decodes ids as they come, from the start of a text: the pieces together are what
    /// [`Tokenizer::decode`] gives.
    pub fn decode_stream_from_start(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.pieces.clone(), skip_special, true)
    }

    /// The bytes a token stands for; they need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    /// Whether a token is markup rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, as the model's files name it.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// All tokens that end a text or a turn, ascending.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Whether a text begins with [`Tokenizer::bos`].
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// The id of a special (or otherwise added) token, such as `<|eot_id|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.encoder.added_id(token)
    }

    /// The chat template.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Puts another chat template (Jinja source) in place of the model's own.
    pub fn set_chat_template(&mut self, source: impl Into<String>) {
        self.template.replace(source.into());
    }

    /// A conversation as text for [`Tokenizer::encode`] (without another beginning-of-text token:
    /// templates write it themselves). `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// [`TokenizerError::Template`].
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        self.render_chat_with(
            messages,
            &ChatOptions { add_generation_prompt, ..ChatOptions::default() },
        )
    }

    /// [`Tokenizer::render_chat`] with tools and the template's own switches.
    ///
    /// # Errors
    /// [`TokenizerError::Template`].
    pub fn render_chat_with(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<String, TokenizerError> {
        self.template.render(messages, options)
    }
}
