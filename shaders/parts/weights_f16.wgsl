// Dense f16 weights: 8 a load.
@group(0) @binding(4) var<storage, read> data: array<vec4<u32>>;
const STEP = 8u;
// x[k..] . w[row, k..] over one load, k = i * STEP.
fn dot_step(row: u32, i: u32, x_from: u32) -> f32 {
    let w = data[row * (p.k / 8u) + i];
    let a = vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
    let b = vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w));
    return dot(a, x[x_from + i * 2u]) + dot(b, x[x_from + i * 2u + 1u]);
}
// Four weights of a row, from k = 4 i.
fn weights4(row: u32, i: u32) -> vec4<f32> {
    let w = data[row * (p.k / 8u) + i / 2u];
    let pair = select(w.xy, w.zw, (i & 1u) == 1u);
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}
fn row_factor(row: u32) -> f32 { return 1.0; }
