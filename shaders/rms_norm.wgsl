// out = x / sqrt(mean(x^2) + eps) * weight, over groups of `len` features
//
// Shapes: x, out slices of [T, dim], weight [len].
// Dispatch: (dim / len, T, 1). Parts: step, reduce_*, io_*. Twin: src/cpu/rms_norm.rs.
struct Params {
    len: u32,
    x_stride: u32,
    x_at: u32,
    out_stride: u32,
    out_at: u32,
    eps: f32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weight: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let origin = wg.y * p.x_stride + p.x_at + wg.x * p.len;
    let dest = wg.y * p.out_stride + p.out_at + wg.x * p.len;
    var squares = 0.0;
    for (var k = tid; k < p.len; k += WG) {
        let v = load(origin + k);
        squares += v * v;
    }
    let mean = workgroup_sum_f32(squares, tid) / f32(p.len);
    let inverse = 1.0 / sqrt(mean + p.eps);
    for (var k = tid; k < p.len; k += WG) {
        store(dest + k, load(origin + k) * inverse * weight[k]);
    }
}
