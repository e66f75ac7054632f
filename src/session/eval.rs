//! How well a model predicts a text: the measure by which formats, backends and models compare.

use super::generate::Session;
use crate::error::Error;

/// The outcome of [`evaluate`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Characters (Unicode scalar values) they stand for.
    pub chars: usize,
    /// Sum of −ln p of the tokens.
    pub nats: f64,
}

impl Evaluation {
    /// Mean −ln p of a token.
    pub fn nats_per_token(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// Mean −log₂ p of a character: comparable between vocabularies.
    pub fn bits_per_char(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.chars.max(1) as f64
    }

    /// `exp(nats_per_token)`.
    pub fn perplexity(&self) -> f64 {
        self.nats_per_token().exp()
    }
}

/// Predicts every token of `text` from the tokens before it.
///
/// Texts longer than the context are read in windows, each of which adds `stride` tokens (`None`: half
/// a context) to those that were counted: with a stride of a context they lie side by side, which is
/// fastest; with half of it every token but the first ones has at least half a context before it, and
/// everything is read twice. `on_progress` is told how many tokens of how many are done, and returns
/// whether to go on.
///
/// # Errors
/// A text of fewer than two tokens, a stride that is not 1 to the context; tokenizer and device
/// errors; [`Error::Cancelled`].
pub async fn evaluate(
    session: &mut Session,
    text: &str,
    stride: Option<usize>,
    on_progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Evaluation, Error> {
    let invalid = |reason: String| Err(Error::InvalidArgument { reason });
    let context = session.info().context as usize;
    let stride = stride.unwrap_or(context.div_ceil(2));
    if stride == 0 || stride > context {
        return invalid(format!("stride must be 1 to the context of {context}, not {stride}"));
    }
    let tokenizer = session.tokenizer()?;
    let bos = tokenizer.add_bos() && tokenizer.bos().is_some();
    let ids = tokenizer.encode(text, bos)?;
    if ids.len() < 2 {
        return invalid("the text is too short: at least two tokens are needed".to_string());
    }
    // Without a beginning-of-text token nothing predicts the first one.
    let unseen = if bos { String::new() } else { tokenizer.decode(&ids[..1], false)? };
    let chars = text.chars().count().saturating_sub(unseen.chars().count());
    let mut result = Evaluation { tokens: ids.len() - 1, chars, nats: 0.0 };
    let mut counted = 1;
    while counted < ids.len() {
        let (start, new) =
            if counted == 1 { (0, context) } else { (counted - 1 - (context - stride), stride) };
        let end = ids.len().min(counted + new);
        let nats = session.cross_entropy(&ids[start..end], counted - start).await?;
        result.nats += nats.into_iter().map(f64::from).sum::<f64>();
        counted = end;
        if !on_progress(counted - 1, ids.len() - 1) {
            return Err(Error::Cancelled);
        }
    }
    Ok(result)
}
