// out[t, n] = row_scale[n] * sum_g d_g * block_scale * sum_k q[t, k] * (code[n, k] - 1)
//
// For one token (or few). LANES consecutive invocations share a row, 16 bytes each at a time, so
// that a run of lanes reads whole cache lines; a lane group keeps ROWS rows in flight and reuses
// the activations for all of them.
//
// EPILOGUE 0: out = y; 1: out += y (the residual); 2, 3: rows n and n + half are gate and up, and
// out = relu(gate)^2 * up or silu(gate) * up.
//
// Shapes: acts [T, K64] int8, codes [N, K64/64] blocks of 16 bytes, out slice of [T, N].
// Dispatch: (ceil(N / (WG / LANES * ROWS)), T, 1), N/2 for the gated ones; one a shard.
// Parts: step, exp, reduce_*, dot4_*, acts_{i8,own_row,own_group}, norm_*, sum_{row,group}, block_*.
// Twin: src/cpu/ternary_linear.rs (and rms_norm, quantize, gated_act, add for the fused forms).
struct Params {
    rows: u32, // of this shard
    half: u32,
    k: u32,
    groups: u32,
    x_stride: u32,
    out_stride: u32,
    out_at: u32,
    eps: f32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> row_scales: array<f32>;
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

override BLOCKS: u32 = 40u;
override LANES: u32 = 8u;
override ROWS: u32 = 1u;
override AHEAD: u32 = 4u; // blocks of each row that a lane has in flight; AHEAD * ROWS <= 12
override EPILOGUE: u32 = 0u;

const MASK = vec4<u32>(0x03030303u);

fn dot16(codes16: vec4<u32>, a: vec4<u32>) -> i32 {
    return dot4(codes16.x, a.x) + dot4(codes16.y, a.y) + dot4(codes16.z, a.z)
        + dot4(codes16.w, a.w);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let t = wg.y;
    let lane = tid % LANES;
    let unit = wg.x * (WG / LANES) + tid / LANES;
    let gated = EPILOGUE >= 2u;
    var row: array<u32, 4>;
    var acc: array<Acc, 4>;
    for (var r = 0u; r < ROWS; r++) {
        let n = select(unit * ROWS + r, unit + r * p.half, gated);
        row[r] = min(n, p.rows - 1u);
        acc[r] = Acc(0);
    }
    // The first weights are under way while the activations are made.
    var w: array<vec4<u32>, 12>;
    for (var u = 0u; u < AHEAD; u++) {
        for (var r = 0u; r < ROWS; r++) {
            w[u * ROWS + r] = codes[row[r] * BLOCKS + min(lane + u * LANES, BLOCKS - 1u)];
        }
    }
    acts_begin(t, tid);
    for (var i = 0u; i < (BLOCKS + LANES * AHEAD - 1u) / (LANES * AHEAD); i++) {
        let base = i * LANES * AHEAD;
        for (var u = 0u; u < AHEAD; u++) {
            let b = base + u * LANES + lane;
            if (b < BLOCKS) {
                let a0 = acts(t, b, 0u);
                let a1 = acts(t, b, 1u);
                let a2 = acts(t, b, 2u);
                let a3 = acts(t, b, 3u);
                for (var r = 0u; r < ROWS; r++) {
                    let v = w[u * ROWS + r];
                    let low = dot16(v & MASK, a0) + dot16((v >> vec4<u32>(2u)) & MASK, a1);
                    let high = dot16((v >> vec4<u32>(4u)) & MASK, a2)
                        + dot16((v >> vec4<u32>(6u)) & MASK, a3);
                    acc[r] = accumulate(acc[r], low, high, t, b, row[r]);
                }
            }
        }
        let next = base + LANES * AHEAD;
        if (next < BLOCKS) {
            for (var u = 0u; u < AHEAD; u++) {
                for (var r = 0u; r < ROWS; r++) {
                    let b = min(next + u * LANES + lane, BLOCKS - 1u);
                    w[u * ROWS + r] = codes[row[r] * BLOCKS + b];
                }
            }
        }
    }
    var y: array<f32, 4>;
    for (var r = 0u; r < ROWS; r++) {
        y[r] = finish(lanes_sum(acc[r], tid), t, row[r]);
    }
    if (lane == 0u) {
        let at = t * p.out_stride + p.out_at;
        if (gated) {
            if (unit < p.half) {
                let gate = y[0];
                var act = max(gate, 0.0) * max(gate, 0.0);
                if (EPILOGUE == 3u) { act = gate * sigmoid_f32(gate); }
                out[at + unit] = act * y[1];
            }
        } else {
            for (var r = 0u; r < ROWS; r++) {
                let n = unit * ROWS + r;
                if (n < p.rows) {
                    if (EPILOGUE == 1u) {
                        out[at + n] += y[r];
                    } else {
                        out[at + n] = y[r];
                    }
                }
            }
        }
    }
}
