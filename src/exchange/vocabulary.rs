//! Tokenizers in GGUF: tokens with types and merges, as llama.cpp reads them, and the whole `tokenizer.json` beside.
//!
//! Byte-level BPE has a form there that gives the same tokens, and so have pieces with scores. A vocabulary of characters is written
//! as the former: each character is its bytes, and merges join the bytes of those that have several.

use super::{Error, Result, pieces};
use crate::data::tokenizer::Tokenizer;
use crate::formats::gguf::{Array, Gguf, Metadata, Value};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

/// Key of the whole `tokenizer.json`.
const WHOLE: &str = "tokenizer.huggingface.json";
const MODEL: &str = "tokenizer.ggml.model";
const SPLIT: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const SPACE_FIRST: &str = "tokenizer.ggml.add_space_prefix";
const START: &str = "tokenizer.ggml.bos_token_id";
const ADD_START: &str = "tokenizer.ggml.add_bos_token";
/// The kind whose tokens are bytes.
const BYTES: &str = "gpt2";

/// Types of tokens, by llama.cpp's numbers.
pub(super) const NORMAL: i32 = 1;
pub(super) const CONTROL: i32 = 3;
pub(super) const OWN: i32 = 4;
pub(super) const UNUSED: i32 = 5;

/// Ways to split words before merging, by llama.cpp's names for them, as `Split` patterns of a `tokenizer.json`.
const PATTERNS: &[(&str, &str)] = &[
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];
/// The way of GPT-2, which byte-level splitting has built in.
const GPT2: &str = "gpt-2";
/// The same after every digit stands alone.
const DIGITS: &str = "smollm";

/// Keys of a tokenizer, and what other programs may do differently.
type Keys = (Vec<(String, Value)>, Vec<String>);

/// The keys for a tokenizer of a model that knows `size` tokens.
pub(super) fn write(tokenizer: &Tokenizer, size: usize, config: &Map<String, Json>) -> Result<Keys> {
    let kind = tokenizer.kind();
    let refuse = |reason: &str| Error::Vocabulary { kind: kind.to_string(), reason: reason.to_string() };
    let whole = tokenizer.to_json()?;
    let json: Json = serde_json::from_str(&whole).map_err(|error| refuse(&error.to_string()))?;
    let mut notes = vec![];
    let unread = || refuse("its file is not as expected");
    let spaced = pieces::spaced(&json).filter(|_| kind == "BPE");
    let (mut vocabulary, split) = match kind {
        "char" => (of_characters(tokenizer), Some(GPT2)),
        "BPE" if spaced.is_some() => {
            let mut vocabulary = of_merges(&json).ok_or_else(unread)?;
            if !pieces::score(&mut vocabulary, &json) {
                notes
                    .push("other programs may merge pairs of tokens that this tokenizer never merges".into());
            }
            (vocabulary, Some("default"))
        }
        "BPE" => {
            if json["decoder"]["type"] != "ByteLevel" || json["model"]["byte_fallback"] == true {
                return Err(refuse("its tokens are neither bytes nor pieces of text with bytes beside them"));
            }
            if !json["normalizer"].is_null() {
                return Err(refuse("it changes texts before it splits them"));
            }
            (of_merges(&json).ok_or_else(unread)?, split_name(&json["pre_tokenizer"]))
        }
        _ => return Err(refuse("there is no form for it that gives the same tokens")),
    };
    if split.is_none() {
        notes.push(
            "other programs do not know how this tokenizer splits words, and will split as GPT-2".into(),
        );
    }
    if vocabulary.tokens.len() > size {
        let got = vocabulary.tokens.len();
        return Err(refuse(&format!("it has {got} tokens, the model {size}")));
    }
    for id in vocabulary.tokens.len()..size {
        vocabulary.tokens.push(format!("[PAD{id}]"));
        vocabulary.types.push(UNUSED);
    }
    let count = vocabulary.tokens.len();
    let mut keys: Vec<(String, Value)> = vec![
        (MODEL.into(), if spaced.is_some() { pieces::NAME } else { BYTES }.into()),
        (SPLIT.into(), split.unwrap_or(GPT2).into()),
        (TOKENS.into(), vocabulary.tokens.into()),
        (TYPES.into(), vocabulary.types.into()),
    ];
    match spaced {
        None => keys.push((MERGES.into(), vocabulary.merges.into())),
        Some(spaced) => {
            let lowest = vocabulary.scores.iter().copied().fold(0.0, f32::min);
            vocabulary.scores.resize(count, lowest - 1.0);
            keys.push((SCORES.into(), Value::Array(Array::F32(vocabulary.scores))));
            keys.push((SPACE_FIRST.into(), spaced.into()));
        }
    }
    let marked = |key: &str| match config.get(key) {
        Some(Json::Array(several)) => several.first().and_then(Json::as_u64),
        other => other.and_then(Json::as_u64),
    };
    let end = tokenizer.token_id(crate::data::tokenizer::END_OF_TEXT).map(u64::from);
    let (first, last) = (marked("bos_token_id").or(end), marked("eos_token_id").or(end));
    for (id, token) in [("bos", first), ("eos", last), ("padding", marked("pad_token_id"))] {
        if let Some(token) = token.filter(|&token| (token as usize) < size) {
            keys.push((format!("tokenizer.ggml.{id}_token_id"), (token as u32).into()));
        }
    }
    if last.is_none() {
        notes.push(
            "the tokenizer has no end of text; programs may take a token of their own choice for it".into(),
        );
    }
    keys.push((ADD_START.into(), (!tokenizer.opening()?.is_empty()).into()));
    keys.push((WHOLE.into(), whole.as_str().into()));
    Ok((keys, notes))
}

