//! `[[task]]`: what one of several heads on a trunk learns, and how much that counts.

use serde::Serialize;

use super::error::Error;
use super::read::Section;
use super::{Examples, Head, HeadKind, Model, Recipe, Train, Validation, examples, resolve, sources};
use crate::data::masking::Masking;
use crate::data::sources::{Separator, Source};
use crate::model::Labels;

/// All keys of a table.
pub(super) const KEYS: &[&str] = &[
    "name",
    "objective",
    "weight",
    "batch",
    "context",
    "label_smoothing",
    "labels",
    "problem_type",
    "text",
    "separator",
    "masking",
    "labelled",
    "tagged",
    "similar",
    "similarity",
    "held_out",
    "columns",
    "validation",
];

/// Keys of `[data]` that go with tasks: what all of them share.
const OF_DATA: [&str; 4] = ["tokenizer", "validation", "skip_bad", "cache"];

/// Objectives in words, with the keys that name their data.
const OBJECTIVES: [(&str, Goal); 5] = [
    ("masked-lm", Goal::MaskedLm),
    ("causal-lm", Goal::CausalLm),
    ("sequence", Goal::Sequence),
    ("token", Goal::Token),
    ("similar", Goal::Similar),
];

/// What a task learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Hidden tokens of a text.
    MaskedLm,
    /// The next token of a text.
    CausalLm,
    /// A class for each text.
    Sequence,
    /// A class for each word.
    Token,
    /// Vectors that are near to one another where texts are alike.
    Similar,
}

impl Goal {
    /// The key that names its data.
    pub fn key(self) -> &'static str {
        match self {
            Goal::MaskedLm | Goal::CausalLm => "text",
            Goal::Sequence => "labelled",
            Goal::Token => "tagged",
            Goal::Similar => "similar",
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        OBJECTIVES.iter().find(|(_, goal)| *goal == self).expect("each has a word").0
    }

    fn is_of_text(self) -> bool {
        matches!(self, Goal::MaskedLm | Goal::CausalLm)
    }
}

/// One of several tasks that share a trunk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// What it learns.
    pub objective: Goal,
    /// What its loss is multiplied by before all are summed.
    pub weight: f64,
    /// Sequences or examples of it in each step.
    pub batch: usize,
    /// Tokens in each. Absent: as its data or the model has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Share of the target spread over all classes or tokens, in `0.0..1.0`.
    pub label_smoothing: f64,
    /// Names of its classes. Empty: as the examples show.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// What labels mean. Absent: as the examples show.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "examples::problem")]
    pub problem_type: Option<Labels>,
    /// Its examples, where it learns from those.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub examples: Option<Examples>,
    /// Its text, where it learns from that; empty means the built-in corpus.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<Source>,
    /// What stands behind each document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<Separator>,
    /// What it is measured on. Absent beside files that are held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// How tokens are hidden. Absent: as in BERT, where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masking: Option<Masking>,
}

impl Recipe {
    /// The recipe by which one of its tasks would be trained alone.
    pub fn alone(&self, task: &Task) -> Recipe {
        let mut recipe = self.clone();
        recipe.tasks = vec![];
        recipe.data.examples = task.examples.clone();
        recipe.data.text = task.text.clone();
        recipe.data.separator = task.separator;
        recipe.data.masking = task.masking;
        recipe.data.validation = task.validation.clone().unwrap_or(Validation::Share(0.0));
        recipe.train.batch = task.batch;
        recipe.train.context = task.context.or(recipe.train.context);
        recipe.train.label_smoothing = task.label_smoothing;
        let kind = match task.objective {
            Goal::MaskedLm | Goal::CausalLm => Some(HeadKind::Language),
            Goal::Sequence => Some(HeadKind::Sequence),
            Goal::Token => Some(HeadKind::Token),
            Goal::Similar => None,
        };
        let (labels, problem_type) = (task.labels.clone(), task.problem_type);
        recipe.model.set_head(kind.map(|kind| Head { kind, labels, problem_type }));
        recipe
    }
}

/// Reads the tables; none means that the recipe has one objective.
pub(super) fn tasks(
    sections: &[Section],
    data: &Section,
    model: &Model,
    train: &Train,
    validation: &Validation,
) -> Result<Vec<Task>, Error> {
    let mut found: Vec<Task> = vec![];
    for section in sections {
        let next = task(section, model, train, validation)?;
        if found.iter().any(|other| other.name == next.name) {
            let hint = "each task has a head and figures of its own: name = \"topics\"";
            return Err(section.refuse("name", "another name for each task", hint));
        }
        found.push(next);
    }
    if !found.is_empty() {
        data.only_these(&OF_DATA, "absent beside [[task]]", "each task has data of its own: write it there")?;
    }
    Ok(found)
}

