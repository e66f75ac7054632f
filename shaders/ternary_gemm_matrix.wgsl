// out[t, n] = row_scale[n] * d[t] * sum_k q[t, k] * (code[n, k] - 1)
//
// For many tokens, one activation scale a token and one weight scale a row, on cooperative matrices
// (tensor cores). int8 and ternary values are exact in f16, products and their sums exact in f32: the
// integers of ternary_gemm, to the bit. Eight subgroups, 4 x 2 of them over tokens x rows, 2 x 4
// matrices of 16 x 16 each; one block of 64 features at a time is made f16 in workgroup memory, while
// the next is on its way to registers. Every matrix has a name of its own: those in arrays end up in
// memory.
// EPILOGUE 0: out = y; 1: out += y (the residual).
//
// Shapes: xq [T, K64] int8, codes [N, K64/64] blocks of 16 bytes, out slice of [T, N].
// Dispatch: (ceil(N / 128), ceil(T / 128), 1); one a shard.
// Parts: step, acts_i8. Twin: src/cpu/ternary_linear.rs.
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

// A line is 64 features and 8 more, so that the lines of a matrix lie in different banks.
const LINE = 18u;
var<workgroup> tile_x: array<vec4<f16>, 2304>;
var<workgroup> tile_w: array<vec4<f16>, 2304>;
var<workgroup> result: array<f32, 2048>; // a matrix of each subgroup

// Four bytes as f16, less `bias`: 0x6400 + n is 1024 + n.
fn halves(bytes: u32, bias: f16) -> vec4<f16> {
    let low = 0x64006400u | (bytes & 0xffu) | ((bytes & 0xff00u) << 8u);
    let high = 0x64006400u | ((bytes >> 16u) & 0xffu) | ((bytes >> 8u) & 0xff0000u);
    return vec4<f16>(vec4<f32>(unpack2x16float(low), unpack2x16float(high))) - vec4<f16>(bias);
}

// 16 features of a line.
fn put_x(at: u32, words: vec4<u32>) {
    let v = words ^ vec4<u32>(0x80808080u);
    tile_x[at] = halves(v.x, 1152.0h);
    tile_x[at + 1u] = halves(v.y, 1152.0h);
    tile_x[at + 2u] = halves(v.z, 1152.0h);
    tile_x[at + 3u] = halves(v.w, 1152.0h);
}
fn put_w(at: u32, words: vec4<u32>) {
    let v = words & vec4<u32>(0x03030303u);
    tile_w[at] = halves(v.x, 1025.0h);
    tile_w[at + 1u] = halves(v.y, 1025.0h);
    tile_w[at + 2u] = halves(v.z, 1025.0h);
    tile_w[at + 3u] = halves(v.w, 1025.0h);
}