/// A vocabulary as llama.cpp has it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Vocabulary {
    /// Names of tokens, by id.
    pub tokens: Vec<String>,
    /// Their types.
    pub types: Vec<i32>,
    /// Pairs that are merged, the first first.
    pub merges: Vec<String>,
    /// Scores of tokens, where those decide what is merged.
    pub scores: Vec<f32>,
}

/// The letter that stands for each byte in byte-level vocabularies: itself where it prints, else one beyond the first 256.
fn alphabet() -> [char; 256] {
    let mut beyond = 256u32;
    std::array::from_fn(|byte| match byte as u32 {
        code @ (33..=126 | 161..=172 | 174..=255) => char::from_u32(code).expect("printable"),
        _ => {
            beyond += 1;
            char::from_u32(beyond - 1).expect("below the surrogates")
        }
    })
}

fn of_characters(tokenizer: &Tokenizer) -> Vocabulary {
    let (letters, mut vocabulary) = (alphabet(), Vocabulary::default());
    for id in 0..tokenizer.vocabulary_size() as u32 {
        let name = tokenizer.token_name(id).unwrap_or_default();
        let token: Vec<char> = name.bytes().map(|byte| letters[usize::from(byte)]).collect();
        for end in 1..token.len() {
            let merge = format!("{} {}", token[..end].iter().collect::<String>(), token[end]);
            if !vocabulary.merges.contains(&merge) {
                vocabulary.merges.push(merge);
            }
        }
        vocabulary.tokens.push(token.into_iter().collect());
        vocabulary.types.push(NORMAL);
    }
    vocabulary
}

fn of_merges(json: &Json) -> Option<Vocabulary> {
    let mut by_id: HashMap<usize, (String, i32)> = HashMap::new();
    for (token, id) in json["model"]["vocab"].as_object()? {
        by_id.insert(id.as_u64()? as usize, (token.clone(), NORMAL));
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"] == true { CONTROL } else { OWN };
        by_id.insert(token["id"].as_u64()? as usize, (token["content"].as_str()?.to_string(), kind));
    }
    let mut vocabulary = Vocabulary::default();
    // Ids beyond the number of tokens would be gaps; a few are filled, a file full of them is not as expected.
    let count = by_id.keys().max().map_or(0, |id| id + 1);
    if count > 2 * by_id.len() + 1024 {
        return None;
    }
    for id in 0..count {
        let (token, kind) = by_id.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
        vocabulary.tokens.push(token);
        vocabulary.types.push(kind);
    }
    let merge = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        pair => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
    };
    vocabulary.merges = json["model"]["merges"].as_array()?.iter().map(merge).collect::<Option<_>>()?;
    Some(vocabulary)
}

