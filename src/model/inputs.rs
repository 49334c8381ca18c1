//! What a model is fed, under the names of transformers: checked, and turned into the inputs of a graph.

mod rows;
mod sound;
mod table;

pub use rows::Row;

use super::layers::sorting;
use super::row_mlp::FEATURES;
use super::score::{LASTS, lasts};
use super::{
    Archive, Error, Extent, FOLLOWS, Family, IGNORED, Interface, Labels, Mode, Reading, Result, Task,
};
use crate::formats::Raw;
use crate::graph::{Feeds, Graph};
use crate::ops::embedding::sort_positions;
use crate::tensor::{Shape, Tensor};
use std::collections::BTreeMap;

/// Label of a position that costs nothing, as transformers has it.
const NO_LABEL: i64 = -100;

/// Names of what chooses rows or hides them: in transformers, and of the input of a graph.
const NAMES: [[&str; 2]; 5] = [
    ["input_ids", "tokens"],
    ["attention_mask", "mask"],
    ["token_type_ids", "kinds"],
    ["decoder_input_ids", "target_tokens"],
    ["decoder_attention_mask", "target_mask"],
];
const LABELS: &str = "labels";
const PAIRS: &str = "next_sentence_label";

/// A batch for a model, of which everything fits.
#[derive(Clone, Debug)]
pub struct Inputs {
    interface: Interface,
    extent: Extent,
    target: usize,
    /// By the name in a graph, [B, T] or [B, S].
    numbers: BTreeMap<&'static str, Vec<u32>>,
    /// Of a model of rows its columns, F32 [B, columns]; of one that hears its sounds, F32 [B, bands, frames].
    features: Option<Tensor>,
    /// For the loss, as the graph reads them.
    targets: Option<Tensor>,
    /// Of a model that scores pairs beside tokens, I32 \[B\].
    follows: Option<Tensor>,
}

impl Inputs {
    /// Reads the tensors of an archive whose names begin with `prefix`: whole numbers of any type, and floats where labels are.
    pub fn read(archive: &Archive, prefix: &str, family: &dyn Family) -> Result<Inputs> {
        let mut given = BTreeMap::new();
        for name in archive.names() {
            if let Some(short) = name.strip_prefix(prefix) {
                given.insert(short.to_string(), archive.raw(name)?);
            }
        }
        Inputs::new(&given, family)
    }

    /// From tensors by their names in transformers.
    pub fn new(given: &BTreeMap<String, Raw>, family: &dyn Family) -> Result<Inputs> {
        let interface = family.interface();
        if interface.columns > 0 {
            return Inputs::of_table(given, family);
        }
        let hears = interface.sound.is_some();
        let pretrains = interface.task == Task::Pretraining;
        let known = |name: &&String| {
            [LABELS, sound::NAME].contains(&name.as_str())
                || *name == PAIRS && pretrains
                || NAMES.iter().any(|[theirs, _]| theirs == name)
        };
        if let Some(name) = given.keys().find(|name| !known(name)) {
            let names = NAMES.map(|[theirs, _]| theirs).join(", ");
            let expected = format!("one of {names}, {}, {LABELS} (behind --prefix)", sound::NAME);
            return Err(refuse(name, expected, "not known"));
        }
        let shape = |name: &str| match given.get(name).map(|raw| &raw.shape[..]) {
            Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok([rows, columns]),
            Some(other) => Err(refuse(name, "of shape [B, T], neither of them 0", format!("{other:?}"))),
            None => Err(refuse(name, "there, as the model reads it", "absent")),
        };
        let features = sound::read(given, interface.sound)?;
        let [batch, context] = match (&features, interface.sound) {
            (Some(features), Some(sound)) => [features.shape[0], sound.positions()],
            _ => shape("input_ids")?,
        };
        let mut inputs = Inputs {
            interface,
            extent: Extent { batch, context },
            target: context,
            features,
            numbers: BTreeMap::new(),
            targets: None,
            follows: None,
        };
        let second = hears || interface.task == Task::SecondText;
        if second {
            let from = if given.contains_key("decoder_input_ids") { "decoder_input_ids" } else { LABELS };
            inputs.target = shape(from)?[1];
        }
        for [theirs, ours] in NAMES {
            let Some(raw) = given.get(theirs) else { continue };
            let limit = match ours {
                "mask" | "target_mask" => 2,
                "kinds" => interface.kinds,
                _ => family.vocabulary(),
            };
            if hears && !theirs.starts_with("decoder_") {
                return Err(refuse(theirs, format!("absent: the model reads {}", sound::NAME), "given"));
            }
            if theirs.starts_with("decoder_") && !second {
                return Err(refuse(theirs, "absent: the model has no decoder beside an encoder", "given"));
            }
            inputs.numbers.insert(ours, inputs.numbers_of(theirs, raw, limit)?);
        }
        if let Some(raw) = given.get(LABELS) {
            inputs.label(raw, family.vocabulary())?;
        }
        if let Some(raw) = given.get(PAIRS) {
            inputs.expect_shape(PAIRS, &raw.shape, &[batch])?;
            let all = whole(PAIRS, raw)?;
            if let Some(at) = all.iter().position(|label| ![0, 1].contains(label)) {
                return Err(out_of_range(PAIRS, &all, at, raw, "0 (it follows) or 1"));
            }
            inputs.follows = Some(Tensor::i32([batch], all.into_iter().map(|label| label as i32).collect()));
        }
        if pretrains && inputs.targets.is_some() != inputs.follows.is_some() {
            let expected = format!("there beside the other of {LABELS} and {PAIRS}: the loss is of both");
            let lacks = if inputs.targets.is_some() { PAIRS } else { LABELS };
            return Err(refuse(lacks, expected, "absent"));
        }
        match second && !inputs.numbers.contains_key("target_tokens") {
            true => Err(refuse("decoder_input_ids", "there, or labels in their place", "absent")),
            false => Ok(inputs),
        }
    }