// The matrix in `result` of this invocation's subgroup, tokens from `t` and rows from `n`.
fn put_result(tid: u32, t_from: u32, n_from: u32) {
    workgroupBarrier();
    let lane = tid % 32u;
    let last_t = select(step.tokens, step.out_rows, p.by_outputs == 1u) - 1u;
    let n = n_from + lane % 16u;
    let scale = row_scales[min(n, p.rows - 1u)];
    for (var r = lane / 16u; r < 16u; r += 2u) {
        let t = t_from + r;
        if (t <= last_t && n < p.rows) {
            let y = result[tid / 32u * 256u + r * 16u + lane % 16u] * act_scale(t, 0u) * scale;
            let at = t * p.out_stride + p.out_at + n;
            if (EPILOGUE == 1u) {
                out[at] += y;
            } else {
                out[at] = y;
            }
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let t0 = wg.y * 128u;
    let n0 = wg.x * 128u;
    let last_t = select(step.tokens, step.out_rows, p.by_outputs == 1u) - 1u;
    let last_n = p.rows - 1u;
    let sub = tid / 32u;
    let sub_t = sub / 2u * 32u;
    let sub_n = sub % 2u * 64u;
    // What this invocation brings: a vector of two tokens, half of a row's codes.
    let quarter = tid % 4u;
    let own_t = vec2<u32>(min(t0 + tid / 4u, last_t), min(t0 + tid / 4u + 64u, last_t));
    let own_x = tid / 4u * LINE + quarter * 4u;
    let own_row = min(n0 + tid / 2u, last_n) * BLOCKS;
    let own_shift = tid % 2u * 4u;
    let own_w = tid / 2u * LINE + tid % 2u * 8u;

    var c00 = coop_mat16x16<f32, C>();
    var c10 = coop_mat16x16<f32, C>();
    var c01 = coop_mat16x16<f32, C>();
    var c11 = coop_mat16x16<f32, C>();
    var c02 = coop_mat16x16<f32, C>();
    var c12 = coop_mat16x16<f32, C>();
    var c03 = coop_mat16x16<f32, C>();
    var c13 = coop_mat16x16<f32, C>();
    var next_x0 = acts(own_t.x, 0u, quarter);
    var next_x1 = acts(own_t.y, 0u, quarter);
    var next_w = codes[own_row];
    for (var b = 0u; b < BLOCKS; b++) {
        put_x(own_x, next_x0);
        put_x(own_x + 64u * LINE, next_x1);
        put_w(own_w, next_w >> vec4<u32>(own_shift));
        put_w(own_w + 4u, next_w >> vec4<u32>(own_shift + 2u));
        workgroupBarrier();
        let next = min(b + 1u, BLOCKS - 1u);
        next_x0 = acts(own_t.x, next, quarter);
        next_x1 = acts(own_t.y, next, quarter);
        next_w = codes[own_row + next];
        for (var s = 0u; s < 4u; s++) {
            let x_at = sub_t * LINE + 4u * s;
            let w_at = sub_n * LINE + 4u * s;
            let x0 = coopLoadT<coop_mat16x16<f16, A>>(&tile_x[x_at], LINE);
            let x1 = coopLoadT<coop_mat16x16<f16, A>>(&tile_x[x_at + 16u * LINE], LINE);
            let w0 = coopLoad<coop_mat16x16<f16, B>>(&tile_w[w_at], LINE);
            c00 = coopMultiplyAdd(x0, w0, c00);
            c10 = coopMultiplyAdd(x1, w0, c10);
            let w1 = coopLoad<coop_mat16x16<f16, B>>(&tile_w[w_at + 16u * LINE], LINE);
            c01 = coopMultiplyAdd(x0, w1, c01);
            c11 = coopMultiplyAdd(x1, w1, c11);
            let w2 = coopLoad<coop_mat16x16<f16, B>>(&tile_w[w_at + 32u * LINE], LINE);
            c02 = coopMultiplyAdd(x0, w2, c02);
            c12 = coopMultiplyAdd(x1, w2, c12);
            let w3 = coopLoad<coop_mat16x16<f16, B>>(&tile_w[w_at + 48u * LINE], LINE);
            c03 = coopMultiplyAdd(x0, w3, c03);
            c13 = coopMultiplyAdd(x1, w3, c13);
        }
        workgroupBarrier();
    }
    let mine = sub * 256u;
    let t = t0 + sub_t;
    let n = n0 + sub_n;
    coopStoreT(c00, &result[mine], 16u);
    put_result(tid, t, n);
    coopStoreT(c10, &result[mine], 16u);
    put_result(tid, t + 16u, n);
    coopStoreT(c01, &result[mine], 16u);
    put_result(tid, t, n + 16u);
    coopStoreT(c11, &result[mine], 16u);
    put_result(tid, t + 16u, n + 16u);
    coopStoreT(c02, &result[mine], 16u);
    put_result(tid, t, n + 32u);
    coopStoreT(c12, &result[mine], 16u);
    put_result(tid, t + 16u, n + 32u);
    coopStoreT(c03, &result[mine], 16u);
    put_result(tid, t, n + 48u);
    coopStoreT(c13, &result[mine], 16u);
    put_result(tid, t + 16u, n + 48u);
}
