// A value of a ternary matrix with a scale a row and an f16 scale a block.
@group(0) @binding(4) var<storage, read> data: array<u32>;
@group(0) @binding(5) var<storage, read> row_scales: array<f32>;
@group(0) @binding(6) var<storage, read> block_scales: array<u32>;
fn row_value(row: u32, k: u32) -> f32 {
    let word = data[(row * ((p.dim + 63u) / 64u) + k / 64u) * 4u + k % 16u / 4u];
    let code = (word >> (8u * (k % 4u) + k % 64u / 16u * 2u)) & 3u;
    let g = row * ((p.dim + p.block - 1u) / p.block) + k / p.block;
    return (f32(code) - 1.0) * unpack2x16float(block_scales[g >> 1u])[g & 1u] * row_scales[row];
}
