//! A multi-layer perceptron over rows of a table: columns of numbers in, classes or numbers out.
//!
//! ```text
//! x = (column - mean) / deviation                  for each column, in f64, before the graph
//! h = dropout(activation(x W^T + b))               for each hidden layer
//! scores = h W^T + b
//! ```
//! The columns, with the mean and the deviation by which each is standardised, stand in `config.json`: a checkpoint is whole without the
//! table it was trained on.

use super::config::{MOST_LAYERS, shortest};
use super::score::{self, labels_of};
use super::{
    Activation, Config, Design, Error, Family, Forward, Interface, Labels, Mlp, Mode, ParameterSpec, Reading,
    Result, Task, count_elements, from_config, problem_type,
};
use crate::graph::Graph;
use crate::tensor::Type;
use serde_json::{Map, Value as Json, json};

/// Name of the input of the graph, F32 [B, columns].
pub(super) const FEATURES: &str = "features";

const ARCHITECTURE: &str = "MlpForRowClassification";

/// Keys of `config.json` that are read here.
const KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "hidden_sizes",
    "hidden_act",
    "dropout",
    FEATURES,
    "problem_type",
    "dtype",
    "torch_dtype",
];

/// Key of `config.json` with the name of the column that is learnt; it changes nothing of the model, and so is kept.
const LABEL: &str = "label_column";

/// A column of a table, and how it is standardised.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What is taken off each number.
    pub mean: f64,
    /// What is left is divided by this.
    pub deviation: f64,
}

impl Column {
    /// A number of this column as the model reads it.
    pub fn standard(&self, number: f64) -> f32 {
        ((number - self.mean) / self.deviation) as f32
    }

    fn json(&self) -> Json {
        json!({ "name": self.name, "mean": self.mean, "deviation": self.deviation })
    }
}

/// A multi-layer perceptron that classifies rows, or predicts numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct RowMlp {
    /// Neurons of each hidden layer.
    pub hidden: Vec<usize>,
    /// Their activation.
    pub activation: Activation,
    /// Share of hidden neurons zeroed in training.
    pub dropout: f32,
    /// Columns that it reads; of a new model none, until the table is known.
    pub columns: Vec<Column>,
    /// Scores that it gives.
    pub classes: usize,
    /// What labels mean.
    pub labels: Labels,
    /// Keys of `config.json` that change nothing here, such as names of classes, kept for saving.
    pub kept: Map<String, Json>,
}

impl RowMlp {
    /// A new one, without columns and classes as yet.
    pub fn from_design(design: &Design) -> Result<Self> {
        design.refuse_for("mlp", &["kv_heads", "head_size", "rope_theta", "window"])?;
        let refuse = |key: &str, expected: &str, got: String| {
            let (place, key, expected) = ("the recipe".into(), key.into(), expected.into());
            Err(Error::Setting { place, key, expected, got })
        };
        if !design.bias {
            return refuse("bias", "true: an mlp has biases", "false".into());
        }
        if design.layers > MOST_LAYERS {
            return refuse("layers", &format!("at most {MOST_LAYERS}"), design.layers.to_string());
        }
        let hidden = design.hidden.unwrap_or(design.width);
        if hidden == 0 {
            return refuse("hidden", "above zero", "0".into());
        }
        Ok(RowMlp {
            hidden: vec![hidden; design.layers],
            activation: design.activation,
            dropout: design.dropout,
            columns: vec![],
            classes: 0,
            labels: Labels::One,
            kept: Map::new(),
        })
    }

    /// From the keys of a `config.json`.
    pub fn from_config(config: &Config) -> Result<Self> {
        config.refuse_set(&[])?;
        let classes = classes_of(config)?;
        let activation = Activation::named(config.word(&["hidden_act"], "relu")?);
        Ok(RowMlp {
            hidden: sizes_of(config)?,
            activation: activation
                .ok_or_else(|| config.refuse("hidden_act", format!("one of {}", Activation::names())))?,
            dropout: config.share(&["dropout"], 0.0)? as f32,
            columns: columns_in(config)?,
            classes,
            labels: labels_of(config, classes)?,
            kept: config.except(&[KEYS]),
        })
    }

    fn mlp(&self) -> Option<Mlp> {
        let sizes = [&[self.columns.len()], &self.hidden[..], &[self.classes]].concat();
        Mlp::new(&sizes, self.activation).ok().map(|mlp| Mlp { dropout: self.dropout, ..mlp })
    }
}

