// One activation scale a token and one weight scale a row: integers to the end.
alias Acc4 = vec4<i32>;
fn tile_scales(rows: vec4<u32>, b: u32) -> vec4<f32> { return vec4<f32>(1.0); }
fn accumulate4(acc: Acc4, sums: vec4<i32>, t: u32, b: u32, h: u32, scales: vec4<f32>) -> Acc4 {
    return acc + sums;
}
fn finish4(acc: Acc4, t: u32, rows: vec4<u32>) -> vec4<f32> {
    let w = vec4<f32>(row_scales[rows.x], row_scales[rows.y], row_scales[rows.z], row_scales[rows.w]);
    return vec4<f32>(acc - vec4<i32>(act_total(t))) * act_scale(t, 0u) * w;
}
