// best[g] = (largest logit, its id) of the g-th share of the vocabulary; draw picks the best of those
//
// Shapes: logits [R, V], the last row counts; best [groups] of two words.
// Dispatch: (groups, 1, 1). Parts: step. Twin: src/cpu/sample.rs (greedy).
struct Params {
    vocab: u32,
    stride: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> best: array<vec2<u32>>;

const NONE = 0xffffffffu;
var<workgroup> top_value: array<f32, 256>;
var<workgroup> top_id: array<u32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    let row = (step.out_rows - 1u) * p.stride;
    var value = -3.4028234e38;
    var id = NONE;
    for (var i = wg.x * 256u + tid; i < p.vocab; i += grid.x * 256u) {
        let v = logits[row + i];
        if (v > value) {
            value = v;
            id = i;
        }
    }
    top_value[tid] = value;
    top_id[tid] = id;
    workgroupBarrier();
    for (var s = 128u; s > 0u; s >>= 1u) {
        if (tid < s) {
            let v = top_value[tid + s];
            let other = top_id[tid + s];
            if (v > top_value[tid] || (v == top_value[tid] && other < top_id[tid])) {
                top_value[tid] = v;
                top_id[tid] = other;
            }
        }
        workgroupBarrier();
    }
    if (tid == 0u) { best[wg.x] = vec2<u32>(bitcast<u32>(top_value[0]), top_id[0]); }
}
