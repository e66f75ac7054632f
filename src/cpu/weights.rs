//! Weights in memory: zeroed, aligned for the widest loads, written piece by piece.

use super::matrix::{Dense, Matrix, Ternary, Values};
use crate::backend::BackendError;
use crate::plan::{MatrixType, WeightKind, WeightPart, WeightSpec};
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

const _: () = assert!(cfg!(target_endian = "little"), "weights are kept as the file has them");

/// A cache line, and the widest SIMD register.
const ALIGN: usize = 64;

/// A huge page of Linux. Reading weights through pages of 4 KiB is bound by page walks on virtual
/// machines: 11 GB/s a thread where huge pages gave 15.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes, all weights' in one piece so that huge pages can hold them.
struct Arena {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: owns plain bytes, like Vec<u8>; who may touch which is `Part`'s matter.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn zeroed(len: usize) -> Option<Self> {
        let huge = cfg!(target_os = "linux") && len >= HUGE_PAGE;
        let align = if huge { HUGE_PAGE } else { ALIGN };
        let layout = Layout::from_size_align(len.max(1), align).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // To be asked for before the pages are touched.
        #[cfg(target_os = "linux")]
        if huge {
            // SAFETY: pages that were just allocated; the advice changes no contents. Where it is
            // not taken, all works as well.
            unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: as many bytes as were allocated.
        unsafe { start.as_ptr().write_bytes(0, layout.size()) };
        Some(Arena { start, layout })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `zeroed`.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Bytes of an arena that belong to one part of one weight, at a multiple of 64.
struct Part {
    arena: Arc<Arena>,
    at: usize,
    len: usize,
}

impl Part {
    fn as_slice(&self) -> &[u8] {
        // SAFETY: initialised bytes inside the arena that no other part has.
        unsafe { std::slice::from_raw_parts(self.arena.start.as_ptr().add(self.at), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.arena.start.as_ptr().add(self.at), self.len) }
    }
}

/// One weight and its parts.
pub(super) struct Weight {
    pub name: String,
    pub kind: WeightKind,
    data: Part,
    row_scales: Part,
    block_scales: Part,
}

/// Room for all of `specs`, zeroed.
pub(super) fn allocate(specs: &[WeightSpec]) -> Result<Vec<Weight>, BackendError> {
    let out_of_memory = |what: &str, bytes| {
        let what = what.to_string();
        BackendError::OutOfMemory { what, bytes }
    };
    let mut total = 0usize;
    let mut places = Vec::with_capacity(specs.len());
    for spec in specs {
        if let WeightKind::Ternary { block, .. } = spec.kind
            && !matches!(block, None | Some(64 | 128 | 256))
        {
            let reason = format!("{}: scales every {block:?} weights", spec.name);
            return Err(BackendError::InvalidCall { reason });
        }
        let mut place = |part| {
            let (rows, row) = (u64::from(spec.kind.shape().0), spec.kind.row_bytes(part));
            let bytes = rows.checked_mul(row);
            let len = bytes.and_then(|b| usize::try_from(b).ok())?;
            let at = total;
            total = at.checked_add(len)?.checked_next_multiple_of(ALIGN)?;
            Some((at, len))
        };
        let place =
            [place(WeightPart::Data), place(WeightPart::RowScales), place(WeightPart::BlockScales)];
        let [Some(data), Some(row_scales), Some(block_scales)] = place else {
            return Err(out_of_memory(&spec.name, u64::MAX));
        };
        places.push([data, row_scales, block_scales]);
    }
    let arena = Arena::zeroed(total).ok_or_else(|| out_of_memory("the weights", total as u64))?;
    let arena = Arc::new(arena);
    let part = |(at, len)| Part { arena: arena.clone(), at, len };
    Ok(specs
        .iter()
        .zip(places)
        .map(|(spec, [data, row_scales, block_scales])| Weight {
            name: spec.name.clone(),
            kind: spec.kind,
            data: part(data),
            row_scales: part(row_scales),
            block_scales: part(block_scales),
        })
        .collect())
}

impl Weight {
    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        [&self.data, &self.row_scales, &self.block_scales].map(|part| part.len as u64).iter().sum()
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
        let len = target.len;
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
