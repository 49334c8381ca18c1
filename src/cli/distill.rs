//! `kiln distill`: a student learns from a teacher. A short form of `kiln compress` with a recipe of one pass.

use super::compress::How;
use super::folder::resolve;
use super::{Usage, count};
use crate::compress::{Recipe, stages};
use crate::model;
use crate::train::distill::fits;
use crate::train::job::tokenizer_in;
use crate::train::recipe::apply_set;
use clap::Args;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::{Table, Value};

/// Train a small model on what a large one says.
///
/// The student is a model of its own with the teacher's vocabulary, or begins as some layers of the teacher. The recipe that this
/// stands for is in the output's compression.json; --dry-run prints it.
#[derive(Args)]
#[command(
    after_help = "Weights that are not given are those of a recipe: --ce 0.5, and --kl 0.5 unless another one is given.\n\nExamples:\n  kiln distill --teacher runs/large --student layers=3 --data stories.txt --steps 1000 -o small\n  kiln distill --teacher llama --student small --data in.txt --kl 0.9 --ce 0.1 --hidden 0.1 -o taught\n  kiln distill --teacher llama --student layers=0,3 --data in.txt --cache said --top-k 32 -o small\n  kiln distill --teacher llama --student small --data in.txt --jsd 1 --on-policy 0.5 -o better\n  kiln distill --teacher llama --student layers=3 --data in.txt --set train.steps=50 -o s --dry-run"
)]
pub struct Distill {
    /// The model to learn from: a run folder, a checkpoint, or a Hugging Face folder.
    #[arg(long, value_name = "MODEL")]
    teacher: PathBuf,
    /// The model that learns; or how many layers of the teacher it begins with, evenly spread, or which, counted from zero.
    #[arg(long, value_name = "MODEL|layers=N|layers=N,N,..")]
    student: Student,
    /// File or folder of text to train on. May be given again.
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    /// char (the vocabulary is that of the text), or a tokenizer.json, instead of the model's own.
    #[arg(long, value_name = "char|PATH")]
    tokenizer: Option<String>,
    /// Updates of the student's weights.
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = count)]
    steps: usize,
    /// Both sides' logits are divided by it before they are compared.
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    #[command(flatten)]
    terms: Terms,
    /// How the teacher's weights are held: f32, f16, int8 or nf4.
    #[arg(long, value_name = "PRECISION")]
    teacher_precision: Option<String>,
    /// Let the teacher run ahead, and keep what it says here for any number of runs.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// With --cache: how many tokens of each position are kept.
    #[arg(long, value_name = "COUNT", requires = "cache", value_parser = count)]
    top_k: Option<usize>,
    /// Where all randomness comes from.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u32,
    /// Set any other value of a training recipe, such as train.batch=32. May be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// Weights of the terms of the loss, and what it is taken of.
#[derive(Args)]
struct Terms {
    /// Weight of the cross-entropy of the text.
    #[arg(long, value_name = "WEIGHT")]
    ce: Option<f64>,
    /// Weight of KL(teacher || student).
    #[arg(long, value_name = "WEIGHT")]
    kl: Option<f64>,
    /// Weight of KL(student || teacher).
    #[arg(long, value_name = "WEIGHT")]
    reverse_kl: Option<f64>,
    /// Weight of the generalised Jensen-Shannon divergence.
    #[arg(long, value_name = "WEIGHT")]
    jsd: Option<f64>,
    /// Weight of the mean squared error of hidden states.
    #[arg(long, value_name = "WEIGHT")]
    hidden: Option<f64>,
    /// Weight of one minus the cosine of hidden states.
    #[arg(long, value_name = "WEIGHT")]
    cosine: Option<f64>,
    /// Weight of the divergence of what positions attend to.
    #[arg(long, value_name = "WEIGHT")]
    attention: Option<f64>,
    /// Weight of the divergence of how values are related.
    #[arg(long, value_name = "WEIGHT")]
    values: Option<f64>,
    /// Share of the steps in which the student goes on behind the first tokens of the text, and the teacher says what it would have
    /// written.
    #[arg(long, value_name = "SHARE")]
    on_policy: Option<f64>,
    /// Share of the steps in which the teacher goes on, and what it writes stands for the text.
    #[arg(long, value_name = "SHARE")]
    sequence: Option<f64>,
}

/// Who learns.
#[derive(Clone, Debug, PartialEq)]
enum Student {
    /// A model of its own.
    Model(PathBuf),
    /// So many layers of the teacher.
    Layers(usize),
    /// These layers of the teacher.
    These(Vec<usize>),
}

impl FromStr for Student {
    type Err = String;

    fn from_str(text: &str) -> Result<Student, String> {
        let Some(layers) = text.strip_prefix("layers=") else { return Ok(Student::Model(text.into())) };
        let numbers: Result<Vec<usize>, _> = layers.split(',').map(|number| number.trim().parse()).collect();
        match numbers.as_deref() {
            Ok([0]) | Err(_) => {
                Err("layers=3 keeps three of the teacher's layers, layers=0,2,5 these".into())
            }
            Ok(&[count]) => Ok(Student::Layers(count)),
            Ok(these) => Ok(Student::These(these.to_vec())),
        }
    }
}

