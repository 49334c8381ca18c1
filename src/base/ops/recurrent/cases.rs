//! Trials of recurrent layers.

use super::{Cell, Recurrent, RecurrentGradient};
use crate::ops::Cases;
use crate::tensor::{DType, Tensor};

/// A layer and its sizes: batch, time, H, and R where it projects.
type Sizes = ([usize; 3], Option<usize>);

/// One element, primes, fours, past a workgroup; both directions; rows of all lengths, none among them; states carried on.
pub fn cases() -> Cases {
    let mut cases = Cases::new("recurrent");
    for cell in [Cell::Tanh, Cell::Relu, Cell::Lstm, Cell::Gru] {
        let plain = Recurrent::new(cell);
        let lengths = Recurrent { steps: true, ..plain };
        let gru = cell == Cell::Gru;
        for (label, op, sizes) in [
            ("one element", plain, [1, 1, 1]),
            ("primes", Recurrent { bias: gru, ..plain }, [3, 5, 7]),
            ("in reverse", Recurrent { reverse: true, ..plain }, [2, 3, 8]),
            ("by fours, past the lanes", Recurrent { bias: gru, ..plain }, [9, 4, 12]),
            ("rows of their own lengths", lengths, [4, 5, 4]),
            ("their own lengths, in reverse", Recurrent { reverse: true, bias: gru, ..lengths }, [4, 5, 3]),
            ("some steps left out", lengths, [3, 6, 6]),
            ("more units than lanes", plain, [2, 2, 67]),
        ] {
            // It differs from tanh in one line.
            if cell == Cell::Relu && op.steps {
                continue;
            }
            add(&mut cases, label, op, (sizes, None));
        }
        let carried = Recurrent { carried: true, position: true, bias: gru, ..plain };
        add(&mut cases, "carried on", carried, ([1, 1, 8], None));
        add(
            &mut cases,
            "carried on from what is there",
            Recurrent { position: false, ..carried },
            ([2, 1, 3], None),
        );
        add(&mut cases, "carried on, of a length", Recurrent { steps: true, ..carried }, ([1, 6, 5], None));
    }
    let projecting = Recurrent { projection: true, ..Recurrent::new(Cell::Lstm) };
    for (label, op, sizes) in [
        ("projected", projecting, ([3, 4, 7], Some(3))),
        ("projected by fours", projecting, ([2, 3, 8], Some(4))),
        (
            "projected, carried on",
            Recurrent { carried: true, position: true, ..projecting },
            ([1, 2, 8], Some(4)),
        ),
        (
            "projected, lengths, in reverse",
            Recurrent { steps: true, reverse: true, ..projecting },
            ([3, 4, 5], Some(2)),
        ),
    ] {
        add(&mut cases, label, op, sizes);
    }
    // More iterations of loops than lavapipe does in one dispatch.
    add(&mut cases, "a long text", Recurrent::new(Cell::Tanh), ([1, 250, 64], None));
    cases
}

