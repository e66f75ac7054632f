// out[t] = softmax(q[t] . k^T * scale) . v over positions 0..=pos + t, for many tokens
//
// One workgroup a head and 32 queries; 32 keys at a time, scores from tiles of 32 features in
// workgroup memory, online softmax. An invocation holds 4 queries x (4 or 8) features of the output.
//
// Shapes: q slice of [T, H * D], cache [context, G * D] twice, out slice of [T, H * D]; D <= 256.
// Dispatch: (ceil(T / 32), H, 1). Parts: step, kv_*, f16_round, exp. Twin: src/cpu/attention.rs.
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
@group(0) @binding(2) var<storage, read> q: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

override QUADS: u32 = 32u; // D / 4

const LOWEST = -3.0e38;

// [feature / 4][query or key], eight quads at a time.
var<workgroup> tile_q: array<vec4<f32>, 256>;
var<workgroup> tile_k: array<vec4<f32>, 256>;
// [key][query / 4]
var<workgroup> weights: array<vec4<f32>, 256>;

// Nothing is appended here: kv_append ran before.
fn new_key4(t: u32, quad: u32) -> vec4<f32> { return vec4<f32>(0.0); }
fn new_value4(t: u32, quad: u32) -> vec4<f32> { return vec4<f32>(0.0); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let t0 = wg.x * 32u;
    let head = wg.y;
    let origin = head / p.group * QUADS;
    let key = tid % 32u; // of the tile: scores; quad of the output afterwards
    let quarter = tid / 32u; // four queries
    let last_t = step.tokens - 1u;
    let positions = step.pos + min(t0 + 31u, last_t) + 1u;
    var m = vec4<f32>(LOWEST);
    var l = vec4<f32>(0.0);
    var acc: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) { acc[i] = vec4<f32>(0.0); }

    for (var k0 = 0u; k0 < positions; k0 += 32u) {
        var score = vec4<f32>(0.0);
        for (var d0 = 0u; d0 < QUADS; d0 += 8u) {
            // 256 invocations fill 8 quads x 32 of both tiles; neighbours read neighbouring quads.
            let line = tid / 8u;
            let quad = d0 + tid % 8u;
            var a = vec4<f32>(0.0);
            var b = vec4<f32>(0.0);
            if (quad < QUADS) {
                let at = min(t0 + line, last_t) * p.q_stride + p.q_at + (head * QUADS + quad) * 4u;
                a = vec4<f32>(q[at], q[at + 1u], q[at + 2u], q[at + 3u]);
                b = key4(min(k0 + line, positions - 1u), origin + quad);
            }
            tile_q[tid % 8u * 32u + line] = a;
            tile_k[tid % 8u * 32u + line] = b;
            workgroupBarrier();
            for (var j = 0u; j < 8u; j++) {
                let k4 = tile_k[j * 32u + key];
                let at = j * 32u + quarter * 4u;
                score += vec4<f32>(dot(tile_q[at], k4), dot(tile_q[at + 1u], k4),
                    dot(tile_q[at + 2u], k4), dot(tile_q[at + 3u], k4));
            }
            workgroupBarrier();
        }
        // Query t sees positions up to step.pos + t.
        let limit = vec4<u32>(step.pos + t0 + quarter * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
        let seen = vec4<u32>(k0 + key) <= min(limit, vec4<u32>(positions - 1u));
        score = select(vec4<f32>(LOWEST), score * p.scale, seen);
        weights[key * 8u + quarter] = score;
        workgroupBarrier();
        var m_new = m;
        for (var j = 0u; j < 32u; j++) { m_new = max(m_new, weights[j * 8u + quarter]); }
        workgroupBarrier();
        weights[key * 8u + quarter] = select(vec4<f32>(0.0), exp4_f32(score - m_new), seen);
        workgroupBarrier();
        let shrink = exp4_f32(m - m_new);
        m = m_new;
        l *= shrink;
        for (var i = 0u; i < 4u; i++) {
            acc[i] *= shrink[i];
            acc[i + 4u] *= shrink[i];
        }
        for (var j = 0u; j < min(32u, positions - k0); j++) {
            let w = weights[j * 8u + quarter];
            l += w;
            if (key < QUADS) {
                let v = value4(k0 + j, origin + key);
                for (var i = 0u; i < 4u; i++) { acc[i] += w[i] * v; }
            }
            if (key + 32u < QUADS) {
                let v = value4(k0 + j, origin + key + 32u);
                for (var i = 0u; i < 4u; i++) { acc[i + 4u] += w[i] * v; }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let t = t0 + quarter * 4u + i;
        let at = t * p.out_stride + p.out_at + head * QUADS * 4u;
        for (var c = 0u; c < 4u; c++) {
            if (t <= last_t && key < QUADS) { out[at + key * 4u + c] = acc[i][c] / l[i]; }
            if (t <= last_t && key + 32u < QUADS) {
                out[at + (key + 32u) * 4u + c] = acc[i + 4u][c] / l[i];
            }
        }
    }
}
