//! I2_S (GGUF type 36, bitnet.cpp): the codes of the whole tensor, four a byte, then one f32 scale
//! and 28 bytes of padding that mean nothing.
//!
//! Nothing in a file tells which of three layouts of the codes it has ([`Variant`]); [`Detector`]
//! finds out from the weights.
//!
//! # Exactness
//! Code 3 is an error: no quantiser writes it, and bitnet.cpp itself reads it as 0 in one place and
//! as +2 in another.
//!
//! # Source
//! microsoft/BitNet `src/ggml-bitnet-mad.cpp` (`quantize_i2_s`).

use super::{Packed, TernaryError, check_len, code_3, has_code_3, pack_rows, quarter};

const LAYOUT: &str = "I2_S";
/// Bytes after the codes.
const TAIL_BYTES: usize = 32;
/// Scales outside of this are not those of a trained tensor. llama-quantize of bitnet.cpp, run with
/// several threads, writes scales such as −2e-33 and 7e10 over the real ones.
const SANE_SCALE: std::ops::RangeInclusive<f32> = 1e-9..=1e6;

/// Where the codes of a tensor lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Groups of 128 consecutive weights in 32 bytes: byte `j` holds weights `j`, `32+j`, `64+j`,
    /// `96+j` from its *high* bits down. x86 builds, and the published files.
    #[default]
    Group128,
    /// Groups of 64 in 16 bytes: byte `j` holds weights `j`, `16+j`, `32+j`, `48+j`, high bits
    /// first. ARM builds.
    Group64,
    /// Four adjacent rows a byte: byte `(r/4)·k + c` holds column `c` of rows `r..r+4`, high bits
    /// first. x86 builds without `ACT_PARALLEL`.
    Rows4,
}

impl Variant {
    /// All of them, the most common first.
    pub const ALL: [Variant; 3] = [Variant::Group128, Variant::Group64, Variant::Rows4];

    /// Weights along a row, and rows, that must be whole.
    fn unit(self) -> (usize, usize) {
        match self {
            Variant::Group128 => (128, 1),
            Variant::Group64 => (64, 1),
            Variant::Rows4 => (1, 4),
        }
    }

    /// Whether a matrix `[n, k]` can have this layout.
    pub fn fits(self, n: usize, k: usize) -> bool {
        let (columns, rows) = self.unit();
        k.is_multiple_of(columns) && n.is_multiple_of(rows)
    }

    /// Writes the codes of row `row`, `codes.len()` long.
    fn read_row(self, bytes: &[u8], row: usize, codes: &mut [u8]) {
        let k = codes.len();
        let (group, row_bytes) = match self {
            Variant::Group128 => (128, &bytes[row * k / 4..]),
            Variant::Group64 => (64, &bytes[row * k / 4..]),
            Variant::Rows4 => {
                let shift = 6 - 2 * (row % 4);
                for (code, byte) in codes.iter_mut().zip(&bytes[row / 4 * k..]) {
                    *code = byte >> shift & 3;
                }
                return;
            }
        };
        for (codes, bytes) in codes.chunks_exact_mut(group).zip(row_bytes.chunks_exact(group / 4)) {
            for (s, run) in codes.chunks_exact_mut(group / 4).enumerate() {
                for (code, byte) in run.iter_mut().zip(bytes) {
                    *code = byte >> (6 - 2 * s) & 3;
                }
            }
        }
    }
}

/// The matrix `[n, k]` in `bytes`; one scale for all.
///
/// # Errors
/// [`TernaryError`] when the length is wrong, the variant cannot hold the shape, there is a code 3,
/// or the scale is not sane (0 is, in a tensor of zeros).
pub fn decode(bytes: &[u8], n: usize, k: usize, variant: Variant) -> Result<Packed, TernaryError> {
    if !variant.fits(n, k) {
        let (columns, rows) = variant.unit();
        let reason = format!(
            "{variant:?} needs rows of a multiple of {columns} and a multiple of {rows} rows"
        );
        return Err(TernaryError::Shape { layout: LAYOUT, n, k, reason });
    }
    let code_bytes = quarter(LAYOUT, n, k)?;
    let expected = code_bytes.saturating_add(TAIL_BYTES);
    check_len(LAYOUT, n, k, expected, bytes.len())?;
    let (code_bytes, tail) = bytes.split_at(code_bytes);
    let scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    let codes = pack_rows(n, k, |row, codes| variant.read_row(code_bytes, row, codes));
    let packed = Packed { n, k, codes, row_scales: vec![scale; n], block_scales: None };
    if has_code_3(code_bytes) {
        return Err(code_3(LAYOUT, &packed));
    }
    let zeros = scale == 0.0 && code_bytes.iter().all(|&b| b == 0x55);
    if !SANE_SCALE.contains(&scale) && !zeros {
        let reason = "not that of a trained tensor (quantised with several threads?)";
        return Err(TernaryError::Scale { layout: LAYOUT, row: 0, column: 0, got: scale, reason });
    }
    Ok(packed)
}

