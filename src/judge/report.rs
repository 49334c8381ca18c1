//! What raters said, counted: win rates, scores, position bias, agreement; and every judgement as a line of CSV.
//!
//! A tie counts as half a win for both, and so does a pair of which neither is any good. What was skipped counts nowhere. Judgements are
//! taken as independent of each other: several raters of the same prompts make bounds narrower than they should be.

use super::statistics::{Strength, bradley_terry, cohen_kappa, krippendorff_alpha, sign_test, wilson};
use super::{Result, Store, Verdict};
use crate::judge::Judged;
use serde::Serialize;
use std::collections::BTreeMap;

/// Points of the scale of Elo in one unit of a score: 400 are odds of ten to one.
const ELO: f64 = 400.0 / std::f64::consts::LN_10;

/// A share with what it is of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The share; none of nothing.
    pub value: Option<f64>,
    /// The lower bound of Wilson's interval of 95 %.
    pub low: Option<f64>,
    /// The upper bound.
    pub high: Option<f64>,
}

impl Share {
    fn of(successes: f64, count: f64) -> Share {
        let bounds = wilson(successes, count);
        Share {
            value: (count > 0.0).then(|| successes / count),
            low: bounds.map(|[low, _]| low),
            high: bounds.map(|[_, high]| high),
        }
    }
}

/// Two models against each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// One model.
    pub a: String,
    /// The other.
    pub b: String,
    /// How often the first was preferred.
    pub a_wins: u64,
    /// How often the second was.
    pub b_wins: u64,
    /// How often neither was.
    pub ties: u64,
    /// How often neither was any good.
    pub both_bad: u64,
    /// How often there was no opinion.
    pub skipped: u64,
    /// The win rate of the first, ties and pairs of which neither is good as halves.
    pub win_rate_a: Share,
    /// How often a fair coin is as unequal as wins and losses, ties left out.
    pub p_value: f64,
}

/// A model's score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The model.
    pub name: String,
    /// Bradley and Terry's score, with a mean of zero over models; none where there is no finite one.
    pub score: Option<f64>,
    /// Its standard error.
    pub standard_error: Option<f64>,
    /// The lower bound of 95 %.
    pub low: Option<f64>,
    /// The upper bound.
    pub high: Option<f64>,
    /// The score in points of Elo's scale.
    pub elo: Option<f64>,
}

/// A rater, and how often which key was pressed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rater {
    /// The name.
    pub name: String,
    /// Pairs judged.
    pub judged: usize,
    /// Pairs there are.
    pub total: usize,
    /// Counts by verdict.
    pub verdicts: BTreeMap<&'static str, u64>,
    /// The median of the seconds for a pair.
    pub median_seconds: Option<f64>,
}

/// Whether the left answer was preferred for being on the left.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Position {
    /// How often the left one was preferred.
    pub left: u64,
    /// How often the right one was.
    pub right: u64,
    /// The share of the left.
    pub share_left: Share,
    /// How often a fair coin is as unequal.
    pub p_value: f64,
}

/// How far raters agree on which model is better, that neither is, or that neither is any good.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Pairs that two raters or more have judged.
    pub pairs: usize,
    /// The share of pairs of raters who said the same of the same pair.
    pub share: Option<f64>,
    /// Cohen's kappa, where exactly two raters have judged pairs together.
    pub cohen_kappa: Option<f64>,
    /// Krippendorff's alpha for labels without order.
    pub krippendorff_alpha: Option<f64>,
}

/// Everything counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Prompts of the contest.
    pub prompts: usize,
    /// Judgements that stand.
    pub judgements: usize,
    /// Models against each other.
    pub pairs: Vec<Pair>,
    /// Scores of all models.
    pub scores: Vec<Score>,
    /// Position bias.
    pub position: Position,
    /// Agreement.
    pub agreement: Agreement,
    /// Raters.
    pub raters: Vec<Rater>,
}

/// Counts what a results file holds.
pub fn report(store: &Store) -> Result<Report> {
    let contest = store.contest()?;
    let names: Vec<String> = contest.contestants.into_iter().map(|one| one.name).collect();
    let judged = store.judgements()?;
    Ok(Report {
        prompts: contest.prompts.len(),
        judgements: judged.len(),
        pairs: pairs(&names, &judged),
        scores: scores(&names, &judged),
        position: position(&judged),
        agreement: agreement(&judged),
        raters: store.raters()?.into_iter().map(|(name, total)| rater(name, total, &judged)).collect(),
    })
}

