//! Against a reference that only scans the text, and against figures of nltk 3.10.4.

use super::*;
use crate::data::tokenizer::Tokenizer;
use crate::tensor::random::Stream;
use std::collections::BTreeSet;

const KN: Smoothing = Smoothing::KneserNey { discount: None };
const ALL: [Smoothing; 5] = [
    Smoothing::AddK { k: 0.3 },
    KN,
    Smoothing::ModifiedKneserNey,
    Smoothing::Katz,
    Smoothing::StupidBackoff { factor: 0.4 },
];

/// A text with a pattern, over a vocabulary of which the last tokens never occur.
fn text(seed: u32, length: usize) -> Vec<u32> {
    let mut random = Stream::new(&[seed]);
    let mut tokens = vec![0, 1, 2];
    while tokens.len() < length {
        let next = match random.uniform() {
            x if x < 0.6 => (tokens[tokens.len() - 1] * 3 + tokens[tokens.len() - 2]) % 7,
            x => (x * 9.0) as u32,
        };
        tokens.push(next);
    }
    tokens
}

fn contexts(seed: u32) -> Vec<Vec<u32>> {
    let mut random = Stream::new(&[seed, 1]);
    let mut contexts = vec![vec![], vec![0, 1], vec![11; 6]];
    contexts.extend((0..40).map(|i| (0..i % 6).map(|_| (random.uniform() * 12.0) as u32).collect()));
    contexts
}

#[test]
fn probabilities_sum_to_one_in_any_context_but_those_of_stupid_back_off() {
    for order in [1, 2, 5] {
        for smoothing in ALL {
            let model = Model::train(&text(1, 400), 12, order, smoothing).unwrap();
            let mut sums = vec![];
            for context in contexts(2) {
                let all = model.distribution(&context);
                for (token, p) in all.iter().enumerate() {
                    let alone = model.probability(&context, token as u32);
                    assert!((alone - p).abs() < 1e-12 && *p > 0.0, "{context:?} {token}: {alone} {p}");
                }
                sums.push(all.iter().sum::<f64>());
            }
            let even = sums.iter().all(|sum| (sum - 1.0).abs() < 1e-12);
            assert_eq!(even, model.smoothing().sums_to_one(), "{order} {:?}: {sums:?}", model.smoothing());
        }
    }
}

/// How often a run occurs or, of shorter runs, behind how many different tokens.
fn count(text: &[u32], run: &[u32], order: usize) -> f64 {
    let places = || (0..text.len()).filter(|&at| text[at..].starts_with(run));
    match run.len() == order {
        true => places().count() as f64,
        false => places().filter(|&at| at > 0).map(|at| text[at - 1]).collect::<BTreeSet<_>>().len() as f64,
    }
}

/// Modified Kneser-Ney as its paper has it, by scanning the text for every number.
fn scanned(text: &[u32], order: usize, vocabulary: u32, context: &[u32], token: u32) -> f64 {
    let shorter = match context {
        [] => 1.0 / f64::from(vocabulary),
        [_, rest @ ..] => scanned(text, order, vocabulary, rest, token),
    };
    let length = context.len() + 1;
    let runs: BTreeSet<&[u32]> = text.windows(length).collect();
    let n = |i: f64| runs.iter().filter(|run| count(text, run, order) == i).count() as f64;
    let [n1, n2, n3, n4] = [1.0, 2.0, 3.0, 4.0].map(n);
    let y = n1 / (n1 + 2.0 * n2);
    let few = [n1, n2, n3, n4].contains(&0.0);
    let discount = |c: f64| match c {
        0.0 => 0.0,
        c if few => (c / 2.0).min(1.5),
        1.0 => 1.0 - 2.0 * y * n2 / n1,
        2.0 => 2.0 - 3.0 * y * n3 / n2,
        _ => 3.0 - 4.0 * y * n4 / n3,
    };
    let counts: Vec<f64> = (0..vocabulary).map(|w| count(text, &[context, &[w]].concat(), order)).collect();
    let total: f64 = counts.iter().sum();
    if total == 0.0 {
        return shorter;
    }
    let taken: f64 = counts.iter().map(|&c| discount(c)).sum();
    let c = counts[token as usize];
    (c - discount(c)) / total + taken / total * shorter
}

#[test]
fn modified_kneser_ney_is_what_a_scan_of_the_text_gives() {
    let text = text(3, 300);
    let model = Model::train(&text, 12, 3, Smoothing::ModifiedKneserNey).unwrap();
    let fixed: Vec<bool> = model.discounts().iter().map(|d| *d == [0.5, 1.0, 1.5]).collect();
    assert_eq!(
        fixed,
        [true, false, false],
        "of so few single tokens the fixed discounts are taken, and of none else"
    );
    for context in contexts(4).iter().filter(|context| context.len() < 3) {
        for token in 0..12 {
            let (got, expected) = (model.probability(context, token), scanned(&text, 3, 12, context, token));
            assert!((got - expected).abs() < 1e-12, "{context:?} {token}: {got}, expected {expected}");
        }
    }
}