/// The bytes of a matrix in [`Variant::Group128`], with zeros as padding.
///
/// # Errors
/// [`TernaryError`] when `k` is no multiple of 128, there are several scales, or a code 3.
pub fn encode(packed: &Packed) -> Result<Vec<u8>, TernaryError> {
    let (n, k) = (packed.n, packed.k);
    if !Variant::Group128.fits(n, k) {
        let reason = "rows are not a multiple of 128".into();
        return Err(TernaryError::Shape { layout: LAYOUT, n, k, reason });
    }
    let scale = packed.tensor_scale(LAYOUT)?;
    let mut out = Vec::with_capacity(quarter(LAYOUT, n, k)? + TAIL_BYTES);
    packed.for_each_row(|_, codes| {
        for c in codes.chunks_exact(128) {
            out.extend((0..32).map(|j| c[j] << 6 | c[32 + j] << 4 | c[64 + j] << 2 | c[96 + j]));
        }
    });
    if has_code_3(&out) {
        return Err(code_3(LAYOUT, packed));
    }
    out.extend(scale.to_le_bytes());
    out.resize(out.len() + TAIL_BYTES - 4, 0);
    Ok(out)
}

/// Finds the [`Variant`] of a file from how its weights relate to its norms.
///
/// A wrong layout only moves weights to other columns or rows: codes, scale and all counts stay
/// the same, and between the two grouped ones so does the spread of the columns. But every linear
/// layer follows a norm whose weight, one float a column, is stored plainly, and in trained models
/// the share of zeros in a column goes with the size of that weight. So the right layout is the one
/// whose columns correlate with the norm: in a trained 27 M model |r| is 0.5 to 0.9 in most layers,
/// against 0.1 to 0.2 for the other grouped layout and below 0.1 for rows of four.
///
/// Evidence is summed as the log-likelihood ratio of a correlation, `−k/2 · ln(1 − r²)`.
#[derive(Clone, Debug, Default)]
pub struct Detector {
    /// By [`Variant::ALL`].
    evidence: [f64; 3],
}

/// Rows that [`Detector::observe`] looks at: enough for a column's share of zeros to ±2 %.
const DETECT_ROWS: usize = 512;
/// Log-odds that settle it. Random weights give a difference of about 1.
const DETECT_MARGIN: f64 = 25.0;

impl Detector {
    /// Looks at a linear layer `[n, k]` (the bytes of its tensor) and the weight of the norm in
    /// front of it. Pairs that say nothing, or do not fit, count for nothing.
    pub fn observe(&mut self, norm: &[f32], bytes: &[u8], n: usize, k: usize) {
        let expected = quarter(LAYOUT, n, k).map_or(usize::MAX, |b| b.saturating_add(TAIL_BYTES));
        if norm.len() != k || bytes.len() != expected || k < 4 {
            return;
        }
        let rows = n.min(DETECT_ROWS) / 4 * 4;
        let norm: Vec<f64> = norm.iter().map(|w| f64::from(w.abs())).collect();
        let mut codes = vec![0; k];
        for (variant, evidence) in Variant::ALL.into_iter().zip(&mut self.evidence) {
            if !variant.fits(n, k) {
                continue;
            }
            let mut zeros = vec![0.0; k];
            for row in 0..rows {
                variant.read_row(bytes, row, &mut codes);
                for (zeros, &code) in zeros.iter_mut().zip(&codes) {
                    *zeros += f64::from(u8::from(code == 1));
                }
            }
            let r = correlation(&norm, &zeros);
            if r.is_finite() {
                *evidence -= k as f64 / 2.0 * (1.0 - r * r).max(1e-9).ln();
            }
        }
    }

    /// The variant, once the evidence is clear; otherwise ask for more, or take the default.
    pub fn variant(&self) -> Option<Variant> {
        let best = (0..3).max_by(|&a, &b| self.evidence[a].total_cmp(&self.evidence[b]))?;
        let clear =
            (0..3).all(|i| i == best || self.evidence[best] - self.evidence[i] > DETECT_MARGIN);
        clear.then_some(Variant::ALL[best])
    }
}

/// Pearson's correlation; NaN when one side is constant.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    ab / (aa * bb).sqrt()
}
