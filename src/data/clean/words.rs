//! Texts reduced to what makes two of them the same: words in lower case, nothing between them.

use std::hash::{BuildHasherDefault, Hasher};

use sha2::{Digest, Sha256};

use crate::data::random::mix;

/// The letters and digits of a text in lower case, words with one space between them. A text without any stays as it is.
pub fn normalised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        match word.is_ascii() {
            true => out.extend(word.bytes().map(|byte| char::from(byte.to_ascii_lowercase()))),
            false => out.push_str(&word.to_lowercase()),
        }
    }
    if out.is_empty() { text.trim().to_string() } else { out }
}

/// 128 bits of a text; two texts that differ do not share them in practice.
pub fn fingerprint(text: &str) -> u128 {
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    u128::from_le_bytes(hash[..16].try_into().expect("half of 32 bytes"))
}

/// 64 bits of a word (FNV-1a, well mixed).
pub fn hash(word: &[u8]) -> u64 {
    let step = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    mix(word.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The hash of some words in their order.
pub fn chain(hashes: &[u64]) -> u64 {
    hashes.iter().fold(0, |sum, &hash| mix(sum.rotate_left(7).wrapping_add(hash)))
}

/// For keys that are hashes already.
pub type Ready = BuildHasherDefault<AsIs>;

/// A key's own bits as its hash.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash(bytes);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn write_u128(&mut self, word: u128) {
        self.0 = word as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_space_and_marks_make_no_difference_and_words_do() {
        assert_eq!(normalised("  The \"Cat\"\n sat -- 3 times! "), "the cat sat 3 times");
        assert_eq!(normalised("\u{c9}T\u{c9} \u{65e5}\u{672c}"), "\u{e9}t\u{e9} \u{65e5}\u{672c}");
        assert_eq!(normalised(" *** "), "***");
        assert_eq!(fingerprint(&normalised("A b.")), fingerprint(&normalised("a, B")));
        assert_ne!(fingerprint("a b"), fingerprint("ab"));
        assert_ne!(chain(&[1, 2]), chain(&[2, 1]));
    }
}