/// What a judgement says of its pair, wherever the models stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    First,
    Second,
    Tie,
    Bad,
}

impl Judged {
    fn said(&self) -> Option<Said> {
        match self.verdict {
            Verdict::Left if self.first_is_left => Some(Said::First),
            Verdict::Left => Some(Said::Second),
            Verdict::Right if self.first_is_left => Some(Said::Second),
            Verdict::Right => Some(Said::First),
            Verdict::Tie => Some(Said::Tie),
            Verdict::Bad => Some(Said::Bad),
            Verdict::Skip => None,
        }
    }
}

fn pairs(names: &[String], judged: &[Judged]) -> Vec<Pair> {
    let mut all = vec![];
    for second in 1..names.len() {
        for first in 0..second {
            let own: Vec<_> =
                judged.iter().filter(|one| (one.first, one.second) == (first, second)).collect();
            let count = |said| own.iter().filter(|one| one.said() == said).count() as u64;
            let [a_wins, b_wins] = [count(Some(Said::First)), count(Some(Said::Second))];
            let [ties, both_bad, skipped] = [count(Some(Said::Tie)), count(Some(Said::Bad)), count(None)];
            let halves = ties + both_bad;
            all.push(Pair {
                a: names[first].clone(),
                b: names[second].clone(),
                win_rate_a: Share::of(a_wins as f64 + halves as f64 / 2.0, (a_wins + b_wins + halves) as f64),
                p_value: sign_test(a_wins, b_wins),
                a_wins,
                b_wins,
                ties,
                both_bad,
                skipped,
            });
        }
    }
    all
}

fn scores(names: &[String], judged: &[Judged]) -> Vec<Score> {
    let mut wins = vec![vec![0.0; names.len()]; names.len()];
    for one in judged {
        let share = match one.said() {
            Some(Said::First) => 1.0,
            Some(Said::Second) => 0.0,
            Some(Said::Tie | Said::Bad) => 0.5,
            None => continue,
        };
        wins[one.first][one.second] += share;
        wins[one.second][one.first] += 1.0 - share;
    }
    let strengths = bradley_terry(&wins);
    let of = |at: usize| strengths.as_ref().map(|all: &Vec<Strength>| all[at]);
    let score = |(at, name): (usize, &String)| Score {
        name: name.clone(),
        score: of(at).map(|one| one.score),
        standard_error: of(at).map(|one| one.error),
        low: of(at).map(|one| one.low),
        high: of(at).map(|one| one.high),
        elo: of(at).map(|one| one.score * ELO),
    };
    names.iter().enumerate().map(score).collect()
}

fn position(judged: &[Judged]) -> Position {
    let count = |verdict| judged.iter().filter(|one| one.verdict == verdict).count() as u64;
    let [left, right] = [count(Verdict::Left), count(Verdict::Right)];
    let share_left = Share::of(left as f64, (left + right) as f64);
    Position { left, right, share_left, p_value: sign_test(left, right) }
}

fn agreement(judged: &[Judged]) -> Agreement {
    let mut items: BTreeMap<i64, BTreeMap<&str, usize>> = BTreeMap::new();
    for one in judged {
        if let Some(said) = one.said() {
            items.entry(one.item).or_default().insert(&one.rater, said as usize);
        }
    }
    items.retain(|_, labels| labels.len() >= 2);
    let raters: std::collections::BTreeSet<&str> =
        items.values().flat_map(|labels| labels.keys().copied()).collect();
    let labels: Vec<Vec<usize>> = items.values().map(|labels| labels.values().copied().collect()).collect();
    let (mut same, mut all) = (0, 0);
    for labels in &labels {
        for (at, label) in labels.iter().enumerate() {
            all += at;
            same += labels[..at].iter().filter(|other| *other == label).count();
        }
    }
    let both: Vec<(usize, usize)> = labels.iter().map(|labels| (labels[0], labels[1])).collect();
    Agreement {
        pairs: labels.len(),
        share: (all > 0).then(|| same as f64 / all as f64),
        cohen_kappa: if raters.len() == 2 { cohen_kappa(&both) } else { None },
        krippendorff_alpha: krippendorff_alpha(&labels),
    }
}

