//! `out = table[id]`, a dense or a ternary row, as f32.

use super::matrix::Matrix;

/// The row of token `id`.
///
/// # Shapes
/// `table [V, K]`, `out [K]`.
///
/// # Exactness
/// Ternary: `t · block_scale · row_scale`, multiplied in this order; Q8: `q · d`.
pub fn embed(table: Matrix<'_>, id: usize, out: &mut [f32]) {
    match table {
        Matrix::Ternary(w) => {
            for (k, o) in out.iter_mut().enumerate() {
                *o = w.unscaled(id, k) * w.row_scales[id];
            }
        }
        Matrix::Dense(w) => {
            for (k, o) in out.iter_mut().enumerate() {
                *o = w.at(id, k);
            }
        }
    }
}
