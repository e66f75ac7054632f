//! What a family of processors gives to the kernels, and the table of kernels it gets back.

use super::{attention, dense_linear, ternary_gemm, ternary_linear};
use crate::cpu::kernels::Cache;
use crate::cpu::rows::RowsMut;
use crate::plan::{ActQuant, Activation};
use std::ops::Range;

/// The kernels of one instruction set.
///
/// # Safety
/// To be called only on a processor that has the instructions; parts of the output that two calls
/// write at the same time must not overlap.
pub(in crate::cpu) struct Table {
    /// 128-bit lanes a register.
    pub lanes: usize,
    pub ternary_linear: unsafe fn(&ternary_linear::Task<'_>, Range<usize>, &RowsMut<'_>),
    /// The same for many tokens.
    pub ternary_gemm: Option<Gemm>,
    pub dense_linear: unsafe fn(&dense_linear::Task<'_>, Range<usize>, &RowsMut<'_>),
    pub attention: unsafe fn(&attention::Task<'_>, Cache<'_>, usize, Range<usize>, &RowsMut<'_>),
    pub rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub quantize: unsafe fn(ActQuant, &[f32], &mut [i8], &mut [f32]),
    pub gated_act: unsafe fn(Activation, &[f32], &[f32], &mut [f32]),
}

/// A kernel for many tokens, and how many of them it takes at once.
///
/// # Safety
/// As for [`Table`].
pub(in crate::cpu) struct Gemm {
    pub tokens: usize,
    pub run: unsafe fn(&ternary_gemm::Task<'_>, Range<usize>, &RowsMut<'_>),
}

/// How far ahead of its loads one token asks for weights. Rows are too short for the processor to
/// see where it goes: without, a thread reads at half the speed.
pub(super) const PREFETCH_BYTES: usize = 8192;

/// Where the bytes are that come [`PREFETCH_BYTES`] after those at `at`: if they are read, `len` of them
/// inside `bytes`.
#[inline(always)]
pub(super) fn ahead<S: Simd>(bytes: &[u8], at: usize, len: usize) -> *const u8 {
    let next = at + PREFETCH_BYTES;
    let last = bytes.len().saturating_sub(len);
    bytes.as_ptr().wrapping_add(if S::PREFETCH_READS { next.min(last) } else { next })
}

/// Registers of one instruction set.
///
/// # Safety
/// All methods: only on a processor that has the instructions, and with pointers to as much memory
/// as the name says. They must be inlined into functions that enable the instructions.
pub(super) trait Simd {
    /// 128-bit lanes a register.
    const LANES: usize;
    /// Dots that may add up before [`Simd::widen`]. The narrow sums are i16: a dot adds at most
    /// 2 · 3 · 128 = 768 to each, so 32 of them stay below 2¹⁵; 8 of them with quadruple codes do.
    const NARROW_DOTS: usize;
    /// Tokens that share an unpacked register, as many as accumulators fit beside.
    const TOKENS: usize;
    /// f32 values a register.
    const FLOATS: usize;
    /// Integers: bytes, narrow sums or i32.
    type Int: Copy;
    /// Floats.
    type Float: Copy;

    /// Whether [`Simd::prefetch`] reads a byte, for want of another way to ask.
    const PREFETCH_READS: bool = false;
    /// Asks for the cache line at `p`.
    unsafe fn prefetch(p: *const u8);

