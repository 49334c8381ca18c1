//! Shapes and the one broadcast rule.

use super::Error;
use std::ops::Deref;

/// Sizes of each axis, outermost first. The empty shape is a scalar.
#[derive(Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// A shape from its sizes.
    pub fn new(sizes: impl Into<Vec<usize>>) -> Self {
        Shape(sizes.into())
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.0.iter().product()
    }

    /// Size of the last axis, one for a scalar.
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Number of rows when the last axis is the row.
    pub fn rows(&self) -> usize {
        self.0.iter().rev().skip(1).product()
    }

    /// The same shape with the last axis replaced.
    pub fn with_last(&self, size: usize) -> Shape {
        let mut sizes = self.0.clone();
        if let Some(last) = sizes.last_mut() {
            *last = size;
        } else {
            sizes.push(size);
        }
        Shape(sizes)
    }

    /// The shape both broadcast to: axes are matched from the last; sizes are equal or one of them is one.
    pub fn broadcast(&self, other: &Shape) -> Result<Shape, Error> {
        let rank = self.len().max(other.len());
        let mut sizes = vec![0; rank];
        for (axis, size) in sizes.iter_mut().enumerate() {
            let of = |s: &Shape| (axis + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
            *size = match (of(self), of(other)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => {
                    return Err(Error::Broadcast { left: self.clone(), right: other.clone() });
                }
            };
        }
        Ok(Shape(sizes))
    }

    /// Element strides with which a tensor of this shape is read as if it had shape `to`; zero on broadcast axes.
    pub fn broadcast_strides(&self, to: &Shape) -> Vec<usize> {
        let own = strides_of(self);
        let lead = to.len() - self.len();
        (0..to.len())
            .map(|axis| if axis < lead || self[axis - lead] == 1 { 0 } else { own[axis - lead] })
            .collect()
    }
}

/// Row-major element strides.
pub fn strides_of(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1];
    }
    strides
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Self {
        Shape(sizes.to_vec())
    }
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Self {
        Shape(sizes.to_vec())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(sizes: Vec<usize>) -> Self {
        Shape(sizes)
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_broadcast_from_the_last() {
        let a = Shape::from([2, 1, 5]);
        let b = Shape::from([3, 1]);
        assert_eq!(a.broadcast(&b), Ok(Shape::from([2, 3, 5])));
        assert_eq!(b.broadcast_strides(&Shape::from([2, 3, 5])), vec![0, 1, 0]);
        assert!(a.broadcast(&Shape::from([4])).is_err());
        assert_eq!(Shape::default().broadcast(&a), Ok(a));
    }

    #[test]
    fn rows_times_last_is_the_count() {
        for s in [Shape::from([]), Shape::from([7]), Shape::from([2, 3, 5])] {
            assert_eq!(s.rows() * s.last(), s.count());
        }
    }
}
