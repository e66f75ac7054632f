//! Fast kernels: algorithms written once over `registers::Simd`, and one small file of registers a family of
//! processors. Whether one runs is decided at run time ([`Isa::detect`](super::Isa::detect)).
//!
//! Integer kernels give the bits of their twins; float kernels differ by rounding.

// Tiles index several arrays by the same row and token.
#![allow(clippy::needless_range_loop)]
// Where no table is built of them, nobody calls the algorithms.
#![cfg_attr(
    not(any(
        target_arch = "aarch64",
        target_arch = "x86_64",
        all(target_arch = "wasm32", target_feature = "simd128"),
    )),
    allow(dead_code, unused_macros, unused_imports)
)]

pub(super) mod attention;
pub(super) mod dense_linear;
pub(super) mod elementwise;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod registers;
mod segments;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) mod ternary_gemm;
pub(super) mod ternary_linear;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(super) mod wasm;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

pub(super) use registers::Table;
