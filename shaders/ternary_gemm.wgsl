// out[t, n] = row_scale[n] * sum_g d_g * block_scale * sum_k q[t, k] * (code[n, k] - 1)
//
// For many tokens. Tiles of 64 tokens x 64 rows, one block of 64 features at a time: the codes are
// unpacked once a tile into workgroup memory, while the next block is on its way to registers;
// 8 x 4 outputs an invocation.
// EPILOGUE 0: out = y; 1: out += y (the residual).
//
// Shapes: xq [T, K64] int8, codes [N, K64/64] blocks of 16 bytes, out slice of [T, N].
// Dispatch: (ceil(N / 64), ceil(T / 64), 1); one a shard.
// Parts: step, dot4_*, acts_i8, tile_{row,group}, block_*. Twin: src/cpu/ternary_linear.rs.
struct Params {
    rows: u32, // of this shard
    k: u32,
    groups: u32,
    out_stride: u32,
    out_at: u32,
    by_outputs: u32, // rows of x are outputs, not tokens
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> row_scales: array<f32>;
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

override BLOCKS: u32 = 40u;
override EPILOGUE: u32 = 0u;

const MASK = vec4<u32>(0x03030303u);

// 16 features a vector; [quarter of the block][token or row]. A line is one vector longer than its
// 64, so that the quarters of a token, which neighbours write, lie in different banks.
const LINE = 65u;
var<workgroup> tile_x: array<vec4<u32>, 260>;
var<workgroup> tile_w: array<vec4<u32>, 260>;

fn dot16(codes16: vec4<u32>, a: vec4<u32>) -> i32 {
    return dot4(codes16.x, a.x) + dot4(codes16.y, a.y) + dot4(codes16.z, a.z)
        + dot4(codes16.w, a.w);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let t0 = wg.y * 64u;
    let n0 = wg.x * 64u;
    let last_t = select(step.tokens, step.out_rows, p.by_outputs == 1u) - 1u;
    let last_n = p.rows - 1u;
    let tm = tid / 16u;
    let tn = tid % 16u;
    let rows = min(vec4<u32>(n0 + tn) + vec4<u32>(0u, 16u, 32u, 48u), vec4<u32>(last_n));
    // What this invocation brings: two vectors of two tokens, half of a row's codes.
    let own_t = vec2<u32>(min(t0 + tid / 4u, last_t), min(t0 + 32u + tid / 4u, last_t));
    let own_at = tid % 4u * LINE + tid / 4u;
    let own_row = min(n0 + tid / 2u, last_n) * BLOCKS;
    let own_shift = tid % 2u * 4u;
    let own_w = tid % 2u * 2u * LINE + tid / 2u;
    var acc: array<Acc4, 8>;
    for (var i = 0u; i < 8u; i++) { acc[i] = Acc4(0); }
    var next_0 = acts(own_t.x, 0u, tid % 4u);
    var next_1 = acts(own_t.y, 0u, tid % 4u);
    var next_w = codes[own_row];
    for (var b = 0u; b < BLOCKS; b++) {
        tile_x[own_at] = next_0;
        tile_x[own_at + 32u] = next_1;
        tile_w[own_w] = (next_w >> vec4<u32>(own_shift)) & MASK;
        tile_w[own_w + LINE] = (next_w >> vec4<u32>(own_shift + 2u)) & MASK;
        workgroupBarrier();
        let next = min(b + 1u, BLOCKS - 1u);
        next_0 = acts(own_t.x, next, tid % 4u);
        next_1 = acts(own_t.y, next, tid % 4u);
        next_w = codes[own_row + next];
        for (var h = 0u; h < 2u; h++) {
            var sums: array<vec4<i32>, 8>;
            for (var i = 0u; i < 8u; i++) { sums[i] = vec4<i32>(0); }
            for (var s = 0u; s < 2u; s++) {
                let q = (h * 2u + s) * LINE;
                let b0 = tile_w[q + tn];
                let b1 = tile_w[q + tn + 16u];
                let b2 = tile_w[q + tn + 32u];
                let b3 = tile_w[q + tn + 48u];
                for (var i = 0u; i < 8u; i++) {
                    let a = tile_x[q + tm + 8u * i];
                    sums[i] += vec4<i32>(dot16(b0, a), dot16(b1, a), dot16(b2, a), dot16(b3, a));
                }
            }
            let scales = tile_scales(rows, b);
            for (var i = 0u; i < 8u; i++) {
                let t = min(t0 + tm + 8u * i, last_t);
                acc[i] = accumulate4(acc[i], sums[i], t, b, h, scales);
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 8u; i++) {
        let t = t0 + tm + 8u * i;
        if (t <= last_t) {
            let y = finish4(acc[i], t, rows);
            for (var r = 0u; r < 4u; r++) {
                let n = n0 + tn + 16u * r;
                if (n <= last_n) {
                    let at = t * p.out_stride + p.out_at + n;
                    if (EPILOGUE == 1u) {
                        out[at] += y[r];
                    } else {
                        out[at] = y[r];
                    }
                }
            }
        }
    }
}
