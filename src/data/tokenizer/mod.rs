//! Text to token ids and back: characters, a Hugging Face `tokenizer.json`, or a byte-level BPE trained here.
//!
//! Whatever its kind, a tokenizer is saved as a standard `tokenizer.json`, so a run folder opens in other tools too.

mod byte_pair;
mod character;
mod file;
mod stream;

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::data::{Error, Result};

pub use byte_pair::{END_OF_TEXT, SMALLEST_BYTE_PAIR_VOCABULARY};
pub use character::Characters;
pub use stream::{DecodeStream, Unspoken};

/// Name of the file that holds a tokenizer inside a folder.
pub const FILE_NAME: &str = "tokenizer.json";

/// What the user asks for, before any text is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `char`: one token a character.
    Characters,
    /// `bpe:4096`: train a byte-level BPE with a vocabulary of that many tokens on the user's text.
    BytePair {
        /// Tokens in the vocabulary, the 256 bytes and the end-of-text token included.
        vocabulary: usize,
    },
    /// The path of a `tokenizer.json`, or of a folder that holds one.
    File(PathBuf),
}

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Spec::Characters => f.write_str("char"),
            Spec::BytePair { vocabulary } => write!(f, "bpe:{vocabulary}"),
            Spec::File(path) => path.display().fmt(f),
        }
    }
}

impl std::str::FromStr for Spec {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Spec> {
        let refused = |reason: String| Error::TokenizerSpec { spec: spec.into(), reason };
        if spec == "char" {
            return Ok(Spec::Characters);
        }
        if let Some(number) = spec.strip_prefix("bpe:") {
            let vocabulary =
                number.parse().map_err(|_| refused(format!("{number:?} is not a number of tokens")))?;
            if vocabulary < SMALLEST_BYTE_PAIR_VOCABULARY {
                let least = SMALLEST_BYTE_PAIR_VOCABULARY;
                return Err(refused(format!("a byte-level vocabulary has at least {least} tokens")));
            }
            return Ok(Spec::BytePair { vocabulary });
        }
        if !Path::new(spec).exists() {
            return Err(refused("no such file or folder".into()));
        }
        Ok(Spec::File(spec.into()))
    }
}

/// A model's input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Tokens.
    pub ids: Vec<u32>,
    /// For each the kind: zero, or one where it belongs to a second text.
    pub kinds: Vec<u32>,
}

/// For each token the number of its word; none for those around a text.
pub type WordNumbers = Vec<Option<usize>>;

/// A tokenizer, ready to use.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    vocabulary_size: usize,
}

#[derive(Clone, Debug)]
enum Kind {
    Characters(Characters),
    Library { inner: Box<tokenizers::Tokenizer>, cut: file::Cut },
}

impl Tokenizer {
    /// Makes what `spec` asks for, from `text` where it must be learnt. Give the whole text to `char`, so that no
    /// character of the validation part is unknown.
    pub fn prepare(spec: &Spec, text: &str) -> Result<Tokenizer> {
        match spec {
            Spec::Characters => Ok(Tokenizer::characters(text)),
            Spec::BytePair { vocabulary } => Tokenizer::train_byte_pair(text, *vocabulary),
            Spec::File(path) => Tokenizer::load(path),
        }
    }

    /// The tokenizer whose vocabulary is the sorted distinct characters of `text`.
    pub fn characters(text: &str) -> Tokenizer {
        Tokenizer::from_characters(Characters::of(text))
    }

    /// Trains a byte-level BPE on `text`: GPT-2's way of splitting words, all 256 bytes, merges until the vocabulary
    /// has `vocabulary` tokens or no pair of tokens occurs twice.
    pub fn train_byte_pair(text: &str, vocabulary: usize) -> Result<Tokenizer> {
        Ok(Tokenizer::from_library(byte_pair::train(text, vocabulary)?))
    }

    /// Loads a `tokenizer.json`, or the one in a folder.
    pub fn load(path: &Path) -> Result<Tokenizer> {
        let path = if path.is_dir() { path.join(FILE_NAME) } else { path.to_path_buf() };
        Tokenizer::from_json(&file::read(&path)?, &path)
    }