/// llama.cpp's name for a way of splitting words.
fn split_name(splitter: &Json) -> Option<&'static str> {
    let bytes = |step: &Json, splits: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] != true
            && (step["use_regex"] != false) == splits
    };
    if bytes(splitter, true) {
        return Some(GPT2);
    }
    let [first, second] = splitter["pretokenizers"].as_array()?.as_slice() else { return None };
    if first["type"] == "Digits" && first["individual_digits"] == true && bytes(second, true) {
        return Some(DIGITS);
    }
    let pattern = first["pattern"]["Regex"].as_str()?;
    let plain = first["type"] == "Split" && first["behavior"] == "Isolated" && first["invert"] != true;
    let known = PATTERNS.iter().find(|(_, known)| *known == pattern)?;
    (plain && bytes(second, false)).then_some(known.0)
}

/// The tokenizer of a file, where it has one that is read here, and why not where it has not.
pub(super) fn read(file: &Gguf) -> Result<(Option<Tokenizer>, Vec<String>)> {
    let keys = file.metadata();
    if keys.get(WHOLE).is_some() {
        return Ok((Some(Tokenizer::from_json(keys.text(WHOLE)?, file.path())?), vec![]));
    }
    if keys.get(MODEL).is_none() {
        return Ok((None, vec!["the file has no tokenizer".into()]));
    }
    let tokens = keys.texts(TOKENS)?;
    let numbers = |key: &str| match keys.get(key) {
        Some(Value::Array(list)) => list.numbers().unwrap_or_default(),
        _ => vec![],
    };
    let types: Vec<i32> = numbers(TYPES).into_iter().map(|kind| kind as i32).collect();
    let (model, split) = (keys.text(MODEL)?, keys.get(SPLIT).map_or(Ok(GPT2), |_| keys.text(SPLIT))?);
    let json = match model {
        BYTES => match characters(tokens, &types) {
            Some(tokenizer) => return Ok((Some(tokenizer), vec![])),
            None => match splitter(split) {
                Some(splitter) => Some(of_bytes(tokens, &types, keys.texts(MERGES)?, (split, splitter))),
                None => None,
            },
        },
        pieces::NAME => {
            let spaced = keys.flag(SPACE_FIRST)?.unwrap_or(true);
            pieces::json(tokens, &types, &numbers(SCORES), spaced)
        }
        _ => None,
    };
    let Some(mut json) = json else {
        let note = format!("the file's tokenizer, `{model}` with words split as `{split}`, is not read");
        return Ok((None, vec![note]));
    };
    for (key, value) in [("version", "1.0".into()), ("truncation", Json::Null), ("padding", Json::Null)] {
        json[key] = value;
    }
    json["post_processor"] = opening(keys, tokens, model == pieces::NAME)?;
    Ok((Some(Tokenizer::from_json(&json.to_string(), file.path())?), vec![]))
}

/// What puts the first token before a text, where the file says so or its kind has it so.
fn opening(keys: &Metadata, tokens: &[String], usual: bool) -> Result<Json> {
    let start = keys.count(START)?.and_then(|id| Some((id, tokens.get(id)?)));
    let Some((id, token)) = start.filter(|_| keys.flag(ADD_START).is_ok_and(|flag| flag.unwrap_or(usual)))
    else {
        return Ok(Json::Null);
    };
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    Ok(json!({
        "type": "TemplateProcessing", "single": [special, text("A")], "pair": [special, text("A"), text("B")],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    }))
}

