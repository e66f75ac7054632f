// The values to be quantised are those of rms_norm(x): normalised on the way, never stored.
@group(0) @binding(6) var<storage, read> norm_weight: array<vec4<f32>>;
var<private> norm_inverse: f32;
fn source_begin(t: u32, tid: u32) {
    var squares = 0.0;
    // What follows a row is zero.
    for (var quad = tid; quad < p.runs * 8u; quad += WG) {
        let v = x[(t * p.x_stride + p.x_at) / 4u + quad];
        squares += dot(v, v);
    }
    let mean = workgroup_sum_f32(squares, tid) / f32(p.dim);
    norm_inverse = 1.0 / sqrt(mean + p.eps);
}
fn source4(t: u32, quad: u32) -> vec4<f32> {
    if (quad * 4u >= p.dim) { return vec4<f32>(0.0); }
    return x[(t * p.x_stride + p.x_at) / 4u + quad] * norm_inverse * norm_weight[quad];
}
