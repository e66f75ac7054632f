//! Two machines side by side: where does the first operation differ?

use super::generate::Session;
use crate::error::Error;

/// How far two machines are apart after one operation.
#[derive(Clone, Debug, PartialEq)]
pub struct OpDifference {
    /// Its label in the plan, such as `blk.3.attn_qkv`.
    pub label: String,
    /// Its kernel.
    pub kernel: &'static str,
    /// Energy of the difference over that of the first machine's output.
    pub nmse: f64,
    /// Largest difference of two values.
    pub max_abs: f64,
}

/// Runs `ids` through both sessions, operation by operation. They must hold the same model.
///
/// # Errors
/// Different plans; ids out of range or too many; device errors.
pub async fn compare(
    a: &mut Session,
    b: &mut Session,
    ids: &[u32],
) -> Result<Vec<OpDifference>, Error> {
    if a.plan() != b.plan() {
        return Err(Error::InvalidArgument { reason: "the two sessions differ in model".into() });
    }
    let mut outputs = vec![Vec::new(); a.plan().ops.len()];
    a.trace(ids, &mut |op, values| outputs[op] = values.to_vec()).await?;
    let mut differences = Vec::new();
    let plan = a.plan();
    b.trace(ids, &mut |op, values| {
        let (nmse, max_abs) = distance(&outputs[op], values);
        let (label, kernel) = (plan.labels[op].clone(), plan.ops[op].stem());
        differences.push(OpDifference { label, kernel, nmse, max_abs });
    })
    .await?;
    Ok(differences)
}

fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    if a.len() != b.len() {
        return (f64::INFINITY, f64::INFINITY);
    }
    let (mut error, mut power, mut max_abs) = (0.0, 0.0, 0.0f64);
    for (&x, &y) in a.iter().zip(b) {
        let difference = f64::from(x) - f64::from(y);
        error += difference * difference;
        power += f64::from(x) * f64::from(x);
        // `max` would lose a NaN.
        max_abs = if difference.is_nan() { f64::NAN } else { max_abs.max(difference.abs()) };
    }
    let nmse = if error == 0.0 { 0.0 } else { error / power };
    (nmse, max_abs)
}
