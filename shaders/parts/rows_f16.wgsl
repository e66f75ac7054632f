// A value of a dense f16 matrix.
@group(0) @binding(4) var<storage, read> data: array<u32>;
fn row_value(row: u32, k: u32) -> f32 {
    let i = row * p.dim + k;
    return unpack2x16float(data[i >> 1u])[i & 1u];
}
