//! Tensors of a file → what goes to the device: the one place that knows both the types of
//! `format` and the codecs of `ternary`.

use crate::format::{DType, TensorInfo};
use crate::plan::MatrixType;
use crate::ternary::dense::{Rows, Source};
use crate::ternary::{
    Packed, TernaryError, absmean, hf_packed, i2_s, iq2_bn, q1_0, q2_0, tq1_0, tq2_0,
};

/// Repacks a whole ternary tensor `[n, k]`; float tensors are ternarised.
pub(crate) fn pack(
    info: &TensorInfo,
    bytes: &[u8],
    n: usize,
    k: usize,
    variant: i2_s::Variant,
) -> Result<Packed, TernaryError> {
    match info.dtype {
        DType::I2_S => i2_s::decode(bytes, n, k, variant),
        DType::TQ1_0 => tq1_0::decode(bytes, n, k),
        DType::TQ2_0 => tq2_0::decode(bytes, n, k),
        DType::Q1_0 => q1_0::decode(bytes, n, k),
        DType::Q2_0 => q2_0::decode(bytes, n, k, 64),
        DType::Q2_0_128 => q2_0::decode(bytes, n, k, 128),
        DType::IQ2_BN => iq2_bn::decode(bytes, n, k),
        DType::U8 => hf_packed::decode(bytes, n, k, vec![1.0; n]),
        other => absmean::decode(source(other, n, k)?, bytes, n, k),
    }
}

/// Rows of a dense matrix as they go to the device: values, and scales (Q8 only).
pub(super) fn convert_rows(
    dtype: DType,
    to: MatrixType,
    k: usize,
    bytes: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), TernaryError> {
    let mut rows = Rows::new(source(dtype, 1, k)?, k)?;
    let (mut values, mut scales) = (Vec::new(), Vec::new());
    match to {
        MatrixType::F32 => rows.to_f32(bytes, &mut values)?,
        MatrixType::F16 => rows.to_f16(bytes, &mut values)?,
        MatrixType::Q8 => rows.to_q8(bytes, &mut values, &mut scales)?,
    }
    Ok((values, scales))
}

/// A vector of floats as f32.
pub(crate) fn floats(info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>, TernaryError> {
    let source = source(info.dtype, 1, 1)?;
    let mut out = vec![0.0; bytes.len() / source.block().1];
    source.read_row(0, bytes, &mut out)?;
    Ok(out)
}

fn source(dtype: DType, n: usize, k: usize) -> Result<Source, TernaryError> {
    Ok(match dtype {
        DType::F32 => Source::F32,
        DType::F16 => Source::F16,
        DType::BF16 => Source::BF16,
        DType::Q8_0 => Source::Q8_0,
        DType::Q4_0 => Source::Q4_0,
        DType::Q4_K => Source::Q4_K,
        DType::Q6_K => Source::Q6_K,
        // `model::weights` lets no other type through.
        other => {
            let reason = "no codec reads it".to_string();
            return Err(TernaryError::Shape { layout: other.name(), n, k, reason });
        }
    })
}
