// Dense f32 weights whose rows do not start at whole loads: one by one.
@group(0) @binding(4) var<storage, read> data: array<f32>;
const STEP = 4u;
fn weight(row: u32, k: u32) -> f32 {
    return select(0.0, data[row * p.k + min(k, p.k - 1u)], k < p.k);
}
// x[k..] . w[row, k..], k = i * STEP.
fn dot_step(row: u32, i: u32, x_from: u32) -> f32 { return dot(weights4(row, i), x[x_from + i]); }
// Four weights of a row, from k = 4 i.
fn weights4(row: u32, i: u32) -> vec4<f32> {
    let k = i * 4u;
    return vec4<f32>(weight(row, k), weight(row, k + 1u), weight(row, k + 2u), weight(row, k + 3u));
}
fn row_factor(row: u32) -> f32 { return 1.0; }
