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

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    let size = p.head_dim + 2u;
    let first = (wg.y * grid.x + wg.x) * step.splits * size;
    var m = partial[first];
    for (var s = 1u; s < step.splits; s++) { m = max(m, partial[first + s * size]); }
    var l = 0.0;
    for (var s = 0u; s < step.splits; s++) {
        l += exp_f32(partial[first + s * size] - m) * partial[first + s * size + 1u];
    }
    for (var i = tid; i < p.head_dim; i += 64u) {
        var sum = 0.0;
        for (var s = 0u; s < step.splits; s++) {
            let at = first + s * size;
            sum += exp_f32(partial[at] - m) * partial[at + 2u + i];
        }
        out[wg.y * p.out_stride + p.out_at + wg.x * p.head_dim + i] = sum / l;
    }
}
