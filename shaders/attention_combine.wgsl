// out = sum_s exp(m_s - m) acc_s / sum_s exp(m_s - m) l_s: joins the splits of attention_decode
//
// Shapes: partial [T, H, splits, D + 2], out slice of [T, H * D].
// Dispatch: (H, T, 1). Parts: step, exp. Twin: src/cpu/attention.rs.
struct Params {
    head_dim: u32,
    out_stride: u32,
    out_at: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> partial: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const SPLITS = 64u; // at most (engine.rs)
const AHEAD = 8u; // loads under way together
var<workgroup> peaks: array<f32, SPLITS>;
var<workgroup> sums: array<f32, SPLITS>;

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    let size = p.head_dim + 2u;
    let splits = step.splits;
    let first = (wg.y * grid.x + wg.x) * splits * size;
    if (tid < SPLITS) {
        let at = first + min(tid, splits - 1u) * size;
        peaks[tid] = select(-3.0e38, partial[at], tid < splits);
        sums[tid] = select(0.0, partial[at + 1u], tid < splits);
    }
    workgroupBarrier();
    var m = peaks[0];
    for (var s = 1u; s < SPLITS; s++) { m = max(m, peaks[s]); }
    var factor = 0.0;
    if (tid < SPLITS) { factor = exp_f32(peaks[tid] - m); }
    workgroupBarrier();
    if (tid < SPLITS) {
        peaks[tid] = factor;
        sums[tid] *= factor;
    }
    workgroupBarrier();
    var l = 0.0;
    for (var s = 0u; s < SPLITS; s++) { l += sums[s]; }
    for (var i = tid; i < p.head_dim; i += 128u) {
        var sum = 0.0;
        for (var s0 = 0u; s0 < splits; s0 += AHEAD) {
            for (var j = 0u; j < AHEAD; j++) {
                // Past the end the factor is 0.
                let s = s0 + j;
                sum += peaks[s] * partial[first + min(s, splits - 1u) * size + 2u + i];
            }
        }
        out[wg.y * p.out_stride + p.out_at + wg.x * p.head_dim + i] = sum / l;
    }
}
