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
    /// Standard error of the loss, from how it differs between batches of windows; none where there is one batch alone.
    ///
    /// That of the perplexity is this times the perplexity (the first term of its expansion), that of the bits per byte this in their unit.
    pub error: Option<f64>,
}

impl Score {
    /// The score of a text of so many bytes per token.
    pub fn new(loss: f64, tokens: usize, bytes_per_token: f64, error: Option<f64>) -> Score {
        let bits_per_byte = loss / std::f64::consts::LN_2 / bytes_per_token;
        Score { loss, perplexity: loss.exp(), bits_per_byte, tokens, error }
    }

    /// Standard errors of loss, perplexity and bits per byte.
    pub fn errors(&self) -> Option<[f64; 3]> {
        let error = self.error?;
        // Also where the loss is zero the unit must be known.
        let share = if self.loss == 0.0 { 0.0 } else { self.bits_per_byte / self.loss };
        Some([error, self.perplexity * error, share * error])
    }
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
    let losses = batch_losses(family, weights, target, extent, &batches)?;
    let (loss, tokens) = mean(&losses);
    let bytes_per_token = part.bytes as f64 / part.tokens.len() as f64;
    Ok(Score::new(loss, tokens, bytes_per_token, standard_error(&losses)))
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
    Ok(mean(&batch_losses(family, weights, target, extent, batches)?))
}

/// Of each batch the sum of losses, and how many tokens were counted.
fn batch_losses(
    family: &dyn Family,
    weights: &Weights,
    target: &Target,
    extent: Extent,
    batches: &[Batch],
) -> Result<Vec<(f64, usize)>> {
    family.interface().expect_causal()?;
    let deployment = Deployment::new(weights).within(target);
    let graph = deployment.graph(family, extent, Mode::Evaluate, |graph, forward| {
        let loss = model::loss(graph, forward.logits, 0.0)?;
        graph.output("loss", loss);
        Ok(())
    })?;
    let (mut engine, plans) = deployment.engine(target, &[graph])?;
    let names: Vec<String> = plans[0].feeds.iter().map(|f| f.name.clone()).collect();
    let mut losses = vec![];
    for batch in batches {
        let feeds = feeds_of(batch, extent);
        let list: Vec<&Tensor> =
            names.iter().map(|n| feeds.get(n).expect("tokens and targets are all there is")).collect();
        let result = engine.run(0, &list).map_err(train::Error::from)?;
        losses.push((result[0].to_f64()[0] * batch.counted() as f64, batch.counted()));
    }
    Ok(losses)
}

fn mean(losses: &[(f64, usize)]) -> (f64, usize) {
    let (mut total, mut count) = (0.0, 0);
    for (sum, tokens) in losses {
        total += sum;
        count += tokens;
    }
    (total / count as f64, count)
}

/// Standard error of a mean over clusters of unlike size, here batches (Cochran 1977, "Sampling Techniques", section 9A.1): with `m` of them,
/// `sqrt(m / (m - 1) * sum (sum_i - mean count_i)^2) / sum count_i`.
///
/// Why batches and not tokens: tokens that stand near each other are alike, which would make the error too small.
fn standard_error(losses: &[(f64, usize)]) -> Option<f64> {
    let clusters = losses.len() as f64;
    let (mean, count) = mean(losses);
    let squares: f64 = losses.iter().map(|(sum, tokens)| (sum - mean * *tokens as f64).powi(2)).sum();
    (losses.len() > 1).then(|| (clusters / (clusters - 1.0) * squares).sqrt() / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_of_equal_batches_is_that_of_their_mean_losses() {
        // Means 1, 2, 3, 6 over four tokens each: deviation sqrt(14 / 3), over the root of four.
        let losses = [1.0, 2.0, 3.0, 6.0].map(|mean| (4.0 * mean, 4));
        assert!((standard_error(&losses).unwrap() - (14.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(standard_error(&losses[..1]), None);
        // Batches of unlike size count by their tokens.
        let unlike = [(4.0, 4), (1.0, 1), (9.0, 3)];
        // The mean is 14 / 8, what is left over -3, -0.75 and 3.75.
        let expected = (1.5_f64 * (9.0 + 0.5625 + 14.0625)).sqrt() / 8.0;
        assert!((standard_error(&unlike).unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn errors_of_other_units_follow_from_that_of_the_loss() {
        let [loss, perplexity, bits] = Score::new(2.0, 100, 4.0, Some(0.1)).errors().unwrap();
        assert_eq!(loss, 0.1);
        assert!((perplexity - 0.1 * 2.0_f64.exp()).abs() < 1e-12);
        assert!((bits - 0.1 / std::f64::consts::LN_2 / 4.0).abs() < 1e-12);
    }
}
