// Activation scales a group, or weight scales a block: integers over 32 values, floats over those.
// ACT_SHIFT, log2 of the group: 5, 8, or 31 for one scale a token.
override ACT_SHIFT: u32 = 5u;
alias Acc4 = vec4<f32>;
fn tile_scales(rows: vec4<u32>, b: u32) -> vec4<f32> {
    return vec4<f32>(block_scale(rows.x, b), block_scale(rows.y, b), block_scale(rows.z, b),
        block_scale(rows.w, b));
}
fn accumulate4(acc: Acc4, sums: vec4<i32>, t: u32, b: u32, h: u32, scales: vec4<f32>) -> Acc4 {
    let group = min((b * 64u + h * 32u) >> ACT_SHIFT, p.groups - 1u);
    return acc + vec4<f32>(sums - vec4<i32>(act_sum(t, b, h))) * act_scale(t, group) * scales;
}
fn finish4(acc: Acc4, t: u32, rows: vec4<u32>) -> vec4<f32> {
    let w = vec4<f32>(row_scales[rows.x], row_scales[rows.y], row_scales[rows.z], row_scales[rows.w]);
    return acc * w;
}
