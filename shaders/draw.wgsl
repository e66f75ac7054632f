// Draws the next token and moves the device on: the token is written where the next step's embed
// reads it, and the step's position is advanced, so that steps can follow without the host
//
// Shapes: state: the words of parts/step; tokens [context + 1] by position; drawn [batch].
// Dispatch: (1, 1, 1). Parts: reduce_*, pick_{greedy,sampled}. Twin: src/cpu/sample.rs.
struct Params {
    vocab: u32,
    stride: u32, // of a row of logits
    shares: u32, // of argmax
    window: u32, // tokens that the penalties look at; 0 when they are off
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: u32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    seed_low: u32,
    seed_high: u32,
}
@group(0) @binding(0) var<storage, read_write> state: array<u32>;
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> drawn: array<u32>;

const NONE = 0xffffffffu;
const LOWEST = -3.0e38;

var<workgroup> win_value: array<f32, WG>;
var<workgroup> win_id: array<u32, WG>;

// The id with the largest value, the smaller one on a tie; 0 when there is none.
fn winner(value: f32, id: u32, tid: u32) -> u32 {
    win_value[tid] = value;
    win_id[tid] = id;
    workgroupBarrier();
    for (var s = WG / 2u; s > 0u; s >>= 1u) {
        if (tid < s) {
            let v = win_value[tid + s];
            let other = win_id[tid + s];
            if (other != NONE
                && (win_id[tid] == NONE || v > win_value[tid]
                    || (v == win_value[tid] && other < win_id[tid]))) {
                win_value[tid] = v;
                win_id[tid] = other;
            }
        }
        workgroupBarrier();
    }
    return select(win_id[0], 0u, win_id[0] == NONE);
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) tid: u32) {
    // The token takes the position after those of the step.
    let position = state[0] + state[1];
    let id = pick(position, tid);
    if (tid == 0u) {
        tokens[position] = id;
        drawn[state[4]] = id;
        state[0] = position;
        state[1] = 1u;
        state[2] = 0u;
        state[3] = 1u;
        state[4] += 1u;
    }
}