/// Parts of a `tokenizer.json` whose tokens are bytes.
fn of_bytes(tokens: &[String], types: &[i32], merges: &[String], (name, splitter): (&str, Json)) -> Json {
    let (mut vocabulary, mut added) = (Map::new(), vec![]);
    for (id, token) in tokens.iter().enumerate() {
        let kind = type_of(types, id);
        if matches!(kind, CONTROL | OWN) {
            added.push(json!({
                "id": id, "content": token, "special": kind == CONTROL, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false,
            }));
        }
        // An added token keeps its id only if the vocabulary has it too.
        if kind != UNUSED {
            vocabulary.insert(token.clone(), json!(id));
        }
    }
    // Merges of tokens that are not there would be refused; foreign files have some.
    let known = |merge: &&String| {
        let pair = merge.split_once(' ');
        pair.is_some_and(|(a, b)| {
            [a, b, &format!("{a}{b}")].iter().all(|token| vocabulary.contains_key(*token))
        })
    };
    let merges: Vec<&String> = merges.iter().filter(known).collect();
    json!({
        "added_tokens": added, "normalizer": null, "pre_tokenizer": splitter,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": name == "llama-bpe",
            "vocab": vocabulary, "merges": merges,
        },
    })
}

fn type_of(types: &[i32], id: usize) -> i32 {
    types.get(id).copied().unwrap_or(NORMAL)
}

/// The tokenizer of a vocabulary whose tokens are single characters in the order of their code points.
///
/// Why not as merges: there the bytes of a character would need tokens of their own.
fn characters(tokens: &[String], types: &[i32]) -> Option<Tokenizer> {
    let bytes: HashMap<char, u8> = alphabet().into_iter().zip(0..=255).collect();
    let used = (0..tokens.len()).filter(|&id| type_of(types, id) != UNUSED).count();
    let character = |(id, token): (usize, &String)| {
        let text: Option<Vec<u8>> = token.chars().map(|letter| bytes.get(&letter).copied()).collect();
        let text = String::from_utf8(text?).ok()?;
        (type_of(types, id) == NORMAL && text.chars().count() == 1).then_some(text)
    };
    let text: String = tokens[..used].iter().enumerate().map(character).collect::<Option<_>>()?;
    let tokenizer = Tokenizer::characters(&text);
    let in_order = text.chars().zip(0..).all(|(c, id)| tokenizer.token_id(&c.to_string()) == Some(id));
    (used > 0 && in_order).then_some(tokenizer)
}

/// A way of splitting words as a `tokenizer.json` says it.
fn splitter(name: &str) -> Option<Json> {
    let bytes = |splits: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits });
    let sequence =
        |first: Json, splits: bool| json!({ "type": "Sequence", "pretokenizers": [first, bytes(splits)] });
    match name {
        GPT2 | "default" => Some(bytes(true)),
        DIGITS => Some(sequence(json!({ "type": "Digits", "individual_digits": true }), true)),
        _ => {
            let (_, pattern) = PATTERNS.iter().find(|(known, _)| *known == name)?;
            let split = json!({
                "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false,
            });
            Some(sequence(split, false))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_of_bytes_is_gpt_2s() {
        let letters = alphabet();
        // From bytes_to_unicode of GPT-2: a space is Ġ, a line end Ċ, byte 0 is Ā, 173 the last beyond.
        assert_eq!((letters[b' ' as usize], letters[b'\n' as usize], letters[0]), ('Ġ', 'Ċ', 'Ā'));
        assert_eq!((letters[b'a' as usize], letters[0xe9], letters[173]), ('a', 'é', '\u{143}'));
        let distinct: std::collections::HashSet<char> = letters.into_iter().collect();
        assert_eq!(distinct.len(), 256);
    }

    #[test]
    fn characters_of_several_bytes_are_merged_from_them() {
        let vocabulary = of_characters(&Tokenizer::characters("a é日"));
        assert_eq!(vocabulary.tokens, ["Ġ", "a", "Ã©", "æĹ¥"]);
        assert_eq!(vocabulary.merges, ["Ã ©", "æ Ĺ", "æĹ ¥"]);
    }

    #[test]
    fn ways_of_splitting_are_named_and_made_again() {
        for name in [GPT2, DIGITS, "llama-bpe", "qwen2"] {
            assert_eq!(split_name(&splitter(name).unwrap()), Some(name));
        }
        assert_eq!(split_name(&json!({ "type": "Whitespace" })), None);
        assert_eq!(splitter("chameleon"), None);
    }
}
