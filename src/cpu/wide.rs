//! The hot kernels again, in plain loops shaped for vector registers: compiled once for every
//! instruction set of [`Isa`](super::Isa) and chosen at run time.
//!
//! Integer kernels agree with their twins bit for bit; float kernels sum in f32, in lanes.

use super::kv_append::{KvRows, KvValues};
use super::matrix::{Dense, Ternary, Values};
use super::quantize::{self, QuantRows};
use super::rows::RowsRef;
use super::ternary_linear::{CHUNK, join, segment};
use crate::plan::ActQuant;
use crate::ternary::{BLOCK, BLOCK_BYTES};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// Takes the output of row (token) `t`, column (out-feature) `n`.
pub(super) type Put<'a> = &'a mut dyn FnMut(usize, usize, f32);

/// Lanes that all the machines split evenly.
const LANES: usize = 16;
/// Products of int8 and a code that an i16 holds: 64 · 3 · 128 < 2¹⁵.
const NARROW: usize = 64;
/// From this many tokens on, a row of weights is unpacked once for all of them.
const UNPACK_TOKENS: usize = 3;

/// Compiles the kernels for each instruction set, in a module of its name.
macro_rules! machines {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {
        /// For whatever the crate is compiled for (in wasm: simd128).
        pub(super) mod portable {
            use super::*;
            $(pub fn $name($($arg: $type),*) { super::$name($($arg),*) })*
        }

        /// For x86 processors with AVX2.
        #[cfg(target_arch = "x86_64")]
        pub(super) mod avx2 {
            use super::*;
            $(#[target_feature(enable = "avx2")]
            pub fn $name($($arg: $type),*) { super::$name($($arg),*) })*
        }

        /// For x86 processors with AVX-512 (F, BW, VL).
        #[cfg(target_arch = "x86_64")]
        pub(super) mod avx512 {
            use super::*;
            $(#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
            pub fn $name($($arg: $type),*) { super::$name($($arg),*) })*
        }
    };
}

machines! {
    fn ternary_linear(x: &QuantRows, tokens: usize, w: Ternary<'_>, put: Put<'_>);
    fn dense_linear(x: RowsRef<'_>, tokens: usize, w: Dense<'_>, put: Put<'_>);
    fn attention(
        q: &[f32], keys: &KvRows, values: &KvRows, positions: usize, heads: usize, scale: f32,
        out: &mut [f32],
    );
    fn quantize(rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]);
}

#[inline(always)]
fn ternary_linear(x: &QuantRows, tokens: usize, w: Ternary<'_>, put: Put<'_>) {
    let segment = segment(x.rule, &w);
    let (lanes, segments) = ((CHUNK / segment).max(1), w.k.div_ceil(segment));
    let padded = w.k.next_multiple_of(BLOCK);
    let end = |start: usize| (start + segment).min(padded);
    let group = x.rule.group().map_or(usize::MAX, |g| g as usize);
    // Σ q·(code − 1) = Σ q·code − Σ q, and the second sum is the same for all rows of weights.
    let mut sums = Vec::with_capacity(tokens * segments);
    for t in 0..tokens {
        let q = x.row(t).0;
        sums.extend((0..segments).map(|i| {
            let start = i * segment;
            q[start..end(start)].iter().map(|&q| i32::from(q)).sum::<i32>()
        }));
    }
    let unpack = tokens >= UNPACK_TOKENS;
    let mut codes = vec![0; if unpack { padded } else { 0 }];
    let mut scales = vec![1.0; segments];
    for n in 0..w.n {
        let row = w.row(n);
        if unpack {
            unpack_row(row, &mut codes);
        }
        if let Some((len, blocks)) = w.row_blocks(n) {
            for (i, scale) in scales.iter_mut().enumerate() {
                *scale = f16::from_bits(blocks[i * segment / len]).to_f32();
            }
        }
        for (t, sums) in sums.chunks_exact(segments).enumerate() {
            let (q, d) = x.row(t);
            let mut partial = [0.0; 8];
            for (i, (sum, scale)) in sums.iter().zip(&scales).enumerate() {
                let start = i * segment;
                let q = &q[start..end(start)];
                let dot = if unpack {
                    dot_codes(q, &codes[start..end(start)])
                } else if segment < BLOCK {
                    dot_half(q, &row[start / 4 / BLOCK_BYTES * BLOCK_BYTES..], start % BLOCK)
                } else {
                    dot_blocks(q, &row[start / 4..])
                };
                partial[i % lanes] += (dot - sum) as f32 * (d[start / group] * scale);
            }
            put(t, n, join(&mut partial, lanes) * w.row_scales[n]);
        }
    }
}

