//! `kiln prune`: weights, heads, neurons or layers go. A short form of `kiln compress` with a recipe of one pass for each kind.

use super::Usage;
use super::compress::How;
use super::quantize::CalibrationText;
use crate::compress::Recipe;
use crate::compress::structured::Amount;
use clap::Args;
use std::path::PathBuf;
use std::str::FromStr;
use toml::{Table, Value};

/// Remove what a model needs least: single weights, or whole heads, neurons, channels and layers.
///
/// Single weights become zero and stay where they are: the file may become smaller (--format sparse-bitmask), the model not faster.
/// What is structured goes out of the shapes. Where both are asked for, layers go first, then heads, neurons and channels, then
/// weights. Left as they are, unless --targets says otherwise: the head, and tables that are looked up as well. The recipe that this
/// stands for is in the output's compression.json; --dry-run prints it.
#[derive(Args)]
#[command(
    after_help = "Training afterwards, a teacher, codes behind it: assets/recipes/prune.toml, structured-prune.toml and sparse-and-quantised.toml.\n\nExamples:\n  kiln prune runs/stories --sparsity 0.5 -o half\n  kiln prune runs/stories --sparsity 0.7 --scope global -o sparse --format sparse-bitmask\n  kiln prune llama --method wanda --sparsity 0.5 --calibrate text.txt -o half --dry-run\n  kiln prune llama --method sparsegpt --pattern 2:4 --scheme int8 --calibrate text.txt -o small\n  kiln prune llama --method wanda --sparsity 0.5 --ignore '*down*' --calibrate text.txt -o half\n  kiln prune runs/stories --heads 0.3 --neurons 0.3 --layers 1 --calibrate text.txt -o narrow"
)]
pub struct Prune {
    /// A run folder, a checkpoint, a Hugging Face folder, or a GGUF file of plain floats.
    model: PathBuf,
    #[command(flatten)]
    weights: SingleWeights,
    #[command(flatten)]
    structure: Structure,
    #[command(flatten)]
    text: CalibrationText,
    /// Where all randomness comes from.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u32,
    #[command(flatten)]
    how: How,
}

/// What makes single weights zero: the keys of a pass `prune`.
#[derive(Args)]
struct SingleWeights {
    /// How weights are chosen: magnitude, wanda or sparsegpt; the last two need --calibrate.
    #[arg(long, value_name = "METHOD", default_value = "magnitude")]
    method: String,
    /// Share of the weights that goes, 0 or more and less than 1.
    #[arg(long, value_name = "SHARE", conflicts_with = "pattern")]
    sparsity: Option<f64>,
    /// So many of each few consecutive inputs stay: 2:4.
    #[arg(long, value_name = "KEEP:OF")]
    pattern: Option<String>,
    /// magnitude: which weights are compared with each other, row, layer or global. Absent: layer.
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    /// A file of `kiln sensitivity --prune`: each layer loses what it minds least, --sparsity of all together.
    #[arg(long, value_name = "FILE", requires = "sparsity")]
    sensitivity: Option<PathBuf>,
    /// sparsegpt: make codes of what stays in the same pass, by this scheme (int8, int4-g128 ..).
    #[arg(long, value_name = "NAME")]
    scheme: Option<String>,
    /// sparsegpt: share of the mean of the inner products' diagonal that is added to it. Absent: 0.01.
    #[arg(long, value_name = "SHARE")]
    damping: Option<f64>,
    /// sparsegpt: columns for which weights are chosen together. Absent: 128.
    #[arg(long, value_name = "COUNT")]
    block: Option<usize>,
    /// Patterns of the names of weights to prune, `*` for any run of characters. May be given again.
    #[arg(long, value_name = "PATTERN")]
    targets: Vec<String>,
    /// Patterns of those among them to leave as they are. May be given again.
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
}

/// What goes out of the shapes: the keys of passes `drop_layers` and `prune_structured`.
#[derive(Args)]
struct Structure {
    /// How many layers go, those that change the stream least; or which, counted from zero.
    #[arg(long, value_name = "COUNT|N,N,..")]
    layers: Option<Layers>,
    /// Heads of the queries that go: a share, or how many of each layer.
    #[arg(long, value_name = "SHARE|COUNT", value_parser = amount)]
    heads: Option<Amount>,
    /// Heads of the keys that go, each with the queries that read it.
    #[arg(long, value_name = "SHARE|COUNT", value_parser = amount)]
    kv_heads: Option<Amount>,
    /// Neurons of the feed-forward parts that go.
    #[arg(long, value_name = "SHARE|COUNT", value_parser = amount)]
    neurons: Option<Amount>,
    /// Channels of the residual stream that go.
    #[arg(long, value_name = "SHARE|COUNT", value_parser = amount)]
    width: Option<Amount>,
    /// How heads, neurons and channels are judged: magnitude, activation or taylor. Absent: activation.
    #[arg(long, value_name = "SCORE")]
    score: Option<String>,
}

