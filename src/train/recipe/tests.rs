//! The recipe as a whole: what is read, what is refused, and with which words.

use super::*;
use crate::train::schedule::{Curve, WarmupRule};

/// The recipe of the README and of the issue it was built from.
const FRAME: &str = r#"
    [model]
    preset = "gpt-nano"
    [data]
    text = ["input.txt"]
    tokenizer = "char"
    validation = 0.1
    windows = "batches.safetensors"
    [train]
    steps = 2000
    batch = 12
    context = 64
    optimizer = { kind = "adamw", betas = [0.9, 0.99], eps = 1e-8, weight_decay = 0.1 }
    learning_rate = { curve = "cosine", peak = 1e-3, floor = 1e-4, warmup = 100 }
    clip = 1.0
    evaluate = { every = 250, batches = 20 }
    seed = 1337
    [run]
    device = "gpu"
    folder = "runs/shakespeare"
"#;

fn read(text: &str) -> Result<Recipe, Error> {
    Recipe::from_text(text, "r.toml", &[])
}

fn message(text: &str) -> String {
    read(text).expect_err(text).to_string()
}

#[test]
fn an_empty_recipe_is_the_frame_on_the_built_in_corpus() {
    let (empty, frame) = (read("").unwrap(), read(FRAME).unwrap());
    assert_eq!(empty.model, frame.model);
    assert_eq!(empty.train, frame.train);
    assert!(empty.data.text.is_empty());
    assert_eq!(frame.data.text, [Source::of("input.txt")]);
}

#[test]
fn the_frame_says_what_it_says() {
    let Recipe {
        model: Model::Build(shape),
        data,
        train,
        run,
        precision,
        memory,
        quantize,
        distill,
        dpo,
        adapters,
        tasks,
        prune,
    } = read(FRAME).unwrap()
    else {
        panic!("a preset builds");
    };
    assert_eq!((shape.layers, shape.heads, shape.width, shape.context), (4, 4, 128, 64));
    assert_eq!((shape.family.as_str(), shape.hidden), ("gpt2", 512));
    assert_eq!((train.steps, train.batch, train.context), (2000, 12, Some(64)));
    assert_eq!(train.optimizer.rule, Rule::Adamw { betas: [0.9, 0.99], eps: 1e-8 });
    assert_eq!((train.optimizer.decay.weight_decay, train.optimizer.decay.decoupled), (0.1, true));
    let curve = Curve::Cosine { floor: 1e-4, until: 2000, cycles: 1 };
    let warmup_rule = WarmupRule::Nanogpt;
    assert_eq!(train.learning_rate, Schedule { peak: 1e-3, warmup: 100, warmup_rule, curve });
    assert_eq!((train.clip, train.seed), (Clip::Norm(1.0), 1337));
    assert_eq!(train.evaluate, Evaluate { every: 250, batches: 20 });
    assert_eq!((data.tokenizer, data.validation), (Tokenizer::Char, Validation::Share(0.1)));
    assert_eq!((precision.storage, precision.loss_scale), (Storage::F32, LossScale::NONE));
    assert!(
        quantize.is_none()
            && distill.is_none()
            && dpo.is_none()
            && adapters.is_empty()
            && tasks.is_empty()
            && prune.is_none()
            && precision.int8.is_empty()
    );
    assert_eq!(memory, Memory { recompute: Recompute::None, budget: None });
    assert_eq!((run.device.as_str(), run.folder), ("gpu", PathBuf::from("runs/shakespeare")));
}

