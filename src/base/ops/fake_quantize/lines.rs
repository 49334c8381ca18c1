//! Which elements of a tensor share a scale: a line of them, along an axis or part of it.

use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::{Error, Result};
use crate::tensor::{Shape, Type};

/// Lines from which one invocation for each keeps a GPU busy; on a CPU driver a few are enough.
const BUSY: [usize; 2] = [1024, 16];

/// Which elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All of them.
    Tensor,
    /// Those along the last axis: the rows of a matrix, as a weight stored [out, in] has its channels.
    Rows,
    /// Those along the last axis but one: the columns, as a weight stored [in, out] has its channels.
    Columns,
    /// So many neighbours along the last axis; the last group of a row may be shorter.
    RowGroups(usize),
    /// So many neighbours along the last axis but one.
    ColumnGroups(usize),
}

impl Sharing {
    /// As text in settings.
    pub fn describe(self) -> String {
        match self {
            Sharing::Tensor => "tensor".into(),
            Sharing::Rows => "rows".into(),
            Sharing::Columns => "columns".into(),
            Sharing::RowGroups(size) => format!("rows/{size}"),
            Sharing::ColumnGroups(size) => format!("columns/{size}"),
        }
    }
}

/// A tensor as [outer, length, inner], cut into lines of at most `group` elements along the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lines {
    outer: usize,
    pub length: usize,
    pub inner: usize,
    pub group: usize,
}

impl Lines {
    pub fn of(shape: &Shape, sharing: Sharing) -> Lines {
        let (axis, group) = match sharing {
            Sharing::Tensor => {
                let length = shape.count();
                return Lines { outer: 1, length, inner: 1, group: length };
            }
            Sharing::Rows => (shape.len() - 1, None),
            Sharing::Columns => (shape.len() - 2, None),
            Sharing::RowGroups(size) => (shape.len() - 1, Some(size)),
            Sharing::ColumnGroups(size) => (shape.len() - 2, Some(size)),
        };
        let outer = shape[..axis].iter().product();
        let inner = shape[axis + 1..].iter().product();
        let length = shape[axis];
        Lines { outer, length, inner, group: group.unwrap_or(length).min(length) }
    }

    /// Checks that a tensor has lines, each with elements.
    pub fn check(op: &'static str, x: &Type, sharing: Sharing) -> Result<()> {
        let axes = match sharing {
            Sharing::Tensor => 0,
            Sharing::Rows | Sharing::RowGroups(_) => 1,
            Sharing::Columns | Sharing::ColumnGroups(_) => 2,
        };
        if let Sharing::RowGroups(0) | Sharing::ColumnGroups(0) = sharing {
            let (expected, got) = ("groups of at least one element".to_string(), sharing.describe());
            return Err(Error::Setting { op, setting: "sharing", expected, got });
        }
        if x.shape.len() < axes || x.shape.count() == 0 {
            let expected = format!("elements along at least {axes} axes");
            return Err(Error::Shape { op, input: "x", expected, got: x.shape.clone() });
        }
        Ok(())
    }

    fn groups(&self) -> usize {
        self.length.div_ceil(self.group)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.outer * self.groups() * self.inner
    }

    /// The line of an element.
    pub fn line_of(&self, element: usize) -> usize {
        let (inner, rest) = (element % self.inner, element / self.inner);
        let (at, outer) = (rest % self.length, rest / self.length);
        (outer * self.groups() + at / self.group) * self.inner + inner
    }

    /// The elements of a line, in order.
    pub fn elements(&self, line: usize) -> impl Iterator<Item = usize> + use<> {
        let (inner, rest) = (line % self.inner, line / self.inner);
        let (group, outer) = (rest % self.groups(), rest / self.groups());
        let start = group * self.group;
        let end = (start + self.group).min(self.length);
        let Lines { length, inner: stride, .. } = *self;
        (start..end).map(move |at| (outer * length + at) * stride + inner)
    }

    /// The elements of a line that lies whole, one after another.
    pub fn range(&self, line: usize) -> std::ops::Range<usize> {
        let (outer, group) = (line / self.groups(), line % self.groups());
        let start = group * self.group;
        outer * self.length + start..outer * self.length + (start + self.group).min(self.length)
    }

    /// A dispatch with the sizes as parameters.
    pub fn launch(&self, kernel: Kernel, bindings: impl Into<Vec<Bind>>, groups: usize) -> Launch {
        Launch::new(kernel, bindings, groups)
            .param("lines", self.count())
            .param("length", self.length)
            .param("inner", self.inner)
            .param("group", self.group)
            .param("parts", self.groups())
    }

    /// Two variants of a kernel that walks lines: one invocation for each (entry `lane_per_line`), or a workgroup.
    pub fn variants(
        &self,
        name: &str,
        kernel: Kernel,
        bindings: &[Bind],
        caps: &Caps,
        complete: impl Fn(Launch) -> Launch,
    ) -> Vec<Variant> {
        let lanes = if caps.is_cpu { 8 } else { 64 };
        let lane = kernel.clone().entry("lane_per_line").constant("LINE_LANES", lanes);
        let lane = self.launch(lane, bindings, self.count().div_ceil(lanes as usize));
        let size = self.group.div_ceil(2).next_power_of_two().clamp(32, 256) as u32;
        let group = kernel.entry("group_per_line").constant("LANES", size);
        let group = self.launch(group, bindings, self.count());
        let mut variants = vec![
            Variant::single(format!("{name}_group"), complete(group)),
            Variant::single(format!("{name}_lane"), complete(lane)),
        ];
        // Neighbouring lanes read neighbouring elements where lines lie side by side.
        let apart = !caps.is_cpu && self.inner == 1;
        if self.count() >= BUSY[caps.is_cpu as usize] && !apart {
            variants.reverse();
        }
        variants
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_the_line_that_names_it() {
        for (shape, sharing, count) in [
            (&[3, 5][..], Sharing::Tensor, 1),
            (&[3, 5], Sharing::Rows, 3),
            (&[2, 3, 5], Sharing::Columns, 10),
            (&[3, 5], Sharing::RowGroups(2), 9),
            (&[2, 7, 3], Sharing::ColumnGroups(4), 12),
            (&[3, 5], Sharing::RowGroups(100), 3),
        ] {
            let shape = Shape::from(shape);
            let lines = Lines::of(&shape, sharing);
            assert_eq!(lines.count(), count, "{sharing:?}");
            let mut seen = vec![0; shape.count()];
            for line in 0..count {
                for element in lines.elements(line) {
                    assert_eq!(lines.line_of(element), line, "{sharing:?}");
                    seen[element] += 1;
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{sharing:?}");
        }
    }
}
