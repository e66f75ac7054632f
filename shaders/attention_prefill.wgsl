// out[t] = softmax(q[t] . k^T * scale) . v over positions 0..=pos + t, for many tokens
//
// One workgroup a head and 64 queries; 32 keys at a time, scores from tiles of 32 features in
// workgroup memory, online softmax. An invocation takes 4 queries x 2 keys of the scores, then
// 8 queries x 4 (or 8) features of the output.
//
// Shapes: q slice of [T, H * D], cache [context, G * D] twice, out slice of [T, H * D]; D <= 256.
// Dispatch: (H, ceil(T / 64), 1). Parts: step, kv_*, f16_round, exp. Twin: src/cpu/attention.rs.
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

override QUADS: u32 = 32u; // D / 4

const LOWEST = -3.0e38;
const Q_LINE = 65u; // a line of 64 queries or 32 keys, one longer for the sake of the banks
const K_LINE = 33u;
const KEYS_AT = 520u;
const PEAKS_AT = 512u;
const SHRINK_AT = 768u;

// First 8 lines of queries and 8 of keys, four features each; then
// [16 groups of 4 queries][32 keys] weights, [16][16] largest scores, [16] factors.
var<workgroup> tile: array<vec4<f32>, 784>;

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
    let key = tid % 16u; // scores: keys `key` and `key + 16`
    let four = tid / 16u; // of queries
    let quad = tid % 32u; // output: features
    let eight = tid / 32u; // of queries
    let last_t = step.tokens - 1u;
    let positions = step.pos + min(t0 + 63u, last_t) + 1u;
    // Query t sees positions up to step.pos + t.
    let limit = min(vec4<u32>(step.pos + t0 + four * 4u) + vec4<u32>(0u, 1u, 2u, 3u),
        vec4<u32>(positions - 1u));
    var m = vec4<f32>(LOWEST);
    var l = vec4<f32>(0.0); // of this invocation's keys
    var acc: array<vec4<f32>, 16>;
    for (var i = 0u; i < 16u; i++) { acc[i] = vec4<f32>(0.0); }

    for (var k0 = 0u; k0 < positions; k0 += 32u) {
        var score_a = vec4<f32>(0.0);
        var score_b = vec4<f32>(0.0);
        for (var d0 = 0u; d0 < QUADS; d0 += 8u) {
            // Neighbours read neighbouring quads of a line.
            let d = tid % 8u;
            let is_in = d0 + d < QUADS;
            for (var j = 0u; j < 2u; j++) {
                let line = tid / 8u + 32u * j;
                var v = vec4<f32>(0.0);
                if (is_in) {
                    let row = min(t0 + line, last_t) * (p.q_stride / 4u) + p.q_at / 4u;
                    v = q[row + head * QUADS + d0 + d];
                }
                tile[d * Q_LINE + line] = v;
            }
            var v = vec4<f32>(0.0);
            if (is_in) { v = key4(min(k0 + tid / 8u, positions - 1u), origin + d0 + d); }
            tile[KEYS_AT + d * K_LINE + tid / 8u] = v;
            workgroupBarrier();
            for (var j = 0u; j < 8u; j++) {
                let a = tile[KEYS_AT + j * K_LINE + key];
                let b = tile[KEYS_AT + j * K_LINE + key + 16u];
                let at = j * Q_LINE + four * 4u;
                let q0 = tile[at];
                let q1 = tile[at + 1u];
                let q2 = tile[at + 2u];
                let q3 = tile[at + 3u];
                score_a += vec4<f32>(dot(q0, a), dot(q1, a), dot(q2, a), dot(q3, a));
                score_b += vec4<f32>(dot(q0, b), dot(q1, b), dot(q2, b), dot(q3, b));
            }
            workgroupBarrier();
        }
        let sees_a = vec4<u32>(k0 + key) <= limit;
        let sees_b = vec4<u32>(k0 + key + 16u) <= limit;
        score_a = select(vec4<f32>(LOWEST), score_a * p.scale, sees_a);
        score_b = select(vec4<f32>(LOWEST), score_b * p.scale, sees_b);
        tile[PEAKS_AT + four * 16u + key] = max(score_a, score_b);
        workgroupBarrier();
        var m_new = m;
        for (var j = 0u; j < 16u; j++) { m_new = max(m_new, tile[PEAKS_AT + four * 16u + j]); }
        let weight_a = select(vec4<f32>(0.0), exp4_f32(score_a - m_new), sees_a);
        let weight_b = select(vec4<f32>(0.0), exp4_f32(score_b - m_new), sees_b);
        let shrink = exp4_f32(m - m_new);
        m = m_new;
        l = l * shrink + weight_a + weight_b;
        tile[four * 32u + key] = weight_a;
        tile[four * 32u + key + 16u] = weight_b;
        if (key == 0u) { tile[SHRINK_AT + four] = shrink; }
        workgroupBarrier();
        let shrink_a = tile[SHRINK_AT + eight * 2u];
        let shrink_b = tile[SHRINK_AT + eight * 2u + 1u];
        for (var i = 0u; i < 4u; i++) {
            acc[i] *= shrink_a[i];
            acc[i + 4u] *= shrink_b[i];
            acc[i + 8u] *= shrink_a[i];
            acc[i + 12u] *= shrink_b[i];
        }
        if (quad < QUADS) {
            for (var j = 0u; j < 32u; j++) {
                // Past the end the weight is 0.
                let v = value4(min(k0 + j, positions - 1u), origin + quad);
                let w_a = tile[eight * 64u + j];
                let w_b = tile[eight * 64u + 32u + j];
                for (var i = 0u; i < 4u; i++) {
                    acc[i] += w_a[i] * v;
                    acc[i + 4u] += w_b[i] * v;
                }
            }
        }
        if (quad + 32u < QUADS) {
            for (var j = 0u; j < 32u; j++) {
                let v = value4(min(k0 + j, positions - 1u), origin + quad + 32u);
                let w_a = tile[eight * 64u + j];
                let w_b = tile[eight * 64u + 32u + j];
                for (var i = 0u; i < 4u; i++) {
                    acc[i + 8u] += w_a[i] * v;
                    acc[i + 12u] += w_b[i] * v;
                }
            }
        }
        workgroupBarrier();
    }
    tile[four * 16u + key] = l;
    workgroupBarrier();
    var sum_a = vec4<f32>(0.0);
    var sum_b = vec4<f32>(0.0);
    for (var j = 0u; j < 16u; j++) {
        sum_a += tile[eight * 32u + j];
        sum_b += tile[eight * 32u + 16u + j];
    }
    for (var i = 0u; i < 4u; i++) {
        for (var half = 0u; half < 2u; half++) {
            let t = t0 + eight * 8u + half * 4u + i;
            let total = select(sum_a[i], sum_b[i], half == 1u);
            let at = t * (p.out_stride / 4u) + p.out_at / 4u + head * QUADS;
            if (t <= last_t && quad < QUADS) { out[at + quad] = acc[half * 4u + i] / total; }
            if (t <= last_t && quad + 32u < QUADS) {
                out[at + quad + 32u] = acc[8u + half * 4u + i] / total;
            }
        }
    }
}
