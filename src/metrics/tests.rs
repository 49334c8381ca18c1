//! Against figures of sacrebleu 2.6.0, rouge-score 0.1.2 with nltk's stemmer, and scikit-learn.
//!
//! `text.json` was made by scoring lines of Shakespeare with words lost and moved, longer lists of words with runs moved about, and
//! lines with odd characters; `classification.json` by random labels and scores.

use super::*;
use serde_json::Value as Json;

fn golden(name: &str) -> Json {
    let text = match name {
        "text" => include_str!("../../kernels-tests/golden/metrics/text.json"),
        _ => include_str!("../../kernels-tests/golden/metrics/classification.json"),
    };
    serde_json::from_str(text).unwrap()
}

fn near(got: f64, expected: f64, what: &dyn std::fmt::Debug) {
    assert!((got - expected).abs() < 1e-6, "{what:?}: {got}, expected {expected}");
}

fn strings(value: &Json) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_string()).collect()
}

/// The metric that a row was made by.
fn metric_of(kind: &str, options: &Json) -> Box<dyn TextMetric> {
    let is = |key: &str| options[key].as_bool().unwrap_or(false);
    match kind {
        "bleu" => Box::new(Bleu {
            tokenization: Tokenization::named(options["tokenize"].as_str().unwrap_or("13a")).unwrap(),
            smoothing: Smoothing::named(
                options["smooth_method"].as_str().unwrap_or("exp"),
                options["smooth_value"].as_f64(),
            )
            .unwrap(),
            lowercase: is("lowercase"),
            effective_order: is("effective_order"),
        }),
        "chrf" => Box::new(Chrf {
            words: options["word_order"].as_u64().unwrap_or(0) as usize,
            lowercase: is("lowercase"),
            whitespace: is("whitespace"),
            ..Chrf::default()
        }),
        _ => Box::new(Ter {
            normalized: is("normalized"),
            no_punctuation: is("no_punct"),
            case_sensitive: is("case_sensitive"),
        }),
    }
}

#[test]
fn bleu_chrf_and_ter_are_those_of_sacrebleu_with_their_signatures() {
    let golden = golden("text");
    let mut compared = 0;
    for set in golden["sets"].as_array().unwrap() {
        let hypotheses = strings(&set["hypotheses"]);
        let streams: Vec<Vec<String>> = set["references"].as_array().unwrap().iter().map(strings).collect();
        let of_text = |at: usize| streams.iter().map(|stream| stream[at].clone()).collect::<Vec<_>>();
        let references: Vec<_> = (0..hypotheses.len()).map(of_text).collect();
        for row in set["scores"].as_array().unwrap() {
            let what = (&set["name"], &row["kind"], &row["options"]);
            let metric = metric_of(row["kind"].as_str().unwrap(), &row["options"]);
            let rows = statistics(metric.as_ref(), &hypotheses, &references).unwrap();
            near(metric.score(&sums(&rows)), row["score"].as_f64().unwrap(), &what);
            assert_eq!(metric.signature(Some(streams.len())), row["signature"].as_str().unwrap());
            for (at, expected) in row["sentences"].as_array().into_iter().flatten().enumerate() {
                near(metric.score(&rows[at]), expected.as_f64().unwrap(), &(what, at));
                compared += 1;
            }
        }
    }
    assert!(compared > 500, "{compared}");
}

#[test]
fn parts_of_bleu_are_those_of_sacrebleu() {
    let golden = golden("text");
    let set = &golden["sets"][1];
    let hypotheses = strings(&set["hypotheses"]);
    let streams: Vec<Vec<String>> = set["references"].as_array().unwrap().iter().map(strings).collect();
    let references: Vec<_> = (0..hypotheses.len()).map(|at| vec![&streams[0][at], &streams[1][at]]).collect();
    let bleu = Bleu::default();
    let (precisions, penalty, lengths) =
        bleu.parts(&sums(&statistics(&bleu, &hypotheses, &references).unwrap()));
    let parts = &set["scores"][0]["parts"];
    for (n, precision) in precisions.iter().enumerate() {
        near(*precision, parts[0][n].as_f64().unwrap(), &n);
    }
    near(penalty, parts[1].as_f64().unwrap(), &"penalty");
    assert_eq!(lengths.map(|length| length as u64), [2, 3].map(|at: usize| parts[at].as_u64().unwrap()));
}

#[test]
fn rouge_is_that_of_rouge_score_with_and_without_stems() {
    let golden = golden("text");
    for set in golden["sets"].as_array().unwrap() {
        let (hypotheses, references) = (strings(&set["hypotheses"]), strings(&set["references"][0]));
        for (key, stemmed) in [("nostem", false), ("stem", true)] {
            for (at, row) in set["rouge"][key].as_array().unwrap().iter().enumerate() {
                for (name, expected) in row.as_object().unwrap() {
                    let rouge = Rouge::named(name, stemmed).unwrap();
                    assert_eq!(&rouge.name(), name);
                    for (part, got) in rouge.of(&hypotheses[at], &references[at]).into_iter().enumerate() {
                        near(got, expected[part].as_f64().unwrap(), &(&set["name"], at, name, part));
                    }
                }
            }
        }
    }
    // Of rouge-score: lines that are in another order.
    let wanted = "This enemy town. I'll enter: if he slay me,\nintended fire your city is ready to flame in, with\nLike one that means his proper harm, in manacles,\nOur substitutes at home shall have blank charters;\nBut none can cure their harms by wailing them.";
    let written = "fire intended hurts to thence; in, with\ndeserve enemy town. I'll enter: patricians he slay me,\nBut none can cure their harms wailing them.\nLike one that means his proper harm, in manacles,";
    for (name, expected) in [
        ("rougeLsum", [0.8529411764705882, 0.6304347826086957, 0.725]),
        ("rougeL", [0.5, 0.3695652173913043, 0.425]),
    ] {
        let got = Rouge::named(name, true).unwrap().of(written, wanted);
        got.iter().zip(expected).for_each(|(got, expected)| near(*got, expected, &name));
    }
    assert!(["rouge0", "rougeX", "rouge12", "bleu"].iter().all(|name| Rouge::named(name, false).is_none()));
}

