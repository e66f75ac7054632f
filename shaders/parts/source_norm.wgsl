// The values to be quantised are those of rms_norm(x): normalised on the way, never stored.
@group(0) @binding(6) var<storage, read> norm_weight: array<f32>;
var<private> norm_inverse: f32;
fn source_begin(t: u32, tid: u32) {
    var squares = 0.0;
    for (var k = tid; k < p.dim; k += WG) {
        let v = x[t * p.x_stride + p.x_at + k];
        squares += v * v;
    }
    let mean = workgroup_sum_f32(squares, tid) / f32(p.dim);
    norm_inverse = 1.0 / sqrt(mean + p.eps);
}
fn source(t: u32, k: u32) -> f32 {
    return x[t * p.x_stride + p.x_at + k] * norm_inverse * norm_weight[k];
}
