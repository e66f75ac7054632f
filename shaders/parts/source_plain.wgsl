// The values to be quantised are x itself.
fn source_begin(t: u32, tid: u32) {}
fn source4(t: u32, quad: u32) -> vec4<f32> {
    let k = quad * 4u;
    let v = x[(t * p.x_stride + p.x_at) / 4u + quad];
    // A slice may be followed by something else than zeros.
    let place = vec4<u32>(k, k + 1u, k + 2u, k + 3u);
    return select(vec4<f32>(0.0), v, place < vec4<u32>(p.dim));
}
