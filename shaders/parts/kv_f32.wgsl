// KV cache of f32; four neighbouring values of a position at a time.
@group(0) @binding(4) var<storage, read_write> keys: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> values: array<vec4<f32>>;
const PEAKS = false; // nothing depends on the largest of 32 values
fn key4(pos: u32, quad: u32) -> vec4<f32> { return keys[pos * p.kv_quads + quad]; }
fn value4(pos: u32, quad: u32) -> vec4<f32> { return values[pos * p.kv_quads + quad]; }
// What a later read gives back.
fn stored4(v: vec4<f32>, peak: f32) -> vec4<f32> { return v; }
fn put_key4(pos: u32, quad: u32, v: vec4<f32>, peak: f32) { keys[pos * p.kv_quads + quad] = v; }
fn put_value4(pos: u32, quad: u32, v: vec4<f32>, peak: f32) { values[pos * p.kv_quads + quad] = v; }
