//! Vocabularies of pieces of text, as SentencePiece makes them for Llama 2: a space is `▁`, unknown characters are bytes such as
//! `<0x0A>`, and pairs are merged in the order of the scores of what they become.
//!
//! A `tokenizer.json` lists the merges instead; one that lists every pair of tokens that makes a token says the same.

use super::vocabulary::{CONTROL, NORMAL, OWN, UNUSED, Vocabulary};
use serde_json::{Map, Value as Json, json};
use std::collections::{HashMap, HashSet};

/// Name of this kind in a file.
pub(super) const NAME: &str = "llama";
/// Types of tokens besides those of other vocabularies.
const UNKNOWN: i32 = 2;
const BYTE: i32 = 6;
/// What stands for a space.
const SPACE: &str = "▁";

/// Whether a `tokenizer.json` is of this kind, and if so, whether it puts a space before the text.
pub(super) fn spaced(json: &Json) -> Option<bool> {
    let replaces = |step: &Json| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE
    };
    let prepends = |step: &Json| step["type"] == "Prepend" && step["prepend"] == SPACE;
    let is_kind = json["model"]["byte_fallback"] == true && json["decoder"]["type"] == "Sequence";
    let normalizer = &json["normalizer"];
    let steps = normalizer["normalizers"].as_array().map_or(std::slice::from_ref(normalizer), Vec::as_slice);
    match (steps, json["pre_tokenizer"].is_null()) {
        _ if !is_kind => None,
        ([first, second], true) if prepends(first) && replaces(second) => Some(true),
        ([only], true) if replaces(only) => Some(false),
        ([only], false) if only.is_null() && json["pre_tokenizer"]["type"] == "Metaspace" => {
            let splitter = &json["pre_tokenizer"];
            let plain = splitter["replacement"] == SPACE && splitter["split"] == false;
            plain.then(|| splitter["prepend_scheme"] != "never")
        }
        _ => None,
    }
}

/// Completes a vocabulary by types and scores, and says whether merges by scores are those of the file.
pub(super) fn score(vocabulary: &mut Vocabulary, json: &Json) -> bool {
    let known: HashSet<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
    let merges: HashSet<&str> = vocabulary.merges.iter().map(String::as_str).collect();
    let (mut ranks, mut missing) = (HashMap::new(), false);
    for (rank, merge) in vocabulary.merges.iter().enumerate() {
        ranks.entry(merge.replacen(' ', "", 1)).or_insert(rank);
    }
    let unknown = json["model"]["unk_token"].as_str();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        let kind = &mut vocabulary.types[id];
        if Some(token.as_str()) == unknown {
            *kind = UNKNOWN;
        } else if *kind == NORMAL && byte(token).is_some() {
            *kind = BYTE;
        }
        let rank = ranks.get(token).copied();
        // Pieces that nothing is merged to come after all others.
        vocabulary.scores.push(-(rank.unwrap_or(merges.len() + id) as f32));
        missing |= *kind == NORMAL
            && pairs(token, |part| known.contains(part))
                .any(|(a, b)| !merges.contains(format!("{a} {b}").as_str()));
    }
    vocabulary.merges.clear();
    !missing
}

/// The pairs of known tokens that a token may be merged of.
fn pairs<'a>(token: &'a str, known: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = (&'a str, &'a str)> {
    let splits = token.char_indices().skip(1).map(move |(at, _)| token.split_at(at));
    splits.filter(move |(a, b)| known(a) && known(b))
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Parts of a `tokenizer.json` of this kind; `None` where the file's lists do not fit together.
pub(super) fn json(tokens: &[String], types: &[i32], scores: &[f64], spaced: bool) -> Option<Json> {
    if types.len() != tokens.len() || scores.len() != tokens.len() {
        return None;
    }
    let (mut ids, mut added, mut unknown) = (Map::new(), vec![], Json::Null);
    for (id, (token, &kind)) in tokens.iter().zip(types).enumerate() {
        if matches!(kind, CONTROL | OWN | UNKNOWN) {
            added.push(json!({
                "id": id, "content": token, "special": kind != OWN, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false,
            }));
        }
        if kind == UNKNOWN {
            unknown = token.as_str().into();
        }
        if kind != UNUSED {
            ids.insert(token.clone(), json!(id));
        }
    }
    let mut merges = vec![];
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| types[*id] == NORMAL) {
        merges.extend(pairs(token, |part| ids.contains_key(part)).map(|(a, b)| (scores[id], id, [a, b])));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let merges: Vec<[&str; 2]> = merges.into_iter().map(|(_, _, pair)| pair).collect();
    let replace =
        |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let mut steps = vec![replace(" ", SPACE)];
    let mut decoders =
        vec![replace(SPACE, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if spaced {
        steps.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Some(json!({
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": steps },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ids, "merges": merges,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_become_scores_and_scores_merges() {
        let tokens = ["<unk>", "<0x0A>", "a", "b", "c", "ab", "bc", "abc"].map(String::from).to_vec();
        let mut vocabulary = Vocabulary {
            tokens: tokens.clone(),
            types: vec![CONTROL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL],
            merges: ["a b", "b c", "ab c", "a bc"].map(String::from).to_vec(),
            scores: vec![],
        };
        let file = json!({ "model": { "unk_token": "<unk>" } });
        assert!(score(&mut vocabulary, &file));
        assert_eq!(vocabulary.types, [UNKNOWN, BYTE, 1, 1, 1, 1, 1, 1]);
        assert_eq!(vocabulary.scores[5..], [-0.0, -1.0, -2.0]);
        let scores: Vec<f64> = vocabulary.scores.iter().map(|&score| score.into()).collect();
        let back = json(&tokens, &vocabulary.types, &scores, true).unwrap();
        assert_eq!(back["model"]["merges"], json!([["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]));
        assert_eq!(spaced(&back), Some(true));
        vocabulary.merges = vec!["a b".into(), "b c".into(), "ab c".into()];
        vocabulary.scores.clear();
        assert!(!score(&mut vocabulary, &file), "a pair that the file never merges");
        assert!(json(&tokens, &[1], &scores, true).is_none());
    }
}