    /// The same with what is right: of tokens or sequences, and of pairs beside tokens.
    pub fn with_targets(self, targets: Tensor, follows: Option<Tensor>) -> Inputs {
        Inputs { targets: Some(targets), follows, ..self }
    }

    /// Size of the batch.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// True if there are labels, so that there is a loss.
    pub fn has_labels(&self) -> bool {
        self.targets.is_some()
    }

    /// What a forward pass over this batch has to read.
    pub fn reading(&self, mode: Mode) -> Reading {
        let holds = |name: &str, number: u32| self.numbers.get(name).is_some_and(|all| all.contains(&number));
        let counted = self.interface.counted_from.is_some_and(|padding| holds("tokens", padding));
        Reading {
            extent: self.extent,
            mode,
            padded: counted || holds("mask", 0) || holds("target_mask", 0),
            packed: false,
            heard: self.interface.sound.is_some(),
            kinds: self.numbers.get("kinds").is_some_and(|all| all.iter().any(|&kind| kind > 0)),
            target: self.target,
            seats: None,
        }
    }

    /// What a graph of such a pass is fed.
    pub fn feeds(&self, graph: &Graph) -> Result<Feeds> {
        let mut feeds = Feeds::new();
        let names: Vec<&str> = graph.inputs().map(|(name, _)| name).collect();
        for &name in &names {
            if let (FEATURES, Some(features)) = (name, &self.features) {
                feeds.set(name, features.clone());
            } else if name == "targets" {
                let absent = || refuse(LABELS, "there, as a loss is asked for", "absent");
                feeds.set(name, self.targets.clone().ok_or_else(absent)?);
            } else if let (FOLLOWS, Some(follows)) = (name, &self.follows) {
                feeds.set(name, follows.clone());
            } else if name == LASTS {
                let lasts = self.lasts()?;
                // The rows are those of this batch, also where the graph is that of another one.
                if graph.named(&sorting(name)[1]).is_some() {
                    sort(&mut feeds, name, &lasts, self.extent.positions(), None)?;
                }
                feeds.set(name, Tensor::u32([lasts.len()], lasts));
            } else if let Some((shape, numbers)) = self.input(name) {
                let silent = self.interface.silent.filter(|_| name != "kinds");
                if let Some(starts) = graph.named(&sorting(name)[1]) {
                    sort(&mut feeds, name, &numbers, graph.kind(starts).shape.count() - 1, silent)?;
                }
                feeds.set(name, Tensor::u32(shape, numbers));
            }
        }
        match names.into_iter().find(|name| feeds.get(name).is_none()) {
            Some(name) => {
                let expected = "no such input: none here is called so, and dropout is to be off";
                Err(refuse(name, expected, "read by the model"))
            }
            None => Ok(feeds),
        }
    }

