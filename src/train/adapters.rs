//! Adapters as what a run trains: their layers, the base beneath them, their files in its checkpoints.

use super::checkpoint::{self, Stored};
use super::frozen::Frozen;
use super::job::{Job, base_of};
use super::recipe::{self, Design, Recipe};
use super::trainer::Weight;
use super::{Error, Result};
use crate::adapt::{
    self, ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapted, Adapter, Hold, Layer, Layers, RECORD_FILE, Record,
    check_together, config_of, file_in, hold, stored, with_squares,
};
use crate::model::{self, Family, ParameterSpec, Weights};
use crate::ops::coded::Activations;
use crate::tensor::{Tensor, Type};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Folder in that of a run for a base that lies nowhere else.
pub const BASE_FOLDER: &str = "base";

/// Adapters to be trained, and what they stand beside.
#[derive(Debug)]
pub struct Adapters {
    /// The adapters.
    pub list: Vec<Adapter>,
    /// Weights of the model that are not trained, as they are held.
    pub frozen: Frozen,
    /// How they are held.
    pub hold: Hold,
    /// All that is trained, before the first step.
    pub first: Weights,
    /// Of the base's weights before they were held so.
    checksum: u32,
    /// Where the base lies; none where it is made by the run, or is only a part of what lies there.
    base: Option<PathBuf>,
}

impl Adapters {
    /// The adapters of a recipe, if it has some, beside the model that it names.
    pub fn open(recipe: &Recipe, family: &dyn Family) -> Result<Option<Adapters>> {
        match recipe.adapters.is_empty() {
            true => Ok(None),
            false => Adapters::beside(recipe, family, base_of(recipe, family)?).map(Some),
        }
    }

    /// The same to be planned: where the model is a new one, nobody draws numbers for it.
    pub(super) fn to_plan(recipe: &Recipe, family: &dyn Family) -> Result<Option<Adapters>> {
        match &recipe.model {
            recipe::Model::Build(_) if !recipe.adapters.is_empty() => {
                let zeros = |spec: ParameterSpec| (spec.name, Tensor::zeros(&Type::f32(spec.shape)));
                let blank = family.parameters().into_iter().map(zeros).collect();
                Adapters::beside(recipe, family, blank).map(Some)
            }
            _ => Adapters::open(recipe, family),
        }
    }

    fn beside(recipe: &Recipe, family: &dyn Family, plain: Weights) -> Result<Adapters> {
        let layers = Layers::of(family)?;
        refuse_coded_activations(&plain)?;
        let (mut list, mut begun) = (vec![], Weights::default());
        for given in &recipe.adapters {
            let (adapter, numbers) = open_one(given, family, &layers)?;
            begun.extend(numbers);
            list.push(adapter);
        }
        check_together(&list)?;
        let how = recipe.adapters.first().map_or(Hold::F32, |first| first.base);
        // What is trained whole begins as it is, not as it would be held.
        let whole: Vec<&ParameterSpec> = list.iter().flat_map(|adapter| &adapter.whole).collect();
        let kept = whole.iter().map(|spec| Ok((spec.name.clone(), plain.numbers(&spec.name)?.into_owned())));
        let kept: Weights = kept.collect::<Result<Vec<_>>>()?.into_iter().collect();
        let checksum = plain.checksum();
        let held = with_squares(hold(plain, family, how)?, &list)?;
        for (adapter, given) in list.iter().zip(&recipe.adapters) {
            if matches!(given.design, Design::New(_)) {
                begun.extend(adapter.first(&held, &kept, recipe.train.seed)?);
            }
        }
        let frozen = Frozen::of(&held.without(|name| kept.get(name).is_ok()), "");
        let base = match &recipe.model {
            recipe::Model::Load { folder, keep_layers: None, .. } => Some(folder.clone()),
            _ => None,
        };
        Ok(Adapters { list, frozen, hold: how, first: begun, checksum, base })
    }