#[test]
fn a_preset_brings_its_family_and_another_width_brings_its_own_sizes() {
    let shape = |text: &str| match read(text).unwrap().model {
        Model::Build(shape) => shape,
        Model::Load { .. } => panic!("a preset builds"),
    };
    let smol = shape("[model]\npreset = \"smollm2-135m\"");
    assert_eq!((smol.family.as_str(), smol.activation.as_str()), ("llama", "silu"));
    assert_eq!(
        (smol.layers, smol.heads, smol.kv_heads, smol.width, smol.hidden),
        (30, 9, Some(3), 576, 1536)
    );
    assert_eq!(
        (smol.vocabulary, smol.rope_theta, smol.tie, smol.bias),
        (Some(49152), Some(1e5), true, false)
    );
    let small =
        shape("[model]\npreset = \"smollm2-135m\"\nlayers = 2\nheads = 4\nwidth = 64\nvocabulary = 300");
    assert_eq!((small.layers, small.heads, small.kv_heads), (2, 4, None));
    assert_eq!((small.hidden, small.vocabulary), (192, Some(300)));
    let llama = shape("[model]\nfamily = \"llama\"\nlayers = 2\nheads = 4\nwidth = 64\ncontext = 32");
    assert_eq!((llama.hidden, llama.activation.as_str(), llama.tie), (192, "silu", false));
    assert_eq!(shape("[model]\nwidth = 256").hidden, 1024);
}

#[test]
fn a_resolved_recipe_written_and_read_is_the_same_recipe() {
    for text in [
        "",
        FRAME,
        "[model]\nload = \"models/gpt2\"\ndropout = 0.1",
        "[model]\nload = \"models/gpt2\"\nkeep_layers = [0, 3]",
        "[model]\nload = \"models/gpt2\"\n[train]\ncontext = 128\nclip = { value = 0.5 }",
        "[model]\npreset = \"smollm2-135m\"\n[train]\ncontext = 128",
        "[model]\nfamily = \"qwen3\"\nlayers = 2\nheads = 4\nkv_heads = 2\nhead_size = 16\nwidth = 30\nhidden = 64\n\
         context = 32\nrope_theta = 5e5\nwindow = 16\nvocabulary = 1000\ntie = true",
        "[model]\nfamily = \"mlp\"\nlayers = 3\nheads = 1\nwidth = 7\nhidden = 9\ncontext = 5\nbias = false",
        "[data]\ntokenizer = \"bpe:4096\"\ntext = \"a \\\"b\\\".txt\"\nvalidation = 0",
        "[data]\ntokenizer = \"t/tokenizer.json\"\n[run]\ndevice = 1\nlog.every = 10\nsave.keep = 1",
        "[train]\noptimizer = \"sgd\"\nlearning_rate = 0.1\nclip = \"none\"\n[precision]\nstorage = \"f16\"",
        "[precision]\nstorage = \"bf16\"",
        "[precision]\nloss_scale = 512",
        "[precision]\nloss_scale = { first = 256, interval = 7 }",
        "[train.optimizer]\nkind = \"sgd\"\nmomentum = 0.9\nnesterov = true\nno_decay = [\"*.bias\"]",
        "[train]\noptimizer = { kind = \"lamb\", weight_decay = 0.3333333333333333 }",
        "[train]\noptimizer = { kind = \"adam\", eps = 1e-30, decoupled = true, no_decay = [] }",
        "[train]\noptimizer = \"gradient_descent\"\nlearning_rate = { peak = 3e-4 }\nsteps = 50",
        "[train]\nlearning_rate = { curve = \"linear\", power = 2, until = 9, floor = 1e-7 }",
        "[train]\nlearning_rate = { curve = \"cosine-restarts\", every = 9, growth = 2 }",
        "[train]\nlearning_rate = { curve = \"step\", every = 7, factor = 0.1, warmup_rule = \"huggingface\" }",
        "[train]\nlearning_rate = { curve = \"milestones\", at = [5, 20], factor = 0.3 }",
        "[train]\nlearning_rate = { curve = \"exponential\", factor = 0.93 }",
        "[train]\nlearning_rate = { curve = \"one-cycle\", peak = 5e-3 }",
        "[train]\nlearning_rate = { curve = \"inverse-sqrt\", warmup = 10 }",
        "[train]\nlearning_rate = { curve = \"plateau\", patience = 2, cooldown = 1 }",
        "[train]\nlearning_rate = { curve = \"constant\" }\nlabel_smoothing = 0.1\naccumulate = 4",
        "[distill]\nteacher = \"runs/large\"",
        "[distill]\nteacher = \"t\"\nkl = 1\non_policy = { from = 0.1, to = 0.6, until = 50 }\nsequence = 0.4\nprompt = 3",
        "[distill]\nteacher = \"t\"\nce = 1\nkl = 0\nsequence = 1\nsampling_temperature = 0",
        "[distill]\nteacher = \"runs/large\"\ncache = \"said\"\ntop_k = 5",
        "[distill]\nteacher = \"t\"\nteacher_precision = \"int8\"\njsd = 1\nbeta = 0.1\nce = { from = 0, to = 1, until = 9 }\n\
         hidden = 0.5\nlayers = [[1, 2], [2, 4]]\nrelation_heads = 3",
    ] {
        let recipe = read(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let written = recipe.to_toml();
        let again = read(&written).unwrap_or_else(|error| panic!("{written}\n{error}"));
        assert_eq!(recipe, again, "{written}");
        assert_eq!(written, again.to_toml());
    }
}

#[test]
fn a_recipe_saved_in_a_run_folder_is_the_one_that_ran() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = read(FRAME).unwrap();
    let path = recipe.save(&folder.path().join("runs/new")).unwrap();
    assert_eq!(RawRecipe::load(&path).unwrap().resolve().unwrap(), recipe);
}

