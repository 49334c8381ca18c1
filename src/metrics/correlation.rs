//! Whether two lists of numbers go together.

/// Pearson's correlation of pairs; not a number where either side is constant.
pub fn pearson(pairs: &[[f64; 2]]) -> f64 {
    let mean = |side: usize| pairs.iter().map(|pair| pair[side]).sum::<f64>() / pairs.len() as f64;
    let means = [mean(0), mean(1)];
    let sum = |a: usize, b: usize| {
        pairs.iter().map(|pair| (pair[a] - means[a]) * (pair[b] - means[b])).sum::<f64>()
    };
    sum(0, 1) / (sum(0, 0) * sum(1, 1)).sqrt()
}

/// Spearman's: that of the ranks, where equal numbers share the mean of theirs.
pub fn spearman(pairs: &[[f64; 2]]) -> f64 {
    let ranks = |side: usize| {
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by(|&a, &b| pairs[a][side].total_cmp(&pairs[b][side]));
        let mut ranks = vec![0.0; pairs.len()];
        let mut from = 0;
        while from < order.len() {
            let same = |&&at: &&usize| pairs[at][side] == pairs[order[from]][side];
            let count = order[from..].iter().take_while(same).count();
            let mean = from as f64 + (count - 1) as f64 / 2.0;
            order[from..from + count].iter().for_each(|&at| ranks[at] = mean);
            from += count;
        }
        ranks
    };
    let both: Vec<[f64; 2]> = ranks(0).into_iter().zip(ranks(1)).map(|(a, b)| [a, b]).collect();
    pearson(&both)
}