    unsafe fn zero() -> Self::Int;
    unsafe fn load(p: *const u8) -> Self::Int;
    /// Loads `lanes` lanes, the rest zero.
    unsafe fn load_part(p: *const u8, lanes: usize) -> Self::Int;
    /// `b` in every byte. To be made before a loop: engines of WebAssembly put a constant together, with
    /// three instructions, wherever it is used.
    unsafe fn splat_byte(b: u8) -> Self::Int;
    /// `a & b`.
    unsafe fn and(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Bits `2S` and `2S + 1` of each byte; `three` in every byte.
    unsafe fn codes<const S: i32>(v: Self::Int, three: Self::Int) -> Self::Int;
    /// The upper half of each byte in the place of the lower; the upper may be anything.
    unsafe fn upper(v: Self::Int) -> Self::Int;
    /// `narrow + fours / 4`: narrow sums and those of products with quadruple codes.
    unsafe fn add_quarter(narrow: Self::Int, fours: Self::Int) -> Self::Int;
    /// Adds the products of unsigned `codes` and signed `x` to narrow sums, within each lane.
    unsafe fn dot(narrow: Self::Int, codes: Self::Int, x: Self::Int) -> Self::Int;
    /// Adds narrow sums to four i32 a lane.
    unsafe fn widen(wide: Self::Int, narrow: Self::Int) -> Self::Int;
    /// In each lane, the sums of the four i32 of `a`, of `b`, of `c` and of `d`.
    unsafe fn sum4(a: Self::Int, b: Self::Int, c: Self::Int, d: Self::Int) -> Self::Int;
    /// Sums of parts of 32 products, which i32 hold: 32 · 2⁷ · 2¹⁵ = 2²⁷.
    unsafe fn dot_group(w: *const i8, x: *const i16) -> Self::Int;
    /// The sums of neighbouring lanes, those of `a` before those of `b`.
    unsafe fn pair_lanes(a: Self::Int, b: Self::Int) -> Self::Int;
    /// `a − b` of i32.
    unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int;
    /// i32 as f32.
    unsafe fn to_f32(v: Self::Int) -> Self::Float;
    unsafe fn store(p: *mut i32, v: Self::Int);

    unsafe fn splat(v: f32) -> Self::Float;
    unsafe fn load_f32(p: *const f32) -> Self::Float;
    unsafe fn load_f16(p: *const u16) -> Self::Float;
    unsafe fn store_f32(p: *mut f32, v: Self::Float);
    unsafe fn add(a: Self::Float, b: Self::Float) -> Self::Float;
    unsafe fn mul(a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a · b + c`, fused where the processor can.
    unsafe fn mul_add(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
    unsafe fn sum(v: Self::Float) -> f32;
}

/// Registers of several lanes, of which a kernel can make columns of a tile.
pub(super) trait Wide: Simd {
    /// One 128-bit lane from each of the first [`Simd::LANES`] places.
    unsafe fn gather_lanes(p: [*const u8; 4]) -> Self::Int;
    /// One 128-bit lane every `stride` bytes.
    #[inline(always)]
    unsafe fn load_lanes(p: *const u8, stride: usize) -> Self::Int {
        // SAFETY: the caller's.
        unsafe {
            Self::gather_lanes([
                p,
                p.wrapping_add(stride),
                p.wrapping_add(2 * stride),
                p.wrapping_add(3 * stride),
            ])
        }
    }
    /// In each lane, the 4 × 4 matrix of 32-bit words with its rows as columns.
    unsafe fn turn(rows: [Self::Int; 4]) -> [Self::Int; 4];
    /// Four bytes in every 32-bit lane.
    unsafe fn splat_word(p: *const i8) -> Self::Int;
    /// The same bits.
    unsafe fn as_floats(v: Self::Int) -> Self::Float;
}

/// The table of kernels for `$simd`, compiled with `$features`; `$gemm`: the one for many tokens.
macro_rules! kernels {
    ($table:ident, $simd:ty, $features:literal, $gemm:expr) => {
        pub(in crate::cpu) static $table: Table = {
            #[target_feature(enable = $features)]
            unsafe fn ternary(t: &ternary_linear::Task<'_>, n: Range<usize>, out: &RowsMut<'_>) {
                // SAFETY: the caller's.
                unsafe { ternary_linear::ternary_linear::<$simd>(t, n, out) }
            }
            #[target_feature(enable = $features)]
            unsafe fn dense(t: &dense_linear::Task<'_>, n: Range<usize>, out: &RowsMut<'_>) {
                // SAFETY: the caller's.
                unsafe { dense_linear::dense_linear::<$simd>(t, n, out) }
            }
            #[target_feature(enable = $features)]
            unsafe fn attention(
                task: &attention::Task<'_>,
                cache: Cache<'_>,
                kv_head: usize,
                tokens: Range<usize>,
                out: &RowsMut<'_>,
            ) {
                // SAFETY: the caller's.
                unsafe { attention::attention::<$simd>(task, cache, kv_head, tokens, out) }
            }
            #[target_feature(enable = $features)]
            unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                elementwise::rms_norm(x, weight, eps, out);
            }
            #[target_feature(enable = $features)]
            unsafe fn quantize(rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]) {
                elementwise::quantize(rule, x, q, d);
            }
            #[target_feature(enable = $features)]
            unsafe fn gated_act(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
                elementwise::gated_act(act, gate, up, out);
            }
            Table {
                lanes: <$simd as Simd>::LANES,
                ternary_linear: ternary,
                ternary_gemm: $gemm,
                dense_linear: dense,
                attention,
                rms_norm,
                quantize,
                gated_act,
            }
        };
    };
}
pub(super) use kernels;
