//! The loss of a student: both models in one graph, and between them the terms of the recipe.
//!
//! The teacher comes first, so that what it holds in between is gone before the student's activations pile up. Nothing that
//! belongs to it is differentiated: no parameter to be trained leads there.

use super::relation::{self, Relation};
use super::{PREFIX, Teacher, Term, projection_name};
use crate::graph::Graph;
use crate::model::{Extent, Family, Forward, IGNORED, Mode};
use crate::ops::Value;
use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
use crate::ops::distillation::{DistillationEmit, Divergence};
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;
use crate::tensor::{DType, Type};
use crate::train::Result;

/// Input F32 \[N\]: each position's share in a mean over those that count.
pub const SHARE: &str = "share";

/// Input F32 [terms]: the weight of each term at this step.
pub const MIX: &str = "mix";

/// Input U32 [N, K]: the tokens that a teacher deemed likeliest when it ran ahead.
pub const COLUMNS: &str = "teacher.columns";

/// Input F32 [N, K + 1]: the logarithms of how likely it deemed them, and all others.
pub const LOGS: &str = "teacher.logs";

/// One of the two models in the common graph.
struct Side {
    logits: Value,
    hidden: Vec<Value>,
    /// Logarithms of relations by term and pair of layers.
    relations: Vec<(Term, Vec<Relation>)>,
}

/// What is known of the teacher.
enum Known {
    /// It is part of the graph.
    All(Side),
    /// Columns and logarithms of what it said when it ran ahead.
    Top([Value; 2]),
}

impl Teacher {
    /// Writes both models and the loss to be trained by.
    pub fn loss(
        &self,
        student: &dyn Family,
        graph: &mut Graph,
        extent: Extent,
        smoothing: f32,
    ) -> Result<Value> {
        self.check_context(extent.context)?;
        let (student, teacher) = match self.top() {
            None => self.sides(student, graph, extent)?,
            Some(count) => (alone(student, graph, extent)?, Known::Top(said(graph, extent, count))),
        };
        let share = graph.input(SHARE, Type::f32([extent.positions()]));
        let mix = graph.input(MIX, Type::f32([self.terms.len()]));
        let mut total = None;
        for (number, &(term, _)) in self.terms.iter().enumerate() {
            let weighted = graph.within("loss", |graph| -> Result<Value> {
                let value = self.term(graph, term, &student, &teacher, share, smoothing)?;
                let weight = graph.slice(mix, 0, number, number + 1)?;
                let weight = graph.reshape(weight, [].into())?;
                Ok(graph.mul(value, weight)?)
            })?;
            total = Some(match total {
                Some(before) => graph.within("loss", |graph| graph.add(before, weighted))?,
                None => weighted,
            });
        }
        Ok(total.expect("a recipe has a term of the teacher"))
    }

    /// Both models in one graph, the teacher first.
    fn sides(&self, student: &dyn Family, graph: &mut Graph, extent: Extent) -> Result<(Side, Known)> {
        let mut graphs = [Graph::new(), Graph::new()];
        let forwards = [
            student.forward(&mut graphs[0], extent, Mode::Train)?,
            self.family.forward(&mut graphs[1], extent, Mode::Evaluate)?,
        ];
        let mut relations = [vec![], vec![]];
        for &(term, _) in self.terms.iter().filter(|(term, _)| matches!(term, Term::Attention | Term::Values))
        {
            let pairs = relation::write(self, term, &mut graphs)?;
            for (of_side, of_pair) in relations.iter_mut().zip(pairs) {
                of_side.push((term, of_pair));
            }
        }
        let [of_student, of_teacher] = relations;
        let [first, second] = forwards;
        let teacher = bring(graph, &graphs[1], PREFIX, second, of_teacher)?;
        let student = bring(graph, &graphs[0], "", first, of_student)?;
        Ok((student, Known::All(teacher)))
    }

