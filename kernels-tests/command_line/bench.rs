//! `kiln bench` as a user meets it.

use super::{Bench, Done};
use serde_json::Value;

/// Small work on the processor, as JSON; `more` comes last.
fn bench_softmax(bench: &Bench, more: &[&str]) -> Done {
    let arguments = ["bench", "kernels", "--only", "softmax", "--seconds", "0.05", "--device", "cpu"];
    bench.kiln(&[&arguments[..], more].concat())
}

#[test]
fn a_bench_of_kernels_gives_figures_that_agree_with_each_other() {
    let bench = Bench::new();
    let report =
        bench_softmax(&bench, &["--json", "-o", "kept.json", "--shape", "64x96", "--shape", "7x1"]).json();
    let kept: Value = serde_json::from_slice(&std::fs::read(bench.path("kept.json")).unwrap()).unwrap();
    assert_eq!((&report, &report["bench"]), (&kept, &"kernels".into()));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "forward and gradient, at two shapes");
    for row in rows {
        let ms = |key: &str| row["ms"][key].as_f64().unwrap();
        assert!(0.0 < ms("min") && ms("min") <= ms("low") && ms("low") <= ms("median"), "{row}");
        assert!(ms("median") <= ms("high") && ms("high") <= ms("max") && ms("max") < 1e4, "{row}");
        let rate = row["bytes"].as_f64().unwrap() / (1e6 * ms("median"));
        assert!((row["gbs"].as_f64().unwrap() / rate - 1.0).abs() < 1e-9, "{row}");
        let roof = report["roofs"]["copy_gbs"].as_f64().unwrap();
        assert!((row["of_copy"].as_f64().unwrap() * roof / rate - 1.0).abs() < 1e-9, "{row}");
    }
    // Read and written once: two tables of 64 x 96 floats.
    assert_eq!(rows[0]["bytes"], 2.0 * 64.0 * 96.0 * 4.0);
}

#[test]
fn a_bench_runs_every_variant_on_an_adapter_or_says_that_there_is_none() {
    let bench = Bench::new();
    let adapters = bench.kiln(&["devices", "--json"]).json()["adapters"].as_array().unwrap().len();
    let arguments = [
        "bench",
        "kernels",
        "--only",
        "softmax",
        "--shape",
        "33x40",
        "--seconds",
        "1",
        "--json",
        "--device",
        "0",
    ];
    let done = bench.kiln(&arguments);
    if adapters == 0 {
        return done.refused(1, &["no GPU adapter found", "hint"]);
    }
    let report = done.json();
    let roof = |key: &str| report["roofs"][key].as_f64().unwrap();
    assert!(roof("multiply_gflops") > 0.1 && roof("copy_gbs") > 0.01, "{report}");
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["problem"].is_null() && row["ms"]["median"].as_f64().unwrap() > 0.0));
    let fastest = rows.iter().filter(|row| row["fastest"] == true).count();
    let shapes = if report["device"]["f16"] == true { 4 } else { 2 };
    assert_eq!(fastest, shapes, "one of each operator and type: {report}");
    assert!(rows.len() > fastest, "variants beside the fastest");
}

#[test]
fn a_bench_shape_that_does_not_fit_is_a_row_that_says_why() {
    let bench = Bench::new();
    let done = bench_softmax(&bench, &["--json", "--shape", "1000000x1000000", "--shape", "3x5"]);
    let report = done.json();
    let problem = report["rows"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("does not fit: needs") && problem.contains("GiB"), "{problem}");
    assert!(report["rows"][0]["ms"].is_null() && !report["rows"][1]["ms"].is_null());
    bench_softmax(&bench, &["--shape", "1073741824x1073741824"]).refused_aloud(1, "nothing was measured");
    let products = |shape: &'static str| {
        let arguments = ["bench", "kernels", "--only", "matmul_nn", "--device", "cpu", "--shape", shape];
        bench.kiln(&arguments)
    };
    let outer = products("1073741824x1073741824x1");
    assert!(outer.out.contains("does not fit") && outer.code == Some(1), "{} {}", outer.out, outer.err);
    products("64x64").refused(2, &["MxNxK", "hint"]);
    products("64x-1x3").refused(2, &["expected sizes"]);
    bench.kiln(&["bench", "kernels", "--only", "matmull"]).refused(2, &["matmul_nn"]);
    bench.kiln(&["bench", "kernels", "--seconds", "0"]).refused(2, &["above 0"]);
    bench_softmax(&bench, &["--dtype", "f16"]).refused(2, &["f32", "hint"]);
    let adamw = ["bench", "kernels", "--only", "adamw", "--device", "cpu", "--shape", "65"];
    let adamw = bench.kiln(&adamw);
    assert!(adamw.code == Some(1) && adamw.out.contains("a multiple of 64"), "{}", adamw.out);
}