    /// An input of a graph by its name.
    fn input(&self, name: &str) -> Option<([usize; 2], Vec<u32>)> {
        let Extent { batch, context } = self.extent;
        let length = if name.starts_with("target_") { self.target } else { context };
        let filled = |number| vec![number; batch * length];
        let numbers = match name {
            "mask" | "target_mask" => self.numbers.get(name).cloned().unwrap_or_else(|| filled(1)),
            "kinds" => self.numbers.get(name).cloned().unwrap_or_else(|| filled(0)),
            "places" => self.places(),
            _ => self.numbers.get(name)?.clone(),
        };
        Some(([batch, length], numbers))
    }

    /// The row of each text's last token.
    fn lasts(&self) -> Result<Vec<u32>> {
        let (Extent { batch, context }, padding) = (self.extent, self.interface.padding);
        if padding.is_none() && batch > 1 {
            let expected = "one text, as the model's config.json has no pad_token_id to tell where texts end";
            return Err(refuse("input_ids", expected, format!("{batch} texts")));
        }
        Ok(lasts(&self.numbers["tokens"], context, padding))
    }

    /// The position of each token where they are counted over the text: padding keeps its own number.
    fn places(&self) -> Vec<u32> {
        let padding = self.interface.counted_from.unwrap_or(0);
        let row = |row: &[u32]| {
            let mut last = padding;
            let mut place = |&token: &u32| match token == padding {
                true => padding,
                false => {
                    last += 1;
                    last
                }
            };
            row.iter().map(&mut place).collect::<Vec<u32>>()
        };
        self.numbers["tokens"].chunks(self.extent.context).flat_map(row).collect()
    }

    /// Numbers below a limit.
    fn numbers_of(&self, name: &str, raw: &Raw, limit: usize) -> Result<Vec<u32>> {
        let own = if name.starts_with("decoder_") { self.target } else { self.extent.context };
        self.expect_shape(name, &raw.shape, &[self.extent.batch, own])?;
        let all = whole(name, raw)?;
        if let Some(at) = all.iter().position(|&number| number < 0 || number >= limit as i64) {
            return Err(out_of_range(name, &all, at, raw, &format!("from 0 to {}", limit - 1)));
        }
        Ok(all.into_iter().map(|number| number as u32).collect())
    }

    fn expect_shape(&self, name: &str, got: &Shape, expected: &[usize]) -> Result<()> {
        match got[..] == *expected {
            true => Ok(()),
            false => Err(refuse(name, format!("of shape {}", Shape::from(expected)), got.to_string())),
        }
    }

    /// Takes the labels of the model's task, and of a second sequence without tokens these as well.
    fn label(&mut self, raw: &Raw, vocabulary: usize) -> Result<()> {
        let Extent { batch, context } = self.extent;
        let (shape, limit) = match self.interface.task {
            Task::States => return Err(refuse(LABELS, "absent: the model has no head", "given")),
            Task::NextToken | Task::HiddenToken | Task::Pretraining => (vec![batch, context], vocabulary),
            Task::NextSentence => (vec![batch], 2),
            Task::SecondText | Task::Transcript => (vec![batch, self.target], vocabulary),
            Task::TokenClass { classes } => (vec![batch, context], classes),
            Task::SequenceClass { classes, labels: Labels::One } => (vec![batch], classes),
            Task::SequenceClass { classes, .. } => {
                // One number for each sequence may stand without an axis of its own.
                let alone = classes == 1 && raw.shape[..] == [batch];
                let shape = if alone { vec![batch] } else { vec![batch, classes] };
                self.expect_shape(LABELS, &raw.shape, &shape)?;
                let floats = raw
                    .floats()
                    .or_else(|| raw.integers().map(|all| all.iter().map(|&x| x as f32).collect()));
                let got = raw.element.to_string();
                let floats = floats.ok_or_else(|| refuse(LABELS, "numbers", got))?;
                self.targets = Some(Tensor::f32([batch, classes], floats));
                return Ok(());
            }
        };
        self.expect_shape(LABELS, &raw.shape, &shape)?;
        let labels = whole(LABELS, raw)?;
        let wrong = |&label: &i64| label != NO_LABEL && !(0..limit as i64).contains(&label);
        if let Some(at) = labels.iter().position(wrong) {
            let expected = format!("from 0 to {}, or {NO_LABEL}", limit - 1);
            return Err(out_of_range(LABELS, &labels, at, raw, &expected));
        }
        if let Some([start, padding]) = self.interface.start.or(self.interface.sound.map(|sound| sound.start))
        {
            let shifted = labels.chunks(self.target).flat_map(|row| {
                let before =
                    row[..row.len() - 1].iter().map(|&label| if label < 0 { padding } else { label as u32 });
                std::iter::once(start).chain(before).collect::<Vec<u32>>()
            });
            let shifted = shifted.collect();
            self.numbers.entry("target_tokens").or_insert(shifted);
        }
        let target = |&label: &i64| if label == NO_LABEL { IGNORED } else { label as i32 };
        let targets: Vec<i32> = match self.interface.task {
            Task::NextToken => {
                labels.chunks(context).flat_map(|row| row[1..].iter().map(target).chain([IGNORED])).collect()
            }
            _ => labels.iter().map(target).collect(),
        };
        if targets.iter().all(|&target| target == IGNORED) {
            return Err(refuse(LABELS, "at least one that counts", format!("{NO_LABEL} wherever it would")));
        }
        self.targets = Some(Tensor::i32([targets.len()], targets));
        Ok(())
    }
}

