// Ternary weights for float activations: 64 a load.
@group(0) @binding(4) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> row_scales: array<f32>;
@group(0) @binding(6) var<storage, read> block_scales: array<u32>;
// The scale of block `i` of 64 weights.
fn block_scale(row: u32, i: u32) -> f32 {
    let g = row * ((p.k + p.block - 1u) / p.block) + i * 64u / p.block;
    return unpack2x16float(block_scales[g >> 1u])[g & 1u];
}
const STEP = 64u;
fn weights_of(codes: u32) -> vec4<f32> {
    let v = vec4<u32>(codes, codes >> 8u, codes >> 16u, codes >> 24u) & vec4<u32>(3u);
    return vec4<f32>(v) - vec4<f32>(1.0);
}
// x[k..] . w[row, k..] over one load, k = i * STEP. Rows of x are padded with zeros to whole blocks.
fn dot_step(row: u32, i: u32, x_from: u32) -> f32 {
    let w = data[row * ((p.k + 63u) / 64u) + i];
    var sum = 0.0;
    for (var s = 0u; s < 4u; s++) {
        let v = w >> vec4<u32>(2u * s);
        let origin = x_from + i * 16u + s * 4u;
        sum += dot(weights_of(v.x), x[origin]) + dot(weights_of(v.y), x[origin + 1u])
            + dot(weights_of(v.z), x[origin + 2u]) + dot(weights_of(v.w), x[origin + 3u]);
    }
    return sum * block_scale(row, i);
}
// Four weights of a row, from k = 4 i.
fn weights4(row: u32, i: u32) -> vec4<f32> {
    let w = data[row * ((p.k + 63u) / 64u) + i / 16u];
    return weights_of(w[i & 3u] >> (i % 16u / 4u * 2u)) * block_scale(row, i / 16u);
}
fn row_factor(row: u32) -> f32 { return row_scales[row]; }
