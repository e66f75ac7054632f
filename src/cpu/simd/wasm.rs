//! WebAssembly: simd128, and relaxed SIMD where the build has it.
//!
//! A module is refused whole by an engine that lacks one of its instructions, so this is decided at
//! compile time: the package ships two builds.

use super::registers::{Simd, Table, kernels};
use super::{attention, dense_linear, elementwise, ternary_linear};
use crate::cpu::kernels::Cache;
use crate::cpu::rows::RowsMut;
use crate::plan::{ActQuant, Activation};
use std::arch::wasm32::*;
use std::ops::Range;

/// 128-bit registers; bytes multiplied into i16.
pub(super) struct Simd128;
/// 128-bit registers; bytes multiplied into i32 by one instruction of the processor.
#[cfg(target_feature = "relaxed-simd")]
pub(super) struct RelaxedDot;

/// What both do alike.
macro_rules! registers_128 {
    () => {
        const LANES: usize = 1;
        const FLOATS: usize = 4;
        const PREFETCH_READS: bool = true;
        const TOKENS: usize = 2;
        type Int = v128;
        type Float = v128;

        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // Nobody waits for it.
            unsafe { p.read_volatile() };
        }
        #[inline(always)]
        unsafe fn zero() -> v128 {
            i32x4_splat(0)
        }
        #[inline(always)]
        unsafe fn load(p: *const u8) -> v128 {
            unsafe { v128_load(p.cast()) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const u8, _lanes: usize) -> v128 {
            unsafe { v128_load(p.cast()) }
        }
        #[inline(always)]
        unsafe fn splat_byte(b: u8) -> v128 {
            std::hint::black_box(u8x16_splat(b))
        }
        #[inline(always)]
        unsafe fn and(a: v128, b: v128) -> v128 {
            v128_and(a, b)
        }
        #[inline(always)]
        unsafe fn codes<const S: i32>(v: v128, three: v128) -> v128 {
            v128_and(if S == 0 { v } else { u16x8_shr(v, 2 * S as u32) }, three)
        }
        #[inline(always)]
        unsafe fn upper(v: v128) -> v128 {
            u16x8_shr(v, 4)
        }
        #[inline(always)]
        unsafe fn sum4(a: v128, b: v128, c: v128, d: v128) -> v128 {
            let ab =
                i32x4_add(i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<2, 6, 3, 7>(a, b));
            let cd =
                i32x4_add(i32x4_shuffle::<0, 4, 1, 5>(c, d), i32x4_shuffle::<2, 6, 3, 7>(c, d));
            i32x4_add(i64x2_shuffle::<0, 2>(ab, cd), i64x2_shuffle::<1, 3>(ab, cd))
        }
        #[inline(always)]
        unsafe fn dot_group(w: *const i8, x: *const i16) -> v128 {
            let mut sum = i32x4_splat(0);
            for i in (0..32).step_by(8) {
                // SAFETY: the caller's: 32 of each.
                let (w, x) =
                    unsafe { (i16x8_load_extend_i8x8(w.add(i)), v128_load(x.add(i).cast())) };
                let dot = i32x4_dot_i16x8(w, x);
                sum = if i == 0 { dot } else { i32x4_add(sum, dot) };
            }
            sum
        }
        #[inline(always)]
        unsafe fn pair_lanes(a: v128, b: v128) -> v128 {
            i32x4_add(a, b)
        }
        #[inline(always)]
        unsafe fn sub(a: v128, b: v128) -> v128 {
            i32x4_sub(a, b)
        }
        #[inline(always)]
        unsafe fn to_f32(v: v128) -> v128 {
            f32x4_convert_i32x4(v)
        }
        #[inline(always)]
        unsafe fn store(p: *mut i32, v: v128) {
            unsafe { v128_store(p.cast(), v) }
        }
        #[inline(always)]
        unsafe fn splat(v: f32) -> v128 {
            f32x4_splat(v)
        }
        #[inline(always)]
        unsafe fn load_f32(p: *const f32) -> v128 {
            unsafe { v128_load(p.cast()) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> v128 {
            // As `half_to_f32`, but that infinities, which no weight has, come out as 65536.
            let bits = unsafe { u32x4_load_extend_u16x4(p) };
            let magnitude = u32x4_shl(v128_and(bits, u32x4_splat(0x7fff)), 13);
            let scaled = f32x4_mul(magnitude, u32x4_splat(0x7780_0000));
            v128_or(scaled, u32x4_shl(v128_and(bits, u32x4_splat(0x8000)), 16))
        }
        #[inline(always)]
        unsafe fn store_f32(p: *mut f32, v: v128) {
            unsafe { v128_store(p.cast(), v) }
        }
        #[inline(always)]
        unsafe fn add(a: v128, b: v128) -> v128 {
            f32x4_add(a, b)
        }
        #[inline(always)]
        unsafe fn mul(a: v128, b: v128) -> v128 {
            f32x4_mul(a, b)
        }
        #[cfg(not(target_feature = "relaxed-simd"))]
        #[inline(always)]
        unsafe fn mul_add(a: v128, b: v128, c: v128) -> v128 {
            f32x4_add(f32x4_mul(a, b), c)
        }
        #[cfg(target_feature = "relaxed-simd")]
        #[inline(always)]
        unsafe fn mul_add(a: v128, b: v128, c: v128) -> v128 {
            f32x4_relaxed_madd(a, b, c)
        }
        #[inline(always)]
        unsafe fn sum(v: v128) -> f32 {
            let v = f32x4_add(v, i64x2_shuffle::<1, 0>(v, v));
            f32x4_extract_lane::<0>(v) + f32x4_extract_lane::<1>(v)
        }
    };
}

impl Simd for Simd128 {
    registers_128!();
    const NARROW_DOTS: usize = 32;

    #[cfg(not(target_feature = "relaxed-simd"))]
    #[inline(always)]
    unsafe fn dot(narrow: v128, codes: v128, x: v128) -> v128 {
        let low = i16x8_extmul_low_i8x16(codes, x);
        i16x8_add(narrow, i16x8_add(low, i16x8_extmul_high_i8x16(codes, x)))
    }
    #[cfg(target_feature = "relaxed-simd")]
    #[inline(always)]
    unsafe fn dot(narrow: v128, codes: v128, x: v128) -> v128 {
        // Codes are within 0..=127, where the relaxed instruction has one meaning everywhere.
        i16x8_add(narrow, i16x8_relaxed_dot_i8x16_i7x16(x, codes))
    }
    #[inline(always)]
    unsafe fn add_quarter(narrow: v128, fours: v128) -> v128 {
        i16x8_add(narrow, i16x8_shr(fours, 2))
    }
    #[inline(always)]
    unsafe fn widen(wide: v128, narrow: v128) -> v128 {
        i32x4_add(wide, i32x4_extadd_pairwise_i16x8(narrow))
    }
}

#[cfg(target_feature = "relaxed-simd")]
impl Simd for RelaxedDot {
    registers_128!();
    const NARROW_DOTS: usize = usize::MAX;

    #[inline(always)]
    unsafe fn dot(narrow: v128, codes: v128, x: v128) -> v128 {
        i32x4_relaxed_dot_i8x16_i7x16_add(x, codes, narrow)
    }
    #[inline(always)]
    unsafe fn add_quarter(narrow: v128, fours: v128) -> v128 {
        i32x4_add(narrow, i32x4_shr(fours, 2))
    }
    #[inline(always)]
    unsafe fn widen(wide: v128, narrow: v128) -> v128 {
        i32x4_add(wide, narrow)
    }
}

/// Whether products are made by one instruction, and are right: engines without it add pairs in i16, which
/// is slower than [`Simd128`], and V8 11 (Node 20, behind its flag) gets them wrong.
#[cfg(target_feature = "relaxed-simd")]
pub(in crate::cpu) fn has_relaxed_dot() -> bool {
    use std::hint::black_box;
    // Not for a compiler to work out.
    let dot = |x: i8, codes: u8| {
        let (x, codes) = (i8x16_splat(black_box(x)), u8x16_splat(black_box(codes)));
        let sums = i32x4_relaxed_dot_i8x16_i7x16_add(x, codes, i32x4_splat(black_box(7)));
        i32x4_extract_lane::<2>(sums)
    };
    // What the eighth bit of a code means is left open: 255 here, −1 on Arm. Pairs of i16 would saturate.
    let whole = [7 + 4 * 127 * 255, 7 - 4 * 127];
    dot(-128, 12) == 7 - 4 * 128 * 12
        && dot(127, 3) == 7 + 4 * 127 * 3
        && whole.contains(&dot(127, 255))
}

#[cfg(not(target_feature = "relaxed-simd"))]
kernels!(SIMD128, Simd128, "simd128", None);
#[cfg(target_feature = "relaxed-simd")]
kernels!(SIMD128, Simd128, "simd128,relaxed-simd", None);

/// The other kernels have no products of bytes.
#[cfg(target_feature = "relaxed-simd")]
pub(in crate::cpu) static RELAXED_DOT: Table = {
    #[target_feature(enable = "simd128,relaxed-simd")]
    unsafe fn ternary(t: &ternary_linear::Task<'_>, n: Range<usize>, out: &RowsMut<'_>) {
        // SAFETY: the caller's.
        unsafe { ternary_linear::ternary_linear::<RelaxedDot>(t, n, out) }
    }
    Table { ternary_linear: ternary, ternary_gemm: None, ..SIMD128 }
};
