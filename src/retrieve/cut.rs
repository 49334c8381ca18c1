//! Texts cut into passages.
//!
//! A passage is whole paragraphs, as many as stay within `size` tokens, where these fill half of it. Else the next paragraph is cut: at the
//! ends of its lines, and where a line is longer than a quarter of a passage between words. The passage behind such a cut begins with
//! what was last said, in at most `overlap` tokens. Rows of `.jsonl` files are never joined.

use super::gather::Section;
use super::{Passage, Result};

/// How long passages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of a passage at most.
    pub size: usize,
    /// Tokens that a passage shares with the one before it where both are of one paragraph: at most half of the size.
    pub overlap: usize,
}

/// Counts the tokens of a text.
pub type Count<'a> = &'a dyn Fn(&str) -> Result<usize>;

/// Runs of letters and digits: tokens where no tokenizer has a say.
pub fn words(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).count()
}

/// The least that is not cut further.
struct Piece {
    line: usize,
    text: String,
    tokens: usize,
    paragraph: usize,
    /// The text goes on with the same line.
    goes_on: bool,
}

/// Cuts a section of the file `path`.
pub fn cut(path: &str, section: &Section, lengths: Lengths, count: Count) -> Result<Vec<Passage>> {
    let pieces = pieces(section, lengths, count)?;
    let mut passages = vec![];
    let mut first = 0;
    // What of the first pieces the passage before has said already.
    let mut said = 0;
    while first < pieces.len() {
        let (end, inside) = end_of(&pieces, first, said, lengths.size);
        passages.push(passage(path, &pieces[first..end]));
        let mut next = end;
        if inside {
            let mut tokens = 0;
            while next > first + 1
                && pieces[next - 1].paragraph == pieces[end].paragraph
                && tokens + pieces[next - 1].tokens <= lengths.overlap
            {
                next -= 1;
                tokens += pieces[next].tokens;
            }
        }
        (first, said) = (next, end - next);
    }
    Ok(passages)
}

/// Where the passage that begins with a piece ends, and whether that is inside a paragraph. At least one piece beyond those `said` is new.
fn end_of(pieces: &[Piece], first: usize, said: usize, size: usize) -> (usize, bool) {
    let (mut tokens, mut end, mut whole) = (0, first, None);
    while end < pieces.len() && (end <= first + said || tokens + pieces[end].tokens <= size) {
        tokens += pieces[end].tokens;
        end += 1;
        let next = pieces.get(end);
        if next.is_none()
            || next.is_some_and(|p| p.paragraph != pieces[end - 1].paragraph && 2 * tokens >= size)
        {
            whole = Some(end);
        }
    }
    match whole {
        Some(whole) if whole > first + said => (whole, false),
        _ => (end, true),
    }
}

fn passage(path: &str, pieces: &[Piece]) -> Passage {
    let mut text = String::new();
    for (at, piece) in pieces.iter().enumerate() {
        text += &piece.text;
        if let Some(next) = pieces.get(at + 1) {
            text += match (piece.goes_on, next.paragraph == piece.paragraph) {
                (true, _) => "",
                (false, true) => "\n",
                (false, false) => "\n\n",
            };
        }
    }
    let (first_line, last_line) = (pieces[0].line, pieces[pieces.len() - 1].line);
    Passage { path: path.into(), first_line, last_line, text: text.trim().to_string() }
}

fn pieces(section: &Section, lengths: Lengths, count: Count) -> Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = vec![];
    let most = (lengths.size / 4).max(1);
    let mut paragraph = 0;
    for (at, line) in section.text.lines().enumerate() {
        if line.trim().is_empty() {
            paragraph += usize::from(!section.is_row);
            continue;
        }
        let number = if section.is_row { section.line } else { section.line + at };
        let line = line.trim_end();
        let tokens = count(line)?;
        if tokens <= most {
            pieces.push(Piece { line: number, text: line.into(), tokens, paragraph, goes_on: false });
            continue;
        }
        let parts = between_words(line, most, count)?;
        let last = parts.len() - 1;
        pieces.extend(parts.into_iter().enumerate().map(|(at, (text, tokens))| Piece {
            line: number,
            text,
            tokens,
            paragraph,
            goes_on: at < last,
        }));
    }
    Ok(pieces)
}

