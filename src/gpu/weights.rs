//! Weights in GPU buffers: written as they stream in, cut by rows where a binding would be too large.

use super::device::Device;
use crate::backend::BackendError;
use crate::plan::{WeightId, WeightKind, WeightPart, WeightSpec};
use wgpu::BufferUsages;

/// Bytes that may wait for the device while weights stream in: bounds the staging memory.
const PENDING_BYTES: u64 = 64 << 20;

/// Some rows of a weight.
pub struct Shard {
    pub row_first: u32,
    pub rows: u32,
    pub data: wgpu::Buffer,
    pub row_scales: Option<wgpu::Buffer>,
    pub block_scales: Option<wgpu::Buffer>,
}

/// A weight on the device.
pub struct Weight {
    pub spec: WeightSpec,
    pub shards: Vec<Shard>,
}

/// All weights.
#[derive(Default)]
pub struct Weights {
    pub all: Vec<Weight>,
    pub bytes: u64,
    pending_bytes: u64,
    #[cfg(not(target_arch = "wasm32"))]
    submitted: Option<wgpu::SubmissionIndex>,
}

/// Vectors are padded with zeros, so that kernels may read them four at a time.
fn buffer_bytes(kind: WeightKind, part: WeightPart, rows: u32) -> u64 {
    match kind {
        WeightKind::Vector { .. } => kind.part_bytes(part).next_multiple_of(256),
        _ => (u64::from(rows) * kind.row_bytes(part)).next_multiple_of(4),
    }
}

impl Weights {
    /// Buffers for `specs`, zeroed.
    pub async fn allocate(device: &Device, specs: &[WeightSpec]) -> Result<Weights, BackendError> {
        let mut weights = Weights::default();
        for spec in specs {
            let (n, _) = spec.kind.shape();
            let row_bytes = spec.kind.row_bytes(WeightPart::Data);
            let largest = device.caps.max_binding_bytes.min(device.caps.max_buffer_bytes);
            // A multiple of 4 keeps every part of a shard at whole words.
            let rows_max = (largest / row_bytes.max(1)).min(u64::from(u32::MAX)) as u32 & !3;
            if rows_max == 0 {
                let reason = format!("a row of {} does not fit a binding", spec.name);
                return Err(BackendError::Unsupported { reason });
            }
            let mut shards = Vec::new();
            let mut row_first = 0;
            while row_first < n {
                let rows = rows_max.min(n - row_first);
                let bytes = |part| buffer_bytes(spec.kind, part, rows);
                let total: u64 = [WeightPart::Data, WeightPart::RowScales, WeightPart::BlockScales]
                    .map(bytes)
                    .iter()
                    .sum();
                let make = |part: WeightPart| {
                    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST;
                    (bytes(part) > 0).then(|| device.buffer(&spec.name, bytes(part), usage))
                };
                let shard = device
                    .guarded(&spec.name, total, || {
                        Ok(Shard {
                            row_first,
                            rows,
                            data: device.buffer(
                                &spec.name,
                                bytes(WeightPart::Data),
                                BufferUsages::STORAGE | BufferUsages::COPY_DST,
                            ),
                            row_scales: make(WeightPart::RowScales),
                            block_scales: make(WeightPart::BlockScales),
                        })
                    })
                    .await?;
                shards.push(shard);
                weights.bytes += total;
                row_first += rows;
            }
            weights.all.push(Weight { spec: spec.clone(), shards });
        }
        Ok(weights)
    }

    /// Writes a piece of a part.
    pub fn write(
        &mut self,
        device: &Device,
        id: WeightId,
        part: WeightPart,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let invalid = |reason: String| BackendError::InvalidCall { reason };
        let weight = self
            .all
            .get(id.0 as usize)
            .ok_or_else(|| invalid(format!("there is no weight {}", id.0)))?;
        let kind = weight.spec.kind;
        let size = kind.part_bytes(part);
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= size);
        let Some(end) = end else {
            return Err(invalid(format!(
                "{} bytes at {offset} of {} ({part:?}) are past its {size}",
                bytes.len(),
                weight.spec.name
            )));
        };
        if !offset.is_multiple_of(4) || !(end.is_multiple_of(4) || end == size) {
            return Err(invalid(format!("{}: a piece that is not whole words", weight.spec.name)));
        }
        let row_bytes = kind.row_bytes(part);
        for shard in &weight.shards {
            let first = u64::from(shard.row_first) * row_bytes;
            let last = first + u64::from(shard.rows) * row_bytes;
            let (from, to) = (offset.max(first), end.min(last));
            let buffer = match part {
                WeightPart::Data => Some(&shard.data),
                WeightPart::RowScales => shard.row_scales.as_ref(),
                WeightPart::BlockScales => shard.block_scales.as_ref(),
            };
            let Some(buffer) = buffer.filter(|_| from < to) else { continue };
            let piece = &bytes[(from - offset) as usize..(to - offset) as usize];
            let whole = piece.len() & !3;
            if whole > 0 {
                device.queue.write_buffer(buffer, from - first, &piece[..whole]);
            }
            if whole < piece.len() {
                let mut tail = [0; 4];
                tail[..piece.len() - whole].copy_from_slice(&piece[whole..]);
                device.queue.write_buffer(buffer, from - first + whole as u64, &tail);
            }
        }
        self.pending_bytes += bytes.len() as u64;
        if self.pending_bytes >= PENDING_BYTES {
            self.flush(device);
        }
        device.check()
    }

    /// Hands what was written to the device, and waits for what was handed over before.
    pub fn flush(&mut self, device: &Device) {
        self.pending_bytes = 0;
        let _index = device.queue.submit([]);
        #[cfg(not(target_arch = "wasm32"))]
        if let Some(submission_index) = self.submitted.replace(_index) {
            let _ = device.raw.poll(wgpu::PollType::Wait {
                submission_index: Some(submission_index),
                timeout: None,
            });
        }
    }
}
