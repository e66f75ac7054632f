// Dense f32 weights: 4 a load.
@group(0) @binding(4) var<storage, read> data: array<vec4<f32>>;
const STEP = 4u;
// x[k..] . w[row, k..] over one load, k = i * STEP.
fn dot_step(row: u32, i: u32, x_from: u32) -> f32 {
    return dot(data[row * (p.k / 4u) + i], x[x_from + i]);
}
// Four weights of a row, from k = 4 i.
fn weights4(row: u32, i: u32) -> vec4<f32> { return data[row * (p.k / 4u) + i]; }
fn row_factor(row: u32) -> f32 { return 1.0; }
