// nats[r] = -ln softmax(logits[r])[target[r]]
//
// Shapes: logits [R, V], target [R] of ids, nats [R].
// Dispatch: (R, 1, 1). Parts: exp, reduce_*. Twin: src/cpu/cross_entropy.rs.
struct Params {
    vocab: u32,
    stride: u32, // of a row of logits
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read> target_id: array<u32>;
@group(0) @binding(4) var<storage, read_write> nats: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let row = wg.x * p.stride;
    var share = -3.4028234e38;
    for (var i = tid; i < p.vocab; i += WG) { share = max(share, logits[row + i]); }
    let largest = workgroup_max_f32(share, tid);
    var sum = 0.0;
    for (var i = tid; i < p.vocab; i += WG) { sum += exp_f32(logits[row + i] - largest); }
    let total = workgroup_sum_f32(sum, tid);
    if (tid == 0u) { nats[wg.x] = log(total) - (logits[row + target_id[wg.x]] - largest); }
}
