//! `kiln metrics`.

use super::Bench;

#[test]
fn files_are_scored_by_their_references_and_compared_over_the_same_draws() {
    let bench = Bench::new();
    let wanted: String = (0..40).map(|n| format!("the cat number {n} sat on the mat\n")).collect();
    bench.write("wanted.txt", &wanted);
    bench.write("also.txt", wanted.replace("sat", "lay"));
    bench.write("good.txt", wanted.replace("mat", "rug"));
    bench.write("bad.txt", wanted.replace("the", "a").replace("sat", "stood"));
    let files =
        ["metrics", "--hypotheses", "good.txt", "--hypotheses", "bad.txt", "--references", "wanted.txt"];
    let json =
        bench.kiln(&[&files[..], &["--references", "also.txt", "--bleu", "--ter", "--json"]].concat()).json();
    let bleu = |at: usize| json["files"][at]["bleu"]["value"].as_f64().unwrap();
    // 7 of 8 words, 6 of 7 pairs, 5 of 6, 4 of 5: runs that end in the wrong word.
    let expected = 100.0 * (7.0 / 8.0 * 6.0 / 7.0 * 5.0 / 6.0 * 4.0 / 5.0f64).powf(0.25);
    assert!((bleu(0) - expected).abs() < 1e-9 && bleu(1) < 20.0, "{json}");
    assert_eq!(json["files"][0]["bleu"]["precisions"][0].as_f64(), Some(87.5));
    let signature = json["signatures"]["bleu"].as_str().unwrap();
    assert!(signature.starts_with("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:"), "{signature}");
    // Of 8 words one or three are wrong.
    let ter = &json["differences"][1];
    assert_eq!((ter["metric"].as_str(), ter["against"].as_str()), (Some("ter"), Some("good.txt")));
    assert!((ter["value"].as_f64().unwrap() - 25.0).abs() < 1e-9 && ter["p_value"].as_f64().unwrap() < 0.01);
    let table = bench.kiln(&files).fine().out;
    for part in ["chrf++", "rougeLsum", "distinct-2", "bad.txt less good.txt", "p = 0.0010  worse"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn files_that_do_not_fit_and_settings_that_are_none_are_refused() {
    let bench = Bench::new();
    bench.write("two.txt", "a\nb\n");
    bench.write("three.txt", "a\nb\nc\n");
    let of =
        |more: &[&str]| bench.kiln(&[&["metrics", "--hypotheses", "two.txt", "--references"], more].concat());
    of(&["three.txt"]).refused(2, &["three.txt has 3 lines, two.txt has 2"]);
    of(&["none.txt"]).refused(1, &["no such file"]);
    of(&["two.txt", "--tokenize", "13b"]).refused(2, &["tokenization is 13b", "intl"]);
    of(&["two.txt", "--smooth", "exp", "--smooth-value", "1"]).refused(2, &["smoothing value"]);
    bench.write("gap.txt", "a\n\n");
    of(&["gap.txt", "--references", "gap.txt"]).refused(2, &["line 2 has no reference"]);
}
