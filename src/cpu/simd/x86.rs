//! x86-64: AVX2, AVX-VNNI, AVX-512 VNNI.

use super::registers::{Gemm, Simd, Table, Wide, kernels};
use super::{attention, dense_linear, elementwise, ternary_gemm, ternary_linear};
use crate::cpu::kernels::Cache;
use crate::cpu::rows::RowsMut;
use crate::plan::{ActQuant, Activation};
use std::arch::x86_64::*;
use std::ops::Range;

/// 256-bit registers; bytes multiplied by `maddubs` into i16.
pub(super) struct Avx2;
/// 256-bit registers; bytes multiplied by `dpbusd` into i32.
pub(super) struct AvxVnni;
/// 512-bit registers; bytes multiplied by `dpbusd` into i32.
pub(super) struct Avx512;

/// What both 256-bit sets do alike.
macro_rules! registers_256 {
    () => {
        const LANES: usize = 2;
        const FLOATS: usize = 8;
        type Int = __m256i;
        type Float = __m256;

        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn zero() -> __m256i {
            unsafe { _mm256_setzero_si256() }
        }
        #[inline(always)]
        unsafe fn load(p: *const u8) -> __m256i {
            unsafe { _mm256_loadu_si256(p.cast()) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const u8, _one: usize) -> __m256i {
            unsafe { _mm256_zextsi128_si256(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn splat_byte(b: u8) -> __m256i {
            unsafe { _mm256_set1_epi8(b as i8) }
        }
        #[inline(always)]
        unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_and_si256(a, b) }
        }
        #[inline(always)]
        unsafe fn codes<const S: i32>(v: __m256i, three: __m256i) -> __m256i {
            unsafe {
                let v = match S {
                    0 => v,
                    1 => _mm256_srli_epi16::<2>(v),
                    2 => _mm256_srli_epi16::<4>(v),
                    _ => _mm256_srli_epi16::<6>(v),
                };
                _mm256_and_si256(v, three)
            }
        }
        #[inline(always)]
        unsafe fn upper(v: __m256i) -> __m256i {
            unsafe { _mm256_srli_epi16::<4>(v) }
        }
        #[inline(always)]
        unsafe fn sum4(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            unsafe { _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d)) }
        }
        #[inline(always)]
        unsafe fn dot_group(w: *const i8, x: *const i16) -> __m256i {
            unsafe {
                let near = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.cast()));
                let far = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(16).cast()));
                _mm256_add_epi32(
                    _mm256_madd_epi16(near, _mm256_loadu_si256(x.cast())),
                    _mm256_madd_epi16(far, _mm256_loadu_si256(x.add(16).cast())),
                )
            }
        }
        #[inline(always)]
        unsafe fn pair_lanes(a: __m256i, b: __m256i) -> __m256i {
            unsafe {
                let even = _mm256_permute2x128_si256::<0x20>(a, b);
                _mm256_add_epi32(even, _mm256_permute2x128_si256::<0x31>(a, b))
            }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_sub_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn to_f32(v: __m256i) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(v) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut i32, v: __m256i) {
            unsafe { _mm256_storeu_si256(p.cast(), v) }
        }
        #[inline(always)]
        unsafe fn splat(v: f32) -> __m256 {
            unsafe { _mm256_set1_ps(v) }
        }
        #[inline(always)]
        unsafe fn load_f32(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn store_f32(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            unsafe {
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
            }
        }
    };
}

impl Simd for Avx2 {
    registers_256!();
    const NARROW_DOTS: usize = 32;
    const TOKENS: usize = 2;

    #[inline(always)]
    unsafe fn dot(narrow: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(narrow, _mm256_maddubs_epi16(codes, x)) }
    }
    #[inline(always)]
    unsafe fn add_quarter(narrow: __m256i, fours: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(narrow, _mm256_srai_epi16::<2>(fours)) }
    }
    #[inline(always)]
    unsafe fn widen(wide: __m256i, narrow: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(wide, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1))) }
    }
}

impl Simd for AvxVnni {
    registers_256!();
    const NARROW_DOTS: usize = usize::MAX;
    const TOKENS: usize = 2;

