//! The model inside the program: a small storyteller, so that `bitnet run` works without a file
//! and without a network. How it was trained: `models/tales`.

/// The GGUF file.
pub static BYTES: &[u8] = include_bytes!("../../models/tales.gguf");

/// What it is given to go on from when nothing else is asked for.
pub const PROMPT: &str = "Once upon a time";