    /// The model with the adapters.
    pub fn adapted<'a>(&self, family: &'a dyn Family) -> Adapted<&'a dyn Family> {
        Adapted::new(family, self.list.clone())
    }

    /// All that is trained.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        self.list.iter().flat_map(Adapter::parameters).collect()
    }

    /// Writes the base into a run's folder, unless it lies elsewhere, or there already where a run goes on.
    pub(super) fn keep_base(&self, job: &Job, goes_on: bool) -> Result<()> {
        let folder = job.recipe.run.folder.join(BASE_FOLDER);
        if self.base.is_some() || goes_on && folder.join(model::CONFIG_FILE).is_file() {
            return Ok(());
        }
        base_of(&job.recipe, job.family.as_ref())?.save(&folder, job.family.as_ref())?;
        Ok(job.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.save(&folder).map(|_| ()))?)
    }

    /// The files of a checkpoint: each adapter as PEFT has it, and what they all stand beside.
    pub(super) fn files(
        &self,
        run: &Path,
        family: &dyn Family,
        weights: &[(String, Tensor)],
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let base = self.base.clone().unwrap_or_else(|| run.join(BASE_FOLDER));
        let base = std::fs::canonicalize(&base).unwrap_or(base);
        let json =
            |value: &serde_json::Value| serde_json::to_vec_pretty(value).expect("a JSON object is printable");
        let mut files = vec![];
        for adapter in &self.list {
            let number = |name: &str| weights.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor);
            let list: Vec<_> = stored(adapter, number)?
                .into_iter()
                .map(|(name, tensor)| (name, Stored::of(tensor)))
                .collect();
            let bytes = checkpoint::tensor_bytes(&list).expect("parameters have names of their own");
            files.push((file_in(&adapter.name, ADAPTER_WEIGHTS), bytes));
            files.push((file_in(&adapter.name, ADAPTER_CONFIG), json(&config_of(adapter, family, &base)?)));
        }
        let names = self.list.iter().map(|adapter| adapter.name.clone()).collect();
        let record = Record { base, hold: self.hold, checksum: Some(self.checksum), adapters: names };
        let record = serde_json::to_value(record).expect("a record is plain data");
        files.push((RECORD_FILE.to_string(), json(&record)));
        Ok(files)
    }

    /// What a checkpoint holds of all that is trained.
    pub(super) fn read(&self, checkpoint: &Path, family: &dyn Family) -> Result<HashMap<String, Tensor>> {
        if Record::of(checkpoint)?.checksum != Some(self.checksum) {
            let problem = "its adapters stand beside a base with other weights".to_string();
            return Err(Error::Mismatch { folder: checkpoint.display().to_string(), problem });
        }
        let loaded = adapt::load(&[checkpoint.to_path_buf()], family)?;
        if loaded.adapters != self.list {
            let said = |list: &[Adapter]| list.iter().map(Adapter::describe).collect::<Vec<_>>().join("; ");
            let problem =
                format!("it holds {}, the recipe asks for {}", said(&loaded.adapters), said(&self.list));
            return Err(Error::Mismatch { folder: checkpoint.display().to_string(), problem });
        }
        Ok(loaded.factors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect())
    }

    /// One line on how the base is held.
    pub fn describe_base(&self) -> String {
        format!(
            "held {}, {:.1} MiB, not trained",
            self.hold,
            self.frozen.size_bytes() as f64 / f64::from(1 << 20)
        )
    }
}

/// All that is trained, as the trainer knows it.
pub(super) fn weights_of(parameters: Vec<ParameterSpec>, decay: &recipe::Decay) -> Vec<Weight> {
    let weight = |spec: ParameterSpec| Weight {
        decays: decay.applies(&spec.name, spec.shape.len()),
        name: spec.name,
        shape: spec.shape,
    };
    parameters.into_iter().map(weight).collect()
}

/// What a table of a recipe describes, with numbers where it names some that were trained before.
fn open_one(given: &recipe::Adapter, family: &dyn Family, layers: &Layers) -> Result<(Adapter, Weights)> {
    let (name, dropout) = (given.name.clone(), given.dropout as f32);
    match &given.design {
        Design::New(shape) => {
            let (rank, alpha) = (shape.rank, shape.alpha as f32);
            let chosen = layers.choose(&shape.targets, &shape.ignore)?;
            let adapter = Adapter {
                name,
                kind: shape.kind,
                rank,
                alpha,
                rank_stabilized: shape.rank_stabilized,
                dropout,
                layers: chosen.into_iter().map(|linear| Layer { linear, rank, alpha }).collect(),
                whole: layers.whole(&shape.whole)?,
            };
            Ok((adapter, Weights::default()))
        }
        Design::Load { load } => {
            let (adapter, numbers) = adapt::load_one(load, &name, family)?;
            Ok((Adapter { dropout, ..adapter }, numbers))
        }
    }
}

/// Gradients go through weights that are codes, but not through activations that are.
fn refuse_coded_activations(weights: &Weights) -> Result<()> {
    let coded = |stored: &model::Stored| matches!(stored, model::Stored::Codes(codes) if codes.activations != Activations::Numbers);
    match weights.stored().find(|(_, stored)| coded(stored)) {
        None => Ok(()),
        Some((name, _)) => {
            let problem = "its activations become codes as well, and no gradient passes through that".into();
            let hint = "take a base of which weights alone are codes, such as int8 or nf4";
            Err(adapt::Error::Base { name: name.to_string(), problem, hint }.into())
        }
    }
}