    #[inline(always)]
    unsafe fn dot(narrow: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(narrow, codes, x) }
    }
    #[inline(always)]
    unsafe fn add_quarter(narrow: __m256i, fours: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(narrow, _mm256_srai_epi32::<2>(fours)) }
    }
    #[inline(always)]
    unsafe fn widen(wide: __m256i, narrow: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(wide, narrow) }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 4;
    const FLOATS: usize = 16;
    const NARROW_DOTS: usize = usize::MAX;
    const TOKENS: usize = 2;
    type Int = __m512i;
    type Float = __m512;

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const u8, lanes: usize) -> __m512i {
        unsafe { _mm512_maskz_loadu_epi64((1u8 << (2 * lanes)) - 1, p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_byte(b: u8) -> __m512i {
        unsafe { _mm512_set1_epi8(b as i8) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn codes<const S: i32>(v: __m512i, three: __m512i) -> __m512i {
        unsafe {
            let v = match S {
                0 => v,
                1 => _mm512_srli_epi16::<2>(v),
                2 => _mm512_srli_epi16::<4>(v),
                _ => _mm512_srli_epi16::<6>(v),
            };
            _mm512_and_si512(v, three)
        }
    }
    #[inline(always)]
    unsafe fn dot(narrow: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(narrow, codes, x) }
    }
    #[inline(always)]
    unsafe fn upper(v: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi16::<4>(v) }
    }
    #[inline(always)]
    unsafe fn add_quarter(narrow: __m512i, fours: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(narrow, _mm512_srai_epi32::<2>(fours)) }
    }
    #[inline(always)]
    unsafe fn widen(wide: __m512i, narrow: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(wide, narrow) }
    }
    #[inline(always)]
    unsafe fn sum4(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m512i {
        unsafe {
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
        }
    }
    #[inline(always)]
    unsafe fn dot_group(w: *const i8, x: *const i16) -> __m512i {
        unsafe {
            let w = _mm512_cvtepi8_epi16(_mm256_loadu_si256(w.cast()));
            _mm512_madd_epi16(w, _mm512_loadu_si512(x.cast()))
        }
    }
    #[inline(always)]
    unsafe fn pair_lanes(a: __m512i, b: __m512i) -> __m512i {
        unsafe {
            let even = _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b);
            _mm512_add_epi32(even, _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b))
        }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut i32, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f32(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }
}

/// The same for both 256-bit sets.
macro_rules! wide_256 {
    ($simd:ty) => {
        impl Wide for $simd {
            #[inline(always)]
            unsafe fn gather_lanes(p: [*const u8; 4]) -> __m256i {
                unsafe { _mm256_loadu2_m128i(p[1].cast(), p[0].cast()) }
            }
            #[inline(always)]
            unsafe fn turn(rows: [__m256i; 4]) -> [__m256i; 4] {
                unsafe {
                    let [a, b, c, d] = rows;
                    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                    let (ef, gh) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                    [
                        _mm256_unpacklo_epi64(ab, cd),
                        _mm256_unpackhi_epi64(ab, cd),
                        _mm256_unpacklo_epi64(ef, gh),
                        _mm256_unpackhi_epi64(ef, gh),
                    ]
                }
            }
            #[inline(always)]
            unsafe fn splat_word(p: *const i8) -> __m256i {
                unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn as_floats(v: __m256i) -> __m256 {
                unsafe { _mm256_castsi256_ps(v) }
            }
        }
    };
}
wide_256!(Avx2);
wide_256!(AvxVnni);

impl Wide for Avx512 {
    #[inline(always)]
    unsafe fn gather_lanes(p: [*const u8; 4]) -> __m512i {
        unsafe {
            let v = _mm512_zextsi128_si512(_mm_loadu_si128(p[0].cast()));
            let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(p[1].cast()));
            let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(p[2].cast()));
            _mm512_inserti32x4::<3>(v, _mm_loadu_si128(p[3].cast()))
        }
    }
    #[inline(always)]
    unsafe fn turn(rows: [__m512i; 4]) -> [__m512i; 4] {
        unsafe {
            let [a, b, c, d] = rows;
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ef, gh),
                _mm512_unpackhi_epi64(ef, gh),
            ]
        }
    }
    #[inline(always)]
    unsafe fn splat_word(p: *const i8) -> __m512i {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn as_floats(v: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(v) }
    }
}

/// A table with the kernel for `$tokens` tokens at once: 8 or 16, as many as accumulators fit beside a
/// register of codes.
macro_rules! wide_kernels {
    ($table:ident, $simd:ty, $features:literal, $tokens:literal) => {
        kernels!($table, $simd, $features, {
            #[target_feature(enable = $features)]
            unsafe fn gemm(t: &ternary_gemm::Task<'_>, n: Range<usize>, out: &RowsMut<'_>) {
                // SAFETY: the caller's.
                unsafe { ternary_gemm::ternary_gemm::<$simd>(t, n, out) }
            }
            Some(Gemm { tokens: $tokens, run: gemm })
        });
    };
}
wide_kernels!(AVX2, Avx2, "avx2,fma,f16c", 8);
wide_kernels!(AVX_VNNI, AvxVnni, "avx2,fma,f16c,avxvnni", 8);
wide_kernels!(
    AVX512_VNNI,
    Avx512,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    16
);
