//! Coupling groups: what goes with a head, a neuron or a channel when it is taken out of a graph.
//!
//! Units are marked along one axis of one value; what the operators tie ([`crate::ops::ties`]) carries the marks to every other axis
//! that would have to shrink with it: rows and columns of weights, elements of biases, wherever the same parameter is read. If a mark
//! gets to a place from where an operator cannot pass it on, nothing of these units can be taken out.

use super::{Graph, Node, Source};
use crate::ops::Value;
use crate::ops::ties::{Digit, Port, Tie};
use std::collections::{BTreeSet, HashMap, VecDeque};

/// For each position of an axis the unit that it belongs to.
pub type Marks = Vec<Option<u32>>;

/// What goes with each of some units.
#[derive(Clone, Debug, PartialEq)]
pub struct Coupling {
    /// Axes of parameters that shrink, in the order of the parameters.
    pub members: Vec<Member>,
    /// All values that shrink.
    pub values: BTreeSet<Value>,
    /// Sets of units: of each equally many must be left.
    pub even: Vec<Vec<u32>>,
}

/// An axis of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The parameter.
    pub name: String,
    /// Its axis.
    pub axis: usize,
    /// Which unit has each position; what belongs to none stays.
    pub units: Marks,
}

/// Why units cannot be taken out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Uncut {
    /// An operator cannot do with less there.
    #[error("`{op}` at `{scope}` cannot do without positions of axis {axis} of {port:?}")]
    Operator {
        /// The operator.
        op: &'static str,
        /// Where in the model.
        scope: String,
        /// The input or output.
        port: Port,
        /// Its axis.
        axis: usize,
    },
    /// Positions belong to two units at once.
    #[error("units {first} and {second} share positions at `{scope}`")]
    Shared {
        /// One unit.
        first: u32,
        /// The other.
        second: u32,
        /// Where in the model.
        scope: String,
    },
    /// Something that is given from outside, or asked for, would have to shrink.
    #[error("`{name}` would have to be smaller")]
    Fixed {
        /// Name of the input or result.
        name: String,
    },
}

type Place = (Value, usize);

struct Search<'a> {
    graph: &'a Graph,
    ties: Vec<Vec<Tie>>,
    /// Nodes that read or make a value.
    around: Vec<Vec<usize>>,
    marks: HashMap<Place, Marks>,
    queue: VecDeque<Place>,
}

