//! From rows of a table to examples: columns of numbers, standardised by those that are trained on.

use super::classes::Classes;
use super::prepare::{dealt, fill_in, store_of};
use super::{Example, Lesson, mismatch};
use crate::data::features::{self, Features};
use crate::data::labelled::Columns;
use crate::graph::Graph;
use crate::model::{self, Column, Config, Extent, Family, Labels, Mode, Reading};
use crate::train::job::{self, Job};
use crate::train::recipe::{Examples, Model, Recipe, Similarity};
use crate::train::{Beside, Result};

/// A recipe over rows with data and model at hand. Names of classes and columns that it leaves open are filled in.
pub(super) fn prepare(mut recipe: Recipe, given: &Examples) -> Result<Job> {
    for (key, stands) in [("distill", recipe.distill.is_some()), ("adapter", !recipe.adapters.is_empty())] {
        if stands {
            return Err(mismatch(format!("[{key}] is for models of text, and data.rows is none")));
        }
    }
    let plain = job::plain_family(&recipe, 1)?;
    if plain.name() != "mlp" {
        let (expected, got) =
            ("one of rows, family = \"mlp\"".to_string(), plain.interface().task.describe());
        return Err(model::Error::Task { expected, got }.into());
    }
    let loaded = model::columns_of(plain.as_ref());
    let mut wanted = given.columns.clone().unwrap_or_default();
    wanted.label = wanted.label.or_else(|| model::label_column_of(plain.as_ref()));
    let label = wanted.label.clone();
    let (names, rows, training) = read(given, wanted, &loaded, recipe.data.validation.share())?;
    let own = Classes::of(plain.as_ref()).filter(|own| !own.names.is_empty());
    let shown = if given.held_out.is_empty() { rows.len() } else { training };
    let classes = Classes::find(recipe.model.head(), own, &rows[..shown])?;
    if recipe.train.label_smoothing > 0.0 && classes.labels != Labels::One {
        return Err(mismatch("train.label_smoothing is for labels of which one is right"));
    }
    fill_in(&mut recipe, &classes);
    let columns = match loaded.is_empty() {
        true => standardised(&names, &rows[..training], given.standardize),
        false => loaded,
    };
    let mut family =
        model::with_columns(plain.as_ref(), &columns, classes.labels, &classes.names, label.as_deref())?;
    if let Model::Load { dropout: Some(share), .. } = recipe.model {
        family.set_dropout(share as f32);
    }
    let example = |row: &Features| -> Result<Example> {
        let numbers = row.numbers.iter().zip(&columns).map(|(&x, column)| column.standard(x)).collect();
        Ok(Example { inputs: vec![], numbers, target: classes.target(row)? })
    };
    let examples = rows.iter().map(example).collect::<Result<Vec<_>>>()?;
    let store = store_of(training, examples.len());
    recipe.train.context = Some(1);
    let beside = Beside::open(&recipe, family.as_ref(), None)?;
    let quiet = quiet_of(family.as_ref())?;
    let mut graph = Graph::new();
    let reading = Reading::new(Extent { batch: 1, context: 1 }, Mode::Train);
    quiet.read(&mut graph, &reading)?;
    let lesson = Lesson {
        kind: given.kind(),
        similarity: Similarity::default(),
        examples,
        training,
        family: quiet,
        graph,
        context: 1,
        classes,
        told: told_of(&columns),
    };
    Ok(Job::of_lesson(recipe, None, store, family, beside, lesson))
}

fn quiet_of(family: &dyn Family) -> Result<Box<dyn Family>> {
    let mut quiet = model::from_config(&Config::new("the model", family.config()))?;
    quiet.set_dropout(0.0);
    Ok(quiet)
}

/// Names of the columns, all rows, and how many are trained on. A model that has columns wants these.
fn read(
    given: &Examples,
    mut columns: Columns,
    loaded: &[Column],
    validation: f64,
) -> Result<(Vec<String>, Vec<Features>, usize)> {
    if !loaded.is_empty() {
        let own: Vec<String> = loaded.iter().map(|column| column.name.clone()).collect();
        if !columns.features.is_empty() && columns.features != own {
            let problem = format!("data.columns.features are not those of the model, {}", own.join(", "));
            return Err(mismatch(problem));
        }
        columns.features = own;
    }
    let table = features::read(&given.rows, &columns, true)?;
    if given.held_out.is_empty() {
        let (rows, training) = dealt(table.rows, validation);
        return Ok((table.names, rows, training));
    }
    columns.features = table.names.clone();
    let (training, held) = (table.rows.len(), features::read(&given.held_out, &columns, true)?);
    Ok((table.names, [table.rows, held.rows].concat(), training))
}

/// Mean and deviation of each column over some rows; of one that never changes the deviation is one.
fn standardised(names: &[String], rows: &[Features], wanted: bool) -> Vec<Column> {
    let count = rows.len() as f64;
    let column = |(at, name): (usize, &String)| {
        let mut column = Column { name: name.clone(), mean: 0.0, deviation: 1.0 };
        if wanted {
            column.mean = rows.iter().map(|row| row.numbers[at]).sum::<f64>() / count;
            let square = |row: &Features| (row.numbers[at] - column.mean).powi(2);
            let deviation = (rows.iter().map(square).sum::<f64>() / count).sqrt();
            // Rounding alone leaves something of a column of one number.
            if deviation > 1e-12 * column.mean.abs() && deviation.is_finite() {
                column.deviation = deviation;
            }
        }
        column
    };
    names.iter().enumerate().map(column).collect()
}

fn told_of(columns: &[Column]) -> Vec<String> {
    let names: Vec<&str> = columns.iter().take(12).map(|column| column.name.as_str()).collect();
    let more = columns.len() - names.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    vec![format!("columns  {}{more}", names.join(", "))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_to_a_mean_of_zero_and_a_deviation_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        std::fs::write(&path, "a,b,label\n1,7.3,x\n3,7.3,y\n5,7.3,y\n").unwrap();
        let table = features::read(&[path], &Columns::default(), true).unwrap();
        let columns = standardised(&table.names, &table.rows, true);
        assert_eq!((columns[0].mean, columns[0].deviation), (3.0, (8f64 / 3.0).sqrt()));
        assert_eq!(columns[1].deviation, 1.0, "it never changes");
        assert_eq!(columns[1].standard(8.3), 1.0);
        assert_eq!(standardised(&table.names, &table.rows, false)[0].standard(3.0), 3.0);
    }
}
