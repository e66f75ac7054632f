// A value of a dense Q8 matrix: int8 times the f16 scale of its 32 neighbours.
@group(0) @binding(4) var<storage, read> data: array<u32>;
@group(0) @binding(5) var<storage, read> scales: array<u32>;
fn row_value(row: u32, k: u32) -> f32 {
    let i = row * p.dim + k;
    let q = bitcast<i32>(data[i >> 2u] << (24u - 8u * (i & 3u))) >> 24u;
    let g = i >> 5u;
    return f32(q) * unpack2x16float(scales[g >> 1u])[g & 1u];
}