#[test]
fn a_bench_of_training_runs_the_steps_that_were_asked_for() {
    let bench = Bench::new();
    let arguments = ["bench", "train", "nano-small", "--device", "cpu", "--steps", "2", "--json"];
    let report = bench.kiln(&arguments).json();
    let row = &report["rows"][0];
    let number = |key: &str| row[key].as_f64().unwrap();
    let ms = row["ms"]["median"].as_f64().unwrap();
    assert_eq!((&row["ms"]["samples"], &report["bench"]), (&2.into(), &"train".into()));
    assert!((number("tokens_per_second") * ms / (1e3 * 12.0 * 64.0) - 1.0).abs() < 1e-9, "{row}");
    // Six operations a weight and token, less what the embeddings look up, and attention besides.
    let rule = 6.0 * number("weights") * 12.0 * 64.0;
    assert!((0.9..1.3).contains(&(number("flops") / rule)), "{row}");
    assert!(number("held_bytes") > 16.0 * number("weights"), "weights, gradients and two moments: {row}");
    // Untrained weights over 65 symbols.
    assert!((number("loss") - 65f64.ln()).abs() < 0.5, "{row}");
    assert!(row["gradient_ms"]["median"].as_f64().unwrap() > 0.0);
    bench
        .kiln(&["bench", "train", "nano-smal"])
        .refused(2, &["there is no model", "did you mean nano-small"]);
    assert!(std::fs::read_dir(bench.folder.path()).unwrap().count() == 2, "no files but those of the test");
}

#[test]
fn two_bench_reports_are_compared_row_by_row() {
    let bench = Bench::new();
    let row = |variant: &str, ms: f64| {
        let ms = serde_json::json!({ "low": 0.9 * ms, "median": ms, "high": 1.1 * ms });
        serde_json::json!({ "family": "softmax", "shape": "3x5", "dtype": "f32", "variant": variant, "ms": ms })
    };
    let write = |name: &str, kind: &str, device: &str, rows: Value| {
        let report = serde_json::json!({ "bench": kind, "build": "release", "device": { "name": device }, "rows": rows });
        bench.write(name, report.to_string());
    };
    let rows = |times: [f64; 3]| {
        let [a, b, c] = times;
        let unfit = serde_json::json!({ "family": "softmax", "variant": null, "problem": "does not fit" });
        Value::from(vec![row("a", a), row("b", b), row("c", c), unfit])
    };
    write("before.json", "kernels", "x", rows([1.0, 2.0, 3.0]));
    write("after.json", "kernels", "x", rows([0.5, 8.0, 3.1]));
    write("elsewhere.json", "kernels", "y", Value::from(vec![row("a", 1.0)]));
    write("steps.json", "train", "x", Value::from(Vec::<Value>::new()));
    write("foreign.json", "kernels", "x", Value::from(vec![row("z", 1.0)]));
    bench.write("broken.json", "{ \"bench\": \"kernels\", ");
    bench.write("other.json", "[1, 2]");
    bench.write(
        "hollow.json",
        "{ \"bench\": \"kernels\", \"device\": { \"name\": \"x\" }, \"rows\": [{ \"ms\": {} }] }",
    );
    let compare = |before: &str, after: &str| bench.kiln(&["bench", "compare", before, after, "--json"]);

    let found = compare("before.json", "after.json").json();
    let verdicts: Vec<&str> =
        found["rows"].as_array().unwrap().iter().map(|row| row["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["faster", "slower", "within the spread"]);
    assert_eq!((&found["rows"][1]["ratio"], &found["warnings"]), (&4.0.into(), &Value::Array(vec![])));
    let text = bench.kiln(&["bench", "--compare", "before.json", "after.json"]).fine().out;
    assert!(text.contains("3 rows: 1 faster, 1 slower"), "{text}");
    let far = compare("before.json", "elsewhere.json").json();
    assert!(far["warnings"][0].as_str().unwrap().contains("devices differ: x, then y"), "{far}");
    assert_eq!(far["in_one_only"].as_array().unwrap().len(), 2);

    compare("before.json", "steps.json").refused(1, &["different kinds: kernels and train", "hint"]);
    compare("before.json", "foreign.json").refused(1, &["no row in common", "hint"]);
    compare("before.json", "broken.json").refused(1, &["broken.json", "not JSON", "hint"]);
    compare("before.json", "other.json").refused(1, &["other.json", "`bench` is missing"]);
    compare("hollow.json", "before.json").refused(1, &["row 0 is incomplete"]);
    compare("absent.json", "before.json").refused(1, &["absent.json"]);
    bench.kiln(&["bench", "--compare", "before.json"]).refused(2, &["--compare"]);
}