impl Student {
    /// The layers of a teacher to begin with.
    fn layers(&self, of_teacher: usize) -> Result<Option<Vec<usize>>, Usage> {
        match self {
            Student::Model(_) => Ok(None),
            Student::Layers(count) if *count > of_teacher => {
                Err(Usage(format!("--student layers={count}: the teacher has {of_teacher}")))
            }
            Student::Layers(count) => Ok(Some(spread(*count, of_teacher))),
            Student::These(these) => Ok(Some(these.clone())),
        }
    }
}

/// So many of some layers, the first and the last among them, as far apart from each other as can be: of 12 layers 6 are 0, 2, 4, 7, 9
/// and 11, as DistilBERT has them.
fn spread(count: usize, of: usize) -> Vec<usize> {
    let steps = count.saturating_sub(1).max(1);
    (0..count).map(|number| (number * (of - 1) + steps / 2) / steps).collect()
}

impl Distill {
    /// Writes the recipe and applies it.
    pub fn run(self) -> anyhow::Result<()> {
        let teacher = resolve(&self.teacher, false)?;
        let family = model::open(&teacher)?;
        let kept = self.student.layers(model::depth_of(family.as_ref())?)?;
        let recipe = self.recipe(&teacher, kept.as_deref())?;
        let Student::Model(student) = &self.student else {
            model::keep_layers(family.as_ref(), &kept.unwrap_or_default())?;
            return self.how.apply(&teacher, &recipe);
        };
        let folder = resolve(student, false)?;
        if folder.is_dir() {
            let student = model::open(&folder)?;
            fits(&teacher, family.as_ref(), student.as_ref(), tokenizer_in(&folder)?.as_ref())?;
        }
        self.how.apply(student, &recipe)
    }

    /// The recipe that the arguments stand for.
    fn recipe(&self, teacher: &Path, kept: Option<&[usize]>) -> anyhow::Result<Recipe> {
        let path = |path: &Path| Value::String(path.display().to_string());
        let mut data = Table::from_iter([(
            "text".to_string(),
            Value::Array(self.data.iter().map(|text| path(text)).collect()),
        )]);
        if let Some(tokenizer) = &self.tokenizer {
            data.insert("tokenizer".into(), Value::String(tokenizer.clone()));
        }
        let mut pass = Table::from_iter([("kind".to_string(), Value::String("train".into()))]);
        let mut train = Table::from_iter([("steps".to_string(), Value::Integer(self.steps as i64))]);
        if let Some(kept) = kept {
            let layers = kept.iter().map(|&layer| Value::Integer(layer as i64)).collect();
            let model = Table::from_iter([("keep_layers".to_string(), Value::Array(layers))]);
            pass.insert("model".into(), Value::Table(model));
        }
        // A teacher that is the model itself is told as the model that came in, wherever it lies.
        let teacher = if kept.is_some() { Value::String(stages::ORIGINAL.into()) } else { path(teacher) };
        let mut distill = Table::from_iter([("teacher".to_string(), teacher)]);
        let Terms { ce, kl, reverse_kl, jsd, hidden, cosine, attention, values, on_policy, sequence } =
            &self.terms;
        let numbers = [
            ("temperature", self.temperature),
            ("ce", *ce),
            ("kl", *kl),
            ("reverse_kl", *reverse_kl),
            ("jsd", *jsd),
            ("hidden", *hidden),
            ("cosine", *cosine),
            ("attention", *attention),
            ("values", *values),
            ("on_policy", *on_policy),
            ("sequence", *sequence),
        ];
        let numbers = numbers.into_iter().filter_map(|(key, number)| Some((key, Value::Float(number?))));
        let others = [
            ("teacher_precision", self.teacher_precision.clone().map(Value::String)),
            ("cache", self.cache.as_deref().map(path)),
            ("top_k", self.top_k.map(|count| Value::Integer(count as i64))),
        ];
        let others = others.into_iter().filter_map(|(key, value)| Some((key, value?)));
        distill.extend(numbers.chain(others).map(|(key, value)| (key.to_string(), value)));
        train.entry("seed").or_insert(Value::Integer(self.seed.into()));
        pass.insert("train".into(), Value::Table(train));
        pass.insert("distill".into(), Value::Table(distill));
        for set in &self.set {
            apply_set(&mut pass, set).map_err(crate::train::Error::from)?;
        }
        let all = [
            ("seed", Value::Integer(self.seed.into())),
            ("data", Value::Table(data)),
            ("pass", Value::Array(vec![Value::Table(pass)])),
        ];
        let all: Table = all.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        let text = toml::to_string(&all).expect("tables of text and numbers are TOML");
        Ok(Recipe::parse("the arguments of distill", &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_spread_from_the_first_to_the_last() {
        assert_eq!(spread(6, 12), [0, 2, 4, 7, 9, 11]);
        assert_eq!(spread(2, 4), [0, 3]);
        assert_eq!(spread(1, 4), [0]);
        assert_eq!(spread(4, 4), [0, 1, 2, 3]);
    }

    #[test]
    fn a_student_is_a_model_a_number_of_layers_or_a_list_of_them() {
        let read = |text: &str| text.parse::<Student>();
        assert_eq!(read("runs/small"), Ok(Student::Model("runs/small".into())));
        assert_eq!(read("layers=3"), Ok(Student::Layers(3)));
        assert_eq!(read("layers=0,3"), Ok(Student::These(vec![0, 3])));
        assert!(read("layers=").is_err() && read("layers=0").is_err() && read("layers=x").is_err());
    }
}
