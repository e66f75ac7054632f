//! Models: what a file says about one ([`config`]), where each of its tensors belongs ([`weights`]),
//! and its forward pass as a plan ([`forward`](mod@forward)).
//!
//! Nothing here reads files or computes: bytes are the business of `format` and `session::loader`,
//! arithmetic that of `cpu` and `gpu`. May import: `format`, `ternary`, `plan`.

pub mod config;
pub mod forward;
pub mod rope;
pub mod weights;

pub use config::{Activations, Architecture, Config, ModelError};
pub use forward::forward;
pub use weights::{WeightMap, resolve};
