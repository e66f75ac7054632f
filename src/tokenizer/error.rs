//! [`TokenizerError`].

use crate::format::FormatError;

/// Why there is no tokenizer, or why it cannot do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The model's metadata has no vocabulary, or one of the wrong type.
    #[error("no usable tokenizer in the metadata: {0}")]
    Metadata(#[from] FormatError),
    /// A tokenizer file is not JSON, or not of the expected shape.
    #[error("{file}: {reason}")]
    Json {
        /// `tokenizer.json`, `tokenizer_config.json` or `generation_config.json`.
        file: &'static str,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A kind of tokenizer, pre-tokenizer, normalizer or decoder that this version does not know.
    #[error("unsupported {what} {name:?} (supported: {supported})")]
    Unsupported {
        /// What it is, such as `pre-tokenizer (tokenizer.ggml.pre)`.
        what: &'static str,
        /// Its name in the file.
        name: String,
        /// What would do.
        supported: &'static str,
    },
    /// Two arrays that belong together differ in length.
    #[error("{key} has {got} elements, but there are {expected} tokens")]
    Length {
        /// The shorter or longer one.
        key: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Its length.
        got: usize,
    },
    /// A token that cannot be.
    #[error("token {id} ({text:?}): {reason}")]
    Token {
        /// Its id.
        id: u32,
        /// Its text, cut to 64 bytes.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A merge rule that cannot be.
    #[error("merge {index} ({merge:?}): {reason}")]
    Merge {
        /// Its rank.
        index: usize,
        /// Its text, cut to 64 bytes.
        merge: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A special token's id outside the vocabulary.
    #[error("{key} is {id}, outside the vocabulary of {vocab} tokens")]
    IdOutOfRange {
        /// The key that names it.
        key: String,
        /// The id.
        id: u64,
        /// Number of tokens.
        vocab: usize,
    },
    /// The vocabulary and the merges do not make a tokenizer.
    #[error("the vocabulary does not make a tokenizer: {reason}")]
    Build {
        /// What the tokenizer library says.
        reason: String,
    },
    /// More tokens than any model has.
    #[error("{tokens} tokens: more than the {limit} that any vocabulary could need")]
    VocabularyTooLarge {
        /// Number of tokens, or the largest id.
        tokens: u64,
        /// The cap.
        limit: usize,
    },
    /// Text that is too long to encode at once.
    #[error("a text of {bytes} bytes is too long (at most {limit})")]
    TextTooLong {
        /// Its length.
        bytes: usize,
        /// The cap.
        limit: usize,
    },
    /// The tokenizer library could not encode a text.
    #[error("cannot encode the text: {reason}")]
    Encode {
        /// What it says.
        reason: String,
    },
    /// An id that is no token.
    #[error("token id {id} is outside the vocabulary of {vocab} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of tokens.
        vocab: usize,
    },
    /// The chat template does not compile, refuses the messages, or never ends.
    #[error("chat template: {reason}")]
    Template {
        /// What the template engine says, with the line.
        reason: String,
    },
}

/// The first 64 bytes or so of a text, for messages: a hostile token can be megabytes long.
pub(super) fn excerpt(text: &str) -> String {
    let end = (0..=64.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    let mut cut = text[..end].to_string();
    if end < text.len() {
        cut.push('…');
    }
    cut
}
