//! Dense matrices (embeddings, heads, master weights): rows of a file's types → f32, f16 or int8.
//!
//! All functions take whole rows and can be called for any run of rows, so a matrix may be
//! converted while it streams in.
//!
//! # Source
//! ggml `ggml-quants.c` (`dequantize_row_{q4_0,q8_0,q4_K,q6_K}`, `quantize_row_q8_0_ref`).

use half::{bf16, f16};

use super::{TernaryError, check_len};

/// Element type of dense rows in a file, under the names that files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names that files and programs use")]
pub enum Source {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// f16 scale and 32 int8.
    Q8_0,
    /// f16 scale and 32 nibbles, minus 8.
    Q4_0,
    /// 256 nibbles with 6-bit scales and minima a 32.
    Q4_K,
    /// 256 six-bit values with int8 scales a 16.
    Q6_K,
}

impl Source {
    /// Weights and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Source::F32 => (1, 4),
            Source::F16 | Source::BF16 => (1, 2),
            Source::Q8_0 => (32, 34),
            Source::Q4_0 => (32, 18),
            Source::Q4_K => (256, 144),
            Source::Q6_K => (256, 210),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Source::F32 => "F32",
            Source::F16 => "F16",
            Source::BF16 => "BF16",
            Source::Q8_0 => "Q8_0",
            Source::Q4_0 => "Q4_0",
            Source::Q4_K => "Q4_K",
            Source::Q6_K => "Q6_K",
        }
    }

    /// Bytes of a row of `k` weights.
    ///
    /// # Errors
    /// [`TernaryError::Shape`] when `k` is not whole blocks.
    pub fn row_bytes(self, k: usize) -> Result<usize, TernaryError> {
        let (elems, bytes) = self.block();
        let bad = |reason: String| TernaryError::Shape { layout: self.name(), n: 1, k, reason };
        if !k.is_multiple_of(elems) {
            return Err(bad(format!("rows are not a multiple of {elems}")));
        }
        (k / elems).checked_mul(bytes).ok_or_else(|| bad("its size overflows".into()))
    }

    /// Checks that `bytes` are `n` rows of `k`; the bytes of one row.
    pub(super) fn check(self, bytes: &[u8], n: usize, k: usize) -> Result<usize, TernaryError> {
        let row = self.row_bytes(k)?;
        let expected = row.checked_mul(n).ok_or_else(|| TernaryError::Shape {
            layout: self.name(),
            n,
            k,
            reason: "its size overflows".into(),
        })?;
        check_len(self.name(), n, k, expected, bytes.len())?;
        Ok(row)
    }

    /// The weights of one row (number `row`, for errors) as f32; exact.
    ///
    /// # Errors
    /// [`TernaryError::Length`] when `bytes` is not a row of `out.len()` weights,
    /// [`TernaryError::Value`] when a weight is not finite.
    pub fn read_row(self, row: usize, bytes: &[u8], out: &mut [f32]) -> Result<(), TernaryError> {
        self.check(bytes, 1, out.len())?;
        let (elems, block_bytes) = self.block();
        match self {
            Source::F32 => read(bytes, out, f32::from_le_bytes),
            Source::F16 => read(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Source::BF16 => read(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Source::Q8_0 | Source::Q4_0 | Source::Q4_K | Source::Q6_K => {
                let block = match self {
                    Source::Q8_0 => q8_0,
                    Source::Q4_0 => q4_0,
                    Source::Q4_K => q4_k,
                    _ => q6_k,
                };
                let blocks = bytes.chunks_exact(block_bytes);
                blocks.zip(out.chunks_exact_mut(elems)).for_each(|(b, out)| block(b, out));
            }
        }
        // Without an early exit the common case is one fast pass.
        if out.iter().fold(true, |all, w| all & w.is_finite()) {
            return Ok(());
        }
        let column = out.iter().position(|w| !w.is_finite()).unwrap_or(0);
        Err(TernaryError::Value { into: "f32", row, column, got: out[column] })
    }
}

/// Rows of a dense matrix, converted one after the other.
#[derive(Clone, Debug)]
pub struct Rows {
    source: Source,
    row: usize,
    f32: Vec<f32>,
}

impl Rows {
    /// For a matrix with rows of `k` weights.
    ///
    /// # Errors
    /// [`TernaryError::Shape`] when `k` is not whole blocks of the source.
    pub fn new(source: Source, k: usize) -> Result<Self, TernaryError> {
        Rows::starting_at(source, k, 0)
    }

    /// For the rows from number `row` on, so that errors name the right one.
    ///
    /// # Errors
    /// [`TernaryError::Shape`] when `k` is not whole blocks of the source.
    pub fn starting_at(source: Source, k: usize, row: usize) -> Result<Self, TernaryError> {
        source.row_bytes(k)?;
        Ok(Rows { source, row, f32: vec![0.0; k] })
    }

    /// Appends the next rows as little-endian f32; exact.
    ///
    /// # Errors
    /// [`TernaryError`] when `bytes` are not whole rows or a weight is not finite.
    pub fn to_f32(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), TernaryError> {
        self.each(bytes, |_, row| {
            out.extend(row.iter().flat_map(|w| w.to_le_bytes()));
            Ok(())
        })
    }

    /// Appends the next rows as little-endian f16, rounded half to even (F16 stays as it is).
    ///
    /// # Errors
    /// [`TernaryError`] when `bytes` are not whole rows, or a weight is not finite or above 65504.
    pub fn to_f16(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), TernaryError> {
        self.each(bytes, |r, row| {
            let start = out.len();
            out.extend(row.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()));
            let halves = out[start..].chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]));
            match halves.into_iter().position(|h| !h.is_finite()) {
                None => Ok(()),
                Some(column) => {
                    Err(TernaryError::Value { into: "f16", row: r, column, got: row[column] })
                }
            }
        })
    }

    /// Appends the next rows as int8 `values` and one f16 scale a 32 of them. Q8_0 stays as it is;
    /// other types are rounded as Q8_0 is: `d = max|w| / 127`, `q = round(w / d)`, half away from
    /// zero.
    ///
    /// # Errors
    /// [`TernaryError`] when `bytes` are not whole rows, rows are no multiple of 32, or a weight
    /// is not finite or does not fit.
    pub fn to_q8(
        &mut self,
        bytes: &[u8],
        values: &mut Vec<u8>,
        scales: &mut Vec<u8>,
    ) -> Result<(), TernaryError> {
        let k = self.f32.len();
        if !k.is_multiple_of(32) {
            let reason = "rows are not a multiple of 32".into();
            return Err(TernaryError::Shape { layout: "Q8_0", n: 1, k, reason });
        }
        let exact = self.source == Source::Q8_0;
        let row_bytes = self.source.row_bytes(k)?;
        let start = self.row;
        self.each(bytes, |r, row| {
            let row_bytes = &bytes[(r - start) * row_bytes..][..row_bytes];
            for (i, w) in row.chunks_exact(32).enumerate() {
                if exact {
                    let block = &row_bytes[i * 34..][..34];
                    scales.extend_from_slice(&block[..2]);
                    values.extend_from_slice(&block[2..]);
                    continue;
                }
                let (d, q) = checked_q8_0(w, r, i * 32)?;
                scales.extend(d.to_le_bytes());
                values.extend(q.map(|q| q as u8));
            }
            Ok(())
        })
    }

    /// Appends the next rows as Q8_0 blocks.
    ///
    /// # Errors
    /// As [`Rows::to_q8`].
    pub fn to_q8_0(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), TernaryError> {
        let (mut values, mut scales) = (Vec::new(), Vec::new());
        self.to_q8(bytes, &mut values, &mut scales)?;
        for (d, q) in scales.chunks_exact(2).zip(values.chunks_exact(32)) {
            out.extend_from_slice(d);
            out.extend_from_slice(q);
        }
        Ok(())
    }

    /// Appends the next rows as Q6_K blocks.
    ///
    /// # Errors
    /// [`TernaryError`] when `bytes` are not whole rows, rows are no multiple of 256, or a weight
    /// is not finite or does not fit.
    pub fn to_q6_k(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), TernaryError> {
        let k = self.f32.len();
        if !k.is_multiple_of(256) {
            let reason = "rows are not a multiple of 256".into();
            return Err(TernaryError::Shape { layout: "Q6_K", n: 1, k, reason });
        }
        self.each(bytes, |row, w| {
            for (i, w) in w.as_chunks::<256>().0.iter().enumerate() {
                let block = super::q6_k::quantize(w);
                if !f16::from_le_bytes([block[208], block[209]]).is_finite() {
                    let got = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                    return Err(TernaryError::Value { into: "Q6_K", row, column: i * 256, got });
                }
                out.extend(block);
            }
            Ok(())
        })
    }

    fn each(
        &mut self,
        bytes: &[u8],
        mut f: impl FnMut(usize, &[f32]) -> Result<(), TernaryError>,
    ) -> Result<(), TernaryError> {
        let row_bytes = self.source.row_bytes(self.f32.len())?.max(1);
        self.source.check(bytes, bytes.len() / row_bytes, self.f32.len())?;
        for bytes in bytes.chunks_exact(row_bytes) {
            self.source.read_row(self.row, bytes, &mut self.f32)?;
            f(self.row, &self.f32)?;
            self.row += 1;
        }
        Ok(())
    }
}