/// Katz's back-off as its paper has it, for every token, by scanning the text for every number.
fn katz(text: &[u32], vocabulary: u32, context: &[u32]) -> Vec<f64> {
    let shorter = match context {
        [] => vec![1.0 / f64::from(vocabulary); vocabulary as usize],
        [_, rest @ ..] => katz(text, vocabulary, rest),
    };
    let count = |run: &[u32]| text.windows(run.len()).filter(|other| *other == run).count() as f64;
    let runs: BTreeSet<&[u32]> = text.windows(context.len() + 1).collect();
    let of_runs: Vec<f64> = runs.into_iter().map(count).collect();
    let n = |i: f64| of_runs.iter().filter(|count| **count == i).count() as f64;
    let k = [5.0, 4.0, 3.0, 2.0, 1.0].into_iter().find(|k| n(k + 1.0) > 0.0 && n(1.0) > 0.0).unwrap_or(0.0);
    let q = (k + 1.0) * n(k + 1.0) / n(1.0);
    let d = |r: f64| {
        let ratio = (r + 1.0) * n(r + 1.0) / (r * n(r));
        let d = (ratio - q) / (1.0 - q);
        if r <= k && ratio <= 1.0 && d > 0.0 && d <= 1.0 { d } else { 1.0 }
    };
    let counts: Vec<f64> = (0..vocabulary).map(|w| count(&[context, &[w]].concat())).collect();
    let total: f64 = counts.iter().sum();
    if total == 0.0 {
        return shorter;
    }
    let kept: f64 = counts.iter().filter(|count| **count > 0.0).map(|&count| d(count) * count).sum();
    let total = match (counts.contains(&0.0), kept == total) {
        (false, _) => kept,
        (true, true) => total + 1.0,
        (true, false) => total,
    };
    let seen: f64 = counts.iter().zip(&shorter).filter(|(count, _)| **count > 0.0).map(|(_, p)| p).sum();
    let of = |(&count, p): (&f64, &f64)| match count > 0.0 {
        true => d(count) * count / total,
        false => (1.0 - kept / total) / (1.0 - seen) * p,
    };
    counts.iter().zip(&shorter).map(of).collect()
}

#[test]
fn katz_back_off_is_what_a_scan_of_the_text_gives() {
    // Of 9 tokens all occur, of 12 the last three do not.
    for (seed, vocabulary) in [(3, 9), (4, 12)] {
        let text = text(seed, 600);
        let model = Model::train(&text, vocabulary as usize, 3, Smoothing::Katz).unwrap();
        let taken = model.discounts();
        assert!(taken[2].iter().filter(|taken| **taken > 0.0).count() > 1, "{taken:?}");
        let known = |context: &Vec<u32>| context.len() < 3 && context.iter().all(|&token| token < vocabulary);
        for context in contexts(4).iter().filter(|context| known(context)) {
            for (token, expected) in (0..vocabulary).zip(katz(&text, vocabulary, context)) {
                let got = model.probability(context, token);
                assert!((got - expected).abs() < 1e-12, "{context:?} {token}: {got}, expected {expected}");
            }
        }
    }
}

#[test]
fn figures_are_those_of_nltk() {
    // nltk.lm over everygrams(text, max_len=3); V is one more than the letters, as nltk counts its <UNK>. Kneser-Ney with its
    // single tokens discounted and shared out evenly, which nltk's own leaves out.
    let train = "the cat sat on the mat; the rat ate that hat, then the cat sat there";
    let letters = Tokenizer::characters(train);
    let ids = |text: &str| letters.encode(text).unwrap();
    let unseen = ids("the rat sat on that cat, the mat ate the hat");
    for (smoothing, loss, four) in [
        (
            Smoothing::AddK { k: 0.5 },
            1.5180878956654074,
            [0.4642857142857143, 0.59375, 0.0625, 0.03571428571428571],
        ),
        (
            Smoothing::StupidBackoff { factor: 0.4 },
            0.6170633796039638,
            [0.8571428571428571, 1.0, 0.05333333333333334, 0.0023529411764705885],
        ),
        (
            Smoothing::KneserNey { discount: Some(0.75) },
            0.9159063394959379,
            [0.7791317419825073, 0.8836894132653061, 0.028300382653061222, 0.0036215379008746355],
        ),
    ] {
        let model = Model::train(&ids(train), 14, 3, smoothing).unwrap();
        let (got, count) = model.loss(&unseen).unwrap();
        assert!(count == 43 && (got - loss).abs() < 1e-12, "{:?}: {got}, expected {loss}", model.smoothing());
        for ((context, token), expected) in
            [("th", "e"), ("a", "t"), (", ", "c"), ("th", "m")].iter().zip(four)
        {
            let got = model.probability(&ids(context), ids(token)[0]);
            assert!((got - expected).abs() < 1e-12, "{context}{token}: {got}, expected {expected}");
        }
    }
}

