//! How well a model predicts a text: loss, perplexity, bits per byte.

mod classifier;
mod rows;
mod second;

pub use classifier::{Classifier, probabilities};
pub use rows::RowClassifier;
pub use second::{Asked, Written, evaluate_second};

use crate::data;
use crate::data::replay::{EVALUATION_VALIDATION, Replay};
use crate::data::store::{Part, split};
use crate::data::text::Text;
use crate::data::tokenizer::{Spec, Tokenizer};
use crate::data::windows::{self, Batch};
use crate::deploy::{self, Deployment};
use crate::exchange::{self, Opened};
use crate::model::{self, Extent, Family, Mode, Weights};
use crate::tensor::Tensor;
use crate::train::job::feeds_of;
use crate::train::{self, Target};
use std::path::{Path, PathBuf};

/// What can go wrong while evaluating.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device or the run.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// The text or the tokenizer.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The folder's model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model on its device.
    #[error(transparent)]
    Deploy(#[from] deploy::Error),
    /// The model's file.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
    /// The model has no tokenizer, and none was named.
    #[error("{} has no tokenizer.json\n  hint: --tokenizer char, if the model knows exactly the characters of the text, or --tokenizer PATH", model.display())]
    NoTokenizer {
        /// Folder or file.
        model: PathBuf,
    },
    /// The text has tokens the model does not know.
    #[error(
        "the text has token {token}, the model knows {vocabulary}\n  hint: use the tokenizer the model was trained with"
    )]
    Vocabulary {
        /// The token.
        token: u32,
        /// Tokens the model knows.
        vocabulary: usize,
    },
}

/// Result of evaluating.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How well a text was predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Mean negative log-likelihood, in nats per token.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Loss in bits, per byte of UTF-8 instead of per token.
    pub bits_per_byte: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

/// What is evaluated.
#[derive(Clone, Debug)]
pub struct Request {
    /// Checkpoint or Hugging Face folder.
    pub model: PathBuf,
    /// Files and folders of text.
    pub text: Vec<PathBuf>,
    /// Tokenizer instead of the folder's own: `char`, or a path.
    pub tokenizer: Option<Spec>,
    /// Explicit windows: the validation part's `eval_val_offsets` are taken.
    pub windows: Option<PathBuf>,
    /// With windows: the last share of the text, from which they count.
    pub validation: f64,
    /// Sequences in one batch.
    pub batch: usize,
    /// Tokens in one sequence; absent: the model's context.
    pub context: Option<usize>,
}

/// Predicts a text with a model on a device.
pub fn evaluate(request: &Request, target: &Target) -> Result<Score> {
    let Opened { family, weights, tokenizer } = exchange::open_to_run(&request.model, &[])?;
    evaluate_with(family.as_ref(), &weights, tokenizer.as_ref(), request, target)
}

/// The same with a model that is open already; of the request's only the text is read.
pub fn evaluate_with(
    family: &dyn Family,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
    request: &Request,
    target: &Target,
) -> Result<Score> {
    let Material { part, batches, extent, .. } = material(family, tokenizer, request)?;
    let (loss, tokens) = mean_loss(family, weights, target, extent, &batches)?;
    let bytes_per_token = part.bytes as f64 / part.tokens.len() as f64;
    let bits_per_byte = loss / std::f64::consts::LN_2 / bytes_per_token;
    Ok(Score { loss, perplexity: loss.exp(), bits_per_byte, tokens })
}

/// A text made ready to be predicted.
#[derive(Clone, Debug)]
pub struct Material {
    /// The part of the text that counts.
    pub part: Part,
    /// Its windows; the last batch may have fewer.
    pub batches: Vec<Batch>,
    /// Sizes of a whole batch.
    pub extent: Extent,
    /// What made tokens of it.
    pub tokenizer: Tokenizer,
}

/// Reads the text of a request and cuts it into windows.
///
/// `tokenizer` is the model's own, for which the request may name another.
pub fn material(family: &dyn Family, tokenizer: Option<&Tokenizer>, request: &Request) -> Result<Material> {
    family.interface().expect_causal()?;
    let text = Text::open(&request.text)?;
    let text = text.contents();
    let prepared;
    let tokenizer = match (&request.tokenizer, tokenizer) {
        (Some(spec), _) => {
            prepared = Tokenizer::prepare(spec, &text)?;
            &prepared
        }
        (None, Some(tokenizer)) => tokenizer,
        (None, None) => return Err(Error::NoTokenizer { model: request.model.clone() }),
    };
    let context = request.context.unwrap_or(family.context()).min(family.context());
    let (part, batches) = match &request.windows {
        Some(path) => replayed(path, &text, tokenizer, request, context)?,
        None => {
            let part = Part::of(&text, tokenizer)?;
            let tokens = [&tokenizer.opening()?[..], &part.tokens.all()].concat();
            let batches = windows::sweep(&tokens, context, request.batch)?.collect();
            (part, batches)
        }
    };
    if let Some(&token) = part.tokens.all().iter().find(|&&t| t as usize >= family.vocabulary()) {
        return Err(Error::Vocabulary { token, vocabulary: family.vocabulary() });
    }
    let extent = Extent { batch: request.batch, context };
    Ok(Material { part, batches, extent, tokenizer: tokenizer.clone() })
}

fn replayed(
    path: &Path,
    text: &str,
    tokenizer: &Tokenizer,
    request: &Request,
    context: usize,
) -> Result<(Part, Vec<Batch>)> {
    let (_, validation) = split(text, request.validation)?;
    let part = Part::of(validation, tokenizer)?;
    let replay = Replay::load(path)?;
    let offsets = replay.evaluation_validation()?;
    let batches = windows::evaluation_replayed(
        EVALUATION_VALIDATION,
        "validation",
        &part.tokens,
        context,
        request.batch,
        offsets,
    )?;
    Ok((part, batches))
}

/// Mean loss per counted token over batches, and how many there were.
pub fn mean_loss(
    family: &dyn Family,
    weights: &Weights,
    target: &Target,
    extent: Extent,
    batches: &[Batch],
) -> Result<(f64, usize)> {
    family.interface().expect_causal()?;
    let deployment = Deployment::new(weights).within(target);
    let graph = deployment.graph(family, extent, Mode::Evaluate, |graph, forward| {
        let loss = model::loss(graph, forward.logits, 0.0)?;
        graph.output("loss", loss);
        Ok(())
    })?;
    let (mut engine, plans) = deployment.engine(target, &[graph])?;
    let names: Vec<String> = plans[0].feeds.iter().map(|f| f.name.clone()).collect();
    let (mut total, mut count) = (0.0, 0);
    for batch in batches {
        let feeds = feeds_of(batch, extent);
        let list: Vec<&Tensor> =
            names.iter().map(|n| feeds.get(n).expect("tokens and targets are all there is")).collect();
        let result = engine.run(0, &list).map_err(train::Error::from)?;
        total += result[0].to_f64()[0] * batch.counted() as f64;
        count += batch.counted();
    }
    Ok((total / count as f64, count))
}