fn checked_q8_0(w: &[f32], row: usize, column: usize) -> Result<(f16, [i8; 32]), TernaryError> {
    let (d, q) = quantize_q8_0(w);
    if d.is_finite() {
        return Ok((d, q));
    }
    let got = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    Err(TernaryError::Value { into: "Q8_0", row, column, got })
}

/// Rounds 32 weights as Q8_0: scale and values.
fn quantize_q8_0(w: &[f32]) -> (f16, [i8; 32]) {
    let max = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    let d = max / 127.0;
    let id = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut q = [0; 32];
    for (q, w) in q.iter_mut().zip(w) {
        // Half away from zero, without the call that `round` is where SSE4.1 is not assumed.
        let (x, whole) = (w * id, (w * id) as i32);
        let rest = x - whole as f32;
        *q = (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as i8;
    }
    (f16::from_f32(d), q)
}

fn read<const B: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; B]) -> f32) {
    for (b, out) in bytes.as_chunks::<B>().0.iter().zip(out) {
        *out = f(*b);
    }
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = (f32::from(q & 15) - 8.0) * d;
        *high = (f32::from(q >> 4) - 8.0) * d;
    }
}

/// `d` f16, `dmin` f16, `scales[12]`, `qs[128]`: eight runs of 32, weight = d·sc·q − dmin·m.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let scales = &block[4..16];
    for (j, (pair, qs)) in out.chunks_exact_mut(64).zip(block[16..].chunks_exact(32)).enumerate() {
        for (h, run) in pair.chunks_exact_mut(32).enumerate() {
            let (sc, m) = q4_k_scale(scales, 2 * j + h);
            let (d, m) = (d * f32::from(sc), dmin * f32::from(m));
            for (out, q) in run.iter_mut().zip(qs) {
                *out = d * f32::from(q >> (4 * h) & 15) - m;
            }
        }
    }
}

/// Six-bit scale and minimum of run `j`.
fn q4_k_scale(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    }
}

/// `ql[128]`, `qh[64]`, `scales[16]` int8, `d` f16: two halves of 128, weight = d·sc·(q − 32).
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 208);
    let halves = block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32));
    let halves = halves.zip(block[192..208].chunks_exact(8));
    for (((ql, qh), scales), out) in halves.zip(out.chunks_exact_mut(128)) {
        for (s, run) in out.chunks_exact_mut(32).enumerate() {
            // Runs 0 and 2 share the first 32 bytes of ql, runs 1 and 3 the others.
            let (ql, low) = (&ql[s % 2 * 32..], s / 2 * 4);
            for (i, out) in run.iter_mut().enumerate() {
                let q = ql[i] >> low & 15 | (qh[i] >> (2 * s) & 3) << 4;
                let sc = scales[2 * s + i / 16] as i8;
                *out = d * f32::from(sc) * (f32::from(q) - 32.0);
            }
        }
    }
}