#[test]
fn a_folder_is_read_back_and_a_damaged_one_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let letters = Tokenizer::characters("abcdefghij");
    for smoothing in [Smoothing::Katz, Smoothing::ModifiedKneserNey] {
        let model = Model::train(&text(5, 60), 10, 3, smoothing).unwrap();
        model.save(folder.path(), &letters).unwrap();
        assert_eq!(Model::load(folder.path()).unwrap().0, model);
    }
    let model = Model::train(&text(5, 60), 10, 3, Smoothing::ModifiedKneserNey).unwrap();
    model.save(folder.path(), &letters).unwrap();
    assert!(is_ngram(folder.path()));
    assert_eq!(Model::load(folder.path()).unwrap().0, model);
    let mut random = Stream::new(&[9]);
    for file in [CONFIG_FILE, TABLES_FILE] {
        let (path, mut refused) = (folder.path().join(file), 0);
        let whole = std::fs::read(&path).unwrap();
        for round in 0..300 {
            let mut bytes = whole.clone();
            let at = (random.uniform() * bytes.len() as f64) as usize;
            match round % 3 {
                0 => bytes.truncate(at),
                1 => bytes[at] ^= 1 << (round % 8),
                _ => bytes[at] = 0xff,
            }
            std::fs::write(&path, bytes).unwrap();
            match Model::load(folder.path()) {
                Ok((model, _)) => {
                    let all = model.distribution(&[1, 2]);
                    assert_eq!(all.len(), model.vocabulary());
                }
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 100, "{file}: only {refused}");
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn an_arpa_file_gives_the_same_probabilities() {
    for smoothing in [KN, Smoothing::Katz] {
        arpa_is_the_model(smoothing);
    }
    let letters = Tokenizer::characters("abcdefghijkl");
    let other = Model::train(&text(6, 200), 12, 3, Smoothing::AddK { k: 1.0 }).unwrap();
    assert!(matches!(write_arpa("no.arpa".as_ref(), &other, &letters), Err(Error::Arpa { .. })));
}

fn arpa_is_the_model(smoothing: Smoothing) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.arpa");
    let letters = Tokenizer::characters("ab <\nfghijkl");
    let model = Model::train(&text(6, 200), 12, 3, smoothing).unwrap();
    write_arpa(&path, &model, &letters).unwrap();
    let file = std::fs::read_to_string(&path).unwrap();
    let mut lines = std::collections::HashMap::new();
    for line in file.lines().filter(|line| line.contains('\t')) {
        let parts: Vec<&str> = line.split('\t').collect();
        let back = parts.get(2).map_or(0.0, |back| back.parse().unwrap());
        lines.insert(parts[1].to_string(), (parts[0].parse::<f64>().unwrap(), back));
    }
    let names: Vec<String> = (0..12)
        .map(|id| match letters.token_name(id).unwrap().as_str() {
            " " => "<0x20>".to_string(),
            "<" => "<0x3C>".to_string(),
            "\n" => "<0x0A>".to_string(),
            other => other.to_string(),
        })
        .collect();
    // As readers fall back: the longest run that is there, and the weights of the contexts on the way.
    let of_file = |context: &[u32], token: u32| {
        let (mut sum, mut context) = (0.0, context);
        loop {
            let named =
                |run: &[u32]| run.iter().map(|&id| names[id as usize].as_str()).collect::<Vec<_>>().join(" ");
            if let Some((p, _)) = lines.get(&named(&[context, &[token]].concat())) {
                return sum + p;
            }
            sum += lines.get(&named(context)).map_or(0.0, |(_, back)| *back);
            context = &context[1..];
        }
    };
    for context in contexts(7).iter().filter(|context| context.len() == 2) {
        for token in 0..12 {
            let (got, expected) = (of_file(context, token), model.probability(context, token).log10());
            assert!((got - expected).abs() < 1e-6, "{context:?} {token}: {got}, expected {expected}");
        }
    }
}

#[test]
fn what_cannot_be_counted_is_refused() {
    let train = |tokens: &[u32], order| Model::train(tokens, 4, order, KN);
    assert!(matches!(train(&[], 2), Err(Error::Length { .. })));
    assert!(matches!(train(&[1, 4], 2), Err(Error::Token { token: 4, .. })));
    assert!(matches!(train(&[1], 0), Err(Error::Setting { setting: "order", .. })));
    assert!(matches!(train(&[1], 17), Err(Error::Setting { setting: "order", .. })));
    let model = train(&[1, 2], 4).unwrap();
    assert!(matches!(model.loss(&[1]), Err(Error::Length { .. })));
    assert!(matches!(model.loss(&[1, 9]), Err(Error::Token { token: 9, .. })));
}
