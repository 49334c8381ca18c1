//! Training a byte-level BPE: GPT-2's splitting of words, the whole byte alphabet, merges by frequency.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::file::failed;
use crate::data::Result;

/// The token that ends a text. It is number 0 of every vocabulary trained here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The 256 bytes and [`END_OF_TEXT`].
pub const SMALLEST_BYTE_PAIR_VOCABULARY: usize = 257;

pub(super) fn train(text: &str, vocabulary: usize) -> Result<Tokenizer> {
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocabulary.max(SMALLEST_BYTE_PAIR_VOCABULARY))
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(alphabet)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let splitting = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<BPE, NoNormalizer, _, _, _>::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(splitting))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(splitting))
        .build()
        .map_err(|error| failed("training", error))?;
    // Lines with their ends: of what GPT-2's pattern finds, only runs of white space go on into the next line.
    let lines = text.split_inclusive('\n').map(str::to_owned);
    tokenizer.train(&mut trainer, lines).map_err(|error| failed("training", error))?;
    Ok(tokenizer.into())
}

type NoNormalizer = tokenizers::NormalizerWrapper;

#[cfg(test)]
mod tests {
    use super::super::tests::RHYME;
    use super::*;

    #[test]
    fn the_vocabulary_has_the_size_asked_for_and_begins_with_the_end_of_text() {
        let tokenizer = train(&RHYME.repeat(10), 270).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 270);
        assert_eq!(tokenizer.token_to_id(END_OF_TEXT), Some(0));
        // "the" occurs three times and " the" is one word of the pattern: it must have been merged.
        assert!(tokenizer.token_to_id("Ġthe").is_some());
    }

    #[test]
    fn training_twice_gives_the_same_file() {
        let text = RHYME.repeat(10);
        let file = || train(&text, 290).unwrap().to_string(false).unwrap();
        assert_eq!(file(), file());
    }
}