/// The layer, and the walk back over what a layer might have saved.
fn add(cases: &mut Cases, label: &str, op: Recurrent, ([batch, time, hidden], projected): Sizes) {
    let state = projected.unwrap_or(hidden);
    let inputs = op.cell.gates() * hidden;
    let extent = op.extent([batch, time], &[inputs, state]);
    let label = format!("{} {label} [{batch}, {time}, {hidden}]", op.cell.name());
    // As PyTorch draws them, so that nothing grows over time.
    let bound = 1.0 / (hidden as f64).sqrt();
    let weight = cases.uniform([inputs, state], -bound, bound);
    let projection = projected.map(|state| cases.uniform([state, hidden], -bound, bound));
    let steps = op.steps.then(|| {
        // Whole, empty, and what is between; of one size as marks with gaps in place of lengths.
        if hidden == 6 {
            return cases.indices([batch, time], 2);
        }
        let lengths = (0..batch).map(|row| [time, 0, 2, time - 1][row % 4] as u32);
        Tensor::u32([batch], lengths.collect())
    });
    let mut given = vec![cases.normal([batch, time, inputs]), weight.clone()];
    given.extend(op.bias.then(|| cases.normal([inputs])));
    given.extend(projection.clone());
    given.push(cases.normal([batch, extent.whole]));
    given.extend(steps.clone());
    // Where several rows are read, the text has begun before; a single step is its first.
    given.extend(op.position.then(|| Tensor::u32([1], vec![u32::from(time > 1)])));
    let sums = time * inputs.max(state);
    let case = cases.add(label.clone(), op, given).sums(sums);
    if op.carried || time > 100 {
        // A long one differs in nothing but its dispatches.
        case.no_gradient();
    }
    if op.carried {
        return;
    }
    let parts = [[true, true], [true, false], [false, true]];
    // That one of both may be absent has nothing to do with the sizes.
    for from in parts.into_iter().take(if time == 5 { 3 } else { 1 }) {
        let saved = cases.uniform([batch, time, extent.saved], 0.0, 1.0).to_precision(DType::F32);
        let mut given = vec![weight.clone(), saved];
        given.extend(projection.clone());
        given.extend(steps.clone());
        given.extend(from[0].then(|| cases.normal([batch, time, state])));
        given.extend(from[1].then(|| cases.normal([batch, extent.whole])));
        let name = format!("gradient {label} from {from:?}");
        cases.add(name, RecurrentGradient { of: op, from }, given).sums(sums).no_gradient();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Error, Operator};
    use crate::tensor::Type;

    fn apply(op: &dyn Operator, inputs: &[Tensor]) -> Vec<Tensor> {
        let types: Vec<Type> = inputs.iter().map(Tensor::host_type).collect();
        let mut outputs: Vec<Tensor> = op.signature(&types).unwrap().iter().map(Tensor::zeros).collect();
        op.reference(&inputs.iter().collect::<Vec<_>>(), &mut outputs);
        outputs
    }

    #[test]
    fn a_state_that_is_halved_and_added_to() {
        // relu with weight 1/2: h = x + h / 2.
        let inputs = [
            Tensor::f32([1, 3, 1], vec![1.0, 1.0, -9.0]),
            Tensor::f32([1, 1], vec![0.5]),
            Tensor::f32([1, 1], vec![4.0]),
        ];
        let outputs = apply(&Recurrent::new(Cell::Relu), &inputs);
        assert_eq!(outputs[0].real::<f32>(), [3.0, 2.5, 0.0]);
        assert_eq!(outputs[1].real::<f32>(), [0.0]);
    }

    #[test]
    fn a_row_that_has_ended_holds_its_state_and_gives_zeros() {
        let op = Recurrent { steps: true, ..Recurrent::new(Cell::Relu) };
        let inputs = [
            Tensor::f32([2, 2, 1], vec![1.0, 1.0, 1.0, 1.0]),
            Tensor::f32([1, 1], vec![1.0]),
            Tensor::f32([2, 1], vec![0.0, 7.0]),
            Tensor::u32([2], vec![1, 0]),
        ];
        let forward = apply(&op, &inputs);
        assert_eq!(forward[0].real::<f32>(), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(forward[1].real::<f32>(), [1.0, 7.0]);
        let reverse = apply(&Recurrent { reverse: true, ..op }, &inputs);
        assert_eq!(reverse[0].real::<f32>(), [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let kinds = |weight: [usize; 2]| [Type::f32([2, 3, 8]), Type::f32(weight), Type::f32([2, 4])];
        let lstm = Recurrent::new(Cell::Lstm);
        assert!(lstm.signature(&kinds([8, 2])).is_ok());
        assert!(matches!(lstm.signature(&kinds([8, 3])), Err(Error::Shape { input: "weight", .. })));
        assert!(matches!(lstm.signature(&kinds([12, 3])), Err(Error::Shape { input: "x", .. })));
        let gru = Recurrent { projection: true, ..Recurrent::new(Cell::Gru) };
        let kinds = [Type::f32([2, 3, 6]), Type::f32([6, 1]), Type::f32([1, 2]), Type::f32([2, 1])];
        assert!(matches!(gru.signature(&kinds), Err(Error::Setting { setting: "projection", .. })));
    }
}