impl Family for RowMlp {
    fn name(&self) -> &'static str {
        "mlp"
    }

    /// It reads no tokens; one is what those count who divide by it.
    fn vocabulary(&self) -> usize {
        1
    }

    fn context(&self) -> usize {
        1
    }

    fn interface(&self) -> Interface {
        let (classes, labels) = (self.classes, self.labels);
        Interface { columns: self.columns.len(), ..Interface::of(Task::SequenceClass { classes, labels }) }
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        self.mlp().map_or(vec![], |mlp| mlp.parameters())
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let Some(mlp) = self.mlp() else {
            let expected = "columns and classes, as rows of a table show them".to_string();
            let (place, key) = ("the recipe".to_string(), FEATURES.to_string());
            return Err(Error::Setting { place, key, expected, got: "none".into() });
        };
        if matches!(reading.mode, Mode::Continue { .. }) {
            self.interface().expect_causal()?;
        }
        let x = graph.input(FEATURES, Type::f32([reading.extent.batch, self.columns.len()]));
        let (logits, hidden) = mlp.write(graph, x, reading.mode)?;
        Ok(Forward::new(logits, hidden))
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        Some(stored.to_string())
    }

    fn config(&self) -> Map<String, Json> {
        let keys = json!({
            "architectures": [ARCHITECTURE],
            "model_type": self.name(),
            "hidden_sizes": self.hidden,
            "hidden_act": self.activation.name(),
            "dropout": shortest(self.dropout),
            FEATURES: self.columns.iter().map(Column::json).collect::<Vec<_>>(),
            "problem_type": problem_type(self.labels),
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        keys.extend(self.kept.clone());
        keys
    }

    fn set_dropout(&mut self, share: f32) {
        self.dropout = share;
    }

    fn describe(&self) -> String {
        let list = |sizes: &[usize]| sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!(
            "mlp: a classifier of rows, {} columns, hidden layers of {}, {} scores, {} parameters",
            self.columns.len(),
            list(&self.hidden),
            self.classes,
            count_elements(&self.parameters())
        )
    }
}

/// The columns that a model of rows reads; none of any other.
pub fn columns_of(family: &dyn Family) -> Vec<Column> {
    columns_in(&Config::new("the model", family.config())).unwrap_or_default()
}

/// What the column is called that a model of rows has learnt; none where that is not known.
pub fn label_column_of(family: &dyn Family) -> Option<String> {
    family.config().get(LABEL)?.as_str().map(String::from)
}

/// The same model over these columns, for classes of these names, which a column called `label` has, if it has a name of its own.
pub fn with_columns(
    family: &dyn Family,
    columns: &[Column],
    labels: Labels,
    names: &[String],
    label: Option<&str>,
) -> Result<Box<dyn Family>> {
    let mut keys = family.config();
    keys.extend(label.map(|label| (LABEL.to_string(), json!(label))));
    let numbered = || names.iter().enumerate();
    keys.insert(FEATURES.into(), columns.iter().map(Column::json).collect());
    keys.insert(
        "id2label".into(),
        numbered().map(|(id, name)| (id.to_string(), json!(name))).collect::<Map<_, _>>().into(),
    );
    keys.insert(
        "label2id".into(),
        numbered().map(|(id, name)| (name.clone(), json!(id))).collect::<Map<_, _>>().into(),
    );
    keys.insert("problem_type".into(), json!(problem_type(labels)));
    from_config(&Config::new("the model over these columns", keys))
}

fn sizes_of(config: &Config) -> Result<Vec<usize>> {
    let expected = || config.refuse("hidden_sizes", "a list of whole numbers above zero");
    let list = config.keys().get("hidden_sizes").and_then(Json::as_array).ok_or_else(expected)?;
    let size = |n: &Json| n.as_u64().filter(|n| (1..=u64::from(u32::MAX)).contains(n)).map(|n| n as usize);
    match list.len() <= MOST_LAYERS {
        true => list.iter().map(size).collect::<Option<_>>().ok_or_else(expected),
        false => Err(config.refuse("hidden_sizes", format!("at most {MOST_LAYERS} layers"))),
    }
}

fn columns_in(config: &Config) -> Result<Vec<Column>> {
    let expected = || {
        config
            .refuse(FEATURES, "a list of columns, each with a name, a finite mean and a deviation above zero")
    };
    let list = config.keys().get(FEATURES).and_then(Json::as_array).ok_or_else(expected)?;
    let column = |column: &Json| {
        Some(Column {
            name: column.get("name")?.as_str()?.to_string(),
            mean: column.get("mean")?.as_f64().filter(|mean| mean.is_finite())?,
            deviation: column.get("deviation")?.as_f64().filter(|d| d.is_finite() && *d > 0.0)?,
        })
    };
    list.iter().map(column).collect::<Option<_>>().ok_or_else(expected)
}

/// As many classes as have names; of a new model none.
fn classes_of(config: &Config) -> Result<usize> {
    match config.keys().contains_key("id2label") {
        true => score::classes_of(config),
        false => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Extent, Weights, initial, open};

    fn config() -> Json {
        json!({
            "model_type": "mlp", "architectures": [ARCHITECTURE], "hidden_sizes": [5, 4], "hidden_act": "tanh",
            "dropout": 0.25, "id2label": { "0": "no", "1": "yes" },
            "features": [{ "name": "length", "mean": 2.5, "deviation": 0.5 }, { "name": "width", "mean": 0, "deviation": 1 }],
        })
    }

    fn read(json: Json) -> Result<Box<dyn Family>> {
        from_config(&Config::new("config.json", json.as_object().unwrap().clone()))
    }

    #[test]
    fn a_folder_holds_columns_classes_and_layers_as_pytorch_has_them() {
        let family = read(config()).unwrap();
        let shapes: Vec<_> =
            family.parameters().iter().map(|spec| (spec.name.clone(), spec.shape.to_vec())).collect();
        assert_eq!(shapes[0], ("layers.0.weight".to_string(), vec![5, 2]));
        assert_eq!(shapes[4], ("layers.2.weight".to_string(), vec![2, 4]));
        let folder = tempfile::tempdir().unwrap();
        initial(&family.parameters(), 3).save(folder.path(), family.as_ref()).unwrap();
        let again = open(folder.path()).unwrap();
        assert_eq!(again.config(), family.config());
        assert_eq!(
            columns_of(again.as_ref())[0],
            Column { name: "length".into(), mean: 2.5, deviation: 0.5 }
        );
        assert_eq!(columns_of(again.as_ref())[0].standard(3.0), 1.0);
        assert_eq!(crate::model::class_names(again.as_ref()), ["no", "yes"]);
        Weights::read(folder.path(), again.as_ref()).unwrap().check(&family.parameters()).unwrap();
        let mut graph = Graph::new();
        let extent = Extent { batch: 3, context: 1 };
        let forward = family.forward(&mut graph, extent, Mode::Train).unwrap();
        assert_eq!(*graph.kind(forward.logits), Type::f32([3, 2]));
        assert!(graph.named("rng").is_some(), "a quarter of the neurons is dropped");
    }

    #[test]
    fn settings_that_cannot_be_are_refused_by_their_key() {
        for (key, value) in [
            ("hidden_sizes", json!([4, 0])),
            ("hidden_sizes", json!("many")),
            ("hidden_act", json!("step")),
            ("features", json!([{ "name": "a", "mean": 0.0, "deviation": 0.0 }])),
            ("features", json!([{ "mean": 0.0, "deviation": 1.0 }])),
            ("problem_type", json!("ranking")),
            ("id2label", json!([])),
        ] {
            let mut json = config();
            json[key] = value;
            match read(json) {
                Err(Error::Setting { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_new_one_waits_for_its_columns() {
        let mut json = config();
        json.as_object_mut().unwrap().remove("id2label");
        json["features"] = json!([]);
        let bare = read(json).unwrap();
        assert!(bare.parameters().is_empty());
        let extent = Extent { batch: 3, context: 1 };
        assert!(matches!(
            bare.forward(&mut Graph::new(), extent, Mode::Evaluate),
            Err(Error::Setting { key, .. }) if key == FEATURES
        ));
        let columns = columns_of(read(config()).unwrap().as_ref());
        let whole =
            with_columns(bare.as_ref(), &columns, Labels::Numbers, &["price".to_string()], Some("cost"));
        let whole = whole.unwrap();
        assert_eq!(label_column_of(whole.as_ref()).as_deref(), Some("cost"));
        assert_eq!(label_column_of(bare.as_ref()), None);
        assert_eq!(whole.interface().task, Task::SequenceClass { classes: 1, labels: Labels::Numbers });
        assert_eq!(whole.interface().columns, 2);
    }
}
