//! [`Error`]: the sum of the rooms' errors, each with a stable [`Error::code`] for programs.
//!
//! May import: floors 0 to 2.

use crate::backend::BackendError;
use crate::format::FormatError;
use crate::model::ModelError;
use crate::sampling::SamplingError;
use crate::ternary::TernaryError;
use crate::tokenizer::TokenizerError;

/// Anything that can go wrong between a model's bytes and its text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is damaged, or not what it says it is.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model makes no sense, or is of a kind this version does not know.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Weights that cannot be decoded.
    #[error("tensor {tensor:?}: {source}")]
    Weights {
        /// The tensor.
        tensor: String,
        /// What is wrong with its data.
        source: TernaryError,
    },
    /// No usable tokenizer or chat template.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A sampling parameter.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Reading a file.
    #[error("cannot read {path}: {source}")]
    Io {
        /// File or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The prompt does not fit.
    #[error("the prompt has {prompt_tokens} tokens, but the context has room for {context}")]
    ContextFull {
        /// Length of the prompt.
        prompt_tokens: usize,
        /// Positions in the KV cache.
        context: u32,
    },
    /// An argument outside its range.
    #[error("{reason}")]
    InvalidArgument {
        /// Which one, and what it may be.
        reason: String,
    },
    /// The user stopped it.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Stable name of the kind of error, the same in every language binding.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Format(_) | Error::Weights { .. } => "corrupt_file",
            Error::Model(e) => match e {
                ModelError::Unsupported { .. }
                | ModelError::UnexpectedTensor { .. }
                | ModelError::TensorType { .. } => "unsupported_model",
                _ => "corrupt_file",
            },
            Error::Tokenizer(_) => "tokenizer",
            Error::Backend(e) => match e {
                BackendError::Unavailable { .. } => "webgpu_unavailable",
                BackendError::OutOfMemory { .. } => "out_of_memory",
                BackendError::DeviceLost { .. } | BackendError::WorkerLost { .. } => "device_lost",
                BackendError::Unsupported { .. } => "unsupported_model",
                BackendError::InvalidCall { .. } => "invalid_argument",
                BackendError::Rejected { .. } => "internal",
            },
            Error::Sampling(_) | Error::InvalidArgument { .. } => "invalid_argument",
            Error::Io { .. } => "io",
            Error::ContextFull { .. } => "context_full",
            Error::Cancelled => "cancelled",
        }
    }
}
