// Activation scales a group, or weight scales a block: integers over 32 values, floats over those.
// ACT_SHIFT, log2 of the group: 5, 8, or 31 for one scale a token.
override ACT_SHIFT: u32 = 5u;
alias Acc = f32;
fn accumulate(acc: Acc, low: i32, high: i32, t: u32, b: u32, row: u32) -> Acc {
    let k = b * 64u;
    // The second half of the last block may lie past K, where there is no group.
    let last = p.groups - 1u;
    let a = f32(low - act_sum(t, b, 0u)) * act_scale(t, min(k >> ACT_SHIFT, last));
    let c = f32(high - act_sum(t, b, 1u)) * act_scale(t, min((k + 32u) >> ACT_SHIFT, last));
    return acc + (a + c) * block_scale(row, b);
}
fn lanes_sum(acc: Acc, tid: u32) -> Acc { return lanes_sum_f32(acc, tid, LANES); }
fn finish(acc: Acc, t: u32, row: u32) -> f32 {
    return acc * row_scales[row];
}
