//! `{% generation %}` .. `{% endgeneration %}`: what a template itself says is an answer.
//!
//! The engine knows no such tag. It becomes a filter, which sets its text between two characters that no text may hold.

use std::ops::Range;

/// Noncharacters of Unicode: they stand before and behind an answer.
pub(super) const OPENS: char = '\u{fdd0}';
pub(super) const CLOSES: char = '\u{fdd1}';

/// The filter that the tag becomes.
pub(super) const FILTER: &str = "generation_block";

/// The source with each such tag as a filter; `None` where it has none. Lines stay where they are.
pub(super) fn replaced(source: &str) -> Option<String> {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let instead = match word {
            "generation" => Some(inner.replace("generation", &format!("filter {FILTER}"))),
            "endgeneration" => Some(inner.replace("endgeneration", "endfilter")),
            _ => None,
        };
        found |= instead.is_some();
        text.push_str("{%");
        text.push_str(instead.as_deref().unwrap_or(inner));
        text.push_str("%}");
        rest = &tag[end + 2..];
    }
    text.push_str(rest);
    found.then_some(text)
}

/// The text without marks, and the bytes of it that stood between them.
pub(super) fn taken_off(marked: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut ranges, mut open) = (String::with_capacity(marked.len()), vec![], None);
    for character in marked.chars() {
        match character {
            OPENS => open = Some(text.len()),
            CLOSES => ranges.extend(open.take().map(|start| start..text.len()).filter(|r| !r.is_empty())),
            other => text.push(other),
        }
    }
    (text, ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_filters_and_keep_their_dashes_and_lines() {
        let source = "a\n{%- generation -%}\n{{ x }}{%endgeneration%} {% if generation %}{% endif %}";
        let expected =
            "a\n{%- filter generation_block -%}\n{{ x }}{%endfilter%} {% if generation %}{% endif %}";
        assert_eq!(replaced(source).as_deref(), Some(expected));
        assert_eq!(replaced("{% if a %}{{ generation }}{% endif %} {%"), None);
    }

    #[test]
    fn marks_are_taken_off_and_told_as_bytes() {
        let marked = format!("é{OPENS}ab{CLOSES}c{OPENS}{CLOSES}{OPENS}d{CLOSES}");
        assert_eq!(taken_off(&marked), ("éabcd".to_string(), vec![2..4, 5..6]));
    }
}