fn rater(name: String, total: usize, judged: &[Judged]) -> Rater {
    let own: Vec<_> = judged.iter().filter(|one| one.rater == name).collect();
    let count = |verdict| own.iter().filter(|one| one.verdict == verdict).count() as u64;
    let verdicts = Verdict::ALL.into_iter().map(|verdict| (verdict.name(), count(verdict))).collect();
    let mut times: Vec<i64> = own.iter().map(|one| one.elapsed_ms).collect();
    times.sort_unstable();
    let median = times.get(times.len() / 2).map(|upper| {
        let lower = times[(times.len() - 1) / 2];
        (upper + lower) as f64 / 2000.0
    });
    Rater { name, judged: own.len(), total, verdicts, median_seconds: median }
}

/// Every judgement that stands as CSV (RFC 4180), with a line of names.
pub fn csv(store: &Store) -> Result<String> {
    let contest = store.contest()?;
    let mut text =
        String::from("rater,prompt_id,prompt,left,right,verdict,winner,comment,seconds,judged_at\r\n");
    for one in store.judgements()? {
        let name = |model: usize| contest.contestants[model].name.as_str();
        let prompt = &contest.prompts[one.prompt];
        let (left, right) = if one.first_is_left { (one.first, one.second) } else { (one.second, one.first) };
        let winner = match one.verdict {
            Verdict::Left => name(left),
            Verdict::Right => name(right),
            _ => "",
        };
        let seconds = format!("{:.3}", one.elapsed_ms as f64 / 1000.0);
        let cells = [
            one.rater.as_str(),
            &prompt.key,
            &prompt.text,
            name(left),
            name(right),
            one.verdict.name(),
            winner,
            &one.comment,
            &seconds,
            &one.judged_at,
        ];
        text += &cells.map(quoted).join(",");
        text += "\r\n";
    }
    Ok(text)
}

fn quoted(cell: &str) -> String {
    match cell.contains([',', '"', '\n', '\r']) || cell.trim() != cell {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_string(),
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.3}"));
        let bounds = |low, high| format!("{} .. {}", number(low), number(high));
        writeln!(
            out,
            "{} judgements of {} prompts by {} raters",
            self.judgements,
            self.prompts,
            self.raters.len()
        )?;
        writeln!(
            out,
            "\nwin rates (ties and both bad count as halves; 95 % by Wilson; p of the sign test without them)"
        )?;
        for pair in &self.pairs {
            let Pair { a, b, a_wins, b_wins, ties, both_bad, skipped, win_rate_a, p_value } = pair;
            writeln!(
                out,
                "  {a} over {b}: {}  ({})  p {p_value:.4}",
                number(win_rate_a.value),
                bounds(win_rate_a.low, win_rate_a.high)
            )?;
            writeln!(
                out,
                "    won {a_wins}, lost {b_wins}, tie {ties}, both bad {both_bad}, skipped {skipped}"
            )?;
        }
        writeln!(out, "\nBradley-Terry scores (logarithms of odds, mean 0; 95 % by Fisher's information)")?;
        for score in &self.scores {
            let elo = score.elo.map_or("-".into(), |elo| format!("{elo:+.0}"));
            writeln!(
                out,
                "  {}: {}  ({})  Elo {elo}",
                score.name,
                number(score.score),
                bounds(score.low, score.high)
            )?;
        }
        if self.scores.iter().any(|score| score.score.is_none()) {
            writeln!(
                out,
                "  none is finite while one of the models, or a group of them, has won nothing from the others"
            )?;
        }
        let Position { left, right, share_left, p_value } = &self.position;
        writeln!(
            out,
            "\nposition: the left one won {left} of {} times: {}  ({})  p {p_value:.4}",
            left + right,
            number(share_left.value),
            bounds(share_left.low, share_left.high)
        )?;
        let Agreement { pairs, share, cohen_kappa, krippendorff_alpha } = &self.agreement;
        writeln!(
            out,
            "agreement over {pairs} pairs judged by several: {} the same, Cohen's kappa {}, Krippendorff's alpha {}",
            number(*share),
            number(*cohen_kappa),
            number(*krippendorff_alpha)
        )?;
        writeln!(out)?;
        for rater in &self.raters {
            let seconds = rater.median_seconds.map_or("-".into(), |seconds| format!("{seconds:.1}"));
            writeln!(out, "{}: {} of {}, median {seconds} s", rater.name, rater.judged, rater.total)?;
        }
        Ok(())
    }
}
