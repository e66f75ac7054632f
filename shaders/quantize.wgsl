// q = round(x * s), d = 1 / s of the group; plus the sums of q that the ternary product needs
//
// RULE 0: one scale a token, s = 127 / max(1e-5, max|x|), d = 1 / s
// RULE 1: per 256, iscale = -127 / (first value of largest magnitude), d = 1 / iscale
// RULE 2: per 32, q = round(x * (127 / max|x|)), d = max|x| / 127, stored as f16
//
// Shapes: x slice of [T, K]; xq [T, K64/4] words of four int8, padded with zeros; xd [T, groups];
// xsum [T, 1 + K64/32]: the row's sum, then the sum of every 32 values.
// Dispatch: (T, 1, 1). Parts: step, reduce_*, f16_round, source_{plain,norm}.
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
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> xq: array<u32>;
@group(0) @binding(4) var<storage, read_write> xd: array<f32>;
@group(0) @binding(5) var<storage, read_write> xsum: array<i32>;

override RULE: u32 = 0u;
var<workgroup> peaks: array<f32, WG>;

// The value of largest magnitude of 32; the first such.
fn peak(t: u32, run: u32) -> f32 {
    var v = 0.0;
    for (var i = 0u; i < 32u; i++) {
        let k = run * 32u + i;
        if (k < p.dim) {
            let s = source(t, k);
            if (abs(s) > abs(v)) { v = s; }
        }
    }
    return v;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let t = wg.x;
    source_begin(t, tid);
    var scale = 0.0;
    if (RULE == 0u) {
        var largest = 0.0;
        for (var run = tid; run < p.runs; run += WG) { largest = max(largest, abs(peak(t, run))); }
        scale = 127.0 / max(1e-5, workgroup_max_f32(largest, tid));
        if (tid == 0u) { xd[t] = 1.0 / scale; }
    }
    var total = 0;
    for (var base = 0u; base < p.runs; base += WG) {
        let run = base + tid;
        if (RULE == 1u) {
            workgroupBarrier();
            if (run < p.runs) { peaks[tid] = peak(t, run); }
            workgroupBarrier();
        }
        if (run < p.runs) {
            if (RULE == 1u) {
                // WG is a multiple of 8: the eight runs of a block are in this pass.
                var v = 0.0;
                for (var i = 0u; i < 8u; i++) {
                    let at = tid / 8u * 8u + i;
                    if (base + at < p.runs && abs(peaks[at]) > abs(v)) { v = peaks[at]; }
                }
                var d = 0.0;
                scale = 0.0;
                if (v != 0.0) {
                    scale = -127.0 / v;
                    d = 1.0 / scale;
                }
                if (run % 8u == 0u && run / 8u < p.groups) { xd[t * p.groups + run / 8u] = d; }
            }
            if (RULE == 2u) {
                let largest = abs(peak(t, run));
                scale = 0.0;
                if (largest > 0.0) { scale = 127.0 / largest; }
                if (run < p.groups) { xd[t * p.groups + run] = f16_round(largest / 127.0); }
            }
            var sum = 0;
            for (var j = 0u; j < 8u; j++) {
                var word = 0u;
                for (var i = 0u; i < 4u; i++) {
                    let k = run * 32u + j * 4u + i;
                    if (k < p.dim) {
                        let q = i32(clamp(round(source(t, k) * scale), -128.0, 127.0));
                        sum += q;
                        word |= (bitcast<u32>(q) & 0xffu) << (8u * i);
                    }
                }
                xq[(t * p.runs + run) * 8u + j] = word;
            }
            xsum[t * (p.runs + 1u) + 1u + run] = sum;
            total += sum;
        }
    }
    let row_sum = workgroup_sum_i32(total, tid);
    if (tid == 0u) { xsum[t * (p.runs + 1u)] = row_sum; }
}
