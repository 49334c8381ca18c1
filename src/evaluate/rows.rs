//! What a model of rows says of a table, and how often it is right.

use super::Result;
use crate::data::features::{self, Features};
use crate::data::labelled::Columns;
use crate::deploy::Deployment;
use crate::exchange::Opened;
use crate::graph::Graph;
use crate::model::{self, Column, Extent, Inputs, Mode, Reading};
use crate::plan::Engine;
use crate::tensor::Tensor;
use crate::train::lesson::{Classes, Scores, Tally};
use crate::train::{self, Target};
use std::path::PathBuf;

/// A model of rows, on a device.
pub struct RowClassifier {
    opened: Opened,
    columns: Vec<Column>,
    /// What its classes are called, and what its scores mean.
    pub classes: Classes,
    target: Target,
    batch: usize,
    graph: Graph,
    feeds: Vec<String>,
    engine: Box<dyn Engine>,
}

impl RowClassifier {
    /// True for a model that reads rows of numbers.
    pub fn is_for(opened: &Opened) -> bool {
        opened.family.interface().columns > 0
    }

    /// A model for batches of so many rows.
    pub fn new(opened: Opened, target: Target, batch: usize) -> Result<RowClassifier> {
        let family = opened.family.as_ref();
        let columns = model::columns_of(family);
        let classes =
            Classes::of(family).filter(|_| !columns.is_empty()).ok_or_else(|| model::Error::Task {
                expected: "one of rows of a table".into(),
                got: family.interface().task.describe(),
            })?;
        let deployment = Deployment::new(&opened.weights);
        let reading = Reading::new(Extent { batch: batch.max(1), context: 1 }, Mode::Evaluate);
        let graph = deployment.graph_of(family, &reading, |graph, forward| {
            graph.output("scores", forward.logits);
            Ok(())
        })?;
        let (engine, plans) = deployment.engine(&target, std::slice::from_ref(&graph))?;
        let feeds = plans[0].feeds.iter().map(|feed| feed.name.clone()).collect();
        Ok(RowClassifier { columns, classes, target, batch: batch.max(1), graph, feeds, engine, opened })
    }

    /// The device in use.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Rows of files with the model's columns.
    pub fn read(&self, paths: &[PathBuf], columns: &Columns, labels: bool) -> Result<Vec<Features>> {
        let own = self.columns.iter().map(|column| column.name.clone()).collect();
        let label = columns.label.clone().or_else(|| model::label_column_of(self.opened.family.as_ref()));
        let columns = Columns { features: own, label, ..Columns::default() };
        Ok(features::read(paths, &columns, labels)?.rows)
    }

    /// Its scores of each row, one for each class.
    pub fn classify(&mut self, rows: &[Features]) -> Result<Vec<Vec<f32>>> {
        let (width, mut all) = (self.columns.len(), vec![]);
        for rows in rows.chunks(self.batch) {
            let standard = |row: &Features| -> Vec<f32> {
                row.numbers.iter().zip(&self.columns).map(|(&x, column)| column.standard(x)).collect()
            };
            let mut numbers: Vec<f32> = rows.iter().flat_map(standard).collect();
            numbers.resize(self.batch * width, 0.0);
            let inputs = Inputs::of_numbers(self.opened.family.as_ref(), numbers, self.batch)?;
            let feeds = inputs.feeds(&self.graph)?;
            let list: Vec<&Tensor> =
                self.feeds.iter().map(|name| feeds.get(name).expect("every input is fed")).collect();
            let result = self.engine.run(0, &list).map_err(train::Error::from)?.swap_remove(0);
            let scores: Vec<f32> = result.to_f64().iter().map(|&x| x as f32).collect();
            all.extend(scores.chunks(self.classes.names.len()).take(rows.len()).map(<[f32]>::to_vec));
        }
        Ok(all)
    }

    /// How often it is right about rows with labels.
    pub fn measure(&mut self, rows: &[Features]) -> Result<Scores> {
        let targets = rows.iter().map(|row| self.classes.target(row)).collect::<Result<Vec<_>, _>>()?;
        let all = self.classify(rows)?;
        let mut tally = Tally::new(&self.classes);
        all.iter().zip(&targets).for_each(|(scores, target)| tally.add(scores, target));
        Ok(tally.finish())
    }
}
