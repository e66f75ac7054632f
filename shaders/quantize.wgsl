// q = round(x * s), d = 1 / s of the group; plus the sums of q that the ternary product needs
//
// RULE 0: one scale a token, s = 127 / max(1e-5, max|x|), d = 1 / s
// RULE 1: per 256, iscale = -127 / (first value of largest magnitude), d = 1 / iscale
// RULE 2: per 32, q = round(x * (127 / max|x|)), d = max|x| / 127, stored as f16
//
// Shapes: x slice of [T, K]; xq [T, K64/4] words of four int8, padded with zeros, or with HALVES
// [T, K64/2] words of two f16, the middle two of each four exchanged: as ternary_gemm_matrix finds its
// weights; xd [T, groups]; xsum [T, 1 + K64/32]: the row's sum, then the sum of every 32 values.
// Dispatch: (T, 1, 1). Parts: step, f16_round, int8, peak, reduce_*, source_{plain,norm}.
// Twin: src/cpu/quantize.rs.
struct Params {
    dim: u32,
    x_stride: u32,
    x_at: u32,
    groups: u32,
    runs: u32, // of 32 values in a padded row
    eps: f32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> xq: array<u32>;
@group(0) @binding(4) var<storage, read_write> xd: array<f32>;
@group(0) @binding(5) var<storage, read_write> xsum: array<i32>;

override RULE: u32 = 0u;
override HALVES: u32 = 0u;
var<workgroup> peaks: array<f32, WG>;
var<workgroup> run_peaks: array<f32, WG>;

// An invocation takes four values, eight neighbours a run of 32, sixty-four a block of 256.
@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let t = wg.x;
    let quads = p.runs * 8u;
    source_begin(t, tid);
    var scale = 0.0;
    if (RULE == 0u) {
        var largest = 0.0;
        for (var quad = tid; quad < quads; quad += WG) {
            largest = max(largest, abs(peak4(source4(t, quad))));
        }
        scale = 127.0 / max(1e-5, workgroup_max_f32(largest, tid));
        if (tid == 0u) { xd[t] = 1.0 / scale; }
    }
    var total = 0;
    for (var base = 0u; base < quads; base += WG) {
        let quad = base + tid;
        let run = quad / 8u;
        var v = vec4<f32>(0.0);
        if (quad < quads) { v = source4(t, quad); }
        if (RULE >= 1u) {
            // WG is a multiple of 64: whole blocks are in this pass.
            peaks[tid] = peak4(v);
            workgroupBarrier();
            var peak = peaks[tid / 8u * 8u];
            for (var i = 1u; i < 8u; i++) { peak = larger(peak, peaks[tid / 8u * 8u + i]); }
            run_peaks[tid / 8u] = peak;
            workgroupBarrier();
            if (RULE == 1u) {
                peak = run_peaks[tid / 64u * 8u];
                for (var i = 1u; i < 8u; i++) { peak = larger(peak, run_peaks[tid / 64u * 8u + i]); }
                var d = 0.0;
                scale = 0.0;
                if (peak != 0.0) {
                    scale = -127.0 / peak;
                    d = 1.0 / scale;
                }
                if (quad % 64u == 0u && run / 8u < p.groups) { xd[t * p.groups + run / 8u] = d; }
            } else {
                let largest = abs(peak);
                scale = 0.0;
                if (largest > 0.0) { scale = 127.0 / largest; }
                if (quad % 8u == 0u && run < p.groups) {
                    xd[t * p.groups + run] = f16_round(largest / 127.0);
                }
            }
        }
        let q = rounded_i8(v * scale);
        let sum = q.x + q.y + q.z + q.w;
        let run_sum = lanes_sum_i32(sum, tid, 8u);
        if (quad < quads) {
            let at = t * quads + quad;
            if (HALVES == 1u) {
                xq[2u * at] = pack2x16float(vec2<f32>(q.xz));
                xq[2u * at + 1u] = pack2x16float(vec2<f32>(q.yw));
            } else {
                xq[at] = packed_i8(q);
            }
            if (quad % 8u == 0u) { xsum[t * (p.runs + 1u) + 1u + run] = run_sum; }
        }
        total += sum;
    }
    let row_sum = workgroup_sum_i32(total, tid);
    if (tid == 0u) { xsum[t * (p.runs + 1u)] = row_sum; }
}
