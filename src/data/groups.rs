//! Positions of a batch grouped by token, so that embedding gradients are summed in a fixed order.
//!
//! Adding gradients of equal tokens with float atomics would give another sum on every run. The host knows the
//! ids, so it sorts: token `v` then owns `order[starts[v]..starts[v + 1]]`, and one lane adds them up in that order.

/// Positions of a batch, sorted by token id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Positions in the batch, `rows * context` of them; equal tokens keep their order of appearance.
    pub order: Vec<u32>,
    /// `vocabulary + 1` entries: where each token's positions begin in `order`.
    pub starts: Vec<u32>,
}

/// Sorts the positions of `tokens` by token id, stably, with a counting sort in `tokens.len() + vocabulary` steps.
///
/// # Panics
/// If a token is not below `vocabulary`: the tokenizer that made the tokens knows better.
pub fn sorted_positions(tokens: &[u32], vocabulary: usize) -> Groups {
    assert!(u32::try_from(tokens.len()).is_ok(), "a batch has fewer than 2^32 positions");
    let mut starts = vec![0_u32; vocabulary + 1];
    for &token in tokens {
        starts[token as usize + 1] += 1;
    }
    for token in 0..vocabulary {
        starts[token + 1] += starts[token];
    }
    let mut next = starts.clone();
    let mut order = vec![0; tokens.len()];
    for (position, &token) in (0..).zip(tokens) {
        let place = &mut next[token as usize];
        order[*place as usize] = position;
        *place += 1;
    }
    Groups { order, starts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::Random;

    #[test]
    fn groups_agree_with_a_stable_comparison_sort() {
        let mut random = Random::new(5, 0);
        for (length, vocabulary) in [(0, 1), (1, 1), (12, 3), (257, 65), (64, 1000)] {
            let tokens: Vec<u32> = (0..length).map(|_| random.below(vocabulary) as u32).collect();
            let groups = sorted_positions(&tokens, vocabulary as usize);

            let mut expected: Vec<u32> = (0..length).collect();
            expected.sort_by_key(|&position| tokens[position as usize]);
            assert_eq!(groups.order, expected);
            assert_eq!(groups.starts.len(), vocabulary as usize + 1);
            for token in 0..vocabulary as usize {
                let range = groups.starts[token] as usize..groups.starts[token + 1] as usize;
                assert!(groups.order[range].iter().all(|&at| tokens[at as usize] as usize == token));
            }
        }
    }
}
