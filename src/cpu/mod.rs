//! The CPU as a [`Backend`](crate::backend::Backend): an interpreter of plans over one plain twin a
//! kernel, and fast kernels behind run-time dispatch where a profile says so.
//!
//! Each file named after an operation ([`Op::stem`](crate::plan::Op::stem)) holds its **twin**: the
//! readable function that says what the operation computes. Twins are the oracle for every other
//! implementation (SIMD, shaders); where sums of floats are concerned they add in f64.
//! They trust the shapes of their arguments: the interpreter has checked the plan.
//!
//! May import: `backend`, `plan`, `sampling`, `ternary`.

// The twins are public for the tests of other rooms; they are no part of the crate's interface.
#[doc(hidden)]
pub mod add;
#[doc(hidden)]
pub mod attention;
#[doc(hidden)]
pub mod dense_linear;
#[doc(hidden)]
pub mod embed;
#[doc(hidden)]
pub mod gated_act;
#[doc(hidden)]
pub mod kv_append;
#[doc(hidden)]
pub mod matrix;
#[doc(hidden)]
pub mod quantize;
#[doc(hidden)]
pub mod rms_norm;
#[doc(hidden)]
pub mod rope;
mod sample;
#[doc(hidden)]
pub mod take_outputs;
#[doc(hidden)]
pub mod ternary_linear;

pub use sample::sample;
