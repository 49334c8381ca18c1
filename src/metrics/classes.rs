//! How often guessed classes are the right ones.

/// Share of pairs of right and guessed that are the same.
pub fn accuracy(pairs: &[[usize; 2]]) -> f64 {
    pairs.iter().filter(|[right, guessed]| right == guessed).count() as f64 / pairs.len() as f64
}

/// The mean F1 of the classes that are right or guessed anywhere.
pub fn macro_f1(pairs: &[[usize; 2]], classes: usize) -> f64 {
    let mut counts = vec![[0usize; 3]; classes];
    for &[right, guessed] in pairs {
        counts[right][0] += usize::from(right == guessed);
        counts[right][1] += 1;
        counts[guessed][2] += 1;
    }
    let there: Vec<f64> = counts.iter().filter(|[_, right, guessed]| right + guessed > 0).map(f1).collect();
    there.iter().sum::<f64>() / there.len() as f64
}

/// 2 hits / (right + guessed), zero where there is none of either.
pub fn f1([hits, right, guessed]: &[usize; 3]) -> f64 {
    if right + guessed == 0 { 0.0 } else { 2.0 * *hits as f64 / (right + guessed) as f64 }
}

/// Matthews' correlation coefficient of several classes; zero where either side has one class alone.
pub fn matthews(pairs: &[[usize; 2]], classes: usize) -> f64 {
    let (mut rights, mut guesses, mut hits) = (vec![0.0; classes], vec![0.0; classes], 0.0);
    for &[right, guessed] in pairs {
        rights[right] += 1.0;
        guesses[guessed] += 1.0;
        hits += f64::from(u8::from(right == guessed));
    }
    let all = pairs.len() as f64;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let covariance = hits * all - product(&rights, &guesses);
    let spread = (all * all - product(&rights, &rights)) * (all * all - product(&guesses, &guesses));
    if spread == 0.0 { 0.0 } else { covariance / spread.sqrt() }
}

/// How often each class was guessed as each: rows are what is right, columns what was guessed.
pub fn confusion(pairs: &[[usize; 2]], classes: usize) -> Vec<Vec<usize>> {
    let mut counts = vec![vec![0; classes]; classes];
    pairs.iter().for_each(|&[right, guessed]| counts[right][guessed] += 1);
    counts
}

/// The mean F1 of classes, each weighted by how often it is right.
pub fn weighted_f1(pairs: &[[usize; 2]], classes: usize) -> f64 {
    let of = |(right, guessed, hits): (usize, usize, usize)| right as f64 * f1(&[hits, right, guessed]);
    sides(pairs, classes).map(of).sum::<f64>() / pairs.len() as f64
}

/// Means of precision and of recall of the classes that are right or guessed anywhere; zero counts where one has no meaning.
pub fn macro_precision_recall(pairs: &[[usize; 2]], classes: usize) -> [f64; 2] {
    let share = |hits: usize, of: usize| if of == 0 { 0.0 } else { hits as f64 / of as f64 };
    let there: Vec<_> = sides(pairs, classes).filter(|(right, guessed, _)| right + guessed > 0).collect();
    let mean =
        |of: &dyn Fn(&(usize, usize, usize)) -> f64| there.iter().map(of).sum::<f64>() / there.len() as f64;
    [mean(&|(_, guessed, hits)| share(*hits, *guessed)), mean(&|(right, _, hits)| share(*hits, *right))]
}

/// Of each class how often it is right, guessed, and both.
fn sides(pairs: &[[usize; 2]], classes: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let counts = confusion(pairs, classes);
    let guessed = |class: usize| counts.iter().map(|row| row[class]).sum();
    let all: Vec<_> = (0..classes)
        .map(|class| (counts[class].iter().sum(), guessed(class), counts[class][class]))
        .collect();
    all.into_iter()
}

/// Share of pairs of a right and a wrong answer in which the right one has the larger score; equal ones count half (ROC AUC).
pub fn area(answers: &[(f64, bool)]) -> f64 {
    let of =
        |wanted: bool| answers.iter().filter(move |(_, right)| *right == wanted).map(|(score, _)| *score);
    let mut wrong: Vec<f64> = of(false).collect();
    wrong.sort_by(f64::total_cmp);
    let below = |score: f64| {
        let less = wrong.partition_point(|other| *other < score);
        let as_much = wrong.partition_point(|other| *other <= score) - less;
        less as f64 + as_much as f64 / 2.0
    };
    let right: Vec<f64> = of(true).collect();
    right.iter().map(|score| below(*score)).sum::<f64>() / (right.len() * wrong.len()) as f64
}

/// Precision at each score that a right answer has, as a mean of those answers, without interpolation.
pub fn average_precision(answers: &[(f64, bool)]) -> f64 {
    let mut sorted: Vec<&(f64, bool)> = answers.iter().collect();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut hits, mut seen, mut sum) = (0, 0, 0.0);
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        let new = same.iter().filter(|(_, right)| *right).count();
        (hits, seen) = (hits + new, seen + same.len());
        sum += new as f64 * hits as f64 / seen as f64;
    }
    sum / hits as f64
}

/// The mean of minus the logarithm of the share that the right answer had.
pub fn log_loss(answers: &[(f64, bool)]) -> f64 {
    let of = |&(share, right): &(f64, bool)| -(if right { share } else { 1.0 - share }).ln();
    answers.iter().map(of).sum::<f64>() / answers.len() as f64
}