#[test]
fn stems_are_those_of_nltk() {
    let golden = golden("text");
    let stems = golden["stems"].as_object().unwrap();
    let wrong: Vec<_> = stems
        .iter()
        .filter(|(word, expected)| stem(word) != expected.as_str().unwrap())
        .map(|(word, _)| (word, stem(word)))
        .collect();
    assert!(stems.len() > 200 && wrong.is_empty(), "{wrong:?}");
}

#[test]
fn texts_without_a_reference_or_of_another_number_are_refused() {
    let none: [Vec<&str>; 0] = [];
    assert!(matches!(corpus(&Bleu::default(), &[] as &[&str], &none), Err(Error::Empty)));
    assert!(matches!(corpus(&Bleu::default(), &["a"], &none), Err(Error::Length { .. })));
    assert!(matches!(
        corpus(&Ter::default(), &["a", "b"], &[vec!["a"], vec![]]),
        Err(Error::NoReference { number: 2 })
    ));
    assert!(matches!(Tokenization::named("13b"), Err(Error::Setting { .. })));
    for (name, value) in
        [("expo", None), ("floor", Some(-1.0)), ("add-k", Some(f64::NAN)), ("exp", Some(1.0))]
    {
        assert!(matches!(Smoothing::named(name, value), Err(Error::Setting { .. })), "{name}");
    }
}

#[test]
fn figures_of_classes_are_those_of_scikit_learn() {
    let golden = golden("classification");
    let numbers = |key: &str| -> Vec<f64> {
        golden[key].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let of = |key: &str| golden[key].as_f64().unwrap();
    let pairs: Vec<[usize; 2]> =
        numbers("y").into_iter().zip(numbers("p")).map(|(y, p)| [y as usize, p as usize]).collect();
    near(classes::accuracy(&pairs), of("accuracy"), &"accuracy");
    near(classes::macro_f1(&pairs, 4), golden["f1"]["macro"].as_f64().unwrap(), &"macro F1");
    near(classes::weighted_f1(&pairs, 4), golden["f1"]["weighted"].as_f64().unwrap(), &"weighted F1");
    // Where each has one class, micro F1 is accuracy.
    near(classes::accuracy(&pairs), golden["f1"]["micro"].as_f64().unwrap(), &"micro F1");
    let [precision, recall] = classes::macro_precision_recall(&pairs, 4);
    near(precision, of("precision_macro"), &"precision");
    near(recall, of("recall_macro"), &"recall");
    near(classes::matthews(&pairs, 4), of("mcc"), &"Matthews");
    let confusion: Vec<Vec<usize>> = serde_json::from_value(golden["confusion"].clone()).unwrap();
    assert_eq!(classes::confusion(&pairs, 4), confusion);
    let both: Vec<[f64; 2]> = numbers("xs").into_iter().zip(numbers("ys")).map(|(x, y)| [x, y]).collect();
    near(correlation::pearson(&both), of("pearson"), &"Pearson");
    near(correlation::spearman(&both), of("spearman"), &"Spearman");
    let answers: Vec<(f64, bool)> = numbers("binary_score")
        .into_iter()
        .zip(numbers("binary_y"))
        .map(|(score, y)| (score, y == 1.0))
        .collect();
    near(classes::area(&answers), of("auc"), &"area");
    near(classes::average_precision(&answers), of("average_precision"), &"average precision");
    near(classes::log_loss(&answers), of("log_loss"), &"log loss");
    // Equal scores: of four pairs of right and wrong two are equal and one is the other way round.
    near(classes::area(&[(0.5, true), (0.5, false), (0.1, false), (0.1, true)]), 0.5, &"ties");
}

#[test]
fn who_is_sure_and_wrong_is_badly_calibrated() {
    let answers = [(0.95, true), (0.95, false), (0.7, true), (0.62, true), (0.1, false), (0.0, false)];
    let bins = calibration::reliability(&answers, 10);
    assert_eq!(bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [2, 0, 0, 0, 0, 0, 2, 0, 0, 2]);
    let (first, last) = (bins[0], bins[9]);
    near(first.confidence, 0.05, &first);
    assert!((last.above, last.up_to, last.accuracy) == (0.9, 1.0, 0.5), "{last:?}");
    // (2 * |0 - 0.05| + 2 * |1 - 0.66| + 2 * |0.5 - 0.95|) / 6.
    near(calibration::expected_error(&bins), (0.1 + 0.68 + 0.9) / 6.0, &"error");
    near(calibration::brier(&[(vec![0.7, 0.3], 0), (vec![0.2, 0.8], 0)]), (0.18 + 1.28) / 2.0, &"Brier");
}

#[test]
fn what_repeats_is_counted() {
    near(diversity::distinct(&["a b a", "b a"], 1), 0.4, &"distinct-1");
    // a b, b a, b a.
    near(diversity::distinct(&["a b a", "b a"], 2), 2.0 / 3.0, &"distinct-2");
    near(diversity::repetition(&["a b a b", "c"], 2), 1.0 / 3.0, &"repetition");
    assert_eq!((diversity::distinct(&["a"], 2), diversity::repetition(&[""], 1)), (1.0, 0.0));
}