/// What goes with the units of an axis, for each of its positions one or none.
pub fn coupling(graph: &Graph, value: Value, axis: usize, units: Marks) -> Result<Coupling, Uncut> {
    let mut search = Search::new(graph);
    search.marks.insert((value, axis), units);
    search.queue.push_back((value, axis));
    while let Some(place) = search.queue.pop_front() {
        for node in search.around[place.0.index()].clone() {
            search.pass_on(node, place)?;
        }
    }
    search.expect_whole()?;
    Ok(search.finish())
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph) -> Self {
        let mut around = vec![vec![]; graph.values().len()];
        for (number, node) in graph.nodes().iter().enumerate() {
            let values: BTreeSet<Value> = node.inputs.iter().chain(&node.outputs).copied().collect();
            values.into_iter().for_each(|value| around[value.index()].push(number));
        }
        let ties = |node: &Node| {
            let kinds = |values: &[Value]| values.iter().map(|&v| graph.kind(v).clone()).collect::<Vec<_>>();
            node.op.ties(&kinds(&node.inputs), &kinds(&node.outputs))
        };
        let ties = graph.nodes().iter().map(ties).collect();
        Search { graph, ties, around, marks: HashMap::new(), queue: VecDeque::new() }
    }

    fn place(&self, node: usize, digit: &Digit) -> Place {
        let node = &self.graph.nodes()[node];
        let value = match digit.port {
            Port::Input(number) => node.inputs[number],
            Port::Output(number) => node.outputs[number],
        };
        (value, digit.axis)
    }

    /// For each value of a digit the unit that has all of its positions.
    fn read(&self, node: usize, digit: &Digit) -> Option<Marks> {
        let marks = self.marks.get(&self.place(node, digit))?;
        let mut found: Vec<Option<Option<u32>>> = vec![None; digit.size];
        for (position, value) in digit.positions() {
            let mark = marks[position];
            found[value] = Some(found[value].map_or(mark, |other| other.filter(|_| other == mark)));
        }
        Some(found.into_iter().map(Option::flatten).collect())
    }

    fn pass_on(&mut self, node: usize, from: Place) -> Result<(), Uncut> {
        for tie in self.ties[node].clone() {
            let Tie::Same(a, b) = tie else { continue };
            for (from_digit, to) in [(a, b), (b, a)] {
                if self.place(node, &from_digit) == from
                    && let Some(values) = self.read(node, &from_digit)
                {
                    self.write(node, &to, &values)?;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, node: usize, digit: &Digit, values: &[Option<u32>]) -> Result<(), Uncut> {
        if values.iter().all(Option::is_none) {
            return Ok(());
        }
        let place = self.place(node, digit);
        let size = self.graph.kind(place.0).shape[place.1];
        let marks = self.marks.entry(place).or_insert_with(|| vec![None; size]);
        let mut is_new = false;
        for (position, value) in digit.positions() {
            match (marks[position], values[value]) {
                (_, None) => {}
                (None, new) => {
                    marks[position] = new;
                    is_new = true;
                }
                (Some(first), Some(second)) if first != second => {
                    let scope = self.graph.nodes()[node].scope.clone();
                    return Err(Uncut::Shared { first, second, scope });
                }
                _ => {}
            }
        }
        if is_new {
            self.queue.push_back(place);
        }
        Ok(())
    }

    /// Checks that every operator can pass on every mark it sees.
    fn expect_whole(&self) -> Result<(), Uncut> {
        for ((value, axis), marks) in &self.marks {
            let info = self.graph.info(*value);
            let name = || info.name.clone().unwrap_or_else(|| "a constant".into());
            if matches!(info.source, Source::Input | Source::State | Source::Constant(_)) {
                return Err(Uncut::Fixed { name: name() });
            }
            if let Some((name, _)) = self.graph.outputs().iter().find(|(_, result)| result == value) {
                return Err(Uncut::Fixed { name: name.clone() });
            }
            for &number in &self.around[value.index()] {
                let node = &self.graph.nodes()[number];
                let inputs = node.inputs.iter().enumerate().map(|(at, v)| (Port::Input(at), v));
                let outputs = node.outputs.iter().enumerate().map(|(at, v)| (Port::Output(at), v));
                for (port, _) in inputs.chain(outputs).filter(|(_, other)| *other == value) {
                    if self.carried(number, port, *axis, marks.len()) != *marks {
                        let (op, scope) = (node.op.name(), node.scope.clone());
                        return Err(Uncut::Operator { op, scope, port, axis: *axis });
                    }
                }
            }
        }
        Ok(())
    }

    /// The marks of an axis that an operator's ties account for.
    fn carried(&self, node: usize, port: Port, axis: usize, size: usize) -> Marks {
        let mut marks = vec![None; size];
        for tie in &self.ties[node] {
            let Tie::Same(a, b) = tie else { continue };
            for digit in [a, b].into_iter().filter(|digit| digit.port == port && digit.axis == axis) {
                let Some(values) = self.read(node, digit) else { continue };
                for (position, value) in digit.positions() {
                    marks[position] = marks[position].or(values[value]);
                }
            }
        }
        marks
    }

    fn finish(self) -> Coupling {
        let mut even: Vec<Vec<u32>> = vec![];
        for (node, ties) in self.ties.iter().enumerate() {
            for tie in ties {
                let Tie::Even(digit) = tie else { continue };
                let Some(marks) = self.marks.get(&self.place(node, digit)) else { continue };
                let mut sets = vec![BTreeSet::new(); digit.size];
                for (position, value) in digit.positions() {
                    sets[value].extend(marks[position]);
                }
                // Where each set is one unit, it goes as a whole, and all that is left stays even.
                if sets.iter().any(|set| set.len() > 1) {
                    even.extend(sets.into_iter().map(|set| set.into_iter().collect()));
                }
            }
        }
        let mut members: Vec<(Value, usize, Member)> = vec![];
        let values = self.marks.keys().map(|place| place.0).collect();
        for ((value, axis), units) in self.marks {
            let info = self.graph.info(value);
            if let (Source::Parameter | Source::Frozen, Some(name)) = (&info.source, &info.name) {
                members.push((value, axis, Member { name: name.clone(), axis, units }));
            }
        }
        members.sort_by_key(|(value, axis, _)| (*value, *axis));
        Coupling { members: members.into_iter().map(|(.., member)| member).collect(), values, even }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::{Form, MatmulEmit};
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::reduce::{Kind, ReduceEmit};
    use crate::ops::reshape::ReshapeEmit;
    use crate::tensor::Type;

    fn one_by_one(count: u32) -> Marks {
        (0..count).map(Some).collect()
    }

    #[test]
    fn a_hidden_unit_takes_its_row_its_bias_and_its_column_along() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2, 3]));
        let [up, down] = [("up", [5, 3]), ("down", [4, 5])].map(|(n, s)| graph.parameter(n, Type::f32(s)));
        let bias = graph.parameter("bias", Type::f32([5]));
        let hidden = graph.linear(Form::Nt, x, up, Some(bias)).unwrap();
        let hidden = graph.pointwise("relu", &[hidden], 0.0).unwrap();
        let y = graph.linear(Form::Nt, hidden, down, None).unwrap();
        graph.output("y", y);
        let found = coupling(&graph, hidden, 1, one_by_one(5)).unwrap();
        let names: Vec<_> = found.members.iter().map(|m| (m.name.as_str(), m.axis)).collect();
        assert_eq!(names, [("up", 0), ("down", 1), ("bias", 0)]);
        assert!(found.members.iter().all(|member| member.units == one_by_one(5)) && found.even.is_empty());
        // The scores are a result, and the inputs are given.
        let error = coupling(&graph, y, 1, one_by_one(4)).unwrap_err();
        assert_eq!(error, Uncut::Fixed { name: "y".into() });
        let error = coupling(&graph, up, 1, one_by_one(3)).unwrap_err();
        assert_eq!(error, Uncut::Fixed { name: "x".into() });
    }

    #[test]
    fn what_an_operator_cannot_pass_on_is_refused() {
        let mut graph = Graph::new();
        let x = graph.parameter("x", Type::f32([2, 6]));
        let split = graph.reshape(x, [2, 2, 3].into()).unwrap();
        let sum = graph.reduce(Kind::Sum, split, 2).unwrap();
        graph.output("sum", sum);
        // Single positions of a row that is read as two of three are neither rows nor columns of those.
        let error = coupling(&graph, x, 1, one_by_one(6)).unwrap_err();
        assert!(matches!(error, Uncut::Operator { op: "reshape", .. }), "{error}");
        // A sum says nothing of the positions it is over.
        let columns = [0, 1, 2, 0, 1, 2].map(Some).to_vec();
        let error = coupling(&graph, x, 1, columns).unwrap_err();
        assert!(matches!(error, Uncut::Operator { op: "sum", .. }), "{error}");
    }

    #[test]
    fn a_parameter_that_is_read_twice_shrinks_for_both() {
        let mut graph = Graph::new();
        let x = graph.parameter("x", Type::f32([2, 4]));
        let w = graph.parameter("w", Type::f32([4, 4]));
        let y = graph.linear(Form::Nt, x, w, None).unwrap();
        let z = graph.linear(Form::Nt, y, w, None).unwrap();
        let total = graph.mul(z, z).unwrap();
        // Columns of w are those of x; rows are columns of y, which the second product sums over with the columns of w.
        let found = coupling(&graph, x, 1, one_by_one(4)).unwrap();
        let names: Vec<_> = found.members.iter().map(|m| (m.name.as_str(), m.axis)).collect();
        assert_eq!(names, [("x", 1), ("w", 0), ("w", 1)]);
        assert!(found.values.contains(&total));
    }
}
