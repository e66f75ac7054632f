// A value of a dense f32 matrix.
@group(0) @binding(4) var<storage, read> data: array<f32>;
fn row_value(row: u32, k: u32) -> f32 {
    return data[row * p.dim + k];
}
