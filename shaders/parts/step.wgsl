// What changes from one step to the next: one small buffer, the same for every kernel of a plan.
// The host writes it before a prefill; on a decoding device the sampler moves it on (parts/advance).
struct Step {
    pos: u32,       // position of the first token of this step
    tokens: u32,    // T
    out_first: u32, // first token whose logits are wanted
    out_rows: u32,  // R
    drawn: u32,     // tokens drawn since the host last wrote this struct
    splits: u32,    // of the context, in attention_decode
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> step: Step;
