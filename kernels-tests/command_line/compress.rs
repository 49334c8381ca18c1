//! `kiln compress`, `kiln sweep` and `kiln report`: recipes of passes.

use super::Bench;
use kiln::formats::gguf::Gguf;
use serde_json::Value;

/// A folder with a model that was trained for a moment, and a recipe that trains on and makes codes.
fn trained() -> Bench {
    let bench = Bench::new();
    bench.kiln(&["train", "tiny.toml", "--device", "cpu"]).fine();
    bench.write(
        "recipe.toml",
        "[calibration]\ntext = [\"text.txt\"]\nwindows = 8\n[data]\ntext = [\"text.txt\"]\n[[pass]]\nkind = \"smoothquant\"\n\
         [[pass]]\nkind = \"train\"\n[pass.train]\nsteps = 4\nbatch = 4\ncontext = 16\n[[pass]]\nkind = \"quantize\"\nscheme = \"int8\"\n",
    );
    bench
}

fn read(bench: &Bench, name: &str) -> Vec<u8> {
    std::fs::read(bench.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn a_recipe_runs_to_the_end_leaves_a_record_and_gives_the_same_bytes_again() {
    let bench = trained();
    let compress = |output: &str, more: &[&str]| {
        let start = ["compress", "run", "-r", "recipe.toml", "--device", "cpu", "-o", output];
        bench.kiln(&[&start, more].concat())
    };
    let plan = compress("one", &["--dry-run"]).fine().out;
    assert!(plan.contains("pass 2   train") && plan.contains("needs training text"), "{plan}");
    assert!(!bench.path("one").exists() && !bench.path("one.passes").exists());
    compress("one", &["--keep-passes"]).fine();
    compress("two", &[]).fine();
    assert!(!bench.path("two.passes").exists(), "what lay between the passes goes once all are done");
    for file in ["model.safetensors", "config.json", "compression.json"] {
        assert_eq!(read(&bench, &format!("one/{file}")), read(&bench, &format!("two/{file}")), "{file}");
    }
    let record: Value = serde_json::from_slice(&read(&bench, "one/compression.json")).unwrap();
    let kinds: Vec<&str> =
        record["passes"].as_array().unwrap().iter().map(|p| p["pass"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["smoothquant", "train", "quantize"]);
    assert_eq!(record["recipe"]["pass"][2]["method"], "rtn", "defaults are filled in");
    // With another last pass the first two are not done again.
    let recipe = String::from_utf8(read(&bench, "recipe.toml")).unwrap();
    bench.write("recipe.toml", recipe.replace("int8", "int4-g32"));
    std::fs::rename(bench.path("one.passes"), bench.path("three.passes")).unwrap();
    compress("three", &[]).refused(2, &["three.passes is there", "--resume"]);
    let resumed = compress("three", &["--resume"]).fine();
    assert!(resumed.err.contains("passes 1 to 2 are done already"), "{}", resumed.err);
    assert!(!resumed.err.contains("pass 2 of 3"), "{}", resumed.err);
    compress("four", &[]).fine();
    assert_eq!(read(&bench, "three/model.safetensors"), read(&bench, "four/model.safetensors"));
}

#[test]
fn a_gguf_file_holds_the_record_and_a_second_recipe_keeps_the_first_ones() {
    let bench = trained();
    bench.write("half.toml", "[[pass]]\nkind = \"prune\"\nsparsity = 0.5\n");
    bench.write("codes.toml", "[[pass]]\nkind = \"quantize\"\nscheme = \"Q8_0\"\n");
    bench.kiln(&["compress", "run", "-r", "half.toml", "-o", "half"]).fine();
    let told = bench.kiln(&["compress", "half", "-r", "codes.toml", "-o", "codes.gguf"]).fine().out;
    assert!(told.contains("codes.gguf") && told.contains("kiln.compression"), "{told}");
    let file = Gguf::open(&bench.path("codes.gguf")).unwrap();
    let record: Value = serde_json::from_str(file.metadata().text("kiln.compression").unwrap()).unwrap();
    assert_eq!(record["passes"][0]["pass"], "quantize");
    assert_eq!(record["before"]["passes"][0]["pass"], "prune");
    let hash = |name: &str| record[name]["recipe_sha256"].as_str().map(str::len);
    assert_eq!((record["recipe_sha256"].as_str().map(str::len), hash("before")), (Some(64), Some(64)));
}

#[test]
fn recipes_that_cannot_work_are_refused_before_anything_is_written() {
    let bench = trained();
    let refused = |text: &str, parts: &[&str]| {
        bench.write("wrong.toml", text);
        let start = ["compress", "run", "-r", "wrong.toml", "--device", "cpu", "-o", "out"];
        bench.kiln(&start).refused(2, parts);
        assert!(!bench.path("out").exists() && !bench.path("out.passes").exists());
    };
    let quantize = "[[pass]]\nkind = \"quantize\"\nscheme = \"int8\"\n";
    refused(
        &format!("{quantize}[[pass]]\nkind = \"train\"\n"),
        &["pass 2 `train` changes weights", "`quantize`"],
    );
    refused("[[pass]]\nkind = \"train\"\n", &["`train` needs a text to train on", "[data] text"]);
    refused("[[pass]]\nkind = \"smoothquant\"\n", &["needs a text to calibrate with"]);
    refused("[[pass]]\nkind = \"smoothquant\"\nalpha = 2.0\n", &["alpha is 2, expected 0 to 1"]);
    refused("[[pass]]\nkind = \"qantize\"\n", &["did you mean `quantize`"]);
    refused(&format!("sede = 1\n{quantize}"), &["did you mean `seed`"]);
    bench.write(
        "wrong.toml",
        "[data]\ntext = [\"text.txt\"]\n[[pass]]\nkind = \"train\"\n[pass.train]\nstep = 3\n",
    );
    let done = bench.kiln(&["compress", "run", "-r", "wrong.toml", "--device", "cpu", "-o", "out"]);
    done.refused(2, &["pass 1 `train` (after: none)", "did you mean `train.steps`"]);
    assert!(!bench.path("out").exists());
}

#[test]
fn a_sweep_makes_every_point_once_and_its_report_is_a_table_a_csv_and_a_page() {
    let bench = trained();
    bench.write("codes.toml", "[[pass]]\nkind = \"quantize\"\nscheme = \"int8\"\n");
    let sweep = |grid: &str| {
        let start =
            ["sweep", "run", "-r", "codes.toml", "--data", "text.txt", "-o", "sweep", "--device", "cpu"];
        bench.kiln(&[&start[..], &["--figures-only", "--grid", grid]].concat())
    };
    let done = sweep("scheme=int8,int3").fine();
    assert_eq!(done.out.lines().count(), 4, "{}", done.out);
    assert!(done.out.lines().nth(1).unwrap().starts_with("int3"), "smallest first: {}", done.out);
    let again = sweep("scheme=int8,int3,nf4").fine();
    assert_eq!(again.err.matches("is there already").count(), 2, "{}", again.err);
    let csv = String::from_utf8(read(&bench, "sweep/report.csv")).unwrap();
    assert_eq!(csv.lines().count(), 4, "{csv}");
    let page = String::from_utf8(read(&bench, "sweep/report.html")).unwrap();
    assert!(page.contains("Size against loss") && page.contains("scheme=nf4"), "{page}");
    assert!(!page.contains("http://") && !page.contains("https://"), "the page needs nothing beside itself");
    let all = bench.kiln(&["report", "sweep", "--json"]).json();
    assert_eq!(all.as_array().unwrap().len(), 3);
    assert!(all[0]["loss_b"]["value"].as_f64().unwrap() > 0.0);
    sweep("sparsity=0.5").refused(2, &["no pass has the key `sparsity`", "pass.1.sparsity"]);
    bench.kiln(&["report", "run"]).refused(2, &["holds no finished run", "kiln sweep"]);
}

#[test]
fn the_recipes_that_come_with_kiln_are_recipes() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (place, text) = (path.display().to_string(), std::fs::read_to_string(&path).unwrap());
        assert!(text.starts_with("# "), "{place} does not begin with what it is for");
        if text.contains("[[pass]]") {
            kiln::compress::Recipe::parse(&place, &text).unwrap_or_else(|error| panic!("{error}"));
        } else {
            kiln::train::recipe::Recipe::from_text(&text, &place, &[])
                .unwrap_or_else(|error| panic!("{error}"));
        }
        count += 1;
    }
    assert!(count > 3, "{count} recipes");
    let readme = include_str!("../../README.md");
    let blocks = readme.split("```toml\n").skip(1).filter_map(|block| Some(block.split_once("```")?.0));
    let passes: Vec<&str> = blocks.filter(|block| block.contains("[[pass]]")).collect();
    assert!(!passes.is_empty());
    for text in passes {
        kiln::compress::Recipe::parse("README.md", text).unwrap_or_else(|error| panic!("{error}"));
    }
}
