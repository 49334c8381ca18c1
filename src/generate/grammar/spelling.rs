//! How tokens are spelled: the bytes that each adds to a text.

use crate::data::tokenizer::Tokenizer;
use crate::generate::Result;
use std::sync::Arc;

/// Bytes of a tokenizer's tokens, found once for as many grammars as are wanted.
pub struct Spelling {
    /// None of what is no text, which is never chosen.
    tokens: Vec<Vec<u8>>,
    /// What reads JSON schemas over these tokens, made when there is the first.
    #[cfg(feature = "schema")]
    pub(super) reader: std::sync::OnceLock<Result<llguidance::ParserFactory, String>>,
}

impl Spelling {
    /// Spells every token of a tokenizer.
    pub fn of(tokenizer: &Tokenizer) -> Result<Arc<Spelling>> {
        Ok(Arc::new(Spelling {
            tokens: bytes_of_tokens(tokenizer)?,
            #[cfg(feature = "schema")]
            reader: std::sync::OnceLock::new(),
        }))
    }

    /// Bytes of each token.
    pub(super) fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }
}

/// Bytes that each token adds to a text.
fn bytes_of_tokens(tokenizer: &Tokenizer) -> Result<Vec<Vec<u8>>> {
    let special = tokenizer.special_tokens();
    // Some decoders treat the first token of a text in their own way, so that one stands before.
    let before: Vec<u32> = (0..tokenizer.vocabulary_size() as u32)
        .find(|id| {
            !special.contains(id) && tokenizer.decode(&[*id]).is_ok_and(|text| text.len() == 1 && text != " ")
        })
        .into_iter()
        .collect();
    let known = tokenizer.decode(&before)?;
    let mut all = vec![];
    for id in 0..tokenizer.vocabulary_size() as u32 {
        let bytes = match special.contains(&id) {
            true => vec![],
            false => {
                let whole = tokenizer.decode(&[&before[..], &[id]].concat())?;
                let added = whole.strip_prefix(known.as_str()).unwrap_or("");
                let name = tokenizer.token_name(id).unwrap_or_default();
                match added.contains(char::REPLACEMENT_CHARACTER) || added.is_empty() {
                    true => bytes_of_name(&name),
                    false => added.as_bytes().to_vec(),
                }
            }
        };
        all.push(bytes);
    }
    Ok(all)
}

/// Bytes of a token that is no whole character, by its name: `<0x0A>`, or letters that stand for bytes as GPT-2 has them.
fn bytes_of_name(name: &str) -> Vec<u8> {
    let digits = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        return vec![byte];
    }
    name.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_default()
}

/// The byte that a letter stands for: printable ones for themselves, the others in their order from U+0100 on.
fn byte_of(letter: char) -> Option<u8> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(letter) {
        code @ 0..=255 => u8::try_from(code).ok().filter(|byte| plain(*byte)),
        code => (0..=255u8).filter(|byte| !plain(*byte)).nth((code - 256) as usize),
    }
}
