//! The cheapest set of values that separates where a computation begins from where it is read.

/// Larger than any price.
const NEVER: u64 = 1 << 60;

/// Values with prices, and which leads to which.
pub(super) struct Network {
    /// Capacity that is left, by edge; edge `e ^ 1` runs the other way.
    left: Vec<u64>,
    /// Where each edge leads.
    to: Vec<usize>,
    /// Edges from each point. A value is two points, in and out, with its price between them; then begin and end.
    edges: Vec<Vec<usize>>,
    values: usize,
}

impl Network {
    /// Values without a price are no part of it.
    pub(super) fn new(values: usize) -> Self {
        Network { left: vec![], to: vec![], edges: vec![vec![]; 2 * values + 2], values }
    }

    /// What it costs to hold a value.
    pub(super) fn price(&mut self, value: usize, price: u64) {
        self.edge(2 * value, 2 * value + 1, price.clamp(1, NEVER / 2));
    }

    /// The value cannot be computed from others.
    pub(super) fn begin(&mut self, value: usize) {
        self.edge(2 * self.values, 2 * value, NEVER);
    }

    /// The value is read at the end.
    pub(super) fn end(&mut self, value: usize) {
        self.edge(2 * value + 1, 2 * self.values + 1, NEVER);
    }

    /// `second` is computed from `first`.
    pub(super) fn lead(&mut self, first: usize, second: usize) {
        self.edge(2 * first + 1, 2 * second, NEVER);
    }

    fn edge(&mut self, from: usize, to: usize, capacity: u64) {
        for (from, to, capacity) in [(from, to, capacity), (to, from, 0)] {
            self.edges[from].push(self.to.len());
            self.to.push(to);
            self.left.push(capacity);
        }
    }

    /// The values to hold: of the cheapest cuts the one nearest to the end.
    pub(super) fn cut(mut self) -> Vec<bool> {
        let (begin, end) = (2 * self.values, 2 * self.values + 1);
        while let Some(path) = self.shortest(begin, end) {
            let most = path.iter().map(|&e| self.left[e]).min().expect("a path has an edge");
            for e in path {
                self.left[e] -= most;
                self.left[e ^ 1] += most;
            }
        }
        let near = self.reaching(end);
        (0..self.values).map(|value| near[2 * value + 1] && !near[2 * value]).collect()
    }

    /// Edges of a shortest path over which more can flow.
    fn shortest(&self, begin: usize, end: usize) -> Option<Vec<usize>> {
        let mut by: Vec<Option<usize>> = vec![None; self.edges.len()];
        let mut queue = std::collections::VecDeque::from([begin]);
        while let Some(at) = queue.pop_front() {
            for &e in &self.edges[at] {
                let to = self.to[e];
                if self.left[e] == 0 || to == begin || by[to].is_some() {
                    continue;
                }
                by[to] = Some(e);
                if to == end {
                    let mut path = vec![e];
                    while self.to[path[path.len() - 1] ^ 1] != begin {
                        path.push(by[self.to[path[path.len() - 1] ^ 1]].expect("came from there"));
                    }
                    return Some(path);
                }
                queue.push_back(to);
            }
        }
        None
    }

    /// Points from which more could flow to the end.
    fn reaching(&self, end: usize) -> Vec<bool> {
        let mut near = vec![false; self.edges.len()];
        near[end] = true;
        let mut stack = vec![end];
        while let Some(at) = stack.pop() {
            for &e in &self.edges[at] {
                let from = self.to[e];
                if self.left[e ^ 1] > 0 && !near[from] {
                    near[from] = true;
                    stack.push(from);
                }
            }
        }
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    /// Values with their prices, which begin and end, and who leads to whom.
    struct Picture {
        prices: Vec<u64>,
        begin: Vec<usize>,
        end: Vec<usize>,
        leads: Vec<(usize, usize)>,
    }

    impl Picture {
        fn cut(&self) -> Vec<bool> {
            let mut network = Network::new(self.prices.len());
            self.prices.iter().enumerate().for_each(|(v, &price)| network.price(v, price));
            self.begin.iter().for_each(|&v| network.begin(v));
            self.end.iter().for_each(|&v| network.end(v));
            self.leads.iter().for_each(|&(a, b)| network.lead(a, b));
            network.cut()
        }

        /// True if every way from begin to end passes a held value.
        fn separates(&self, held: &[bool]) -> bool {
            let mut open: Vec<usize> = self.begin.iter().copied().filter(|&v| !held[v]).collect();
            let mut seen = vec![false; self.prices.len()];
            while let Some(v) = open.pop() {
                if std::mem::replace(&mut seen[v], true) {
                    continue;
                }
                open.extend(self.leads.iter().filter(|(a, b)| *a == v && !held[*b]).map(|&(_, b)| b));
            }
            !self.end.iter().any(|&v| seen[v])
        }

        fn cost(&self, held: &[bool]) -> u64 {
            self.prices.iter().zip(held).filter(|(_, held)| **held).map(|(price, _)| price).sum()
        }
    }

    #[test]
    fn no_subset_of_the_values_separates_at_a_lower_price() {
        let mut stream = Stream::new(&[51]);
        for _ in 0..200 {
            let count = 3 + stream.below(8) as usize;
            let prices = (0..count).map(|_| 1 + stream.below(9)).collect();
            let mut leads = vec![];
            for b in 1..count {
                (0..b).filter(|_| stream.below(3) == 0).for_each(|a| leads.push((a, b)));
            }
            let begin = (0..count).filter(|&v| v == 0 || stream.below(4) == 0).collect();
            let end = (0..count).filter(|&v| v + 1 == count || stream.below(3) == 0).collect();
            let picture = Picture { prices, begin, end, leads };
            let cut = picture.cut();
            assert!(picture.separates(&cut));
            let all = 0..1u32 << count;
            let best = all
                .map(|bits| (0..count).map(|v| bits >> v & 1 == 1).collect::<Vec<_>>())
                .filter(|held| picture.separates(held))
                .map(|held| picture.cost(&held))
                .min();
            assert_eq!(Some(picture.cost(&cut)), best);
        }
    }

    #[test]
    fn of_equal_cuts_the_one_nearest_to_the_end_is_taken() {
        let picture =
            Picture { prices: vec![4, 4, 4], begin: vec![0], end: vec![2], leads: vec![(0, 1), (1, 2)] };
        assert_eq!(picture.cut(), [false, false, true]);
    }
}
