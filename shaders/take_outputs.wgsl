// out[r] = x[out_first + r]
//
// Shapes: x [T, dim], out [R, dim].
// Dispatch: (ceil(dim / 256), R, 1). Parts: step. Twin: src/cpu/take_outputs.rs.
struct Params {
    dim: u32,
    x_stride: u32,
    out_stride: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < p.dim) {
        out[id.y * p.out_stride + id.x] = x[(step.out_first + id.y) * p.x_stride + id.x];
    }
}
