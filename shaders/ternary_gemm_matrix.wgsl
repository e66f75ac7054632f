// out[t, n] = row_scale[n] * d[t] * sum_k q[t, k] * (code[n, k] - 1)
//
// For many tokens, one activation scale a token and one weight scale a row, on cooperative matrices
// (tensor cores). int8 and ternary values are exact in f16, products and their sums exact in f32: the
// integers of ternary_gemm, to the bit. Eight subgroups, 4 x 2 of them over tokens x rows, 2 x 4
// matrices of 16 x 16 each; one block of 64 features at a time is brought to workgroup memory, where
// codes are made f16, while the next is on its way to registers. Every matrix has a name of its own:
// those in arrays end up in memory.
// EPILOGUE 0: out = y; 1: out += y (the residual); 2, 3: rows n and n + half are gate and up, and
// out = relu(gate)^2 * up or silu(gate) * up.
//
// Shapes: x [T, K64] of f16, the middle two of each four exchanged (quantize.wgsl, HALVES), codes
// [N, K64/64] blocks of 16 bytes, out slice of [T, N].
// Dispatch: (ceil(N / 128), ceil(T / 128), 1); one a shard.
// Parts: step, exp. Twin: src/cpu/ternary_linear.rs.
struct Params {
    rows: u32, // of this shard
    half: u32,
    out_stride: u32,
    out_at: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> row_scales: array<f32>;
@group(0) @binding(4) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(5) var<storage, read> x_scales: array<f32>;
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

override BLOCKS: u32 = 40u;
override EPILOGUE: u32 = 0u;

// A line is 64 features and 8 more, so that the lines of a matrix lie in different banks.
const LINE = 18u;
var<workgroup> tile_x: array<vec4<f16>, 2304>;
var<workgroup> tile_w: array<vec4<f16>, 2304>;
var<workgroup> result: array<f32, 2048>; // a matrix of each subgroup

// 16 features of a line of weights, from the lowest two bits of each byte; 0x4400 + 256 c is 4 + c.
fn put_w(at: u32, words: vec4<u32>) {
    for (var j = 0u; j < 4u; j++) {
        let even = ((words[j] << 8u) & 0x03000300u) | 0x44004400u;
        let odd = (words[j] & 0x03000300u) | 0x44004400u;
        tile_w[at + j] = vec4<f16>(vec4<f32>(unpack2x16float(even), unpack2x16float(odd)))
            - vec4<f16>(5.0h);
    }
}

// The row at a place of a tile. Of the 64 rows of a subgroup, the first half are gates.
fn row_of(n0: u32, place: u32) -> u32 {
    if (EPILOGUE < 2u) { return min(n0 + place, p.rows - 1u); }
    let unit = min(n0 / 2u + place / 64u * 32u + place % 32u, p.half - 1u);
    return unit + select(0u, p.half, place % 64u >= 32u);
}

// Eight values of the matrix of this invocation's subgroup, of every other row.
fn taken(tid: u32) -> array<f32, 8> {
    workgroupBarrier();
    var y: array<f32, 8>;
    for (var i = 0u; i < 8u; i++) { y[i] = result[tid / 32u * 256u + 32u * i + tid % 32u]; }
    workgroupBarrier();
    return y;
}

// Two matrices of 16 tokens from `t_from`, of 16 rows from places `place` and `place` + 32.
fn put(tid: u32, t_from: u32, n0: u32, place: u32, a: array<f32, 8>, b: array<f32, 8>) {
    var first = a;
    var second = b;
    let own = place + tid % 16u;
    let scale_a = row_scales[row_of(n0, own)];
    let scale_b = row_scales[row_of(n0, own + 32u)];
    for (var i = 0u; i < 8u; i++) {
        let t = t_from + tid % 32u / 16u + 2u * i;
        if (t < step.tokens) {
            let y_a = first[i] * x_scales[t] * scale_a;
            let y_b = second[i] * x_scales[t] * scale_b;
            let at = t * p.out_stride + p.out_at;
            if (EPILOGUE >= 2u) {
                let unit = n0 / 2u + own / 64u * 32u + own % 32u;
                if (unit < p.half) {
                    var act = max(y_a, 0.0) * max(y_a, 0.0);
                    if (EPILOGUE == 3u) { act = y_a * sigmoid_f32(y_a); }
                    out[at + unit] = act * y_b;
                }
            } else {
                let n = n0 + own;
                if (n < p.rows) { out[at + n] = select(0.0, out[at + n], EPILOGUE == 1u) + y_a; }
                if (n + 32u < p.rows) {
                    out[at + n + 32u] = select(0.0, out[at + n + 32u], EPILOGUE == 1u) + y_b;
                }
            }
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let t0 = wg.y * 128u;
    let n0 = wg.x * 128u;
    let sub = tid / 32u;
    let sub_t = sub / 2u * 32u;
    let sub_n = sub % 2u * 64u;
    // What this invocation brings: a quad of every 16th token, half of a row's codes.
    let own_quad = tid % 16u;
    let own_t = tid / 16u;
    let own_shift = tid % 2u * 4u;
    let own_w = tid / 2u * LINE + 2u * own_shift;
    let own_row = row_of(n0, tid / 2u) * BLOCKS;

    var c00 = coop_mat16x16<f32, C>();
    var c10 = coop_mat16x16<f32, C>();
    var c01 = coop_mat16x16<f32, C>();
    var c11 = coop_mat16x16<f32, C>();
    var c02 = coop_mat16x16<f32, C>();
    var c12 = coop_mat16x16<f32, C>();
    var c03 = coop_mat16x16<f32, C>();
    var c13 = coop_mat16x16<f32, C>();
    var next_x: array<vec4<f16>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let t = min(t0 + own_t + 16u * i, step.tokens - 1u);
        next_x[i] = x[t * (BLOCKS * 16u) + own_quad];
    }
    var next_w = codes[own_row];
    for (var b = 0u; b < BLOCKS; b++) {
        for (var i = 0u; i < 8u; i++) {
            tile_x[(own_t + 16u * i) * LINE + own_quad] = next_x[i];
        }
        put_w(own_w, next_w >> vec4<u32>(own_shift));
        put_w(own_w + 4u, next_w >> vec4<u32>(own_shift + 2u));
        workgroupBarrier();
        let next = min(b + 1u, BLOCKS - 1u);
        for (var i = 0u; i < 8u; i++) {
            let t = min(t0 + own_t + 16u * i, step.tokens - 1u);
            next_x[i] = x[t * (BLOCKS * 16u) + next * 16u + own_quad];
        }
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
    coopStoreT(c00, &result[mine], 16u);
    let y00 = taken(tid);
    coopStoreT(c02, &result[mine], 16u);
    put(tid, t, n0, sub_n, y00, taken(tid));
    coopStoreT(c01, &result[mine], 16u);
    let y01 = taken(tid);
    coopStoreT(c03, &result[mine], 16u);
    put(tid, t, n0, sub_n + 16u, y01, taken(tid));
    coopStoreT(c10, &result[mine], 16u);
    let y10 = taken(tid);
    coopStoreT(c12, &result[mine], 16u);
    put(tid, t + 16u, n0, sub_n, y10, taken(tid));
    coopStoreT(c11, &result[mine], 16u);
    let y11 = taken(tid);
    coopStoreT(c13, &result[mine], 16u);
    put(tid, t + 16u, n0, sub_n + 16u, y11, taken(tid));
}