/// Layers that go.
#[derive(Clone, Debug, PartialEq)]
enum Layers {
    Count(i64),
    These(Vec<i64>),
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Layers, String> {
        let numbers: Result<Vec<u32>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        match numbers.as_deref() {
            Ok(&[count]) if count > 0 => Ok(Layers::Count(count.into())),
            Ok([_, _, ..]) => {
                Ok(Layers::These(numbers.unwrap_or_default().into_iter().map(i64::from).collect()))
            }
            _ => Err("2 takes two layers out, 1,3 these".into()),
        }
    }
}

/// A whole number is a count, any other number a share.
fn amount(text: &str) -> Result<Amount, String> {
    if let Ok(count) = text.parse() {
        return Ok(Amount::Count(count));
    }
    text.parse().map(Amount::Share).map_err(|_| "expected a share such as 0.3, or a whole number".into())
}

impl SingleWeights {
    fn pass(&self) -> Option<Table> {
        if self.sparsity.is_none() && self.pattern.is_none() {
            return None;
        }
        let text = |text: &Option<String>| text.clone().map(Value::String);
        let list = |list: &[String]| {
            (!list.is_empty()).then(|| Value::Array(list.iter().cloned().map(Value::String).collect()))
        };
        Some(table(
            "prune",
            [
                ("method", Some(Value::String(self.method.clone()))),
                ("sparsity", self.sparsity.map(Value::Float)),
                ("pattern", text(&self.pattern)),
                ("scope", text(&self.scope)),
                (
                    "sensitivity",
                    self.sensitivity.as_ref().map(|path| Value::String(path.display().to_string())),
                ),
                ("scheme", text(&self.scheme)),
                ("damping", self.damping.map(Value::Float)),
                ("block", self.block.map(|count| Value::Integer(count as i64))),
                ("targets", list(&self.targets)),
                ("ignore", list(&self.ignore)),
            ],
        ))
    }
}

impl Structure {
    fn passes(&self) -> impl Iterator<Item = Table> {
        let layers = self.layers.as_ref().map(|layers| match layers {
            Layers::Count(count) => table("drop_layers", [("count", Some(Value::Integer(*count)))]),
            Layers::These(these) => {
                let these = these.iter().copied().map(Value::Integer).collect();
                table("drop_layers", [("layers", Some(Value::Array(these)))])
            }
        });
        let number = |amount: Option<Amount>| match amount? {
            Amount::Count(count) => Some(Value::Integer(count as i64)),
            Amount::Share(share) => Some(Value::Float(share)),
        };
        let parts = [
            ("heads", number(self.heads)),
            ("kv_heads", number(self.kv_heads)),
            ("neurons", number(self.neurons)),
            ("width", number(self.width)),
        ];
        let shrinks = parts.iter().any(|(_, amount)| amount.is_some());
        let score = [("score", self.score.clone().map(Value::String))];
        let shrunk = shrinks.then(|| table("prune_structured", parts.into_iter().chain(score)));
        layers.into_iter().chain(shrunk)
    }
}

/// A pass with those of its keys that are given.
fn table(kind: &str, keys: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Table {
    let given = keys.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?)));
    [("kind".to_string(), Value::String(kind.into()))].into_iter().chain(given).collect()
}

impl Prune {
    /// Writes the recipe and applies it.
    pub fn run(self) -> anyhow::Result<()> {
        let recipe = self.recipe()?;
        self.how.apply(&self.model, &recipe)
    }

    /// The recipe that the arguments stand for.
    fn recipe(&self) -> anyhow::Result<Recipe> {
        let passes: Vec<Value> =
            self.structure.passes().chain(self.weights.pass()).map(Value::Table).collect();
        if passes.is_empty() {
            let text = "nothing is to go\n  hint: --sparsity 0.5, --pattern 2:4, --heads 0.3, --neurons 0.3, --width 64 or --layers 2";
            return Err(Usage(text.into()).into());
        }
        let all = [("seed", Value::Integer(self.seed.into())), ("pass", Value::Array(passes))];
        let all: Table = all.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        let text = toml::to_string(&all).expect("tables of text and numbers are TOML");
        let mut recipe = Recipe::parse("the arguments of prune", &text)?;
        self.text.fill(&mut recipe);
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_a_number_of_them_or_a_list() {
        let read = |text: &str| text.parse::<Layers>();
        assert_eq!(read("2"), Ok(Layers::Count(2)));
        assert_eq!(read("0,3"), Ok(Layers::These(vec![0, 3])));
        assert!(read("0").is_err() && read("").is_err() && read("-1").is_err() && read("1,x").is_err());
    }

    #[test]
    fn a_whole_number_is_a_count_and_any_other_a_share() {
        assert_eq!(amount("3"), Ok(Amount::Count(3)));
        assert_eq!(amount("0.3"), Ok(Amount::Share(0.3)));
        assert!(amount("a third").is_err());
    }
}
