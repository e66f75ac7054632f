// Activations made on the spot: every workgroup normalises the row and quantises it (one scale a
// token) into its own memory. Cheaper than a dispatch of its own as long as the row is in the cache.
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> norm_weight: array<vec4<f32>>;
// A name of its own: naga 30 cannot specialise array lengths that are expressions.
override ACT_SLOTS: u32 = BLOCKS * 4u;
// 16 values a slot, [quarter of the block][block]: neighbouring lanes read neighbouring slots.
var<workgroup> acts_q: array<vec4<u32>, ACT_SLOTS>;
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
    for (var i = tid; i < ACT_SLOTS; i += WG) {
        let first = i % BLOCKS * 16u + i / BLOCKS * 4u;
        var words: vec4<u32>;
        for (var j = 0u; j < 4u; j++) {
            var q = vec4<i32>(0);
            if (first + j < quads) {
                let v = x[origin + first + j] * inverse * norm_weight[first + j];
                q = vec4<i32>(clamp(round(v * scale), vec4<f32>(-128.0), vec4<f32>(127.0)));
            }
            sum += q.x + q.y + q.z + q.w;
            let bytes = bitcast<vec4<u32>>(q) & vec4<u32>(0xffu);
            words[j] = bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
        }
        acts_q[i] = words;
    }
    acts_scale = 1.0 / scale;
    // The barriers inside also publish acts_q.
    acts_sum = workgroup_sum_i32(sum, tid);
}
fn acts(t: u32, b: u32, s: u32) -> vec4<u32> { return acts_q[s * BLOCKS + b]; }
fn act_scale(t: u32, group: u32) -> f32 { return acts_scale; }
fn act_total(t: u32) -> i32 { return acts_sum; }