/// One byte a code, in order.
#[inline(always)]
fn unpack_row(row: &[u8], codes: &mut [i8]) {
    for (codes, block) in codes.chunks_exact_mut(BLOCK).zip(row.chunks_exact(BLOCK_BYTES)) {
        for s in 0..4 {
            for i in 0..BLOCK_BYTES {
                codes[16 * s + i] = (block[i] >> (2 * s) & 3) as i8;
            }
        }
    }
}

/// Σ q·code over whole packed blocks.
#[inline(always)]
fn dot_blocks(q: &[i8], blocks: &[u8]) -> i32 {
    let mut total = 0;
    // Four products a block and lane.
    let run = NARROW / 4;
    for (q, blocks) in q.chunks(BLOCK * run).zip(blocks.chunks(BLOCK_BYTES * run)) {
        let mut lanes = [0i16; LANES];
        for (q, block) in q.chunks_exact(BLOCK).zip(blocks.chunks_exact(BLOCK_BYTES)) {
            for s in 0..4 {
                for i in 0..LANES {
                    lanes[i] += i16::from(q[16 * s + i]) * i16::from(block[i] >> (2 * s) & 3);
                }
            }
        }
        total += lanes.iter().map(|&l| i32::from(l)).sum::<i32>();
    }
    total
}

/// Σ q·code over the half of a packed block that starts at weight `at` (0 or 32).
#[inline(always)]
fn dot_half(q: &[i8], block: &[u8], at: usize) -> i32 {
    let mut lanes = [0i16; LANES];
    for s in 0..2 {
        for i in 0..LANES {
            let code = block[i] >> (at / 8 + 2 * s) & 3;
            lanes[i] += i16::from(q[16 * s + i]) * i16::from(code);
        }
    }
    lanes.iter().map(|&l| i32::from(l)).sum()
}

/// Σ q·code over unpacked codes; a multiple of 16 of them.
#[inline(always)]
fn dot_codes(q: &[i8], codes: &[i8]) -> i32 {
    let mut total = 0;
    for (q, codes) in q.chunks(LANES * NARROW).zip(codes.chunks(LANES * NARROW)) {
        let mut lanes = [0i16; LANES];
        for (q, codes) in q.chunks_exact(LANES).zip(codes.chunks_exact(LANES)) {
            for i in 0..LANES {
                lanes[i] += i16::from(q[i]) * i16::from(codes[i]);
            }
        }
        total += lanes.iter().map(|&l| i32::from(l)).sum::<i32>();
    }
    total
}

#[inline(always)]
fn dense_linear(x: RowsRef<'_>, tokens: usize, w: Dense<'_>, put: Put<'_>) {
    let mut row = vec![0.0; w.k];
    for n in 0..w.n {
        let at = n * w.k;
        let row: &[f32] = match w.values {
            Values::F32(v) => &v[at..at + w.k],
            Values::F16(v) => {
                v[at..at + w.k].reinterpret_cast::<f16>().convert_to_f32_slice(&mut row);
                &row
            }
            Values::Q8(q, d) => {
                let scales = &d[n * w.k.div_ceil(32)..];
                let groups = row.chunks_mut(32).zip(q[at..at + w.k].chunks(32)).zip(scales);
                for ((row, q), d) in groups {
                    let d = f16::from_bits(*d).to_f32();
                    for (r, q) in row.iter_mut().zip(q) {
                        *r = f32::from(*q) * d;
                    }
                }
                &row
            }
        };
        for t in 0..tokens {
            put(t, n, dot(x.row(t), row));
        }
    }
}

