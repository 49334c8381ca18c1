//! A teacher as part of the training step: opened, checked against the student, its weights frozen.

pub mod cache;
mod loss;
mod relation;
#[cfg(test)]
mod tests;
mod top;
mod writing;

pub use loss::{COLUMNS, LOGS, SHARE};
pub use top::Top;
pub use writing::Author;

use super::frozen::Frozen;
use super::recipe::{Distill, Knob, Writing};
use super::{Error, Result};
use crate::adapt::{self, hold};
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::{Batch, IGNORED};
use crate::graph::{Feeds, Graph};
use crate::model::{self, Extent, Family, Init, Mode, ParameterSpec, Weights};
use crate::tensor::Tensor;
use std::path::Path;

/// Stands before the names of a teacher's weights.
pub const PREFIX: &str = "teacher.";

/// Stands before the names of what is learned beside the student and left behind with the teacher.
pub const ASIDE: &str = "distill.";

/// A term of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// Cross-entropy of the text.
    Text,
    /// KL(teacher || student).
    Forward,
    /// KL(student || teacher).
    Reverse,
    /// The generalised Jensen-Shannon divergence.
    Between,
    /// Mean squared error of hidden states.
    Hidden,
    /// One minus the cosine of hidden states.
    Cosine,
    /// What positions attend to.
    Attention,
    /// How values are related.
    Values,
}

/// A teacher at hand, and what is learnt of it.
#[derive(Debug)]
pub struct Teacher {
    /// What the recipe says.
    pub recipe: Distill,
    /// Its architecture.
    pub family: Box<dyn Family>,
    /// Its weights, under names with [`PREFIX`]; none where it runs ahead.
    pub frozen: Frozen,
    /// The terms of the loss that are not zero throughout.
    terms: Vec<(Term, Knob)>,
    /// Layers, of the student and of the teacher, after which hidden states are compared.
    hidden: Vec<[usize; 2]>,
    /// Layers whose relations are compared.
    related: Vec<[usize; 2]>,
    /// Projections from the student's width to the teacher's, where they differ.
    projections: Vec<ParameterSpec>,
}

/// Blocks of a model and the width of its residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    layers: usize,
    width: usize,
}

impl Teacher {
    /// Reads a teacher and checks that the student can learn from it.
    ///
    /// `tokenizer` is the student's, where it is known: the teacher must have learnt from the same tokens.
    pub fn open(recipe: &Distill, student: &dyn Family, tokenizer: Option<&Tokenizer>) -> Result<Teacher> {
        let folder = &recipe.teacher;
        if !folder.exists() {
            let hint = "distill.teacher is a folder with config.json and model.safetensors";
            return Err(refused(folder, "there is no such folder".into(), hint));
        }
        let family = model::open(folder)?;
        student.interface().expect_causal()?;
        family.interface().expect_causal()?;
        fits(folder, family.as_ref(), student, tokenizer)?;
        let [of_student, of_teacher] = [sizes_of(student)?, sizes_of(family.as_ref())?];
        let (hidden, related) = match &recipe.layers {
            Some(pairs) => (pairs.clone(), pairs.clone()),
            None => {
                let as_deep =
                    |layer: usize| [layer, ((layer + 1) * of_teacher.layers).div_ceil(of_student.layers) - 1];
                (
                    (0..of_student.layers).map(as_deep).collect(),
                    vec![[of_student.layers - 1, of_teacher.layers - 1]],
                )
            }
        };
        if let Some([s, t]) = hidden.iter().find(|[s, t]| *s >= of_student.layers || *t >= of_teacher.layers)
        {
            let problem = format!(
                "distill.layers pairs layer {s} of the student with layer {t} of the teacher, of {} and {}",
                of_student.layers, of_teacher.layers
            );
            return Err(refused(folder, problem, "layers are counted from zero"));
        }
        let terms = terms_of(recipe);
        let compares = terms.iter().any(|(term, _)| matches!(term, Term::Hidden | Term::Cosine));
        let projections = match compares && of_student.width != of_teacher.width {
            true => hidden
                .iter()
                .map(|&[layer, _]| projection(layer, of_student.width, of_teacher.width))
                .collect(),
            false => vec![],
        };
        let frozen = match recipe.cache {
            Some(_) => Frozen::default(),
            None => Frozen::of(&held(recipe, family.as_ref())?, PREFIX),
        };
        Ok(Teacher { recipe: recipe.clone(), family, frozen, terms, hidden, related, projections })
    }

    /// What is learned beside the student.
    pub fn aside(&self) -> &[ParameterSpec] {
        &self.projections
    }

    /// Refuses sequences that the teacher cannot read.
    pub fn check_context(&self, context: usize) -> Result<()> {
        let (most, folder) = (self.family.context(), &self.recipe.teacher);
        if context > most {
            let problem = format!("it reads at most {most} tokens, the run has sequences of {context}");
            return Err(refused(folder, problem, &format!("train.context = {most}")));
        }
        match self.recipe.writing.as_ref().map(|writing| writing.prompt_of(context)) {
            Some(prompt) if prompt >= context => {
                let problem =
                    format!("distill.prompt = {prompt} leaves nothing to write of windows of {context}");
                Err(refused(folder, problem, &format!("distill.prompt = {}", (context / 4).max(1))))
            }
            _ => Ok(()),
        }
    }

