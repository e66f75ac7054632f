// Input and output in two buffers.
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
fn load(i: u32) -> f32 { return x[i]; }
fn store(i: u32, v: f32) { out[i] = v; }