fn task(section: &Section, model: &Model, train: &Train, validation: &Validation) -> Result<Task, Error> {
    let plain = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let hint = "it is part of names of weights and of a folder";
    let name = section.text("name")?.must(plain, "letters, digits, - and _", hint)?;
    let name = name.need("each task has a name: name = \"topics\"")?;
    let hint = "masked-lm and causal-lm learn from text, sequence from labelled, token from tagged, similar from similar";
    let objective = section.word("objective", &OBJECTIVES)?.need(hint)?;
    let hint = "1.0 is usual; the loss of a step is the sum of the tasks' losses, each times its weight";
    let weight = section.number("weight")?.must(|&weight| weight > 0.0, "above zero", hint)?.or(1.0);
    refuse_keys_of_others(section, objective)?;
    let share = |value: &f64| (0.0..1.0).contains(value);
    let smoothing = section.number("label_smoothing")?;
    let smoothing = smoothing.must(share, "from 0 to below 1", "the usual value is 0.1")?.or(0.0);
    // What is of other objectives was refused just now.
    let examples = examples::examples_without(section, &[])?;
    if examples.is_none() && !objective.is_of_text() {
        let (word, key) = (objective.word(), objective.key());
        return Err(
            section.missing(key, &format!("objective \"{word}\" learns from files: {key} = [\"a.tsv\"]"))
        );
    }
    let held_out = examples.as_ref().is_some_and(|examples| !examples.held_out.is_empty());
    let own = if section.has("validation") { sources::validation(section)? } else { validation.clone() };
    let head = examples::head_or(section, objective.head())?;
    Ok(Task {
        name,
        objective,
        weight,
        batch: resolve::size(section, "batch", "a batch holds a sequence")?.or(train.batch),
        context: context(section, model)?,
        label_smoothing: smoothing,
        labels: head.as_ref().map_or(vec![], |head| head.labels.clone()),
        problem_type: head.and_then(|head| head.problem_type),
        text: sources::sources(section)?,
        separator: sources::separator(section)?,
        validation: (!held_out).then_some(own),
        masking: resolve::masking(section)?,
        examples,
    })
}

impl Goal {
    fn head(self) -> Option<HeadKind> {
        match self {
            Goal::Sequence => Some(HeadKind::Sequence),
            Goal::Token => Some(HeadKind::Token),
            _ => None,
        }
    }
}

fn context(section: &Section, model: &Model) -> Result<Option<usize>, Error> {
    let context = resolve::size(section, "context", "a sequence holds a token")?;
    Ok(match model {
        Model::Load { .. } => context.take(),
        Model::Build(shape) => {
            let expected = format!("at most model.context = {}", shape.context);
            let hint = "all tasks share the positions of one trunk: raise model.context, or lower this";
            context.must(|&n| n <= shape.context, expected, hint)?.take()
        }
    })
}

