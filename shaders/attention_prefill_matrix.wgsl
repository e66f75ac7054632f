// out[t] = softmax(q[t] . k^T * scale) . v over positions 0..=pos + t, for many tokens
//
// On cooperative matrices (tensor cores), with a cache of f16. One workgroup a head and 64 queries;
// 64 keys at a time. Twice over the keys: first for the largest score of every query, then for the
// weights and the output, which so needs no rescaling on the way. Eight subgroups, 4 x 2 of them over
// queries x keys, then over queries x features.
//
// Shapes: q slice of [T, H * D], cache [context, G * D] twice, out slice of [T, H * D]; D a multiple of
// 32, at most 128. Dispatch: (H, ceil(T / 64), 1). Parts: step. Twin: src/cpu/attention.rs.
struct Params {
    group: u32, // H / G
    kv_quads: u32, // G * D / 4
    q_stride: u32,
    q_at: u32,
    out_stride: u32,
    out_at: u32,
    scale: f32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> keys: array<vec4<f16>>;
@group(0) @binding(5) var<storage, read> values: array<vec4<f16>>;

override QUADS: u32 = 32u; // D / 4

const LOWEST = -3.0e38;
const LOG2_E = 1.44269504088896341;
// Lines are longer than what they hold, so that the lines of a matrix lie in different banks.
const S_LINE = 68u;
const W_LINE = 18u;

var<workgroup> tile: array<vec4<f16>, 2176>; // [64 queries, keys or values][QUADS + 2]
var<workgroup> scores: array<f32, 4352>; // [64 queries][64 keys]
var<workgroup> weights: array<vec4<f16>, 1152>; // [64 queries][16 quads of keys]
var<workgroup> quarters: array<f32, 256>; // of the keys of a query

// The matrix of this invocation's subgroup in `scores`, over the sums in `quarters`: four quads of
// features from `quad` of each of 16 queries.
fn put_output(tid: u32, t0: u32, quad: u32) {
    workgroupBarrier();
    let lane = tid % 32u;
    for (var r = lane / 4u; r < 16u; r += 8u) {
        let query = tid / 64u * 16u + r;
        if (t0 + query < step.tokens) {
            let at = tid / 32u * 256u + r * 16u + lane % 4u * 4u;
            let y = vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
            let sum = quarters[query * 4u] + quarters[query * 4u + 1u] + quarters[query * 4u + 2u]
                + quarters[query * 4u + 3u];
            out[(t0 + query) * (p.out_stride / 4u) + quad + lane % 4u] = y / sum;
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    // The longest first.
    let t0 = (grid.y - 1u - wg.y) * 64u;
    let head = wg.x;
    let origin = head / p.group * QUADS;
    let line = QUADS + 2u;
    let sub = tid / 32u;
    let sub_t = sub / 2u * 16u;
    let side = sub % 2u;
    let query = tid / 4u; // of the softmax, with a quarter of the keys
    let quarter = tid % 4u * 16u;
    let last_t = step.tokens - 1u;
    let last_pos = step.pos + min(t0 + 63u, last_t);
    let limit = min(step.pos + t0 + query, last_pos);
    let own = QUADS / 4u; // quads of a tile that an invocation brings

    for (var i = 0u; i < own; i++) {
        let e = tid + 256u * i;
        let row = min(t0 + e / QUADS, last_t) * (p.q_stride / 4u) + p.q_at / 4u;
        let v = q[row + head * QUADS + e % QUADS];
        tile[e / QUADS * line + e % QUADS] = vec4<f16>(v * (p.scale * LOG2_E));
    }
    workgroupBarrier();
    // A name for each matrix: those in arrays end up in memory. Past D they are not used.
    let q0 = coopLoadT<coop_mat16x16<f16, A>>(&tile[sub_t * line + 0u], line);
    let q1 = coopLoadT<coop_mat16x16<f16, A>>(&tile[sub_t * line + 4u], line);
    let q2 = coopLoadT<coop_mat16x16<f16, A>>(&tile[sub_t * line + 8u], line);
    let q3 = coopLoadT<coop_mat16x16<f16, A>>(&tile[sub_t * line + 12u], line);
    let q4 = coopLoadT<coop_mat16x16<f16, A>>(&tile[sub_t * line + 16u], line);
    let q5 = coopLoadT<coop_mat16x16<f16, A>>(&tile[sub_t * line + 20u], line);
    let q6 = coopLoadT<coop_mat16x16<f16, A>>(&tile[sub_t * line + 24u], line);
    let q7 = coopLoadT<coop_mat16x16<f16, A>>(&tile[sub_t * line + 28u], line);
    workgroupBarrier();

    var next: array<vec4<f16>, 8>;
    var peak = LOWEST;
    for (var i = 0u; i < own; i++) {
        let e = tid + 256u * i;
        next[i] = keys[min(e / QUADS, last_pos) * p.kv_quads + origin + e % QUADS];
    }
    for (var k0 = 0u; k0 <= last_pos; k0 += 64u) {
        for (var i = 0u; i < own; i++) {
            let e = tid + 256u * i;
            tile[e / QUADS * line + e % QUADS] = next[i];
        }
        workgroupBarrier();
        for (var i = 0u; i < own; i++) {
            let e = tid + 256u * i;
            next[i] = keys[min(k0 + 64u + e / QUADS, last_pos) * p.kv_quads + origin + e % QUADS];
        }
        for (var j = 0u; j < 2u; j++) {
            var sum = coop_mat16x16<f32, C>();
            let key = side * 32u + 16u * j;
            let at = key * line;
            sum = coopMultiplyAdd(q0, coopLoad<coop_mat16x16<f16, B>>(&tile[at], line), sum);
            sum = coopMultiplyAdd(q1, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 4u], line), sum);
            if (QUADS >= 16u) {
                sum = coopMultiplyAdd(q2, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 8u], line), sum);
                sum = coopMultiplyAdd(q3, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 12u], line), sum);
            }
            if (QUADS >= 24u) {
                sum = coopMultiplyAdd(q4, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 16u], line), sum);
                sum = coopMultiplyAdd(q5, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 20u], line), sum);
            }
            if (QUADS >= 32u) {
                sum = coopMultiplyAdd(q6, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 24u], line), sum);
                sum = coopMultiplyAdd(q7, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 28u], line), sum);
            }
            coopStoreT(sum, &scores[sub_t * S_LINE + key], S_LINE);
        }
        workgroupBarrier();
        for (var j = 0u; j < 16u; j++) {
            let score = scores[query * S_LINE + quarter + j];
            peak = max(peak, select(LOWEST, score, k0 + quarter + j <= limit));
        }
    }
    quarters[tid] = peak;
    workgroupBarrier();
    for (var j = 0u; j < 4u; j++) { peak = max(peak, quarters[query * 4u + j]); }

    var acc0 = coop_mat16x16<f32, C>();
    var acc1 = coop_mat16x16<f32, C>();
    var acc2 = coop_mat16x16<f32, C>();
    var acc3 = coop_mat16x16<f32, C>();
    var total = 0.0;
    for (var i = 0u; i < own; i++) {
        let e = tid + 256u * i;
        next[i] = keys[min(e / QUADS, last_pos) * p.kv_quads + origin + e % QUADS];
    }
    for (var k0 = 0u; k0 <= last_pos; k0 += 64u) {
        for (var i = 0u; i < own; i++) {
            let e = tid + 256u * i;
            tile[e / QUADS * line + e % QUADS] = next[i];
        }
        workgroupBarrier();
        for (var i = 0u; i < own; i++) {
            let e = tid + 256u * i;
            next[i] = values[min(k0 + e / QUADS, last_pos) * p.kv_quads + origin + e % QUADS];
        }
        for (var j = 0u; j < 2u; j++) {
            var sum = coop_mat16x16<f32, C>();
            let key = side * 32u + 16u * j;
            let at = key * line;
            sum = coopMultiplyAdd(q0, coopLoad<coop_mat16x16<f16, B>>(&tile[at], line), sum);
            sum = coopMultiplyAdd(q1, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 4u], line), sum);
            if (QUADS >= 16u) {
                sum = coopMultiplyAdd(q2, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 8u], line), sum);
                sum = coopMultiplyAdd(q3, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 12u], line), sum);
            }
            if (QUADS >= 24u) {
                sum = coopMultiplyAdd(q4, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 16u], line), sum);
                sum = coopMultiplyAdd(q5, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 20u], line), sum);
            }
            if (QUADS >= 32u) {
                sum = coopMultiplyAdd(q6, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 24u], line), sum);
                sum = coopMultiplyAdd(q7, coopLoad<coop_mat16x16<f16, B>>(&tile[at + 28u], line), sum);
            }
            coopStoreT(sum, &scores[sub_t * S_LINE + key], S_LINE);
        }
        workgroupBarrier();
        for (var j = 0u; j < 4u; j++) {
            let at = quarter + 4u * j;
            let from_at = query * S_LINE + at;
            let s = vec4<f32>(scores[from_at], scores[from_at + 1u], scores[from_at + 2u],
                scores[from_at + 3u]);
            let sees = vec4<u32>(k0 + at) + vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(limit);
            let w = vec4<f16>(select(vec4<f32>(0.0), exp2(s - peak), sees));
            weights[query * W_LINE + at / 4u] = w;
            // Of what is multiplied.
            total += dot(vec4<f32>(w), vec4<f32>(1.0));
        }
        for (var i = 0u; i < own; i++) {
            let e = tid + 256u * i;
            tile[e / QUADS * line + e % QUADS] = next[i];
            next[i] = keys[min(k0 + 64u + e / QUADS, last_pos) * p.kv_quads + origin + e % QUADS];
        }
        workgroupBarrier();
        for (var s = 0u; s < 4u; s++) {
            let w = coopLoadT<coop_mat16x16<f16, A>>(&weights[sub_t * W_LINE + 4u * s], W_LINE);
            let at = 16u * s * line + side * (QUADS / 2u);
            acc0 = coopMultiplyAdd(w, coopLoadT<coop_mat16x16<f16, B>>(&tile[at], line), acc0);
            if (QUADS >= 16u) {
                acc1 = coopMultiplyAdd(w, coopLoadT<coop_mat16x16<f16, B>>(&tile[at + 4u], line), acc1);
            }
            if (QUADS >= 24u) {
                acc2 = coopMultiplyAdd(w, coopLoadT<coop_mat16x16<f16, B>>(&tile[at + 8u], line), acc2);
            }
            if (QUADS >= 32u) {
                acc3 = coopMultiplyAdd(w, coopLoadT<coop_mat16x16<f16, B>>(&tile[at + 12u], line), acc3);
            }
        }
        workgroupBarrier();
    }
    quarters[tid] = total;
    workgroupBarrier();
    let mine = sub * 256u;
    let row = p.out_at / 4u + head * QUADS + side * (QUADS / 2u);
    coopStoreT(acc0, &scores[mine], 16u);
    put_output(tid, t0, row);
    if (QUADS >= 16u) {
        coopStoreT(acc1, &scores[mine], 16u);
        put_output(tid, t0, row + 4u);
    }
    if (QUADS >= 24u) {
        coopStoreT(acc2, &scores[mine], 16u);
        put_output(tid, t0, row + 8u);
    }
    if (QUADS >= 32u) {
        coopStoreT(acc3, &scores[mine], 16u);
        put_output(tid, t0, row + 12u);
    }
}
