// out[t, n] = sum_k x[t, k] * w[n, k], f32 activations and weights of any kind
//
// For one token (or few). LANES consecutive invocations share ROWS rows.
// Shapes: x [T, K] padded to a multiple of 64 with zeros, w [N, K], out slice of [T, N].
// Dispatch: (ceil(N / (WG / LANES * ROWS)), T, 1); one a shard.
// Parts: step, reduce_*, weights_{f32,f16,q8,ternary,ternary_block}.
// Twin: src/cpu/dense_linear.rs, src/cpu/ternary_linear.rs (ternary_linear_f32).
struct Params {
    rows: u32, // of this shard
    k: u32,
    block: u32,
    x_stride: u32,
    out_stride: u32,
    out_at: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

override LANES: u32 = 8u;
override ROWS: u32 = 4u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let t = wg.y;
    let lane = tid % LANES;
    let first = (wg.x * (WG / LANES) + tid / LANES) * ROWS;
    let origin = t * (p.x_stride / 4u);
    var acc: array<f32, 4>;
    for (var r = 0u; r < ROWS; r++) { acc[r] = 0.0; }
    for (var i = lane; i < (p.k + STEP - 1u) / STEP; i += LANES) {
        for (var r = 0u; r < ROWS; r++) {
            acc[r] += dot_step(min(first + r, p.rows - 1u), i, origin);
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let y = lanes_sum_f32(acc[r], tid, LANES);
        let n = first + r;
        if (lane == 0u && n < p.rows) {
            out[t * p.out_stride + p.out_at + n] = y * row_factor(n);
        }
    }
}
