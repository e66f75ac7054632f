// out = softmax(q . k^T * scale) . v over positions 0..=pos + t, online, split over the context
//
// One workgroup a head and a split. Positions go by in chunks of WG: LANES invocations share a
// score; then every invocation takes four features and every few positions.
// With one split the result is final; otherwise (m, l) and the unnormalised sum go to
// attention_combine.
//
// Shapes: q slice of [T, H * D], cache [context, G * D] twice, out slice of [T, H * D] or
// partial [T, H, splits, D + 2].
// Dispatch: (H, splits, T). Parts: step, reduce_*, kv_*, f16_round, exp, turn_*.
// Twin: src/cpu/attention.rs.
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
override LANES: u32 = 1u;

const LOWEST = -3.0e38;

var<workgroup> query: array<vec4<f32>, QUADS>;
var<workgroup> weights: array<f32, WG>;
var<workgroup> sums: array<vec4<f32>, WG>;

fn rotary(i: u32) -> f32 { return q[i]; }

// Nothing is appended here: kv_append ran before.
fn new_key4(t: u32, quad: u32) -> vec4<f32> { return vec4<f32>(0.0); }
fn new_value4(t: u32, quad: u32) -> vec4<f32> { return vec4<f32>(0.0); }

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
    for (var i = tid; i < QUADS; i += WG) {
        let at = t * p.q_stride + p.q_at + head * QUADS * 4u;
        let d = i * 4u;
        query[i] = p.scale * vec4<f32>(turned(at, d, pos), turned(at, d + 1u, pos),
            turned(at, d + 2u, pos), turned(at, d + 3u, pos));
    }
    workgroupBarrier();

    let lane = tid % LANES;
    let groups = WG / QUADS; // invocation groups that share the positions of a chunk
    let quad = tid % QUADS;
    let mine = tid / QUADS;
    var m = LOWEST;
    var l = 0.0;
    var acc = vec4<f32>(0.0);
    for (var chunk = begin; chunk < end; chunk += WG) {
        let count = min(WG, end - chunk);
        weights[tid] = LOWEST;
        workgroupBarrier();
        for (var i = 0u; i < LANES; i++) {
            let index = i * (WG / LANES) + tid / LANES;
            var score = 0.0;
            if (index < count) {
                for (var j = lane; j < QUADS; j += LANES) {
                    score += dot(query[j], key4(chunk + index, origin + j));
                }
            }
            let whole = lanes_sum_f32(score, tid, LANES);
            if (lane == 0u && index < count) { weights[index] = whole; }
        }
        workgroupBarrier();
        let score = weights[tid];
        let m_new = max(m, workgroup_max_f32(score, tid));
        let shrink = exp_f32(m - m_new);
        var weight = 0.0;
        if (tid < count) { weight = exp_f32(score - m_new); }
        weights[tid] = weight;
        l = l * shrink + workgroup_sum_f32(weight, tid);
        acc *= shrink;
        if (mine < groups) {
            for (var i = mine; i < count; i += groups) {
                acc += weights[i] * value4(chunk + i, origin + quad);
            }
        }
        m = m_new;
        workgroupBarrier();
    }

    sums[tid] = acc;
    workgroupBarrier();
    if (tid < QUADS) {
        var sum = vec4<f32>(0.0);
        for (var i = 0u; i < groups; i++) { sum += sums[i * QUADS + tid]; }
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
