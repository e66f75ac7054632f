//! Stop strings, found across token boundaries.

/// Holds text back while it could still become a stop string.
#[derive(Debug, Default)]
pub(super) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    pub fn new(stops: Vec<String>) -> Self {
        StopFilter { stops, held: String::new() }
    }

    /// Text that may be shown now, and whether a stop string was found (it is not shown, nor is
    /// anything after it).
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when nothing more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length in bytes of the longest end of `text` that is a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut filter = StopFilter::new(stops.iter().map(|s| s.to_string()).collect());
        let mut out = String::new();
        for piece in pieces {
            let (text, stopped) = filter.push(piece);
            out += &text;
            if stopped {
                return (out, true);
            }
        }
        out += &filter.finish();
        (out, false)
    }

    #[test]
    fn stops_across_pieces_and_loses_nothing() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["END"], &["a E", "N", "d b"]), ("a ENd b".into(), false));
        assert_eq!(run(&["END"], &["EN", "EN", "D"]), ("EN".into(), true));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b", "c"]), ("a".into(), true));
        assert_eq!(run(&["ß!", "ü"], &["groß", "e"]), ("große".into(), false));
        assert_eq!(run(&["\n\n", "x"], &["a\n", "\nb"]), ("a".into(), true));
        assert_eq!(run(&[], &["any", "thing"]), ("anything".into(), false));
    }

    #[test]
    fn holds_back_no_more_than_needed() {
        let mut filter = StopFilter::new(vec!["<end>".into()]);
        assert_eq!(filter.push("hello <"), ("hello ".into(), false));
        assert_eq!(filter.push("b>"), ("<b>".into(), false));
    }
}
