// Dense Q8 weights: int8 times the f16 scale of 32 neighbours, 16 a load.
@group(0) @binding(4) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> scales: array<u32>;
const STEP = 16u;
fn floats4(w: u32) -> vec4<f32> {
    let v = bitcast<vec4<i32>>(vec4<u32>(w << 24u, w << 16u, w << 8u, w));
    return vec4<f32>(v >> vec4<u32>(24u));
}
fn scale(g: u32) -> f32 { return unpack2x16float(scales[g >> 1u])[g & 1u]; }
// x[k..] . w[row, k..] over one load, k = i * STEP.
fn dot_step(row: u32, i: u32, x_from: u32) -> f32 {
    let w = data[row * (p.k / 16u) + i];
    let origin = x_from + i * 4u;
    let sum = dot(floats4(w.x), x[origin]) + dot(floats4(w.y), x[origin + 1u])
        + dot(floats4(w.z), x[origin + 2u]) + dot(floats4(w.w), x[origin + 3u]);
    return sum * scale(row * (p.k / 32u) + i / 2u);
}
// Four weights of a row, from k = 4 i.
fn weights4(row: u32, i: u32) -> vec4<f32> {
    let w = data[row * (p.k / 16u) + i / 4u];
    return floats4(w[i & 3u]) * scale(row * (p.k / 32u) + i / 8u);
}
fn row_factor(row: u32) -> f32 { return 1.0; }
