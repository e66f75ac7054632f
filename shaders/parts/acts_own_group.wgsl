// Activations made on the spot, as in acts_own_row, with one scale for each 1 << ACT_SHIFT values: 32 or
// 256 (rules 2 and 1 of quantize).
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;
// A name of its own: naga 30 cannot specialise array lengths that are expressions.
override ACT_SLOTS: u32 = BLOCKS * 4u;
// 16 values a slot. Values [quarter of the block][block]: neighbouring lanes read neighbouring slots;
// the rest as the values come.
var<workgroup> acts_q: array<vec4<u32>, ACT_SLOTS>;
var<workgroup> acts_peaks: array<f32, ACT_SLOTS>;
var<workgroup> acts_scales: array<f32, ACT_SLOTS>;
var<workgroup> acts_sums: array<i32, ACT_SLOTS>;

fn acts_begin(t: u32, tid: u32) {
    let origin = t * (p.x_stride / 4u);
    let quads = (p.k + 3u) / 4u;
    var inverse = 1.0;
    if (NORMED) {
        var squares = 0.0;
        for (var r = 0u; r < (ACT_SLOTS * 4u + WG - 1u) / WG; r++) {
            let i = r * WG + tid;
            let v = select(vec4<f32>(0.0), x[origin + min(i, quads - 1u)], i < quads);
            squares += dot(v, v);
        }
        inverse = norm_inverse(workgroup_sum_f32(squares, tid));
    }
    let slots = 1u << (ACT_SHIFT - 4u); // of a group; WG is a multiple of it
    for (var r = 0u; r < (ACT_SLOTS + WG - 1u) / WG; r++) {
        let i = r * WG + tid;
        var v: array<vec4<f32>, 4>;
        var peak = 0.0;
        for (var j = 0u; j < 4u; j++) {
            let at = min(i * 4u + j, quads - 1u);
            let value = x[origin + at] * inverse * norm_weight4(at);
            v[j] = select(vec4<f32>(0.0), value, i * 4u + j < quads);
            peak = larger(peak, peak4(v[j]));
        }
        if (i < ACT_SLOTS) { acts_peaks[i] = peak; }
        workgroupBarrier();
        // Past the end the last slot is seen again, which changes nothing.
        let first = min(i - i % slots, ACT_SLOTS - 1u);
        peak = acts_peaks[first];
        for (var g = 1u; g < slots; g++) {
            peak = larger(peak, acts_peaks[min(first + g, ACT_SLOTS - 1u)]);
        }
        var scale = 0.0;
        var d = 0.0;
        if (ACT_SHIFT == 5u) {
            let largest = abs(peak);
            if (largest > 0.0) { scale = 127.0 / largest; }
            d = f16_round(largest / 127.0);
        } else if (peak != 0.0) {
            scale = -127.0 / peak;
            d = 1.0 / scale;
        }
        var words: vec4<u32>;
        var sum = 0;
        for (var j = 0u; j < 4u; j++) {
            let q = rounded_i8(v[j] * scale);
            sum += q.x + q.y + q.z + q.w;
            words[j] = packed_i8(q);
        }
        if (i < ACT_SLOTS) {
            acts_q[i % 4u * BLOCKS + i / 4u] = words;
            acts_scales[i] = d;
            acts_sums[i] = sum;
        }
    }
    workgroupBarrier();
}
fn acts(t: u32, b: u32, s: u32) -> vec4<u32> { return acts_q[s * BLOCKS + b]; }
fn act_scale(t: u32, group: u32) -> f32 { return acts_scales[group << (ACT_SHIFT - 4u)]; }
fn act_sum(t: u32, b: u32, h: u32) -> i32 {
    let i = b * 4u + h * 2u;
    return acts_sums[i] + acts_sums[i + 1u];
}
