// out = softmax(q . k^T * scale) . v over positions 0..=pos + t, online, split over the context
//
// One workgroup a head and a split. Positions go by in chunks of WG / LANES: LANES invocations share
// a score; then every invocation takes four features and every few positions of the chunk.
// With one split the result is final; otherwise (m, l) and the unnormalised sum go to
// attention_combine.
//
// Shapes: q slice of [T, H * D], cache [context, G * D] twice, out slice of [T, H * D] or
// partial [T, H, splits, D + 2]. With query_append, k and v are slices of the rows of q, normalised
// first with head_norm.
// Dispatch: (H, splits, T). Parts: step, reduce_*, kv_*, f16_round, exp, query_*.
// Twin: src/cpu/attention.rs (and rms_norm, rope, kv_append for the fused forms).
struct Params {
    group: u32, // H / G
    kv_quads: u32, // G * D / 4
    q_stride: u32,
    q_at: u32,
    k_at: u32,
    v_at: u32,
    out_stride: u32,
    out_at: u32,
    scale: f32,
    eps: f32, // of head_norm
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

override QUADS: u32 = 32u; // D / 4
override LANES: u32 = 4u; // QUADS / LANES <= 16
override GROUPS: u32 = WG / QUADS; // of invocations that share the positions of a chunk
override ROUNDS: u32 = (WG / LANES + GROUPS - 1u) / GROUPS; // of a chunk's values, a position a group

const LOWEST = -3.0e38;

var<workgroup> weights: array<f32, WG>;
var<workgroup> sums: array<vec4<f32>, WG>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    let head = wg.x;
    let splits = step.splits;
    let t = wg.z;
    let pos = step.pos + t;
    let positions = pos + 1u;
    let share = (positions + splits - 1u) / splits;
    let begin = min(wg.y * share, positions);
    let end = min(begin + share, positions);
    let origin = head / p.group * QUADS;
    let lane = tid % LANES;
    let slot = tid / LANES; // of the chunk
    let chunk_len = WG / LANES;
    let quad = tid % QUADS;
    let mine = tid / QUADS;
    var m = LOWEST;
    var l = 0.0; // this invocation's part
    var acc = vec4<f32>(0.0);
    for (var chunk = begin; chunk < end; chunk += chunk_len) {
        // All of the chunk's keys and values are under way before anything is done: loops of a fixed
        // length without branches. What lies past an end is read from the last place again, and
        // dropped.
        let position = min(chunk + slot, end - 1u);
        var some_keys: array<vec4<f32>, 16>;
        var some_values: array<vec4<f32>, 16>;
        for (var i = 0u; i < (QUADS + LANES - 1u) / LANES; i++) {
            let j = min(i * LANES + lane, QUADS - 1u);
            some_keys[i] = key4(cached(position, pos), origin + j);
        }
        for (var r = 0u; r < ROUNDS; r++) {
            let other = min(chunk + r * GROUPS + mine, end - 1u);
            some_values[r] = value4(cached(other, pos), origin + quad);
        }
        if (chunk == begin) { attention_begin(t, head, pos, begin <= pos && pos < end, tid); }
        var score = 0.0;
        for (var i = 0u; i < (QUADS + LANES - 1u) / LANES; i++) {
            let j = min(i * LANES + lane, QUADS - 1u);
            let part = dot(query[j], seen_key4(some_keys[i], position, pos, j));
            score += select(0.0, part, i * LANES + lane < QUADS);
        }
        score = lanes_sum_f32(score, tid, LANES);
        if (chunk + slot >= end) { score = LOWEST; }
        let m_new = max(m, workgroup_max_f32(score, tid));
        let shrink = exp_f32(m - m_new);
        let own = select(0.0, exp_f32(score - m_new), chunk + slot < end);
        l *= shrink;
        if (lane == 0u) {
            weights[slot] = own;
            l += own;
        }
        workgroupBarrier();
        acc *= shrink;
        for (var r = 0u; r < ROUNDS; r++) {
            let i = r * GROUPS + mine;
            let weight = select(0.0, weights[min(i, chunk_len - 1u)], i < chunk_len);
            let other = min(chunk + i, end - 1u);
            acc += weight * seen_value4(some_values[r], other, pos, quad);
        }
        m = m_new;
    }

    l = workgroup_sum_f32(l, tid);
    sums[tid] = acc;
    workgroupBarrier();
    if (tid < QUADS) {
        var sum = vec4<f32>(0.0);
        for (var i = 0u; i < GROUPS; i++) { sum += sums[i * QUADS + tid]; }
        if (splits == 1u) {
            sum /= l;
            let at = t * p.out_stride + p.out_at + (head * QUADS + tid) * 4u;
            for (var c = 0u; c < 4u; c++) { out[at + c] = sum[c]; }
        } else {
            let at = ((t * grid.x + head) * splits + wg.y) * (QUADS * 4u + 2u);
            for (var c = 0u; c < 4u; c++) { out[at + 2u + tid * 4u + c] = sum[c]; }
            if (tid == 0u) {
                out[at] = m;
                out[at + 1u] = l;
            }
        }
    }
}