/// Σ a·b.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const WIDE: usize = 2 * LANES;
    let mut lanes = [0.0f32; WIDE];
    let (a_chunks, b_chunks) = (a.chunks_exact(WIDE), b.chunks_exact(WIDE));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..WIDE {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

#[inline(always)]
fn attention(
    q: &[f32],
    keys: &KvRows,
    values: &KvRows,
    positions: usize,
    heads: usize,
    scale: f32,
    out: &mut [f32],
) {
    let head_dim = q.len() / heads;
    let group = heads / (keys.dim / head_dim);
    let mut row = vec![0.0; head_dim];
    let mut scores = vec![0.0; positions];
    for (h, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
        let at = h / group * head_dim;
        let mut max = f32::NEG_INFINITY;
        for (p, score) in scores.iter_mut().enumerate() {
            *score = dot(q, cached(keys, p, at, &mut row)) * scale;
            max = max.max(*score);
        }
        let mut total = 0.0;
        out.fill(0.0);
        for (p, score) in scores.iter().enumerate() {
            let weight = (score - max).exp();
            total += weight;
            for (o, v) in out.iter_mut().zip(cached(values, p, at, &mut row)) {
                *o += weight * v;
            }
        }
        out.iter_mut().for_each(|o| *o /= total);
    }
}

/// The cached values of a head at position `pos`, as f32.
#[inline(always)]
fn cached<'a>(cache: &'a KvRows, pos: usize, at: usize, row: &'a mut [f32]) -> &'a [f32] {
    let start = pos * cache.dim + at;
    let range = start..start + row.len();
    match &cache.values {
        KvValues::F32(v) => return &v[range],
        KvValues::F16(v) => v[range].convert_to_f32_slice(row),
        KvValues::Q8(q, d) => {
            let scales = &d[pos * cache.groups()..];
            for (i, (r, q)) in row.iter_mut().zip(&q[range]).enumerate() {
                *r = f32::from(*q) * scales[(at + i) / 32].to_f32();
            }
        }
    }
    row
}

#[inline(always)]
fn quantize(rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]) {
    quantize::quantize(rule, x, q, d);
}

#[cfg(test)]
mod tests {
    use super::super::kernels::{self, Cache, Isa};
    use super::super::rows::RowsMut;
    use super::super::threads::Threads;
    use super::*;
    use crate::backend::KvType;
    use crate::plan::{BufId, Slice};
    use crate::sampling::threefry2x32;

