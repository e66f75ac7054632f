// Activations made on the spot: every workgroup normalises the row and quantises it (one scale a
// token) into its own memory. Cheaper than a dispatch of its own as long as the row is in the cache.
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> norm_weight: array<vec4<f32>>;
var<workgroup> acts_q: array<u32, BLOCKS * 16u>;
var<private> acts_scale: f32;
var<private> acts_sum: i32;

// Elements past K are zero in both buffers (rows are padded), so whole vectors may be used.
fn acts_begin(t: u32, tid: u32) {
    let origin = t * (p.x_stride / 4u);
    let quads = (p.k + 3u) / 4u;
    var squares = 0.0;
    for (var i = tid; i < quads; i += WG) {
        let v = x[origin + i];
        squares += dot(v, v);
    }
    let inverse = 1.0 / sqrt(workgroup_sum_f32(squares, tid) / f32(p.k) + p.eps);
    var largest = 0.0;
    for (var i = tid; i < quads; i += WG) {
        let v = abs(x[origin + i] * inverse * norm_weight[i]);
        largest = max(largest, max(max(v.x, v.y), max(v.z, v.w)));
    }
    let scale = 127.0 / max(1e-5, workgroup_max_f32(largest, tid));
    var sum = 0;
    for (var i = tid; i < BLOCKS * 16u; i += WG) {
        var q = vec4<i32>(0);
        if (i < quads) {
            let v = x[origin + i] * inverse * norm_weight[i];
            q = vec4<i32>(clamp(round(v * scale), vec4<f32>(-128.0), vec4<f32>(127.0)));
        }
        sum += q.x + q.y + q.z + q.w;
        let b = bitcast<vec4<u32>>(q) & vec4<u32>(0xffu);
        acts_q[i] = b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
    }
    acts_scale = 1.0 / scale;
    // The barriers inside also publish acts_q.
    acts_sum = workgroup_sum_i32(sum, tid);
}
fn acts(t: u32, b: u32, s: u32) -> vec4<u32> {
    let i = b * 16u + s * 4u;
    return vec4<u32>(acts_q[i], acts_q[i + 1u], acts_q[i + 2u], acts_q[i + 3u]);
}
fn act_scale(t: u32, group: u32) -> f32 { return acts_scale; }
fn act_total(t: u32) -> i32 { return acts_sum; }