/// Sorts the positions of numbers by which rows of a table, of so many, are looked up. Positions of the silent number
/// come last, where no row finds them, so that its row has no gradient.
fn sort(feeds: &mut Feeds, name: &str, numbers: &[u32], rows: usize, silent: Option<u32>) -> Result<()> {
    let [order, starts] = sorting(name);
    let (mut sorted, mut first) = sort_positions(numbers, rows)?;
    if let Some(silent) = silent.map(|silent| silent as usize).filter(|&silent| silent < rows) {
        let (from, to) = (first[silent], first[silent + 1]);
        sorted[from as usize..].rotate_left((to - from) as usize);
        first[silent + 1..].iter_mut().for_each(|start| *start -= to - from);
    }
    feeds.set(order, Tensor::u32([sorted.len()], sorted));
    feeds.set(starts, Tensor::u32([first.len()], first));
    Ok(())
}

fn whole(name: &str, raw: &Raw) -> Result<Vec<i64>> {
    raw.integers().ok_or_else(|| refuse(name, "whole numbers, such as I64 or I32", raw.element.to_string()))
}

fn out_of_range(name: &str, all: &[i64], at: usize, raw: &Raw, expected: &str) -> Error {
    let columns = raw.shape.last();
    let place =
        if raw.shape.len() < 2 { format!("[{at}]") } else { format!("[{}, {}]", at / columns, at % columns) };
    refuse(&format!("{name}{place}"), expected, all[at].to_string())
}

