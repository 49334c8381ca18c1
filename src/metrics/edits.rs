//! Edits between two lists of words, where moving a run of them is one edit: Tercom's search, with its limits.
//!
//! A run of the text that the reference has elsewhere is moved to where it stands there, as long as that saves more edits than it
//! costs; the move that saves most is made first. What is left is counted by insertions, deletions and replacements.

/// Longest runs that are moved.
const MOST_WORDS: usize = 10;
/// Farthest that a run may be from where it should be.
const MOST_DISTANCE: usize = 50;
/// Moves that are tried for one text.
const MOST_TRIED: usize = 1000;
/// Half the width of the band along the diagonal in which edits are sought.
const BAND: usize = 25;

const FAR: usize = usize::MAX / 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Same,
    Replaced,
    Deleted,
    Inserted,
}

/// Edits that turn `text` into `wanted`.
pub fn edits(text: &[&str], wanted: &[&str]) -> usize {
    if wanted.is_empty() {
        return text.len();
    }
    let (mut words, mut moves, mut tried) = (text.to_vec(), 0, 0);
    loop {
        let moved = best_move(&words, wanted, &mut tried);
        if tried >= MOST_TRIED {
            break;
        }
        let Some(moved) = moved else { break };
        moves += 1;
        words = moved;
    }
    moves + distance(&words, wanted).0
}

/// Insertions, deletions and replacements, and the steps from the beginning to the end.
fn distance(text: &[&str], wanted: &[&str]) -> (usize, Vec<Step>) {
    let width = wanted.len() + 1;
    let ratio = if text.is_empty() { 1.0 } else { wanted.len() as f64 / text.len() as f64 };
    // Of lengths that differ much, neighbouring rows would not overlap.
    let band = if (BAND as f64) < ratio / 2.0 { (ratio / 2.0 + BAND as f64).ceil() as usize } else { BAND };
    let mut costs: Vec<(usize, Step)> = (0..width).map(|cost| (cost, Step::Inserted)).collect();
    costs.resize(width * (text.len() + 1), (FAR, Step::Same));
    for row in 1..=text.len() {
        let middle = (row as f64 * ratio).floor() as usize;
        let last = if row == text.len() { width } else { width.min(middle + band) };
        for column in middle.saturating_sub(band)..last {
            let at = row * width + column;
            let above = costs[at - width].0 + 1;
            if column == 0 {
                costs[at] = (above, Step::Deleted);
                continue;
            }
            let same = text[row - 1] == wanted[column - 1];
            let corner = costs[at - width - 1].0 + usize::from(!same);
            let corner = (corner, if same { Step::Same } else { Step::Replaced });
            // Of steps that cost as much the first is taken.
            for (cost, step) in [corner, (above, Step::Deleted), (costs[at - 1].0 + 1, Step::Inserted)] {
                if cost < costs[at].0 {
                    costs[at] = (cost, step);
                }
            }
        }
    }
    let (mut row, mut column, mut steps) = (text.len(), wanted.len(), vec![]);
    while row > 0 || column > 0 {
        let step = costs[row * width + column].1;
        steps.push(step);
        row -= usize::from(step != Step::Inserted);
        column -= usize::from(step != Step::Deleted);
    }
    steps.reverse();
    (costs[costs.len() - 1].0, steps)
}

/// Which words are wrong on either side, and behind how many words of the text each word of the reference ends.
struct Alignment {
    text_wrong: Vec<bool>,
    wanted_wrong: Vec<bool>,
    behind: Vec<usize>,
}

fn align(steps: &[Step]) -> Alignment {
    let mut alignment = Alignment { text_wrong: vec![], wanted_wrong: vec![], behind: vec![] };
    for &step in steps {
        if step != Step::Inserted {
            alignment.text_wrong.push(step != Step::Same);
        }
        if step != Step::Deleted {
            alignment.wanted_wrong.push(step != Step::Same);
            alignment.behind.push(alignment.text_wrong.len());
        }
    }
    alignment
}

/// The text after the move that saves most; none where none saves anything.
fn best_move<'a>(text: &[&'a str], wanted: &[&str], tried: &mut usize) -> Option<Vec<&'a str>> {
    let (before, steps) = distance(text, wanted);
    let Alignment { text_wrong, wanted_wrong, behind } = align(&steps);
    // What is saved, words of the run, and, the earlier the better, where it begins and where it goes.
    type Rank = (isize, usize, std::cmp::Reverse<usize>, std::cmp::Reverse<usize>);
    let mut best: Option<(Rank, Vec<&str>)> = None;
    'runs: for (start, there, length) in runs_elsewhere(text, wanted) {
        let is_wrong = |wrong: &[bool], from: usize| wrong[from..from + length].contains(&true);
        if !is_wrong(&text_wrong, start) || !is_wrong(&wanted_wrong, there) {
            continue;
        }
        // Within itself nothing is moved.
        if (start + 1..=start + length).contains(&behind[there]) {
            continue;
        }
        let mut last = None;
        for before_word in there..=there + length {
            // Before the first word, or behind the place of the word before.
            let to = match before_word {
                0 => 0,
                at => match behind.get(at - 1) {
                    Some(&to) => to,
                    None => break,
                },
            };
            if last == Some(to) {
                continue;
            }
            last = Some(to);
            let moved = moved(text, start, length, to);
            let saved = before as isize - distance(&moved, wanted).0 as isize;
            let rank = (saved, length, std::cmp::Reverse(start), std::cmp::Reverse(to));
            *tried += 1;
            if best.as_ref().is_none_or(|(best, _)| rank > *best) {
                best = Some((rank, moved));
            }
        }
        if *tried >= MOST_TRIED {
            break 'runs;
        }
    }
    best.filter(|((saved, ..), _)| *saved > 0).map(|(_, moved)| moved)
}

/// Runs that both have: where they begin in the text, where in the reference, and how long they are.
fn runs_elsewhere(text: &[&str], wanted: &[&str]) -> Vec<(usize, usize, usize)> {
    let mut runs = vec![];
    for start in 0..text.len() {
        for there in (0..wanted.len()).filter(|there| there.abs_diff(start) <= MOST_DISTANCE) {
            let pairs = text[start..].iter().zip(&wanted[there..]).take(MOST_WORDS);
            let length = pairs.take_while(|(a, b)| a == b).count();
            runs.extend((1..=length).map(|length| (start, there, length)));
        }
    }
    runs
}

fn moved<'a>(text: &[&'a str], start: usize, length: usize, to: usize) -> Vec<&'a str> {
    let (run, end) = (&text[start..start + length], start + length);
    if to < start {
        return [&text[..to], run, &text[to..start], &text[end..]].concat();
    }
    // A place within the run is one as far behind it.
    let to = if to > end { to } else { (to + length).min(text.len()) };
    [&text[..start], &text[end..to.max(end)], run, &text[to.max(end)..]].concat()
}