    /// From the text of a `tokenizer.json`; errors name `path` as its place.
    pub fn from_json(json: &str, path: &Path) -> Result<Tokenizer> {
        match Characters::from_json(json) {
            Some(characters) => Ok(Tokenizer::from_characters(characters)),
            None => Ok(Tokenizer::from_library(file::parse(path, json)?)),
        }
    }

    /// Writes `tokenizer.json` into `folder`, whole or not at all.
    pub fn save(&self, folder: &Path) -> Result<()> {
        file::write(folder, &self.to_json()?)
    }

    /// The text of its `tokenizer.json`.
    pub fn to_json(&self) -> Result<String> {
        match &self.kind {
            Kind::Characters(characters) => Ok(characters.to_json()),
            Kind::Library { inner, .. } => {
                inner.to_string(true).map_err(|error| file::failed("saving", error))
            }
        }
    }

    /// One more than the largest token id: what the model's embedding needs.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// The ids of `text` alone, with no token added at its ends. This is what training text goes through.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Characters(characters) => characters.encode(text),
            Kind::Library { inner, cut } => file::encode(inner, *cut, text),
        }
    }

    /// The ids of `text` alone, and for each the bytes of the text that it stands for, white space before a word with it.
    pub fn encode_with_ranges(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        match &self.kind {
            Kind::Characters(characters) => {
                let ends = text.char_indices().map(|(at, character)| at..at + character.len_utf8());
                Ok((characters.encode(text)?, ends.collect()))
            }
            Kind::Library { inner, .. } => file::encode_with_ranges(inner, text),
        }
    }

    /// The ids of `text` with the tokens that the tokenizer puts around it (`<s>`, `[CLS]`), where it has such.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Characters(characters) => characters.encode(text),
            Kind::Library { inner, .. } => {
                let encoding =
                    inner.encode_fast(text, true).map_err(|error| file::failed("encoding", error))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The same for a model's input: a text, or two of which the second is of another kind, cut to `most` tokens in all at the
    /// end of the longer one.
    pub fn encode_input(&self, text: &str, second: Option<&str>, most: usize) -> Result<Encoded> {
        match &self.kind {
            Kind::Characters(characters) => {
                let mut ids = characters.encode(text)?;
                let first = ids.len();
                ids.extend(second.map_or(Ok(vec![]), |second| characters.encode(second))?);
                let mut kinds: Vec<u32> = (0..ids.len()).map(|at| u32::from(at >= first)).collect();
                ids.truncate(most);
                kinds.truncate(most);
                Ok(Encoded { ids, kinds })
            }
            Kind::Library { inner, .. } => file::encode_input(inner, text, second, most),
        }
    }

    /// The same for a text that is cut into words already; for each token the number of its word, none for those around the text.
    pub fn encode_words(&self, words: &[String], most: usize) -> Result<(Encoded, WordNumbers)> {
        match &self.kind {
            Kind::Characters(characters) => {
                let (mut ids, mut of) = (vec![], vec![]);
                for (number, word) in words.iter().enumerate() {
                    let letters = characters.encode(word)?;
                    of.extend(std::iter::repeat_n(Some(number), letters.len()));
                    ids.extend(letters);
                }
                ids.truncate(most);
                of.truncate(most);
                Ok((Encoded { kinds: vec![0; ids.len()], ids }, of))
            }
            Kind::Library { inner, .. } => file::encode_words(inner, words, most),
        }
    }

    /// The tokens that the tokenizer puts before any text, such as `<s>`; often none.
    pub fn opening(&self) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Characters(_) => Ok(vec![]),
            Kind::Library { inner, .. } => file::opening(inner),
        }
    }

    /// The text of `ids`, special tokens left out. Bytes that are not UTF-8 together become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_as(ids, true)
    }

    /// The text of `ids`, special tokens shown.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.decode_as(ids, false)
    }

    fn decode_as(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let vocabulary = self.vocabulary_size;
        // The library passes over unknown ids in silence.
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::UnknownToken { id, vocabulary });
        }
        match &self.kind {
            Kind::Characters(characters) => Ok(characters.decode(ids)),
            Kind::Library { inner, .. } => {
                inner.decode(ids, skip_special).map_err(|error| file::failed("decoding", error))
            }
        }
    }

    /// A decoder that takes one id at a time and gives text as soon as it is whole.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// The id of a token by its name, such as `<|endoftext|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Characters(characters) => characters.id(token),
            Kind::Library { inner, .. } => inner.token_to_id(token),
        }
    }

    /// The name of a token in the vocabulary, for people to read. Byte-level names are in their own alphabet.
    pub fn token_name(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::Characters(characters) => characters.character(id).map(String::from),
            Kind::Library { inner, .. } => inner.id_to_token(id),
        }
    }

    /// Tokens that stand for no text, such as `[CLS]`.
    pub fn special_tokens(&self) -> HashSet<u32> {
        match &self.kind {
            Kind::Characters(_) => HashSet::new(),
            Kind::Library { inner, .. } => {
                let added = inner.get_added_tokens_decoder();
                added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
            }
        }
    }

    /// What kind it is: `char`, or the model in the file (`BPE`, `WordPiece`, `Unigram`, `WordLevel`).
    pub fn kind(&self) -> &'static str {
        match &self.kind {
            Kind::Characters(_) => "char",
            Kind::Library { inner, .. } => file::model_name(inner),
        }
    }

    fn from_characters(characters: Characters) -> Tokenizer {
        Tokenizer { vocabulary_size: characters.len(), kind: Kind::Characters(characters) }
    }

    fn from_library(mut inner: tokenizers::Tokenizer) -> Tokenizer {
        // Files often carry the truncation and padding of one model's input; text for training is never cut or filled.
        inner.with_padding(None);
        inner.with_truncation(None).expect("no truncation is always allowed");
        let cut = file::Cut::of(&inner);
        let largest = inner.get_vocab(true).into_values().max();
        let vocabulary_size = largest.map_or(0, |id| id as usize + 1);
        Tokenizer { kind: Kind::Library { inner: Box::new(inner), cut }, vocabulary_size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const RHYME: &str =
        "Hey diddle diddle, the cat and the fiddle.\nThe cow jumped over the moon — naïve, 日本!\n";

    #[test]
    fn specifications_are_read_and_refused_with_reasons() {
        assert_eq!("char".parse::<Spec>().unwrap(), Spec::Characters);
        assert_eq!("bpe:4096".parse::<Spec>().unwrap(), Spec::BytePair { vocabulary: 4096 });
        assert_eq!(
            ["char", "bpe:4096"].map(|spec| spec.parse::<Spec>().unwrap().to_string()),
            ["char", "bpe:4096"]
        );
        for (spec, reason) in
            [("bpe:many", "not a number"), ("bpe:100", "at least"), ("charr", "no such file")]
        {
            let error = spec.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("hint"), "{error}");
        }
    }

    #[test]
    fn every_kind_survives_saving_and_loading_and_gives_the_text_back() {
        let long = RHYME.repeat(20);
        for spec in [Spec::Characters, Spec::BytePair { vocabulary: 300 }] {
            let tokenizer = Tokenizer::prepare(&spec, &long).unwrap();
            let folder = tempfile::tempdir().unwrap();
            tokenizer.save(folder.path()).unwrap();
            let loaded = Tokenizer::load(folder.path()).unwrap();
            assert_eq!(loaded.kind(), tokenizer.kind());
            assert_eq!(loaded.vocabulary_size(), tokenizer.vocabulary_size());

            let ids = tokenizer.encode(RHYME).unwrap();
            assert_eq!(loaded.encode(RHYME).unwrap(), ids);
            assert_eq!(loaded.decode(&ids).unwrap(), RHYME);
            assert!(ids.iter().all(|&id| (id as usize) < loaded.vocabulary_size()));
        }
    }

    #[test]
    fn an_id_past_the_vocabulary_is_an_error_in_every_kind() {
        for spec in [Spec::Characters, Spec::BytePair { vocabulary: 260 }] {
            let tokenizer = Tokenizer::prepare(&spec, RHYME).unwrap();
            let id = tokenizer.vocabulary_size() as u32;
            assert!(
                matches!(tokenizer.decode(&[0, id]), Err(Error::UnknownToken { id: got, .. }) if got == id)
            );
        }
    }

    #[test]
    fn a_broken_or_missing_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(missing.contains("tokenizer.json"), "{missing}");
        for broken in ["", "{}", "{\"version\": \"1.0\", \"model\": {\"type\": \"Dream\"}}", "not json"] {
            std::fs::write(folder.path().join(FILE_NAME), broken).unwrap();
            let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json") && error.contains("hint"), "{error}");
        }
    }
}
