//! Which positions of an operator's inputs and outputs stand and fall together, for passes that make values smaller.
//!
//! Positions along an axis are read as digits: of the channels `h D + d` of packed heads, `h` is one digit and `d` another. A tie
//! says that a digit here is a digit there: where one of its values is left out on one side, it must be left out on the other.
//! An axis in no tie cannot be made smaller by leaving positions out, as the vocabulary of a lookup or the channels of a head.

use super::Type;

/// An input or an output of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// Its number among the inputs.
    Input(usize),
    /// Its number among the outputs.
    Output(usize),
}

/// A digit of the positions along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digit {
    /// Which value.
    pub port: Port,
    /// Which of its axes.
    pub axis: usize,
    /// First position that counts.
    pub start: usize,
    /// Positions that count, from there on.
    pub len: usize,
    /// Consecutive positions that share a value of the digit.
    pub inner: usize,
    /// Values of the digit; the positions run through them again and again.
    pub size: usize,
}

/// What an operator says of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// Two digits are one.
    Same(Digit, Digit),
    /// Behind each value of the digit equally many positions must be left, but for values that go as a whole.
    Even(Digit),
}

impl Digit {
    /// A whole axis, position by position.
    pub fn axis(port: Port, axis: usize, size: usize) -> Digit {
        Digit { port, axis, start: 0, len: size, inner: 1, size }
    }

    /// Positions `start..start + size` of an axis, one by one.
    pub fn range(port: Port, axis: usize, start: usize, size: usize) -> Digit {
        Digit { port, axis, start, len: size, inner: 1, size }
    }

    /// `size` runs of `inner` positions from `start` on.
    pub fn runs(port: Port, axis: usize, start: usize, size: usize, inner: usize) -> Digit {
        Digit { port, axis, start, len: size * inner, inner, size }
    }

    /// Positions with the digit's values there, in order.
    pub fn positions(&self) -> impl Iterator<Item = (usize, usize)> {
        let Digit { start, inner, size, .. } = *self;
        (0..self.len).map(move |at| (start + at, at / inner % size))
    }
}

/// Axis `a` of one value with axis `b` of another, position by position.
pub fn same(a: (Port, usize), b: (Port, usize), size: usize) -> Tie {
    Tie::Same(Digit::axis(a.0, a.1, size), Digit::axis(b.0, b.1, size))
}

/// Axes of input 0 with those of output 0, which has the same shape, as far as `wanted`; and the vectors that scale or shift the last
/// axis: what a norm over the last axis ties.
pub fn of_norm(inputs: &[Type], vectors: impl IntoIterator<Item = usize>) -> Vec<Tie> {
    let shape = &inputs[0].shape;
    let (x, y) = (Port::Input(0), Port::Output(0));
    let mut ties: Vec<Tie> = (0..shape.len()).map(|axis| same((x, axis), (y, axis), shape[axis])).collect();
    let last = shape.len() - 1;
    ties.extend(vectors.into_iter().map(|input| same((x, last), (Port::Input(input), 0), shape[last])));
    ties
}

/// Axes of broadcast inputs with those of the output.
pub fn of_broadcast(inputs: &[Type], output: &[usize]) -> Vec<Tie> {
    let mut ties = vec![];
    for (number, input) in inputs.iter().enumerate() {
        let ahead = output.len() - input.shape.len();
        for (axis, &size) in
            input.shape.iter().enumerate().filter(|(axis, size)| output[ahead + axis] == **size)
        {
            ties.push(same((Port::Input(number), axis), (Port::Output(0), ahead + axis), size));
        }
    }
    ties
}

/// What a change of shape ties: the digits that both shapes are made of, from the last one on, as far as they fit.
pub fn of_reshape(from: &[usize], to: &[usize]) -> Vec<Tie> {
    let mut ties = vec![];
    let sides = [(Port::Input(0), from), (Port::Output(0), to)];
    // On each side the axis at hand, what is left of its size, and how many positions its next digit's values last.
    let mut at = sides.map(|(_, shape)| (shape.len(), 1, 1));
    loop {
        for ((axis, left, inner), (_, shape)) in at.iter_mut().zip(sides) {
            while *left == 1 && *axis > 0 {
                *axis -= 1;
                (*left, *inner) = (shape[*axis], 1);
            }
        }
        let [(_, a, _), (_, b, _)] = at;
        let size = a.min(b);
        if size <= 1 || a.max(b) % size != 0 {
            return ties;
        }
        let digit = |side: usize| {
            let ((port, shape), (axis, _, inner)) = (sides[side], at[side]);
            Digit { port, axis, start: 0, len: shape[axis], inner, size }
        };
        ties.push(Tie::Same(digit(0), digit(1)));
        at = at.map(|(axis, left, inner)| (axis, left / size, inner * size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_shape_ties_the_digits_both_shapes_have() {
        let digit = |port, axis, len, inner, size| Digit { port, axis, start: 0, len, inner, size };
        let (x, y) = (Port::Input(0), Port::Output(0));
        // Five rows of 3 heads of 2 x 4 channels, as rows of one head each.
        assert_eq!(
            of_reshape(&[5, 24], &[15, 8]),
            [
                Tie::Same(digit(x, 1, 24, 1, 8), digit(y, 1, 8, 1, 8)),
                Tie::Same(digit(x, 1, 24, 8, 3), digit(y, 0, 15, 1, 3)),
                Tie::Same(digit(x, 0, 5, 1, 5), digit(y, 0, 15, 3, 5)),
            ]
        );
        // Of shapes without common digits only the ends that fit are tied.
        assert_eq!(of_reshape(&[2, 3], &[3, 2]), []);
        assert_eq!(of_reshape(&[4, 1, 3], &[4, 3]).len(), 2);
    }

    #[test]
    fn positions_run_through_the_values_of_a_digit() {
        let digit = Digit { port: Port::Input(0), axis: 0, start: 1, len: 8, inner: 2, size: 2 };
        let values: Vec<_> = digit.positions().collect();
        assert_eq!(values[..3], [(1, 0), (2, 0), (3, 1)]);
        assert_eq!(values[4..6], [(5, 0), (6, 0)]);
    }
}
