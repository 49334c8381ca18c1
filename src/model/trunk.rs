//! One trunk under the heads of several tasks: what its parameters are called, and one head of a folder that holds them all.
//!
//! ```text
//! folder/model.safetensors           the trunk by its own names, heads as `tasks.NAME.` and their own names
//!        tasks.json                  names of the tasks in their order
//!        tasks/NAME/config.json      the model of one task: the trunk with that head
//! ```
//! Why names and not folders keep heads apart: the optimiser, masks and checkpoints know parameters by name alone.

use super::{Archive, CONFIG_FILE, Config, Error, Family, Result, Task, Weights, from_config};
use serde_json::Value as Json;
use std::path::Path;

/// Names the tasks whose heads a folder holds.
pub const TASKS_FILE: &str = "tasks.json";
/// Folder with a folder for each of them.
pub const TASKS_FOLDER: &str = "tasks";

/// What a parameter of one task's model is called where other tasks share its trunk.
///
/// An encoder without a head lacks the family's name before its parameters; beside other heads they have it.
pub fn shared_name(family: &dyn Family, task: &str, parameter: &str) -> String {
    match family.interface().task {
        _ if family.is_of_head(parameter) => format!("{TASKS_FOLDER}.{task}.{parameter}"),
        Task::States => format!("{}.{parameter}", family.name()),
        _ => parameter.to_string(),
    }
}

/// Names of the tasks whose heads a folder holds; none where it holds a plain model.
pub fn names_of_tasks(folder: &Path) -> Result<Option<Vec<String>>> {
    let path = folder.join(TASKS_FILE);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| Error::File { path: path.clone(), source })?,
    };
    let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
    let all: Json = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    let names = all["tasks"].as_array().into_iter().flatten();
    let names: Option<Vec<String>> = names.map(|task| Some(task["name"].as_str()?.to_string())).collect();
    match names {
        Some(names) if !names.is_empty() => Ok(Some(names)),
        _ => Err(damaged("it names no tasks".into())),
    }
}

/// The model of one task of a folder: its family and its weights.
pub fn open_of_task(folder: &Path, task: &str) -> Result<(Box<dyn Family>, Weights)> {
    let no = |known: String| Error::NoTask { path: folder.to_path_buf(), name: task.to_string(), known };
    let names = names_of_tasks(folder)?.ok_or_else(|| no("it holds a model with one head".into()))?;
    if !names.iter().any(|name| name == task) {
        return Err(no(format!("there are {}", names.join(", "))));
    }
    let config = Config::read(&folder.join(TASKS_FOLDER).join(task).join(CONFIG_FILE))?;
    let family = from_config(&config)?;
    let archive = Archive::open(folder)?;
    let missing = |name: &str| Error::Names {
        path: archive.path().to_path_buf(),
        missing: vec![name.to_string()],
        extra: vec![],
    };
    let read = |spec: super::ParameterSpec| {
        let stored = shared_name(family.as_ref(), task, &spec.name);
        let shape = archive.shape(&stored).ok_or_else(|| missing(&stored))?;
        super::weights::expect_shape(&spec, shape)?;
        Ok((spec.name, archive.tensor(&stored)?))
    };
    let weights = family.parameters().into_iter().map(read).collect::<Result<Weights>>()?;
    Ok((family, weights))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Head, Labels, with_head};
    use serde_json::json;

    fn bert() -> Box<dyn Family> {
        let keys = json!({ "architectures": ["BertForMaskedLM"], "vocab_size": 11, "max_position_embeddings": 6, "hidden_size": 8,
                           "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8 });
        from_config(&Config::new("c", keys.as_object().unwrap().clone())).unwrap()
    }

    #[test]
    fn heads_have_names_of_their_own_and_the_trunk_has_the_same_under_each() {
        let guesser = bert();
        let names = |family: &dyn Family, task: &str| -> Vec<String> {
            family.parameters().iter().map(|spec| shared_name(family, task, &spec.name)).collect()
        };
        let head = Head::Sequence { labels: Labels::One, names: vec!["a".into(), "b".into()] };
        let heads = [head, Head::Tokens { names: vec!["a".into(), "b".into()] }, Head::None, Head::Language];
        let of_trunk = |names: Vec<String>| {
            names.into_iter().filter(|name| !name.starts_with("tasks.")).collect::<Vec<_>>()
        };
        let expected = of_trunk(names(guesser.as_ref(), "guess"));
        assert!(expected.contains(&"bert.embeddings.word_embeddings.weight".to_string()));
        for head in heads {
            let family = with_head(guesser.as_ref(), &head).unwrap();
            let all = names(family.as_ref(), "x");
            assert_eq!(of_trunk(all.clone()), expected, "{head:?}");
            assert!(all.iter().any(|name| name.starts_with("tasks.x.")), "{all:?}");
        }
    }

    #[test]
    fn a_folder_of_several_tasks_gives_one_of_them_and_names_them_where_none_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let family = bert();
        let given = crate::model::initial(&family.parameters(), 3);
        let stored: Vec<(String, crate::tensor::Tensor)> = given
            .iter()
            .map(|(name, tensor)| (shared_name(family.as_ref(), "guess", name), tensor.clone()))
            .collect();
        let stored: Weights = stored.into_iter().collect();
        let raws: Vec<_> =
            stored.iter().map(|(name, tensor)| (name, crate::formats::Raw::of(tensor))).collect();
        crate::formats::write_shards(folder.path(), &raws, &Default::default(), 1 << 30).unwrap();
        let own = folder.path().join(TASKS_FOLDER).join("guess");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join(CONFIG_FILE), serde_json::to_vec(&family.config()).unwrap()).unwrap();
        std::fs::write(folder.path().join(TASKS_FILE), r#"{"tasks":[{"name":"guess"}]}"#).unwrap();
        let (opened, weights) = open_of_task(folder.path(), "guess").unwrap();
        assert_eq!((opened.config(), &weights), (family.config(), &given));
        let error = open_of_task(folder.path(), "gues").unwrap_err().to_string();
        assert!(error.contains("no task `gues`") && error.contains("there are guess"), "{error}");
        let error = crate::model::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("several tasks: guess") && error.contains("--task"), "{error}");
        std::fs::write(folder.path().join(TASKS_FILE), "{}").unwrap();
        assert!(open_of_task(folder.path(), "guess").unwrap_err().to_string().contains("names no tasks"));
        std::fs::remove_file(folder.path().join(TASKS_FILE)).unwrap();
        let error = open_of_task(folder.path(), "guess").unwrap_err().to_string();
        assert!(error.contains("one head"), "{error}");
    }
}