/// A long line in parts of at most so many tokens, each ending behind white space; a word that is longer by itself is cut by characters.
fn between_words(line: &str, most: usize, count: Count) -> Result<Vec<(String, usize)>> {
    let mut parts: Vec<(String, usize)> = vec![(String::new(), 0)];
    for word in line.split_inclusive(char::is_whitespace) {
        let tokens = count(word)?;
        let runs = match tokens > most {
            true => cut_word(word, most, count)?,
            false => vec![(word.to_string(), tokens)],
        };
        for (run, tokens) in runs {
            let (text, sum) = parts.last_mut().expect("there is one");
            if *sum > 0 && *sum + tokens > most {
                parts.push((run, tokens));
            } else {
                text.push_str(&run);
                *sum += tokens;
            }
        }
    }
    Ok(parts)
}

fn cut_word(word: &str, most: usize, count: Count) -> Result<Vec<(String, usize)>> {
    let characters: Vec<char> = word.chars().collect();
    // A token is at least a character in most vocabularies; where it is not, a part is longer than asked for, and the encoder cuts it.
    let runs = characters.chunks(most).map(|run| run.iter().collect::<String>());
    runs.map(|run| Ok((run.clone(), count(&run)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, size: usize, overlap: usize) -> Vec<(usize, usize, String)> {
        let section = Section { line: 1, text: text.into(), is_row: false };
        let count = |text: &str| Ok(words(text));
        let passages = cut("a.md", &section, Lengths { size, overlap }, &count).unwrap();
        passages.into_iter().map(|p| (p.first_line, p.last_line, p.text)).collect()
    }

    #[test]
    fn paragraphs_stay_whole_and_are_joined_as_far_as_they_fit() {
        let text = "one two\n\nthree four\nfive\n\n\nsix seven eight\n";
        assert_eq!(
            lines(text, 5, 2),
            [(1, 4, "one two\n\nthree four\nfive".into()), (7, 7, "six seven eight".into())]
        );
        assert_eq!(lines(text, 100, 2).len(), 1);
        // A heading is no passage by itself.
        assert_eq!(lines("head\n\na\nb\nc\nd\ne\nf\n", 4, 0)[0].2, "head\n\na\nb\nc");
        assert_eq!(lines("\n \n", 5, 2), []);
    }

    #[test]
    fn a_long_paragraph_is_cut_and_its_parts_share_their_ends() {
        let text = "a b\nc d\ne f\ng h\n";
        let expected =
            [(1, 2, "a b\nc d"), (2, 3, "c d\ne f"), (3, 4, "e f\ng h")].map(|(f, l, t)| (f, l, t.into()));
        assert_eq!(lines(text, 4, 2), expected);
        // One long line: cut between words, never inside one, all on the same line.
        let long: Vec<String> = (0..40).map(|n| format!("w{n}")).collect();
        let parts = lines(&long.join(" "), 16, 4);
        assert!(parts.iter().all(|(first, last, text)| (*first, *last) == (1, 1) && words(text) <= 16));
        assert_eq!(parts[0].2, long[..16].join(" "));
        assert_eq!(parts[1].2, long[12..28].join(" "));
        assert_eq!(parts.last().unwrap().2.split(' ').next_back(), Some("w39"));
    }

    #[test]
    fn every_word_of_a_text_is_in_some_passage_whatever_the_lengths() {
        let text: String =
            (0..90).map(|n| format!("word{n}{}", ["\n", " ", "\n\n", " ", " "][n * 7 % 5])).collect();
        for (size, overlap) in [(1, 0), (2, 1), (3, 1), (7, 3), (8, 3), (50, 25), (1000, 5)] {
            let all = lines(&text, size, overlap);
            for n in 0..90 {
                let has = |(_, _, text): &&(usize, usize, String)| {
                    text.split_whitespace().any(|word| word == format!("word{n}"))
                };
                assert!(all.iter().any(|passage| has(&passage)), "word{n} of {size}, {overlap}");
            }
            assert!(all.iter().all(|(_, _, text)| words(text) <= size), "{size}, {overlap}");
        }
    }

    #[test]
    fn a_row_is_a_passage_on_its_one_line_and_a_word_without_end_is_cut() {
        let row = Section { line: 9, text: "Sea\n\nSalt water.".into(), is_row: true };
        let count = |text: &str| Ok(text.chars().count());
        let of = |section, size| cut("r.jsonl", section, Lengths { size, overlap: 0 }, &count).unwrap();
        let whole = of(&row, 40);
        assert_eq!((whole.len(), whole[0].first_line, whole[0].last_line), (1, 9, 9));
        let word = Section { line: 1, text: "x".repeat(50), is_row: false };
        let parts = of(&word, 20);
        assert_eq!(parts.iter().map(|p| p.text.len()).collect::<Vec<_>>(), [20, 20, 10]);
    }
}
