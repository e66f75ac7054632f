//! Weights in memory: zeroed, aligned for the widest loads, written piece by piece.

use super::matrix::{Dense, Matrix, Ternary, Values};
use crate::backend::BackendError;
use crate::plan::{MatrixType, WeightKind, WeightPart, WeightSpec};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

const _: () = assert!(cfg!(target_endian = "little"), "weights are kept as the file has them");

/// A cache line, and the widest SIMD register.
const ALIGN: usize = 64;

/// Zeroed bytes at an address that is a multiple of 64. Pages nobody wrote cost no memory.
struct Bytes {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: owns plain bytes, like Vec<u8>.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn zeroed(len: u64) -> Option<Self> {
        let layout = Layout::from_size_align(usize::try_from(len).ok()?, ALIGN).ok()?;
        let start = if layout.size() == 0 {
            NonNull::<u128>::dangling().cast()
        } else {
            // SAFETY: the size is not zero.
            NonNull::new(unsafe { alloc_zeroed(layout) })?
        };
        Some(Bytes { start, layout })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `layout.size()` initialised bytes that this value owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: allocated with this layout by `zeroed`.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

/// One weight and its parts.
pub(super) struct Weight {
    pub name: String,
    pub kind: WeightKind,
    data: Bytes,
    row_scales: Bytes,
    block_scales: Bytes,
}

impl Weight {
    /// Room for `spec`, zeroed.
    pub fn allocate(spec: &WeightSpec) -> Result<Self, BackendError> {
        if let WeightKind::Ternary { block, .. } = spec.kind
            && !matches!(block, None | Some(64 | 128 | 256))
        {
            let reason = format!("{}: scales every {block:?} weights", spec.name);
            return Err(BackendError::InvalidCall { reason });
        }
        let part = |part| {
            let (rows, row) = (u64::from(spec.kind.shape().0), spec.kind.row_bytes(part));
            let out_of_memory =
                |bytes| BackendError::OutOfMemory { what: spec.name.clone(), bytes };
            let bytes = rows.checked_mul(row).ok_or_else(|| out_of_memory(u64::MAX))?;
            Bytes::zeroed(bytes).ok_or_else(|| out_of_memory(bytes))
        };
        Ok(Weight {
            name: spec.name.clone(),
            kind: spec.kind,
            data: part(WeightPart::Data)?,
            row_scales: part(WeightPart::RowScales)?,
            block_scales: part(WeightPart::BlockScales)?,
        })
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        [&self.data, &self.row_scales, &self.block_scales]
            .map(|b| b.layout.size() as u64)
            .iter()
            .sum()
    }

    /// Copies `bytes` to `offset` of `part`.
    pub fn write(
        &mut self,
        part: WeightPart,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let target = match part {
            WeightPart::Data => &mut self.data,
            WeightPart::RowScales => &mut self.row_scales,
            WeightPart::BlockScales => &mut self.block_scales,
        };
        let len = target.layout.size();
        let place = usize::try_from(offset).ok().and_then(|start| {
            target.as_mut_slice().get_mut(start..start.checked_add(bytes.len())?)
        });
        match place {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(BackendError::InvalidCall {
                reason: format!(
                    "{} bytes at {offset} are outside the {len} bytes of {part:?} of {}",
                    bytes.len(),
                    self.name
                ),
            }),
        }
    }

    /// The elements of a vector; empty for a matrix.
    pub fn vector(&self) -> &[f32] {
        match self.kind {
            WeightKind::Vector { .. } => bytemuck::cast_slice(self.data.as_slice()),
            _ => &[],
        }
    }

    /// A matrix; `None` for a vector.
    pub fn matrix(&self) -> Option<Matrix<'_>> {
        let data = self.data.as_slice();
        match self.kind {
            WeightKind::Ternary { n, k, block } => Some(Matrix::Ternary(Ternary {
                n: n as usize,
                k: k as usize,
                codes: data,
                row_scales: bytemuck::cast_slice(self.row_scales.as_slice()),
                blocks: block
                    .map(|b| (b as usize, bytemuck::cast_slice(self.block_scales.as_slice()))),
            })),
            WeightKind::Matrix { n, k, dtype } => Some(Matrix::Dense(Dense {
                n: n as usize,
                k: k as usize,
                values: match dtype {
                    MatrixType::F32 => Values::F32(bytemuck::cast_slice(data)),
                    MatrixType::F16 => Values::F16(bytemuck::cast_slice(data)),
                    MatrixType::Q8 => Values::Q8(
                        bytemuck::cast_slice(data),
                        bytemuck::cast_slice(self.block_scales.as_slice()),
                    ),
                },
            })),
            WeightKind::Vector { .. } => None,
        }
    }
}