#[test]
fn an_unknown_key_names_its_path_and_line_and_the_nearest_name() {
    for (text, expected) in [
        (
            "[train]\n\nstepz = 3",
            "r.toml, line 3: unknown key `train.stepz`\n  hint: did you mean `train.steps`?",
        ),
        (
            "[train]\ndropout = 0.1",
            "line 2: unknown key `train.dropout`\n  hint: did you mean `model.dropout`?",
        ),
        ("steps = 3", "line 1: unknown key `steps`\n  hint: did you mean `train.steps`?"),
        ("[trian]\nsteps = 3", "line 1: unknown key `trian`\n  hint: did you mean `train`?"),
        (
            "[train]\noptimizer = { kind = \"adamw\", beta = [0.9, 0.99] }",
            "line 2: unknown key `train.optimizer.beta`\n  hint: did you mean `train.optimizer.betas`?",
        ),
        (
            "[train.optimizer]\nkind = \"adamw\"\nmomentum = 0.9",
            "line 3: unknown key `train.optimizer.momentum`\n  hint: known here: betas, eps, kind",
        ),
        (
            "[train.learning_rate]\ncurve = \"step\"\nevery = 3\nfactor = 0.5\ncycles = 2",
            "line 5: unknown key `train.learning_rate.cycles`",
        ),
        ("[model]\nkvheads = 3", "`model.kvheads`\n  hint: did you mean `model.kv_heads`?"),
        ("[run]\nsave = { evry = 3 }", "`run.save.evry`\n  hint: did you mean `run.save.every`?"),
    ] {
        let message = message(text);
        assert!(message.contains(expected), "{text}\n{message}");
    }
}

#[test]
fn a_wrong_type_says_what_was_expected_and_what_came() {
    for (text, expected) in [
        (
            "[train]\nsteps = \"many\"",
            "line 2: `train.steps` has the wrong type: expected a whole number, got the text \"many\"",
        ),
        ("[train]\nsteps = 1.5", "expected a whole number, got the number 1.5"),
        ("[train]\nlearning_rate = \"fast\"", "expected a number or a table with a curve"),
        ("[train]\nclip = true", "expected a number, \"none\" or a table, got true"),
        (
            "[train.optimizer]\nbetas = [0.9]",
            "`train.optimizer.betas` has the wrong type: expected a list of two numbers, got the list [0.9]",
        ),
        ("train = 3", "`train` has the wrong type: expected a table, got the number 3"),
        ("[model]\nbias = 1", "expected true or false"),
        ("[data]\ntext = [1]", "expected a text or a table"),
    ] {
        let message = message(text);
        assert!(message.contains(expected), "{text}\n{message}");
    }
}

