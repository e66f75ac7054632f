// One activation scale a token and one weight scale a row: the sum over the row is an integer.
alias Acc = i32;
fn accumulate(acc: Acc, low: i32, high: i32, t: u32, b: u32, row: u32) -> Acc {
    return acc + low + high;
}
fn lanes_sum(acc: Acc, tid: u32) -> Acc { return lanes_sum_i32(acc, tid, LANES); }
fn finish(acc: Acc, t: u32, row: u32) -> f32 {
    return f32(acc - act_total(t)) * act_scale(t, 0u) * row_scales[row];
}