/// Data and settings of other objectives than the task's.
fn refuse_keys_of_others(section: &Section, objective: Goal) -> Result<(), Error> {
    let mut own = vec!["name", "objective", "weight", "batch", "context", "label_smoothing", "validation"];
    own.push(objective.key());
    own.extend::<&[&str]>(match objective {
        Goal::MaskedLm => &["separator", "masking"],
        Goal::CausalLm => &["separator"],
        Goal::Sequence => &["held_out", "columns", "labels", "problem_type"],
        Goal::Token => &["held_out", "labels"],
        Goal::Similar => &["held_out", "columns", "similarity"],
    });
    let expected = format!("absent beside objective = \"{}\"", objective.word());
    section.only_these(&own, &expected, &format!("its data is named by `{}`", objective.key()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\n";

    fn read(text: &str) -> Result<Recipe, Error> {
        Recipe::from_text(&format!("{MODEL}{text}"), "r.toml", &[])
    }

    #[test]
    fn tasks_are_read_and_come_back_as_they_were_written() {
        let recipe = read(
            "[data]\nvalidation = 0.2\n[train]\nbatch = 6\n\
             [[task]]\nname = \"guess\"\nobjective = \"masked-lm\"\ntext = \"a.txt\"\nmasking = { share = 0.3 }\n\
             [[task]]\nname = \"topic\"\nobjective = \"sequence\"\nlabelled = \"b.tsv\"\nweight = 0.5\nbatch = 4\ncontext = 8\n\
             labels = [\"x\", \"y\"]\nheld_out = \"c.tsv\"\n\
             [[task]]\nname = \"words\"\nobjective = \"token\"\ntagged = [\"d.txt\"]\nlabel_smoothing = 0.1\n",
        )
        .unwrap();
        let [guess, topic, words] = &recipe.tasks[..] else { panic!("three tasks") };
        assert_eq!(
            (guess.weight, guess.batch, guess.validation.clone()),
            (1.0, 6, Some(Validation::Share(0.2)))
        );
        assert_eq!(
            (topic.weight, topic.batch, topic.context, topic.validation.clone()),
            (0.5, 4, Some(8), None)
        );
        assert_eq!((topic.labels.len(), words.label_smoothing), (2, 0.1));
        assert_eq!(Recipe::from_text(&recipe.to_toml(), "again", &[]).unwrap(), recipe);
        let alone = recipe.alone(topic);
        assert!(alone.tasks.is_empty());
        assert_eq!((alone.train.batch, alone.train.context), (4, Some(8)));
        assert_eq!(alone.model.head().map(|head| head.kind), Some(HeadKind::Sequence));
    }

    #[test]
    fn tasks_that_cannot_be_are_refused_by_their_place() {
        let good = "[[task]]\nname = \"a\"\nobjective = \"masked-lm\"\n";
        let next = |keys: &str| format!("{good}[[task]]\nname = \"b\"\n{keys}");
        for (text, part) in [
            (next("objective = \"tokens\""), "did you mean \"token\""),
            (next("objective = \"paint\""), "`task.1.objective` cannot be"),
            (next(""), "`task.1.objective` is missing"),
            ("[[task]]\nobjective = \"masked-lm\"\n".into(), "`task.0.name` is missing"),
            ("[[task]]\nname = \"a b\"\nobjective = \"masked-lm\"\n".into(), "letters, digits"),
            (format!("{good}{good}"), "`task.1.name` cannot be"),
            (next("objective = \"masked-lm\"\nweight = 0"), "above zero"),
            (next("objective = \"masked-lm\"\nweight = -1.0"), "`task.1.weight`"),
            (next("objective = \"masked-lm\"\nweight = nan"), "a finite number"),
            (next("objective = \"masked-lm\"\nweight = inf"), "a finite number"),
            (next("objective = \"masked-lm\"\nbatch = 0"), "at least 1"),
            (next("objective = \"masked-lm\"\ncontext = 32"), "at most model.context = 16"),
            (next("objective = \"sequence\""), "`task.1.labelled` is missing"),
            (next("objective = \"token\"\nlabelled = \"a.tsv\""), "`task.1.labelled` cannot be"),
            (next("objective = \"masked-lm\"\nlabels = [\"a\", \"b\"]"), "`task.1.labels` cannot be"),
            (next("objective = \"sequence\"\nlabelled = \"a.tsv\"\nlabels = [\"a\"]"), "two names or more"),
            (
                next("objective = \"sequence\"\nlabelled = \"a.tsv\"\ntokenizer = \"char\""),
                "did you mean `data.tokenizer`",
            ),
            (next("objective = \"masked-lm\"\nwheight = 1"), "did you mean `task.1.weight`"),
            (format!("{good}[data]\ntext = \"a.txt\""), "`data.text` cannot be"),
            (format!("{good}[train]\nmicro_batch = 2"), "`train.micro_batch` cannot be"),
            (format!("{good}[train]\nlabel_smoothing = 0.1"), "`train.label_smoothing` cannot be"),
            (format!("{good}[adapter]\nrank = 2"), "`adapter.rank` cannot be"),
            (format!("{good}[prune]\nmethod = \"magnitude\"\nsparsity = 0.5"), "`prune"),
            (format!("{good}[quantize]\nscheme = \"int8\""), "`quantize.scheme` cannot be"),
            (format!("{good}[distill]\nteacher = \"x\""), "`distill.teacher` cannot be"),
        ] {
            let message = read(&text).expect_err(&text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
        let headed = "[model]\nload = \"x\"\nhead = \"sequence\"\n".to_string() + good;
        let message = Recipe::from_text(&headed, "r.toml", &[]).unwrap_err().to_string();
        assert!(message.contains("`model.head` cannot be"), "{message}");
    }
}
