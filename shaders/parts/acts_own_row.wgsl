// Activations made on the spot: every workgroup normalises the row (or not: norm_*) and quantises it,
// one scale a token, into its own memory. Cheaper than a dispatch of its own as long as the row is in
// the cache.
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;
// A name of its own: naga 30 cannot specialise array lengths that are expressions.
override ACT_SLOTS: u32 = BLOCKS * 4u;
// 16 values a slot, [quarter of the block][block]: neighbouring lanes read neighbouring slots.
var<workgroup> acts_q: array<vec4<u32>, ACT_SLOTS>;
var<private> acts_scale: f32;
var<private> acts_sum: i32;

// Loops of a fixed length without branches: all loads are under way together. What lies past K is
// read from the last place again, and dropped.
fn acts_begin(t: u32, tid: u32) {
    let origin = t * (p.x_stride / 4u);
    let quads = (p.k + 3u) / 4u;
    var squares = 0.0;
    var peak = 0.0;
    for (var r = 0u; r < (ACT_SLOTS * 4u + WG - 1u) / WG; r++) {
        let i = r * WG + tid;
        let at = min(i, quads - 1u);
        let v = select(vec4<f32>(0.0), x[origin + at], i < quads);
        squares += dot(v, v);
        let w = abs(v * norm_weight4(at));
        peak = max(peak, max(max(w.x, w.y), max(w.z, w.w)));
    }
    let both = workgroup_sum_max_f32(squares, peak, tid);
    let inverse = norm_inverse(both.x);
    let scale = 127.0 / max(1e-5, both.y * inverse);
    var sum = 0;
    for (var r = 0u; r < (ACT_SLOTS + WG - 1u) / WG; r++) {
        let i = r * WG + tid;
        if (i < ACT_SLOTS) {
            let first = i % BLOCKS * 16u + i / BLOCKS * 4u;
            var words: vec4<u32>;
            for (var j = 0u; j < 4u; j++) {
                let at = min(first + j, quads - 1u);
                let v = x[origin + at] * inverse * norm_weight4(at);
                let kept = select(vec4<i32>(0), rounded_i8(v * scale), first + j < quads);
                sum += kept.x + kept.y + kept.z + kept.w;
                words[j] = packed_i8(kept);
            }
            acts_q[i] = words;
        }
    }
    acts_scale = 1.0 / scale;
    // The barriers inside also publish acts_q.
    acts_sum = workgroup_sum_i32(sum, tid);
}
fn acts(t: u32, b: u32, s: u32) -> vec4<u32> { return acts_q[s * BLOCKS + b]; }
fn act_scale(t: u32, group: u32) -> f32 { return acts_scale; }
fn act_total(t: u32) -> i32 { return acts_sum; }