#[test]
fn an_impossible_value_is_refused_with_its_path_and_a_hint() {
    for (text, path) in [
        ("[train]\nbatch = 0", "train.batch"),
        ("[train]\nsteps = 0", "train.steps"),
        ("[train]\nsteps = -5", "train.steps"),
        ("[train]\ncontext = 65", "train.context"),
        ("[train]\naccumulate = 0", "train.accumulate"),
        ("[precision]\nstorage = \"f8\"", "precision.storage"),
        ("[precision]\nloss_scale = 0", "precision.loss_scale"),
        ("[precision]\nloss_scale = \"static\"", "precision.loss_scale"),
        ("[precision]\nloss_scale = { backoff = 2 }", "precision.loss_scale.backoff"),
        ("[train]\nlabel_smoothing = 1.0", "train.label_smoothing"),
        ("[train]\nlearning_rate = -1e-3", "train.learning_rate"),
        ("[train]\nlearning_rate = nan", "train.learning_rate"),
        ("[train]\nclip = 0", "train.clip"),
        ("[train]\nclip = { norm = 1, value = 1 }", "train.clip.value"),
        ("[train]\nevaluate = { every = 0 }", "train.evaluate.every"),
        ("[train]\noptimizer = \"adan\"", "train.optimizer"),
        ("[train]\noptimizer = { betas = [0.9, 1.0] }", "train.optimizer.betas"),
        ("[train]\noptimizer = { eps = 0 }", "train.optimizer.eps"),
        ("[train]\noptimizer = { weight_decay = -0.1 }", "train.optimizer.weight_decay"),
        ("[train]\noptimizer = { kind = \"sgd\", nesterov = true }", "train.optimizer.nesterov"),
        ("[train]\nlearning_rate = { floor = 1 }", "train.learning_rate.floor"),
        (
            "[train]\nlearning_rate = { curve = \"step\", factor = 2, every = 3 }",
            "train.learning_rate.factor",
        ),
        ("[train]\nlearning_rate = { curve = \"one-cycle\", warmup = 3 }", "train.learning_rate.warmup"),
        ("[model]\nheads = 3", "model.heads"),
        ("[model]\nwidth = 130", "model.width"),
        ("[model]\nlayers = 0", "model.layers"),
        ("[model]\npreset = \"smollm2-135m\"\nkv_heads = 2", "model.kv_heads"),
        ("[model]\nrope_theta = 0", "model.rope_theta"),
        ("[model]\nvocabulary = 0", "model.vocabulary"),
        ("[model]\ndropout = 1", "model.dropout"),
        ("[model]\npreset = \"gpt-nono\"", "model.preset"),
        ("[model]\npreset = \"gpt2\"\nfamily = \"gpt2\"", "model.family"),
        ("[model]\nload = \"a\"\nlayers = 3", "model.layers"),
        ("[data]\nvalidation = 1.0", "data.validation"),
        ("[data]\nvalidation = -0.1", "data.validation"),
        ("[data]\ntext = []", "data.text"),
        ("[data]\ntokenizer = \"bpe:10\"", "data.tokenizer"),
        ("[data]\ntokenizer = \"chars\"", "data.tokenizer"),
        ("[data]\ntokenizer = \"model\"", "data.tokenizer"),
        ("[run]\nsave = { keep = 0 }", "run.save.keep"),
    ] {
        let message = message(text);
        assert!(message.contains(&format!("`{path}` cannot be ")), "{text}\n{message}");
        assert!(message.starts_with("r.toml, line ") && message.contains("\n  hint: "), "{message}");
    }
}

