// x += y
//
// Shapes: x, y [T, dim]. Dispatch: (ceil(dim / 256), T, 1). Parts: step. Twin: src/cpu/add.rs.
struct Params {
    dim: u32,
    x_stride: u32,
    y_stride: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < p.dim) {
        x[id.y * p.x_stride + id.x] += y[id.y * p.y_stride + id.x];
    }
}
