// Input and output in one buffer: WebGPU does not let one be bound twice when it is written.
@group(0) @binding(3) var<storage, read_write> x: array<f32>;
fn load(i: u32) -> f32 { return x[i]; }
fn store(i: u32, v: f32) { x[i] = v; }
