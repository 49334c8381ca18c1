//! English words without their endings, by Porter's algorithm (1980) with the changes of nltk, which rouge-score uses.

/// Words that follow no rule.
const IRREGULAR: [(&str, &str); 15] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
];

const SECOND: [(&str, &str); 21] = [
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

const THIRD: [(&str, &str); 7] = [
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];

const FOURTH: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism",
    "ate", "iti", "ous", "ive", "ize",
];

/// The stem of a word of small letters and digits.
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == word) {
        return stem.to_string();
    }
    if word == "succeed" || word.chars().count() <= 2 {
        return word.into();
    }
    let mut word = word.to_string();
    for step in [plural, past, last_y, second, third, fourth, last_e] {
        word = step(word);
    }
    if word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
    word
}

/// For each letter whether it is a consonant; `y` is one at the beginning and behind a vowel.
fn consonants(word: &str) -> Vec<bool> {
    let mut all: Vec<bool> = vec![];
    for letter in word.chars() {
        all.push(match letter {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => all.last().is_none_or(|before| !before),
            _ => true,
        });
    }
    all
}

/// How often consonants follow vowels.
fn measure(stem: &str) -> usize {
    consonants(stem).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn has_vowel(stem: &str) -> bool {
    consonants(stem).contains(&false)
}

/// A consonant, a vowel and a consonant but w, x and y; or no more than a vowel and a consonant.
fn ends_short(stem: &str) -> bool {
    match consonants(stem)[..] {
        [false, true] => true,
        [.., true, false, true] => !stem.ends_with(['w', 'x', 'y']),
        _ => false,
    }
}

fn ends_double(stem: &str) -> bool {
    let mut letters = stem.chars().rev();
    let (last, before) = (letters.next(), letters.next());
    last.is_some() && last == before && consonants(stem).last() == Some(&true)
}

fn plural(word: String) -> String {
    let cut = |ending: &str| word.strip_suffix(ending).map(String::from);
    if let Some(stem) = cut("ies") {
        return if word.chars().count() == 4 { stem + "ie" } else { stem + "i" };
    }
    if word.ends_with("sses") {
        return word[..word.len() - 2].into();
    }
    if word.ends_with("ss") { word } else { cut("s").unwrap_or(word) }
}

fn past(word: String) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return format!("{stem}{}", if word.chars().count() == 4 { "ie" } else { "i" });
    }
    if let Some(stem) = word.strip_suffix("eed") {
        return if measure(stem) > 0 { format!("{stem}ee") } else { word };
    }
    let cut =
        ["ed", "ing"].iter().find_map(|ending| word.strip_suffix(ending).filter(|stem| has_vowel(stem)));
    let Some(stem) = cut else { return word };
    if ["at", "bl", "iz"].iter().any(|end| stem.ends_with(end)) {
        return format!("{stem}e");
    }
    if ends_double(stem) {
        let keeps = stem.ends_with(['l', 's', 'z']);
        return if keeps { stem.into() } else { stem[..stem.len() - 1].into() };
    }
    if measure(stem) == 1 && ends_short(stem) { format!("{stem}e") } else { stem.into() }
}

fn last_y(word: String) -> String {
    match word.strip_suffix('y') {
        Some(stem) if stem.chars().count() > 1 && consonants(stem).last() == Some(&true) => {
            format!("{stem}i")
        }
        _ => word,
    }
}

/// The first ending that fits is replaced, if a stem is left.
fn replace(word: String, endings: &[(&str, &str)]) -> String {
    for (ending, with) in endings {
        if let Some(stem) = word.strip_suffix(ending) {
            return if measure(stem) > 0 { format!("{stem}{with}") } else { word };
        }
    }
    word
}

fn second(word: String) -> String {
    if let Some(stem) = word.strip_suffix("alli").filter(|stem| measure(stem) > 0) {
        return second(format!("{stem}al"));
    }
    let known = SECOND.iter().any(|(ending, _)| word.ends_with(ending));
    match word.strip_suffix("logi") {
        Some(stem) if !known => {
            // Of this ending the l counts as part of the stem.
            if measure(&word[..word.len() - 3]) > 0 { format!("{stem}log") } else { word }
        }
        _ => replace(word, &SECOND),
    }
}

fn third(word: String) -> String {
    replace(word, &THIRD)
}

fn fourth(word: String) -> String {
    let Some((ending, stem)) =
        FOURTH.iter().find_map(|ending| word.strip_suffix(ending).map(|stem| (*ending, stem)))
    else {
        return word;
    };
    let goes = measure(stem) > 1 && (ending != "ion" || stem.ends_with(['s', 't']));
    if goes { stem.into() } else { word }
}

fn last_e(word: String) -> String {
    match word.strip_suffix('e') {
        Some(stem) if measure(stem) > 1 || (measure(stem) == 1 && !ends_short(stem)) => stem.into(),
        _ => word,
    }
}