fn refuse(name: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::Input { name: name.to_string(), expected: expected.into(), got: got.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Element;
    use crate::model::{Config, from_config};
    use crate::tensor::DType;
    use serde_json::json;

    fn family(class: &str, more: serde_json::Value) -> Box<dyn Family> {
        let mut keys = json!({
            "architectures": [class], "vocab_size": 11, "max_position_embeddings": 9, "hidden_size": 8, "n_embd": 8,
            "num_hidden_layers": 1, "n_layer": 1, "num_attention_heads": 2, "n_head": 2, "intermediate_size": 8,
        });
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        from_config(&Config::new("config.json", keys.as_object().unwrap().clone())).unwrap()
    }

    fn given(list: &[(&str, &[usize], &[i64])]) -> BTreeMap<String, Raw<'static>> {
        list.iter().map(|(name, shape, all)| (name.to_string(), Raw::i64(*shape, all))).collect()
    }

    fn targets(family: &dyn Family, given: &BTreeMap<String, Raw>) -> Tensor {
        Inputs::new(given, family).unwrap().targets.unwrap()
    }

    #[test]
    fn labels_of_a_causal_model_are_shifted_and_those_of_others_are_not() {
        let given = given(&[
            ("input_ids", &[2, 3], &[1, 2, 3, 4, 5, 6]),
            ("labels", &[2, 3], &[1, 2, -100, 4, 5, 6]),
        ]);
        let of = |class| targets(family(class, json!({})).as_ref(), &given).as_i32().to_vec();
        assert_eq!(of("GPT2LMHeadModel"), [2, -1, -1, 5, 6, -1]);
        assert_eq!(of("BertForMaskedLM"), [1, 2, -1, 4, 5, 6]);
    }

    #[test]
    fn labels_of_texts_are_classes_sets_of_classes_or_numbers() {
        let class = "BertForSequenceClassification";
        let ids = ("input_ids", &[2, 2][..], &[1, 2, 3, 4][..]);
        let one = targets(family(class, json!({})).as_ref(), &given(&[ids, ("labels", &[2], &[1, 0])]));
        assert_eq!((one.data.dtype(), one.as_i32()), (DType::I32, &[1, 0][..]));
        let any = family(class, json!({ "problem_type": "multi_label_classification" }));
        let any = targets(any.as_ref(), &given(&[ids, ("labels", &[2, 2], &[1, 0, 1, 1])]));
        assert_eq!(any, Tensor::f32([2, 2], vec![1.0, 0.0, 1.0, 1.0]));
        let number = family(class, json!({ "id2label": { "0": "score" } }));
        let mut floats = given(&[ids]);
        floats.insert("labels".into(), Raw::f32([2], &[0.5, -2.0]));
        assert_eq!(targets(number.as_ref(), &floats), Tensor::f32([2, 1], vec![0.5, -2.0]));
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_place() {
        let gpt = family("GPT2LMHeadModel", json!({}));
        let bert = family("BertForSequenceClassification", json!({}));
        let headless = family("BertModel", json!({}));
        let ids = ("input_ids", &[1, 3][..], &[1, 2, 3][..]);
        let refused = |family: &dyn Family, list: &[(&str, &[usize], &[i64])], name: &str| match Inputs::new(
            &given(list),
            family,
        ) {
            Err(Error::Input { name: named, .. }) => assert_eq!(named, name),
            other => panic!("{name}: {other:?}"),
        };
        refused(gpt.as_ref(), &[], "input_ids");
        refused(gpt.as_ref(), &[("input_ids", &[3], &[1, 2, 3])], "input_ids");
        refused(gpt.as_ref(), &[("input_ids", &[1, 3], &[1, 2, 11])], "input_ids[0, 2]");
        refused(gpt.as_ref(), &[ids, ("attention_mask", &[1, 2], &[1, 1])], "attention_mask");
        refused(gpt.as_ref(), &[ids, ("attention_mask", &[1, 3], &[1, 2, 1])], "attention_mask[0, 1]");
        refused(gpt.as_ref(), &[ids, ("token_type_ids", &[1, 3], &[0, 1, 0])], "token_type_ids[0, 1]");
        refused(gpt.as_ref(), &[ids, ("position_ids", &[1, 3], &[0, 1, 2])], "position_ids");
        refused(gpt.as_ref(), &[ids, ("decoder_input_ids", &[1, 3], &[0, 1, 2])], "decoder_input_ids");
        refused(gpt.as_ref(), &[ids, ("labels", &[1, 3], &[1, 11, -100])], "labels[0, 1]");
        refused(gpt.as_ref(), &[ids, ("labels", &[1, 3], &[1, -100, -100])], "labels");
        refused(bert.as_ref(), &[ids, ("labels", &[1], &[2])], "labels[0]");
        refused(bert.as_ref(), &[ids, ("labels", &[1, 3], &[1, 1, 1])], "labels");
        refused(headless.as_ref(), &[ids, ("labels", &[1, 3], &[1, 1, 1])], "labels");
        let mut floats = given(&[]);
        floats.insert("input_ids".into(), Raw::f32([1, 3], &[1.0, 2.0, 3.0]));
        assert!(
            matches!(Inputs::new(&floats, gpt.as_ref()), Err(Error::Input { name, .. }) if name == "input_ids")
        );
        let narrow = Raw::owned(Element::I32, [1, 2], vec![1, 0, 0, 0, 2, 0, 0, 0]);
        assert!(Inputs::new(&BTreeMap::from([("input_ids".into(), narrow)]), gpt.as_ref()).is_ok());
    }

    #[test]
    fn padding_is_declared_only_where_there_is_some() {
        let bert = family("BertModel", json!({}));
        let reading = |mask: &[i64], kinds: &[i64]| {
            let list = [
                ("input_ids", &[1, 2][..], &[1, 2][..]),
                ("attention_mask", &[1, 2], mask),
                ("token_type_ids", &[1, 2], kinds),
            ];
            Inputs::new(&given(&list), bert.as_ref()).unwrap().reading(Mode::Evaluate)
        };
        let (plain, both) = (reading(&[1, 1], &[0, 0]), reading(&[1, 0], &[0, 1]));
        assert_eq!((plain.padded, plain.kinds), (false, false));
        assert_eq!((both.padded, both.kinds), (true, true));
    }
}
