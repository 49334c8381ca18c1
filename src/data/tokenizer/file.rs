//! `tokenizer.json` on disk, and encoding long texts with it.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use tokenizers::{
    Encoding, InputSequence, ModelWrapper, PostProcessor, PreTokenizerWrapper, Token, Tokenizer,
    TruncationParams, truncate_encodings,
};

use super::{Encoded, FILE_NAME, WordNumbers};
use crate::data::{Error, Result};

/// Pieces of long text that threads encode side by side. The library holds about a hundred bytes for each byte of a piece.
const PIECE_BYTES: usize = 1 << 20;

pub(super) fn failed(what: &str, reason: impl std::fmt::Display) -> Error {
    Error::Tokenizer {
        what: what.into(),
        reason: reason.to_string(),
        hint: "check that the tokenizer belongs to this text, or train one: kiln tokenizer train",
    }
}

pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| broken(path, error))
}

pub(super) fn parse(path: &Path, json: &str) -> Result<Tokenizer> {
    // The library panics where the text of some parts is no JSON, so it is looked through before.
    serde_json::from_str::<serde_json::Value>(json).map_err(|error| broken(path, error))?;
    json.parse().map_err(|error| broken(path, error))
}

fn broken(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Tokenizer {
        what: format!("cannot load {}", path.display()),
        reason: reason.to_string(),
        hint: "expected a Hugging Face tokenizer.json, or a folder that holds one",
    }
}

/// Writes beside, syncs, then renames: a full disk leaves the old file.
pub(super) fn write(folder: &Path, json: &str) -> Result<()> {
    let temporary = folder.join(format!("{FILE_NAME}.partial"));
    let written = fs::create_dir_all(folder)
        .and_then(|()| fs::File::create(&temporary))
        .and_then(|mut file| file.write_all(json.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, folder.join(FILE_NAME)));
    written.map_err(|source| {
        // It may never have been made; the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
        Error::Unwritable { path: folder.join(FILE_NAME), source }
    })
}

pub(super) fn model_name(tokenizer: &Tokenizer) -> &'static str {
    match tokenizer.get_model() {
        ModelWrapper::BPE(_) => "BPE",
        ModelWrapper::WordPiece(_) => "WordPiece",
        ModelWrapper::WordLevel(_) => "WordLevel",
        ModelWrapper::Unigram(_) => "Unigram",
    }
}

/// Whether a long text may be cut into pieces without changing a single id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// After a line end between two characters that are not white space.
    AfterLine,
    /// Nowhere: a merge, a prefix or a normaliser may look across.
    Nowhere,
}

impl Cut {
    /// Byte-level splitting is a regex that looks at white space only, to its right; the other ways of splitting
    /// put marks at the start of the text, or have no bounds at all.
    pub(super) fn of(tokenizer: &Tokenizer) -> Cut {
        let added = tokenizer.get_added_tokens_decoder();
        let reaches_over_space = added.values().any(|token| token.lstrip || token.rstrip);
        let byte_level = match tokenizer.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::ByteLevel(level)) => level.use_regex && !level.add_prefix_space,
            _ => false,
        };
        match byte_level && tokenizer.get_normalizer().is_none() && !reaches_over_space {
            true => Cut::AfterLine,
            false => Cut::Nowhere,
        }
    }
}

/// Encodes a text of any length; ids are those of encoding it in one go.
pub(super) fn encode(tokenizer: &Tokenizer, cut: Cut, text: &str) -> Result<Vec<u32>> {
    let pieces = match cut {
        Cut::AfterLine => pieces(text, PIECE_BYTES),
        Cut::Nowhere => vec![text],
    };
    let encoded = pieces.par_iter().map(|piece| {
        let encoding = tokenizer.encode_fast(*piece, false).map_err(|error| failed("encoding", error))?;
        Ok(encoding.get_ids().to_vec())
    });
    Ok(encoded.collect::<Result<Vec<_>>>()?.concat())
}

/// The ids of a text, and for each the bytes of it that it stands for.
pub(super) fn encode_with_ranges(tokenizer: &Tokenizer, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
    let encoding = tokenizer.encode(text, false).map_err(|error| failed("encoding", error))?;
    let mut last = 0;
    let range = |&(start, end): &(usize, usize)| {
        // Many files leave white space out of what a token is said to stand for; here it belongs to the token behind it. Tokens
        // that are parts of one character all stand for the whole of it.
        let range = start.min(last)..end.max(last.min(start));
        last = last.max(end);
        range
    };
    let ranges = encoding.get_offsets().iter().map(range).collect();
    Ok((encoding.get_ids().to_vec(), ranges))
}

