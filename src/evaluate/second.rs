//! How well an encoder-decoder writes what is to follow from a text: the loss of pairs, or of a text that was damaged.

use super::{Error, Result};
use crate::data::store::Part;
use crate::data::text::Text;
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::{Batch, IGNORED};
use crate::deploy::Deployment;
use crate::exchange::Opened;
use crate::model::{Extent, Mode};
use crate::tensor::Tensor;
use crate::train::recipe::RawRecipe;
use crate::train::second::{Second, loss, read_pairs, reading_of, second_of, store_of};
use crate::train::{self, Target};
use std::path::{Path, PathBuf};

/// By which texts are damaged: the same as in the evaluations of a run.
const SEED: u64 = 0x6576_616C;

/// Endings of files that hold pairs.
const PAIRS: [&str; 2] = ["tsv", "jsonl"];

/// Lengths are rounded up to a multiple of this.
const STEP: usize = 8;

/// How well texts were written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written {
    /// Mean negative log-likelihood, in nats per token that is to be written.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Tokens that were to be written.
    pub tokens: usize,
    /// Pairs, or windows of the text.
    pub examples: usize,
    /// Pairs of which a part was longer than what is read or written, and lost its end.
    pub cut: usize,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Files of pairs, by their endings, or of text.
    pub files: &'a [PathBuf],
    /// Texts in one batch.
    pub batch: usize,
    /// Tokens that are read and written at most. Absent: of pairs as many as they have, else the model's context.
    pub context: Option<usize>,
}

/// Measures an encoder-decoder. A text is damaged as the family's paper says.
pub fn evaluate_second(opened: &Opened, model: &Path, asked: &Asked, target: &Target) -> Result<Written> {
    let family = opened.family.as_ref();
    let tokenizer = opened.tokenizer.as_ref();
    let tokenizer = tokenizer.ok_or_else(|| Error::NoTokenizer { model: model.to_path_buf() })?;
    let Laid { second, batches, extent, recipe, cut } = laid(opened, tokenizer, asked)?;
    let reading = reading_of(&recipe, family, extent, Mode::Evaluate);
    let deployment = Deployment::new(&opened.weights).within(target);
    let (graph, _) = deployment.graph_built(Mode::Evaluate, |graph| {
        let loss = loss(family, graph, &reading, 0.0)?;
        graph.output("loss", loss);
        Ok(())
    })?;
    let (mut engine, plans) = deployment.engine(target, &[graph])?;
    let names: Vec<String> = plans[0].feeds.iter().map(|feed| feed.name.clone()).collect();
    let (mut total, mut tokens) = (0.0, 0);
    for (number, batch) in batches.iter().enumerate() {
        let made = second.batch(batch, [SEED, number as u64]);
        let feeds = second.feeds(&made, extent.batch);
        let list: Vec<&Tensor> =
            names.iter().map(|name| feeds.get(name).expect("sources and targets are all there is")).collect();
        let result = engine.run(0, &list).map_err(train::Error::from)?;
        total += result[0].to_f64()[0] * made.counted() as f64;
        tokens += made.counted();
    }
    let loss = total / tokens as f64;
    let examples = batches.iter().map(|batch| batch.rows).sum();
    Ok(Written { loss, perplexity: loss.exp(), tokens, examples, cut })
}

/// Files made ready.
struct Laid {
    second: Second,
    batches: Vec<Batch>,
    extent: Extent,
    recipe: train::recipe::Recipe,
    cut: usize,
}

fn laid(opened: &Opened, tokenizer: &Tokenizer, asked: &Asked) -> Result<Laid> {
    let family = opened.family.as_ref();
    let of_pairs = |path: &PathBuf| {
        path.extension().is_some_and(|ending| PAIRS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
    };
    let most = asked.context.unwrap_or(family.context()).min(family.context());
    let mut recipe = recipe_of(if asked.files.iter().all(of_pairs) { "pairs" } else { "text" }, asked.files)?;
    if recipe.data.pairs.is_empty() {
        recipe.train.context = Some(most);
        let second = second_of(&recipe, tokenizer, family, vec![])?.expect("its task was asked for");
        let tokens = Part::of(&Text::open(asked.files)?.contents(), tokenizer)?.tokens.all().into_owned();
        let window = second.window();
        if tokens.len() < window {
            let (needed, hint) = (window, "give a longer text, or a smaller --context");
            let tokens = tokens.len();
            let part = "evaluation";
            return Err(crate::data::Error::TooShort { part, tokens, needed, context: window, hint }.into());
        }
        let whole = &tokens[..tokens.len() / window * window];
        let batches = whole.chunks(window * asked.batch).map(|tokens| batch_of(tokens.to_vec(), window));
        let (batches, extent) = (batches.collect(), Extent { batch: asked.batch, context: most });
        return Ok(Laid { second, batches, extent, recipe, cut: 0 });
    }
    let (_, examples) = store_of(&read_pairs(asked.files)?, tokenizer, 0.0)?;
    // Each text ends in a mark, whether it came with it or not.
    let longest = |length: fn(&crate::data::pairs::Example) -> usize| {
        (examples.iter().map(length).max().unwrap_or(0) + 1).next_multiple_of(STEP).min(most)
    };
    let [source, written] =
        [longest(|example| example.source.len()), longest(|example| example.target.len())];
    let special = tokenizer.special_tokens();
    let whole =
        |text: &[u32]| text.len() + usize::from(text.last().is_none_or(|last| !special.contains(last)));
    let is_cut = |example: &&crate::data::pairs::Example| {
        whole(&example.source) > source || whole(&example.target) > written
    };
    let (cut, count) = (examples.iter().filter(is_cut).count(), examples.len() as u32);
    (recipe.train.context, recipe.train.target) = (Some(source), Some(written));
    let second = second_of(&recipe, tokenizer, family, examples)?.expect("its task was asked for");
    let numbers: Vec<u32> = (0..count).collect();
    let batches = numbers.chunks(asked.batch).map(|numbers| batch_of(numbers.to_vec(), 1)).collect();
    Ok(Laid { second, batches, extent: Extent { batch: asked.batch, context: source }, recipe, cut })
}

/// What a run over these files would say, but for its model.
fn recipe_of(key: &str, files: &[PathBuf]) -> Result<train::recipe::Recipe> {
    let mut raw = RawRecipe::parse("", "the evaluation").map_err(train::Error::from)?;
    let paths = files.iter().map(|path| toml::Value::String(path.display().to_string())).collect();
    raw.insert(&format!("data.{key}"), toml::Value::Array(paths)).map_err(train::Error::from)?;
    Ok(raw.resolve().map_err(train::Error::from)?)
}

fn batch_of(tokens: Vec<u32>, context: usize) -> Batch {
    Batch { rows: tokens.len() / context, targets: vec![IGNORED; tokens.len()], tokens, context }
}
