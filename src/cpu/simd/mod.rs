//! Fast kernels: algorithms written once over `registers::Simd`, and one small file of registers a family of
//! processors. Whether one runs is decided at run time ([`Isa::detect`](super::Isa::detect)).
//!
//! Integer kernels give the bits of their twins; float kernels differ by rounding.

// Tiles index several arrays by the same row and token.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
pub(super) mod attention;
#[cfg(target_arch = "x86_64")]
pub(super) mod dense_linear;
pub(super) mod elementwise;
#[cfg(target_arch = "x86_64")]
pub(super) mod registers;
#[cfg(target_arch = "x86_64")]
pub(super) mod ternary_linear;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

#[cfg(target_arch = "x86_64")]
pub(super) use registers::Table;
