//! Memory while loading: the packed weights, the tensor at hand, and little else. The model is
//! made while it is read, so that the file itself takes no memory here.

use bitnet_rust::session::{Device, DeviceChoice, DeviceOptions, LoadOptions, files};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts live bytes and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system allocator; only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HIDDEN: u64 = 1024;
const FFN: u64 = 4096;
const VOCAB: u64 = 16_000;
const LAYERS: u64 = 6;

/// A GGUF file: its header, then tensors of constant bytes.
struct Synthetic {
    header: Vec<u8>,
    /// Bytes of each tensor with its padding, and what they are.
    tensors: Vec<(u64, Fill)>,
    at: u64,
}

#[derive(Clone, Copy)]
enum Fill {
    /// Half-precision ones.
    F16,
    /// Single-precision ones.
    F32,
    /// Ternary zeros, then a scale of one.
    I2s,
}

impl Synthetic {
    fn new() -> Self {
        let mut infos: Vec<(String, Vec<u64>, Fill)> = Vec::new();
        let mut add = |name: String, ne: &[u64], fill| infos.push((name, ne.to_vec(), fill));
        add("token_embd.weight".into(), &[HIDDEN, VOCAB], Fill::F16);
        for l in 0..LAYERS {
            for norm in ["attn_norm", "attn_sub_norm", "ffn_norm"] {
                add(format!("blk.{l}.{norm}.weight"), &[HIDDEN], Fill::F32);
            }
            add(format!("blk.{l}.ffn_sub_norm.weight"), &[FFN], Fill::F32);
            for linear in ["attn_q", "attn_k", "attn_v", "attn_output"] {
                add(format!("blk.{l}.{linear}.weight"), &[HIDDEN, HIDDEN], Fill::I2s);
            }
            for linear in ["ffn_gate", "ffn_up"] {
                add(format!("blk.{l}.{linear}.weight"), &[HIDDEN, FFN], Fill::I2s);
            }
            add(format!("blk.{l}.ffn_down.weight"), &[FFN, HIDDEN], Fill::I2s);
        }
        add("output_norm.weight".into(), &[HIDDEN], Fill::F32);

        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((infos.len() as u64).to_le_bytes());
        let string = |s: &str| [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat();
        let numbers = [
            ("embedding_length", HIDDEN),
            ("feed_forward_length", FFN),
            ("block_count", LAYERS),
            ("attention.head_count", 16),
            ("context_length", 2048),
        ];
        header.extend((numbers.len() as u64 + 2).to_le_bytes());
        header.extend(string("general.architecture"));
        header.extend(8u32.to_le_bytes());
        header.extend(string("bitnet-b1.58"));
        header.extend(string("bitnet-b1.58.attention.layer_norm_rms_epsilon"));
        header.extend(6u32.to_le_bytes());
        header.extend(1e-5f32.to_le_bytes());
        for (key, value) in numbers {
            header.extend(string(&format!("bitnet-b1.58.{key}")));
            header.extend(4u32.to_le_bytes());
            header.extend((value as u32).to_le_bytes());
        }
        let mut tensors = Vec::new();
        let mut offset = 0u64;
        for (name, ne, fill) in infos {
            let elems: u64 = ne.iter().product();
            let (id, bytes) = match fill {
                Fill::F16 => (1u32, elems * 2),
                Fill::F32 => (0, elems * 4),
                Fill::I2s => (36, elems / 4 + 32),
            };
            header.extend(string(&name));
            header.extend((ne.len() as u32).to_le_bytes());
            ne.iter().for_each(|d| header.extend(d.to_le_bytes()));
            header.extend(id.to_le_bytes());
            header.extend(offset.to_le_bytes());
            let padded = bytes.next_multiple_of(32);
            offset += padded;
            tensors.push((padded, fill));
        }
        header.resize(header.len().next_multiple_of(32), 0);
        Synthetic { header, tensors, at: 0 }
    }

    fn file_bytes(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(|t| t.0).sum::<u64>()
    }

    fn byte(&self, tensor: usize, at: u64) -> u8 {
        let (bytes, fill) = self.tensors[tensor];
        match fill {
            Fill::F16 => [0x00, 0x3c][(at % 2) as usize],
            Fill::I2s if at < bytes - 32 => 0x55,
            Fill::F32 | Fill::I2s => [0x00, 0x00, 0x80, 0x3f][(at % 4) as usize],
        }
    }
}

impl Read for Synthetic {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let at = self.at as usize;
        if at < self.header.len() {
            let n = buffer.len().min(self.header.len() - at);
            buffer[..n].copy_from_slice(&self.header[at..at + n]);
            self.at += n as u64;
            return Ok(n);
        }
        let mut start = self.header.len() as u64;
        for tensor in 0..self.tensors.len() {
            let end = start + self.tensors[tensor].0;
            if self.at < end {
                let n = buffer.len().min((end - self.at) as usize);
                for (i, byte) in buffer[..n].iter_mut().enumerate() {
                    *byte = self.byte(tensor, self.at + i as u64 - start);
                }
                self.at += n as u64;
                return Ok(n);
            }
            start = end;
        }
        Ok(0)
    }
}

#[test]
fn loading_takes_the_weights_and_little_more() {
    let options = DeviceOptions { choice: DeviceChoice::Cpu, ..DeviceOptions::default() };
    let (device, _) = pollster::block_on(Device::open(&options)).unwrap();
    let model = Synthetic::new();
    let bytes = model.file_bytes();
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let session =
        files::load_gguf(device, model, Some(bytes), &LoadOptions::default(), &mut |_| true)
            .unwrap();
    let peak = (PEAK.load(Relaxed) - before) as u64;
    let info = session.info();
    let f32_bytes = info.parameters * 4;
    println!(
        "file {} MB, weights {} MB, peak {} MB, f32 {} MB, saved {:.1} %",
        bytes >> 20,
        info.weight_bytes >> 20,
        peak >> 20,
        f32_bytes >> 20,
        info.saved_against_f32() * 100.0
    );
    // The promise is weights + 64 MB + the largest tensor; the I2_S tensors that wait for their
    // layout to be found are most of what it needs.
    assert!(peak < info.weight_bytes + (64 << 20), "peak {peak}, weights {}", info.weight_bytes);
}
