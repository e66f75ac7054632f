//! AArch64: NEON, with and without the dot product instructions.

use super::registers::{Simd, Table, kernels};
use super::{attention, dense_linear, elementwise, ternary_linear};
use crate::cpu::kernels::Cache;
use crate::cpu::rows::RowsMut;
use crate::plan::{ActQuant, Activation};
use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

/// Bytes multiplied by `smull` and `smlal` into i16, added in pairs to i32.
pub(super) struct Neon;
/// Bytes multiplied by `sdot` into i32.
pub(super) struct Dotprod;

/// What both do alike.
macro_rules! registers_128 {
    () => {
        const LANES: usize = 1;
        const FLOATS: usize = 4;
        const NARROW_DOTS: usize = usize::MAX;
        const TOKENS: usize = 4;
        type Int = int32x4_t;
        type Float = float32x4_t;

        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: a hint, which reads nothing.
            unsafe {
                asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly));
            }
        }
        #[inline(always)]
        unsafe fn zero() -> int32x4_t {
            unsafe { vdupq_n_s32(0) }
        }
        #[inline(always)]
        unsafe fn load(p: *const u8) -> int32x4_t {
            unsafe { vreinterpretq_s32_u8(vld1q_u8(p)) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const u8, _one: usize) -> int32x4_t {
            unsafe { Self::load(p) }
        }
        #[inline(always)]
        unsafe fn splat_byte(b: u8) -> int32x4_t {
            unsafe { vreinterpretq_s32_u8(vdupq_n_u8(b)) }
        }
        #[inline(always)]
        unsafe fn and(a: int32x4_t, b: int32x4_t) -> int32x4_t {
            unsafe { vandq_s32(a, b) }
        }
        #[inline(always)]
        unsafe fn codes<const S: i32>(v: int32x4_t, three: int32x4_t) -> int32x4_t {
            unsafe {
                let v = vreinterpretq_u8_s32(v);
                let v = match S {
                    0 => v,
                    1 => vshrq_n_u8::<2>(v),
                    2 => vshrq_n_u8::<4>(v),
                    _ => vshrq_n_u8::<6>(v),
                };
                let v = vreinterpretq_s32_u8(v);
                if S == 3 { v } else { vandq_s32(v, three) }
            }
        }
        #[inline(always)]
        unsafe fn upper(v: int32x4_t) -> int32x4_t {
            unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(v))) }
        }
        #[inline(always)]
        unsafe fn add_quarter(narrow: int32x4_t, fours: int32x4_t) -> int32x4_t {
            unsafe { vaddq_s32(narrow, vshrq_n_s32::<2>(fours)) }
        }
        #[inline(always)]
        unsafe fn widen(wide: int32x4_t, narrow: int32x4_t) -> int32x4_t {
            unsafe { vaddq_s32(wide, narrow) }
        }
        #[inline(always)]
        unsafe fn sum4(a: int32x4_t, b: int32x4_t, c: int32x4_t, d: int32x4_t) -> int32x4_t {
            unsafe { vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)) }
        }
        #[inline(always)]
        unsafe fn dot_group(w: *const i8, x: *const i16) -> int32x4_t {
            let mut sums = unsafe { [Self::zero(); 2] };
            for i in (0..32).step_by(8) {
                // SAFETY: the caller's: 32 of each.
                unsafe {
                    let (w, x) = (vmovl_s8(vld1_s8(w.add(i))), vld1q_s16(x.add(i)));
                    sums[0] = vmlal_s16(sums[0], vget_low_s16(w), vget_low_s16(x));
                    sums[1] = vmlal_high_s16(sums[1], w, x);
                }
            }
            unsafe { vaddq_s32(sums[0], sums[1]) }
        }
        #[inline(always)]
        unsafe fn pair_lanes(a: int32x4_t, b: int32x4_t) -> int32x4_t {
            unsafe { vaddq_s32(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: int32x4_t, b: int32x4_t) -> int32x4_t {
            unsafe { vsubq_s32(a, b) }
        }
        #[inline(always)]
        unsafe fn to_f32(v: int32x4_t) -> float32x4_t {
            unsafe { vcvtq_f32_s32(v) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut i32, v: int32x4_t) {
            unsafe { vst1q_s32(p, v) }
        }
        #[inline(always)]
        unsafe fn splat(v: f32) -> float32x4_t {
            unsafe { vdupq_n_f32(v) }
        }
        #[inline(always)]
        unsafe fn load_f32(p: *const f32) -> float32x4_t {
            unsafe { vld1q_f32(p) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> float32x4_t {
            // The intrinsic wants Rust's f16, which is not stable; the instruction is in every NEON.
            unsafe {
                let halves = vld1_u16(p);
                let floats;
                asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) floats, in(vreg) halves,
                    options(pure, nomem, nostack, preserves_flags));
                floats
            }
        }
        #[inline(always)]
        unsafe fn store_f32(p: *mut f32, v: float32x4_t) {
            unsafe { vst1q_f32(p, v) }
        }
        #[inline(always)]
        unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vaddq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vmulq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            unsafe { vfmaq_f32(c, a, b) }
        }
        #[inline(always)]
        unsafe fn sum(v: float32x4_t) -> f32 {
            unsafe { vaddvq_f32(v) }
        }
    };
}

impl Simd for Neon {
    registers_128!();

    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, codes: int32x4_t, x: int32x4_t) -> int32x4_t {
        unsafe {
            let (codes, x) = (vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x));
            // At most 2 · 3 · 128 = 768: an i16 holds it.
            let products = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
            let products = vmlal_high_s8(products, codes, x);
            vpadalq_s16(sums, products)
        }
    }
}

impl Simd for Dotprod {
    registers_128!();

    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, codes: int32x4_t, x: int32x4_t) -> int32x4_t {
        let mut sums = sums;
        // The intrinsic is not stable.
        // SAFETY: the caller's: the processor has the instruction.
        unsafe {
            asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inout(vreg) sums, in(vreg) codes, in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }
}

kernels!(NEON, Neon, "neon", None);
kernels!(NEON_DOTPROD, Dotprod, "neon,dotprod", None);