    /// Adds what the loss reads beside tokens and targets: each position's share in means, and the weights of the terms; but for what
    /// a teacher said that ran ahead.
    pub fn feed(&self, feeds: &mut Feeds, batch: &Batch, step: u64, extent: Extent) {
        let share = 1.0 / batch.counted().max(1) as f32;
        let mut shares: Vec<f32> =
            batch.targets.iter().map(|&target| if target == IGNORED { 0.0 } else { share }).collect();
        shares.resize(extent.positions(), 0.0);
        feeds.set(loss::SHARE, Tensor::f32([extent.positions()], shares));
        let mix: Vec<f32> = self.terms.iter().map(|(_, knob)| knob.at(step) as f32).collect();
        feeds.set(loss::MIX, Tensor::f32([mix.len()], mix));
    }

    /// Of how many tokens of each position it is known how likely they are; none where it is part of the step.
    pub fn top(&self) -> Option<usize> {
        self.recipe.top_k.map(|count| count.min(self.family.vocabulary()))
    }

    /// One line on what it is.
    pub fn describe(&self) -> String {
        let held = self.recipe.teacher_precision;
        let kept = match (self.top(), &self.recipe.cache) {
            (Some(count), Some(folder)) => {
                format!(" while it ran ahead: {count} tokens of each position in {}", folder.display())
            }
            _ => String::new(),
        };
        let written = match &self.recipe.writing {
            Some(Writing { on_policy, sequence, .. }) => {
                format!("; of all steps the student writes {on_policy}, the teacher {sequence}")
            }
            None => String::new(),
        };
        format!("{}, held {held}{kept}{written}", self.family.describe())
    }
}

fn refused(folder: &Path, problem: String, hint: &str) -> Error {
    Error::Teacher { folder: folder.display().to_string(), problem, hint: hint.to_string() }
}

/// Whether a student can learn from a teacher: both must mean the same by their tokens.
///
/// `tokenizer` is the student's, where it is known.
pub fn fits(
    folder: &Path,
    teacher: &dyn Family,
    student: &dyn Family,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let (known, learns) = (teacher.vocabulary(), student.vocabulary());
    if known != learns {
        let problem =
            format!("it knows {known} tokens and the student {learns}: their logits are of different things");
        let hint =
            "give both the same tokenizer and vocabulary, or train on text that the teacher has written";
        return Err(refused(folder, problem, hint));
    }
    if let (Some(ours), Some(theirs)) = (tokenizer, super::job::tokenizer_in(folder)?)
        && let Some(problem) = differ(ours, &theirs)
    {
        return Err(refused(folder, problem, "data.tokenizer = the teacher's tokenizer.json"));
    }
    Ok(())
}

/// The terms that are not zero throughout.
fn terms_of(recipe: &Distill) -> Vec<(Term, Knob)> {
    let all = [
        (Term::Text, recipe.ce),
        (Term::Forward, recipe.kl),
        (Term::Reverse, recipe.reverse_kl),
        (Term::Between, recipe.jsd),
        (Term::Hidden, recipe.hidden),
        (Term::Cosine, recipe.cosine),
        (Term::Attention, recipe.attention),
        (Term::Values, recipe.values),
    ];
    all.into_iter().filter(|(_, knob)| !knob.is_zero()).collect()
}

fn projection(layer: usize, from: usize, to: usize) -> ParameterSpec {
    let deviation = 1.0 / (from as f64).sqrt();
    ParameterSpec::new(projection_name(layer), [to, from], Init::Normal { deviation })
}

fn projection_name(layer: usize) -> String {
    format!("{ASIDE}projection.{layer}.weight")
}

fn sizes_of(family: &dyn Family) -> Result<Sizes> {
    let mut graph = Graph::new();
    let forward = family.forward(&mut graph, Extent { batch: 1, context: 1 }, Mode::Evaluate)?;
    let last = *forward.hidden.last().expect("a model has a hidden state");
    Ok(Sizes { layers: forward.hidden.len() - 1, width: graph.kind(last).shape.last() })
}

/// Why two tokenizers are not the same, if they are not: by their sizes and by what they make of each token's own text.
fn differ(ours: &Tokenizer, theirs: &Tokenizer) -> Option<String> {
    let (size, other) = (ours.vocabulary_size(), theirs.vocabulary_size());
    if size != other {
        return Some(format!("its tokenizer has {other} tokens, the student's {size}"));
    }
    let id = (0..size as u32).find(|&id| ours.token_name(id) != theirs.token_name(id))?;
    let name = |tokenizer: &Tokenizer| tokenizer.token_name(id).unwrap_or_default();
    Some(format!("token {id} is {:?} for its tokenizer and {:?} for the student's", name(theirs), name(ours)))
}

/// Weights as a teacher's are to be held.
fn held(recipe: &Distill, family: &dyn Family) -> Result<Weights> {
    let folder = &recipe.teacher;
    hold(Weights::read(folder, family)?, family, recipe.teacher_precision).map_err(|error| match error {
        adapt::Error::Base { name, problem, .. } => {
            refused(folder, format!("`{name}`: {problem}"), "teacher_precision = \"f32\" takes it as it is")
        }
        other => other.into(),
    })
}
