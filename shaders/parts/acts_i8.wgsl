// Activations that an earlier quantize wrote.
@group(0) @binding(4) var<storage, read> xq: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> xd: array<f32>;
@group(0) @binding(6) var<storage, read> xsum: array<i32>;
fn acts_begin(t: u32, tid: u32) {}
// 16 activations: quarter `s` of block `b`.
fn acts(t: u32, b: u32, s: u32) -> vec4<u32> { return xq[(t * BLOCKS + b) * 4u + s]; }
// Multiplier of a group.
fn act_scale(t: u32, group: u32) -> f32 { return xd[t * p.groups + group]; }
fn act_total(t: u32) -> i32 { return xsum[t * (BLOCKS * 2u + 1u)]; }
// Sum of 32 activations: half `h` of block `b`.
fn act_sum(t: u32, b: u32, h: u32) -> i32 { return xsum[t * (BLOCKS * 2u + 1u) + 1u + b * 2u + h]; }
