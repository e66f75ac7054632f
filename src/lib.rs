//! Ternary (1.58-bit) and 1-bit language models, run where the user is.
//!
//! ```text
//! bytes ─push→ format ─tensors→ model::weights ─→ session::loader ─ternary→ Backend::write_weight
//! text ─Tokenizer→ ids ─→ Session ─Backend::{forward, decode}→ ids ─DecodeStream→ text
//! ```
//!
//! # Floors
//! A room imports only rooms on lower floors (`tests/house.rs` looks for breaches).
//!
//! | floor | rooms |
//! |---|---|
//! | 0 | [`format`](mod@format): files · [`ternary`]: packed weights · [`plan`]: the operations · [`sampling`]: the draw |
//! | 1 | [`tokenizer`] · [`model`]: configuration, weights, forward pass → plan · [`backend`]: what a machine must do · `probe`: plans and weights to try it with |
//! | 2 | [`cpu`] · `gpu`: machines that run plans |
//! | 3 | [`error`] · [`selfcheck`]: a device against the plain twins |
//! | 4 | [`session`]: loading and generating |
//! | 5 | `quantize`: float, packed or other weights → a GGUF file · [`synthetic`]: known shapes, random weights |
//! | 6 | `js`, and the `bitnet` program, which uses this crate as an outsider |
#![deny(missing_docs)]

pub mod backend;
pub mod cpu;
pub mod error;
pub mod format;
#[cfg(feature = "gpu")]
pub mod gpu;
#[cfg(target_arch = "wasm32")]
pub mod js;
pub mod model;
pub mod plan;
mod probe;
#[cfg(not(target_arch = "wasm32"))]
pub mod quantize;
pub mod sampling;
pub mod selfcheck;
pub mod session;
pub mod synthetic;
pub mod ternary;
pub mod tokenizer;