    fn term(
        &self,
        graph: &mut Graph,
        term: Term,
        student: &Side,
        teacher: &Known,
        share: Value,
        smoothing: f32,
    ) -> Result<Value> {
        let temperature = self.recipe.temperature as f32;
        let each = match (term, teacher) {
            (Term::Text, _) => {
                let positions = graph.kind(student.logits).shape.rows();
                let targets = graph.input("targets", Type::new(DType::I32, [positions]));
                let settings = CrossEntropy {
                    ignore_index: IGNORED,
                    label_smoothing: smoothing,
                    ..CrossEntropy::default()
                };
                return Ok(graph.cross_entropy(student.logits, targets, settings)?);
            }
            (Term::Forward, &Known::Top([columns, logs])) => {
                graph.row_divergence_of_top(logs, columns, student.logits, temperature)?
            }
            (_, Known::Top(_)) => unreachable!("the recipe has no other term beside a cache"),
            (Term::Forward | Term::Reverse | Term::Between, Known::All(teacher)) => {
                let how = match term {
                    Term::Forward => Divergence::Forward,
                    Term::Reverse => Divergence::Reverse,
                    _ => Divergence::Between { beta: self.recipe.beta as f32 },
                };
                graph.row_divergence(teacher.logits, student.logits, how, temperature)?
            }
            (Term::Hidden | Term::Cosine, Known::All(teacher)) => {
                self.hidden(graph, term, student, teacher)?
            }
            (Term::Attention | Term::Values, Known::All(teacher)) => {
                relation::compare(graph, term, &student.relations, &teacher.relations)?
            }
        };
        Ok(graph.shared_mean(each, Some(share))?)
    }

    /// The mean over pairs of layers of how far hidden states are apart, for each position.
    fn hidden(&self, graph: &mut Graph, term: Term, student: &Side, teacher: &Side) -> Result<Value> {
        let mut all = vec![];
        for &[s, t] in &self.hidden {
            let (mut ours, theirs) = (student.hidden[s + 1], teacher.hidden[t + 1]);
            if let Some(spec) = self.projections.iter().find(|spec| spec.name == projection_name(s)) {
                let weight = match graph.named(&spec.name) {
                    Some(weight) => weight,
                    None => graph.parameter(&spec.name, Type::f32(spec.shape.clone())),
                };
                ours = graph.within("projection", |graph| graph.linear(Form::Nt, ours, weight, None))?;
            }
            all.push(match term {
                Term::Cosine => {
                    let cosine = graph.row_cosine(ours, theirs)?;
                    let opposite = graph.scale(cosine, -1.0)?;
                    graph.shift(opposite, 1.0)?
                }
                _ => graph.row_squared_error(ours, theirs)?,
            });
        }
        Ok(mean(graph, &all)?)
    }
}

/// The mean of some values of one shape.
pub(super) fn mean(graph: &mut Graph, all: &[Value]) -> crate::ops::Result<Value> {
    let mut total = all[0];
    for &each in &all[1..] {
        total = graph.add(total, each)?;
    }
    graph.scale(total, 1.0 / all.len() as f32)
}

/// The student without a teacher beside it.
fn alone(student: &dyn Family, graph: &mut Graph, extent: Extent) -> Result<Side> {
    let Forward { logits, hidden, .. } = student.forward(graph, extent, Mode::Train)?;
    Ok(Side { logits, hidden, relations: vec![] })
}

fn said(graph: &mut Graph, extent: Extent, count: usize) -> [Value; 2] {
    let positions = extent.positions();
    let columns = graph.input(COLUMNS, Type::new(DType::U32, [positions, count]));
    [columns, graph.input(LOGS, Type::f32([positions, count + 1]))]
}

fn bring(
    graph: &mut Graph,
    model: &Graph,
    prefix: &str,
    forward: Forward,
    relations: Vec<(Term, Vec<Relation>)>,
) -> Result<Side> {
    let map = graph.bring(model, prefix)?;
    let new = |value: Value| map[value.index()];
    let moved = |list: Vec<Relation>| list.into_iter().map(|r| Relation { logs: new(r.logs), ..r }).collect();
    Ok(Side {
        logits: new(forward.logits),
        hidden: forward.hidden.into_iter().map(new).collect(),
        relations: relations.into_iter().map(|(term, list)| (term, moved(list))).collect(),
    })
}
