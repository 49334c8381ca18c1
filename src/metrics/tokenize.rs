//! Texts to words, as the tools do whose figures are compared: each gives a line with spaces between words.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::words::words;
use super::{Error, Result};

/// How BLEU cuts a text into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokenization {
    /// As mteval-v13a: punctuation apart, but for points and commas within numbers.
    #[default]
    V13a,
    /// At white space alone.
    None,
    /// Every character.
    Char,
    /// As mteval-v14: punctuation and symbols of all scripts.
    Intl,
    /// Chinese characters apart, the rest as 13a.
    Zh,
}

impl Tokenization {
    /// By its name in a signature.
    pub fn named(name: &str) -> Result<Tokenization> {
        Ok(match name {
            "13a" => Tokenization::V13a,
            "none" => Tokenization::None,
            "char" => Tokenization::Char,
            "intl" => Tokenization::Intl,
            "zh" => Tokenization::Zh,
            _ => {
                let expected = "13a, none, char, intl or zh";
                return Err(Error::Setting { setting: "tokenization", expected, got: name.into() });
            }
        })
    }

    /// Its name in a signature.
    pub fn name(self) -> &'static str {
        match self {
            Tokenization::V13a => "13a",
            Tokenization::None => "none",
            Tokenization::Char => "char",
            Tokenization::Intl => "intl",
            Tokenization::Zh => "zh",
        }
    }

    /// The words of a text, with spaces between them.
    pub fn apply(self, text: &str) -> String {
        let cut = match self {
            Tokenization::V13a => western(&format!(" {} ", unescaped(text))),
            Tokenization::None => return text.into(),
            Tokenization::Char => text.chars().flat_map(|c| [c, ' ']).collect(),
            Tokenization::Intl => replaced(text, &INTERNATIONAL),
            Tokenization::Zh => western(&chinese(text.trim())),
        };
        words(&cut).join(" ")
    }
}

type Rules = LazyLock<Vec<(Regex, &'static str)>>;

fn rules(list: &[(&str, &'static str)]) -> Vec<(Regex, &'static str)> {
    let rule = |(pattern, with): &(&str, &'static str)| (Regex::new(pattern).expect("it is ours"), *with);
    list.iter().map(rule).collect()
}

/// ASCII punctuation apart from the apostrophe, the comma, the dash and the point; the last two and the comma by what stands around.
static WESTERN: Rules = LazyLock::new(|| {
    rules(&[
        (r"([{-~\[-` -&(-+:-@/])", " $1 "),
        (r"([^0-9])([.,])", "$1 $2 "),
        (r"([.,])([^0-9])", " $1 $2"),
        (r"([0-9])(-)", "$1 $2 "),
    ])
});

static INTERNATIONAL: Rules = LazyLock::new(|| {
    rules(&[(r"(\P{N})(\p{P})", "$1 $2 "), (r"(\p{P})(\P{N})", " $1 $2"), (r"(\p{S})", " $1 ")])
});

/// TER's: what 13a does, and a possessive 's apart.
static TERCOM: Rules = LazyLock::new(|| {
    rules(&[
        (r"([{-~\[-` -&(-+:-@/])", " $1 "),
        ("'s ", " 's "),
        ("'s$", " 's"),
        (r"([^0-9])([.,])", "$1 $2 "),
        (r"([.,])([^0-9])", " $1 $2"),
        (r"([0-9])(-)", "$1 $2 "),
    ])
});

fn replaced(text: &str, rules: &[(Regex, &str)]) -> String {
    let replace = |text: Cow<str>, (pattern, with): &(Regex, &str)| {
        let changed = pattern.replace_all(&text, with.replace("$1", "${1}").replace("$2", "${2}"));
        Cow::Owned(changed.into_owned())
    };
    rules.iter().fold(Cow::Borrowed(text), replace).into_owned()
}

fn western(text: &str) -> String {
    replaced(text, &WESTERN)
}

/// What mteval's files write for characters of markup.
fn entities(text: String) -> String {
    match text.contains('&') {
        false => text,
        true => {
            let quoted = text.replace("&quot;", "\"").replace("&amp;", "&");
            quoted.replace("&lt;", "<").replace("&gt;", ">")
        }
    }
}

fn unescaped(text: &str) -> String {
    entities(text.replace("<skipped>", "").replace("-\n", "").replace('\n', " "))
}

/// First and last characters that are written apart in Chinese texts.
const CHINESE: [[char; 2]; 21] = [
    ['\u{3400}', '\u{4db5}'],
    ['\u{4e00}', '\u{9fa5}'],
    ['\u{9fa6}', '\u{9fbb}'],
    ['\u{f900}', '\u{fa2d}'],
    ['\u{fa30}', '\u{fa6a}'],
    ['\u{fa70}', '\u{fad9}'],
    // sacrebleu writes the bounds of the higher planes with four digits, so that these are what it has.
    ['\u{2000}', '\u{2a6d}'],
    ['\u{ff00}', '\u{ffef}'],
    ['\u{2e80}', '\u{2eff}'],
    ['\u{3000}', '\u{303f}'],
    ['\u{31c0}', '\u{31ef}'],
    ['\u{2f00}', '\u{2fdf}'],
    ['\u{2ff0}', '\u{2fff}'],
    ['\u{3100}', '\u{312f}'],
    ['\u{31a0}', '\u{31bf}'],
    ['\u{fe10}', '\u{fe1f}'],
    ['\u{fe30}', '\u{fe4f}'],
    ['\u{2600}', '\u{26ff}'],
    ['\u{2700}', '\u{27bf}'],
    ['\u{3200}', '\u{32ff}'],
    ['\u{3300}', '\u{33ff}'],
];

fn chinese(text: &str) -> String {
    let mut apart = String::new();
    for c in text.chars() {
        match CHINESE.iter().any(|[first, last]| (first..=last).contains(&&c)) {
            true => apart.extend([' ', c, ' ']),
            false => apart.push(c),
        }
    }
    apart
}

/// As Tercom makes words of a text before edits are counted.
pub fn tercom(text: &str, normalized: bool, no_punctuation: bool, case_sensitive: bool) -> String {
    let mut text = if case_sensitive { text.to_string() } else { text.to_lowercase() };
    if normalized {
        text = entities(text.replace("\n-", "").replace('\n', " "));
        text = replaced(&format!(" {text} "), &TERCOM);
    }
    if no_punctuation {
        text.retain(|c| !".,?:;!\"()".contains(c));
    }
    text
}