    fn random(seed: u32, n: usize) -> Vec<f32> {
        let bits = (0..n as u32).map(|i| threefry2x32([seed, 1], [i, 0])[0]);
        bits.map(|b| b as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
    }

    fn bytes(seed: u32, n: usize) -> Vec<u8> {
        (0..n as u32).map(|i| threefry2x32([seed, 2], [i, 0])[0] as u8).collect()
    }

    fn slice(dim: usize) -> Slice {
        Slice { buf: BufId(0), at: 0, dim: dim as u32 }
    }

    /// Runs `f` into `[tokens, n]` outputs that start as NaN: one that is not written is seen.
    fn outputs(tokens: usize, n: usize, f: impl FnOnce(&RowsMut<'_>)) -> Vec<f32> {
        let mut out = vec![f32::NAN; tokens * n];
        f(&RowsMut::new(&mut out, n, slice(n), tokens));
        out
    }

    #[test]
    fn ternary_linear_is_the_twin_bit_for_bit() {
        let threads = Threads::new(Some(2)).unwrap();
        for (n, k) in [(1, 64), (5, 96), (17, 320), (3, 1088), (2, 2560)] {
            for block in [None, Some(64), Some(128), Some(256)] {
                // All codes, 3 too.
                let codes = bytes(7, n * crate::ternary::row_bytes(k));
                let scales: Vec<u16> = random(8, n * k.div_ceil(64))
                    .iter()
                    .map(|&s| f16::from_f32(s).to_bits())
                    .collect();
                let row_scales = random(9, n);
                let blocks = block.map(|b| (b, &scales[..n * k.div_ceil(b)]));
                let w = Ternary { n, k, codes: &codes, row_scales: &row_scales, blocks };
                for rule in [ActQuant::PerToken, ActQuant::Block256, ActQuant::Block32] {
                    for tokens in [1, 2, 3, 5] {
                        let data = random(10, tokens * k);
                        let rows = RowsRef::new(&data, k, slice(k), tokens);
                        let mut x = QuantRows::new(rule, k);
                        x.resize(tokens).unwrap();
                        x.quantize(Isa::Plain, &threads, rows);
                        let run = |isa| {
                            outputs(tokens, n, |out| {
                                kernels::ternary_linear(isa, &threads, &x, w, out);
                            })
                        };
                        let plain = run(Isa::Plain);
                        for isa in Isa::all() {
                            assert_eq!(run(isa), plain, "{isa:?} {n}x{k} {block:?} {rule:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn extreme_activations_do_not_overflow() {
        // Every product is the largest there is.
        let (n, k) = (2, 8192);
        let codes = vec![0xff; n * crate::ternary::row_bytes(k)];
        let w = Ternary { n, k, codes: &codes, row_scales: &[1.0; 2], blocks: None };
        let threads = Threads::new(Some(1)).unwrap();
        for tokens in [1, 4] {
            let mut x = QuantRows::new(ActQuant::PerToken, k);
            x.resize(tokens).unwrap();
            x.q.fill(-128);
            x.d.fill(1.0);
            for isa in Isa::all() {
                let out =
                    outputs(tokens, n, |out| kernels::ternary_linear(isa, &threads, &x, w, out));
                assert!(out.iter().all(|&y| y == (-128 * 2 * 8192) as f32), "{isa:?} {out:?}");
            }
        }
    }

    #[test]
    fn quantize_is_the_twin_bit_for_bit() {
        let x = random(3, 1000);
        for rule in [ActQuant::PerToken, ActQuant::Block256, ActQuant::Block32] {
            let run = |isa| {
                let (mut q, mut d) = (vec![9; 1024], vec![f32::NAN; rule.groups(1000) as usize]);
                kernels::quantize(isa, rule, &x, &mut q, &mut d);
                (q, d)
            };
            for isa in Isa::all() {
                assert_eq!(run(isa), run(Isa::Plain), "{isa:?} {rule:?}");
            }
        }
    }

    #[track_caller]
    fn assert_close(got: &[f32], want: &[f32], what: &str) {
        let error: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
        let power: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
        assert!(error <= 1e-12 * power, "{what}: {}", error / power);
    }

    #[test]
    fn dense_linear_follows_the_twin() {
        let threads = Threads::new(Some(2)).unwrap();
        let (n, k) = (9, 1056);
        let floats = random(4, n * k);
        let halves: Vec<u16> = floats.iter().map(|&v| f16::from_f32(v).to_bits()).collect();
        let ints: Vec<i8> = bytes(5, n * k).iter().map(|&b| b as i8).collect();
        let scales = &halves[..n * k / 32];
        for values in [Values::F32(&floats), Values::F16(&halves), Values::Q8(&ints, scales)] {
            let w = Dense { n, k, values };
            let data = random(6, 2 * k);
            let x = RowsRef::new(&data, k, slice(k), 2);
            let run = |isa| outputs(2, n, |out| kernels::dense_linear(isa, &threads, x, w, out));
            for isa in Isa::all() {
                assert_close(&run(isa), &run(Isa::Plain), &format!("{isa:?} {:?}", w.dtype()));
            }
        }
    }

    #[test]
    fn attention_follows_the_twin() {
        let threads = Threads::new(Some(2)).unwrap();
        let (heads, kv_heads, head_dim, positions) = (6, 2, 40, 37);
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
            let (mut keys, mut values) = (KvRows::default(), KvRows::default());
            for (cache, seed) in [(&mut keys, 20), (&mut values, 21)] {
                *cache = KvRows::new(kv_type, kv_heads * head_dim);
                cache.grow(positions, positions).unwrap();
                for p in 0..positions {
                    let row = random(seed + 100 * p as u32, kv_heads * head_dim);
                    super::super::kv_append::kv_append(cache, p, &row);
                }
            }
            let data: Vec<f32> = random(22, 2 * heads * head_dim).iter().map(|v| v * 9.0).collect();
            let q = RowsRef::new(&data, heads * head_dim, slice(heads * head_dim), 2);
            let cache = Cache { keys: &keys, values: &values, pos: positions - 2 };
            let run = |isa| {
                outputs(2, heads * head_dim, |out| {
                    kernels::attention(isa, &threads, q, cache, heads, 0.3, out);
                })
            };
            for isa in Isa::all() {
                assert_close(&run(isa), &run(Isa::Plain), &format!("{isa:?} {kv_type:?}"));
            }
        }
    }
}