/// A model's input: the tokens around the text, and no more than `most` with them.
pub(super) fn encode_input(
    tokenizer: &Tokenizer,
    text: &str,
    second: Option<&str>,
    most: usize,
) -> Result<Encoded> {
    let wrong = |error| failed("encoding", error);
    let around = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(second.is_some()));
    let Some(room) = most.checked_sub(around) else {
        return Err(failed(
            "encoding",
            format!("there is room for {most} tokens, {around} stand around any text"),
        ));
    };
    let of = |text: &str| tokenizer.encode_fast(text, false).map_err(wrong);
    let cut = TruncationParams { max_length: room, ..TruncationParams::default() };
    let pair = second.map(of).transpose()?;
    let (first, pair) = truncate_encodings(of(text)?, pair, &cut).map_err(wrong)?;
    let encoding = tokenizer.post_process(first, pair, true).map_err(wrong)?;
    Ok(Encoded { ids: encoding.get_ids().to_vec(), kinds: encoding.get_type_ids().to_vec() })
}

/// The same for words, with the number of each token's word.
pub(super) fn encode_words(
    tokenizer: &Tokenizer,
    words: &[String],
    most: usize,
) -> Result<(Encoded, WordNumbers)> {
    let wrong = |error| failed("encoding", error);
    let around = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false));
    let Some(room) = most.checked_sub(around) else {
        let reason = format!("there is room for {most} tokens, {around} stand around any text");
        return Err(failed("encoding", reason));
    };
    let cut = TruncationParams { max_length: room, ..TruncationParams::default() };
    let encoding = tokenizer.encode(InputSequence::from(words), false).map_err(wrong)?;
    let (encoding, _) = truncate_encodings(encoding, None, &cut).map_err(wrong)?;
    let encoding = tokenizer.post_process(encoding, None, true).map_err(wrong)?;
    let of = encoding.get_word_ids().iter().map(|word| word.map(|word| word as usize)).collect();
    Ok((Encoded { ids: encoding.get_ids().to_vec(), kinds: encoding.get_type_ids().to_vec() }, of))
}

/// Cuts `text` into pieces of at least `size_bytes` (the last may be shorter), each cut after a line end that has
/// no white space on either side.
fn pieces(text: &str, size_bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > size_bytes {
        let from = (size_bytes..).find(|&at| rest.is_char_boundary(at)).expect("the end is one");
        let cut = rest[from..].match_indices('\n').map(|(at, _)| from + at).find(|&at| {
            let spaced = |character: Option<char>| character.is_none_or(char::is_whitespace);
            !spaced(rest[..at].chars().next_back()) && !spaced(rest[at + 1..].chars().next())
        });
        let Some(at) = cut else { break };
        let (piece, remainder) = rest.split_at(at + 1);
        pieces.push(piece);
        rest = remainder;
    }
    pieces.push(rest);
    pieces
}

/// What the library puts before a text. A marker stands for the text, to tell before from after.
pub(super) fn opening(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let marker = Token::new(u32::MAX, String::new(), (0, 0));
    let marked = tokenizer.post_process(Encoding::from_tokens(vec![marker], 0), None, true);
    let marked = marked.map_err(|error| failed("encoding", error))?;
    Ok(marked.get_ids().iter().copied().take_while(|&id| id != u32::MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::Random;
    use crate::data::tokenizer::byte_pair;

    /// Letters, quotes and white space thrown together, so that line ends stand in every kind of neighbourhood.
    fn jumble(length: usize, seed: u64) -> String {
        let mut random = Random::new(seed, 0);
        let alphabet =
            ["a", "b", "the", "'s", " ", "  ", "\n", "\n\n", "\r\n", "\t", ".", "7", "é", "\u{a0}", "—"];
        (0..length).map(|_| alphabet[random.below(alphabet.len() as u64) as usize]).collect()
    }

    #[test]
    fn cutting_a_byte_level_text_never_changes_an_id() {
        let tokenizer = byte_pair::train(&jumble(5000, 1), 400).unwrap();
        assert_eq!(Cut::of(&tokenizer), Cut::AfterLine);
        let text = jumble(4000, 2);
        let whole = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        for size_bytes in [1, 7, 100, 1000] {
            let cut = pieces(&text, size_bytes);
            assert!(cut.len() > 1);
            assert_eq!(cut.concat(), text);
            let joined: Vec<u32> = cut
                .iter()
                .flat_map(|piece| tokenizer.encode_fast(*piece, false).unwrap().get_ids().to_vec())
                .collect();
            assert_eq!(joined, whole, "pieces of {size_bytes} bytes");
        }
    }

    #[test]
    fn a_full_or_forbidden_folder_is_an_error_that_names_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = write(&file.path().join("below a file"), "{}").unwrap_err();
        assert!(matches!(error, Error::Unwritable { .. }), "{error}");
    }
}
