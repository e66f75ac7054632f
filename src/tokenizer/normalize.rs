//! [`Normalize`]: a step that rewrites a text before it is cut into pieces.
//!
//! A short list instead of the crate's own: its list brings a quarter of a megabyte of Unicode tables
//! into the wasm, for normalizers that no model here uses. The forms of Unicode are the browser's own
//! there (`String.prototype.normalize`).

use std::borrow::Cow;
use tokenizers::Result;
use tokenizers::normalizers::metaspace::MetaspaceNormalizer;
use tokenizers::normalizers::{Prepend, Replace};
use tokenizers::pipeline::{Normalizer, normalize_all};

/// One step.
#[derive(Debug)]
pub(super) enum Normalize {
    Metaspace(MetaspaceNormalizer),
    Prepend(Prepend),
    Replace(Replace),
    Unicode(Form),
}

/// A normalization form of Unicode (UAX #15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
}

impl Form {
    /// The form by its name in a `tokenizer.json`.
    pub(super) fn by_name(name: &str) -> Option<Form> {
        Some(match name {
            "NFC" => Form::Nfc,
            "NFD" => Form::Nfd,
            "NFKC" => Form::Nfkc,
            "NFKD" => Form::Nfkd,
            _ => return None,
        })
    }

    fn apply(self, text: &str) -> Cow<'_, str> {
        if text.is_ascii() {
            return Cow::Borrowed(text); // All forms leave it as it is.
        }
        let text = self.rewrite(text);
        Cow::Owned(text)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn rewrite(self, text: &str) -> String {
        use unicode_normalization::UnicodeNormalization;
        match self {
            Form::Nfc => text.nfc().collect(),
            Form::Nfd => text.nfd().collect(),
            Form::Nfkc => text.nfkc().collect(),
            Form::Nfkd => text.nfkd().collect(),
        }
    }

    #[cfg(target_arch = "wasm32")]
    fn rewrite(self, text: &str) -> String {
        let form = match self {
            Form::Nfc => "NFC",
            Form::Nfd => "NFD",
            Form::Nfkc => "NFKC",
            Form::Nfkd => "NFKD",
        };
        js_sys::JsString::from(text).normalize(form).into()
    }
}

impl Normalizer for Normalize {
    fn normalize<'a>(&self, input: &'a str, offset: usize) -> Result<Cow<'a, str>> {
        match self {
            Normalize::Metaspace(step) => step.normalize(input, offset),
            Normalize::Prepend(step) => step.normalize(input, offset),
            Normalize::Replace(step) => step.normalize(input, offset),
            Normalize::Unicode(form) => Ok(form.apply(input)),
        }
    }
}

/// Steps one after the other.
pub(super) struct Chain<'a>(pub(super) &'a [Normalize]);

impl Normalizer for Chain<'_> {
    fn normalize<'a>(&self, input: &'a str, offset: usize) -> Result<Cow<'a, str>> {
        normalize_all(self.0, input, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_compose_and_take_apart() {
        let text = "e\u{301} ﬁ ㎏ plain";
        let by = |name| Form::by_name(name).unwrap().apply(text).into_owned();
        assert_eq!(by("NFC"), "é ﬁ ㎏ plain");
        assert_eq!(by("NFD"), text);
        assert_eq!(by("NFKC"), "é fi kg plain");
        assert_eq!(by("NFKD"), "e\u{301} fi kg plain");
        assert!(matches!(Form::Nfc.apply("plain"), Cow::Borrowed("plain")));
        assert_eq!(Form::by_name("NFX"), None);
    }
}