#[test]
fn a_family_needs_its_sizes_and_a_curve_its_constants() {
    for (text, path) in [
        ("[model]\nfamily = \"gpt2\"\nlayers = 2\nheads = 2", "model.width"),
        ("[train]\nlearning_rate = { curve = \"step\", every = 2 }", "train.learning_rate.factor"),
        ("[train]\nclip = {}", "train.clip.norm"),
    ] {
        let message = message(text);
        assert!(message.contains(&format!("`{path}` is missing")), "{text}\n{message}");
    }
}

#[test]
fn a_value_set_on_the_command_line_wins_and_is_blamed() {
    let sets = ["train.steps=50".to_string(), "train.learning_rate.peak=3e-3".to_string()];
    let recipe = Recipe::from_text(FRAME, "r.toml", &sets).unwrap();
    assert_eq!((recipe.train.steps, recipe.train.learning_rate.peak), (50, 3e-3));

    let sets = ["train.steps=0".to_string()];
    let message = Recipe::from_text(FRAME, "r.toml", &sets).unwrap_err().to_string();
    assert!(message.starts_with("--set train.steps=0: `train.steps` cannot be 0"), "{message}");

    let sets = ["train.step=5".to_string()];
    let message = Recipe::from_text("", "r.toml", &sets).unwrap_err().to_string();
    assert!(message.contains("did you mean `train.steps`?"), "{message}");
}

#[test]
fn what_becomes_codes_is_read_back_as_it_was_resolved() {
    for text in [
        "[quantize]\nscheme = \"int3\"\nlearned_step = true\nignore = [\"*.c_proj.*\"]",
        "[quantize]\nscheme = \"W8A8\"\ntargets = \"transformer.*\"",
        "[precision]\nint8 = [\"forward\", \"input_gradient\"]",
        "[precision]\nstates = \"8bit\"",
        "[precision]\nweights = \"bf16\"",
    ] {
        let recipe = read(text).unwrap();
        assert_eq!(read(&recipe.to_toml()).unwrap(), recipe);
    }
    let ignored = read("[precision]\nint8 = [\"forward\"]").unwrap().precision.int8_ignore;
    assert!(ignored.contains(&"lm_head.*".to_string()));
}

#[test]
fn codes_that_cannot_be_are_refused() {
    for (text, part) in [
        ("[quantize]\nscheme = \"int9\"", "int4-g128"),
        ("[quantize]\nscheme = \"W8A8\"\nlearned_step = true", "scales of W8A8"),
        ("[quantize]\nlearned_step = true", "absent without `scheme`"),
        ("[quantize]\nscheme = \"int4\"\ntargets = []", "at least one pattern"),
        ("[quantize]\nscheme = \"int4\"\ntarget = \"*\"", "quantize.targets"),
        ("[quantize]\nscheme = \"int4\"\n[precision]\nstorage = \"bf16\"", "precision.storage"),
        ("[precision]\nint8 = [\"forwards\"]", "did you mean \"forward\""),
        ("[precision]\nint8 = [\"forward\"]\nstorage = \"f16\"", "absent beside storage"),
        ("[precision]\nstates = \"8bit\"\n[train]\noptimizer = \"sgd\"", "beside this optimizer"),
        ("[precision]\nweights = \"bf16\"\n[train]\noptimizer = \"lamb\"", "beside this optimizer"),
        ("[precision]\nweights = \"bf16\"\n[quantize]\nscheme = \"int4\"", "beside [quantize]"),
        ("[precision]\nstates = \"int8\"", "one of f32, 8bit"),
        ("[precision]\nint8_ignore = \"*\"", "absent without `int8`"),
    ] {
        let message = message(text);
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn a_recipe_with_files_held_out_comes_back_as_it_was_written() {
    let text = "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\nhead = \"sequence\"\n\
                [data]\nlabelled = \"a.tsv\"\nheld_out = \"b.tsv\"\n";
    let recipe = read(text).unwrap();
    assert_eq!(read(&recipe.to_toml()).unwrap(), recipe);
    assert!(message(&format!("{text}validation = 0.1\n")).contains("`data.validation` cannot be"));
}
