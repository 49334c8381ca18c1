//! Which laws the losses of a ladder allow, and what is known of their numbers.
//!
//! ```text
//! L(N) = E + A / N^alpha          over sizes, each with its largest budget
//! L(C) = E + (C0 / C)^gamma       over compute, of a grid only the rungs that none with less beats
//! L(N, D) = E + A / N^alpha + B / D^beta    where both vary apart
//! ```
//!
//! Three numbers need four sizes; of two or three a line in logarithms is drawn, with E = 0, and said to be one.

use super::fit::{self, Law, Point, bounds, distinct, redrawn};
use serde::Serialize;

/// Sets drawn anew for intervals.
const SETS: usize = 200;

/// Where the floor is less of the least loss than this, none is seen.
const NO_FLOOR: f64 = 0.01;

/// An exponent whose bounds lie further apart than this is not determined.
const APART: f64 = 4.0;

/// Sizes and budgets that grow together more closely than this cannot be told apart.
const TOGETHER: f64 = 0.98;

/// What a rung gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// Its name.
    pub name: String,
    /// N.
    pub parameters: f64,
    /// D.
    pub tokens: f64,
    /// C.
    pub flops: f64,
    /// Nats a token.
    pub loss: f64,
}

/// What a law is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// N.
    Parameters,
    /// C.
    Compute,
    /// D.
    Tokens,
    /// N and D.
    ParametersAndTokens,
}

impl Over {
    /// Letters of the variables.
    pub fn letters(self) -> &'static [&'static str] {
        match self {
            Over::Parameters => &["N"],
            Over::Compute => &["C"],
            Over::Tokens => &["D"],
            Over::ParametersAndTokens => &["N", "D"],
        }
    }

    fn exponents(self) -> &'static [&'static str] {
        match self {
            Over::Parameters => &["alpha"],
            Over::Compute => &["gamma"],
            Over::Tokens => &["beta"],
            Over::ParametersAndTokens => &["alpha", "beta"],
        }
    }

    /// The variables of a rung.
    pub fn of(self, observed: &Observed) -> Vec<f64> {
        match self {
            Over::Parameters => vec![observed.parameters],
            Over::Compute => vec![observed.flops],
            Over::Tokens => vec![observed.tokens],
            Over::ParametersAndTokens => vec![observed.parameters, observed.tokens],
        }
    }
}

/// A number with the bounds between which it lies in 95 of 100 sets drawn anew.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Number {
    /// Its letter.
    pub name: String,
    /// As it was fitted to all rungs.
    pub value: f64,
    /// The bounds; absent where no sets could be drawn.
    pub bounds: Option<[f64; 2]>,
}

/// The largest rung, foretold from the others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Foretold {
    /// Which.
    pub rung: String,
    /// The loss foretold.
    pub predicted: f64,
    /// Its bounds, where sets could be drawn.
    pub bounds: Option<[f64; 2]>,
    /// The loss it had: the mean of its seeds.
    pub measured: f64,
    /// Predicted over measured, less one.
    pub error: f64,
    /// Whether a floor was looked for among the others.
    pub has_floor: bool,
}

/// A law over a variable, or why there is none.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Over what.
    pub over: Over,
    /// The form that was fitted.
    pub formula: String,
    /// Its numbers.
    pub numbers: Vec<Number>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// Whether the rungs say what the exponents are.
    pub is_determined: bool,
    /// The largest rung foretold from the others.
    pub foretold: Option<Foretold>,
    /// Names of the rungs it was fitted to.
    pub rungs: Vec<String>,
    /// The law.
    #[serde(skip)]
    pub law: Option<Law>,
    /// Laws through sets drawn anew.
    #[serde(skip)]
    pub redrawn: Vec<Law>,
}

/// All laws that a ladder's losses are asked for.
pub fn find(all: &[Observed]) -> Vec<Finding> {
    let several = |of: fn(&Observed) -> f64| all.iter().any(|one| (of(one) / of(&all[0]) - 1.0).abs() > 1e-9);
    let (sizes, budgets) = (several(|o| o.parameters), several(|o| o.tokens));
    let is_grid =
        all.iter().any(|a| all.iter().any(|b| a.parameters == b.parameters && a.tokens != b.tokens));
    let mut found = vec![];
    if sizes || !budgets {
        let most = |one: &&Observed| {
            !all.iter().any(|other| other.parameters == one.parameters && other.tokens > one.tokens)
        };
        let note = is_grid.then_some("Of each size the rung with most tokens.");
        found.push(finding(Over::Parameters, &all.iter().filter(most).cloned().collect::<Vec<_>>(), note));
    }
    if budgets && !sizes {
        found.push(finding(Over::Tokens, all, None));
    }
    let unbeaten = |one: &&Observed| {
        !is_grid || !all.iter().any(|other| other.flops < one.flops && other.loss <= one.loss)
    };
    let note = (is_grid && sizes).then_some("Only rungs that none with less compute beats.");
    let frontier: Vec<Observed> = match is_grid && sizes {
        true => all.iter().filter(unbeaten).cloned().collect(),
        false => all.to_vec(),
    };
    found.push(finding(Over::Compute, &frontier, note));
    if sizes && budgets {
        found.push(of_both(all));
    }
    found
}

/// The law of size and data, where they vary apart.
fn of_both(all: &[Observed]) -> Finding {
    let over = Over::ParametersAndTokens;
    let points = points(over, all);
    let why = match (distinct(&points), correlation(&points)) {
        (count, _) if count < 6 => format!("{count} rungs differ in size or tokens; five numbers need six."),
        (_, r) if r > TOGETHER => {
            format!(
                "Size and tokens grow together (correlation {r:.3} of their logarithms), so the rungs do not tell alpha from beta: several budgets for each size would."
            )
        }
        _ => return finding(over, all, None),
    };
    nothing(over, all, why)
}

fn nothing(over: Over, all: &[Observed], why: String) -> Finding {
    Finding {
        over,
        formula: "none".into(),
        numbers: vec![],
        notes: vec![why],
        is_determined: false,
        foretold: None,
        rungs: all.iter().map(|one| one.name.clone()).collect(),
        law: None,
        redrawn: vec![],
    }
}

fn points(over: Over, all: &[Observed]) -> Vec<Point> {
    all.iter().map(|one| Point::new(&over.of(one), one.loss)).collect()
}

fn correlation(points: &[Point]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: &dyn Fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / count;
    let [x, y] = [0, 1].map(|at| mean(&|point| point.ln_x[at]));
    let product = |a: usize, b: usize, (x, y): (f64, f64)| mean(&|p| (p.ln_x[a] - x) * (p.ln_x[b] - y));
    product(0, 1, (x, y)) / (product(0, 0, (x, x)) * product(1, 1, (y, y))).sqrt()
}

/// Whether a floor can be looked for in so many different points; none where no law can.
fn form(over: Over, points: &[Point]) -> Option<bool> {
    let count = distinct(points);
    match over.letters().len() {
        1 => (count >= 2).then_some(count >= 4),
        _ => (count >= 6).then_some(true),
    }
}

/// Fits the law that so many rungs allow.
fn finding(over: Over, all: &[Observed], note: Option<&str>) -> Finding {
    let points = points(over, all);
    let letter = over.letters()[0];
    let fitted = form(over, &points).and_then(|has_floor| Some((has_floor, fit::fit(&points, has_floor)?)));
    let Some((has_floor, law)) = fitted else {
        return nothing(over, all, format!("All rungs have the same {letter}: a law needs two at least."));
    };
    let mut notes: Vec<String> = note.iter().map(|note| note.to_string()).collect();
    let count = distinct(&points);
    if !has_floor {
        notes.push(format!("{count} different {letter}: a floor needs four, so E is taken as 0."));
    }
    let laws = if count > law.count() { redrawn(&points, &law, SETS, 0) } else { vec![] };
    if laws.is_empty() && count <= law.count() {
        notes.push("As many numbers as rungs: nothing tells how far the law is off.".into());
    }
    let enough = laws.len() >= SETS / 2;
    let of_laws = |of: &dyn Fn(&Law) -> f64| {
        let bounds = enough.then(|| bounds(laws.iter().map(of).collect()));
        bounds.filter(|ends| ends.iter().all(|end| end.is_finite()))
    };
    let mut numbers = vec![];
    if let Some(floor) = law.floor {
        numbers.push(Number { name: "E".into(), value: floor, bounds: of_laws(&|l| l.floor.unwrap_or(0.0)) });
        let least = all.iter().map(|one| one.loss).fold(f64::INFINITY, f64::min);
        if floor < NO_FLOOR * least {
            notes.push("No floor is seen: E goes to 0.".into());
        }
    }
    let mut is_determined = enough;
    for (at, term) in law.terms.iter().enumerate() {
        let (amplitude, of): (&str, fn(&fit::Term) -> f64) = match (over, at) {
            (Over::Compute, _) => ("C0", fit::Term::scale),
            (Over::Tokens, _) | (_, 1) => ("B", fit::Term::amplitude),
            _ => ("A", fit::Term::amplitude),
        };
        let exponent = of_laws(&|law| law.terms[at].exponent);
        numbers.push(Number {
            name: amplitude.into(),
            value: of(term),
            bounds: of_laws(&|law| of(&law.terms[at])),
        });
        let name = over.exponents()[at];
        numbers.push(Number { name: name.into(), value: term.exponent, bounds: exponent });
        if term.exponent <= 1e-3 {
            notes.push(format!("Losses do not fall with {}: no power law.", over.letters()[at]));
            is_determined = false;
        } else if let Some([low, high]) = exponent
            && (low <= 0.0 || high > APART * low)
        {
            notes.push(format!(
                "{name} is not determined by these rungs: 95 % of sets give {low:.3} to {high:.3}."
            ));
            is_determined = false;
        }
    }
    Finding {
        over,
        formula: formula(over, has_floor),
        numbers,
        notes,
        is_determined,
        foretold: foretell(over, all),
        rungs: all.iter().map(|one| one.name.clone()).collect(),
        law: Some(law),
        redrawn: if enough { laws } else { vec![] },
    }
}

fn formula(over: Over, has_floor: bool) -> String {
    let floor = if has_floor { "E + " } else { "" };
    match over {
        Over::Parameters => format!("L(N) = {floor}A / N^alpha"),
        Over::Compute => format!("L(C) = {floor}(C0 / C)^gamma"),
        Over::Tokens => format!("L(D) = {floor}B / D^beta"),
        Over::ParametersAndTokens => format!("L(N, D) = {floor}A / N^alpha + B / D^beta"),
    }
}

/// The rung with most compute, from a law through those with less.
fn foretell(over: Over, all: &[Observed]) -> Option<Foretold> {
    let largest = all.iter().max_by(|a, b| a.flops.total_cmp(&b.flops))?;
    let is_it = |one: &&Observed| over.of(one) == over.of(largest);
    let others: Vec<Observed> = all.iter().filter(|one| !is_it(one)).cloned().collect();
    let its: Vec<f64> = all.iter().filter(is_it).map(|one| one.loss).collect();
    let points = points(over, &others);
    let has_floor = form(over, &points)?;
    let law = fit::fit(&points, has_floor)?;
    let (predicted, measured) = (law.predict(&over.of(largest)), its.iter().sum::<f64>() / its.len() as f64);
    let laws = if distinct(&points) > law.count() { redrawn(&points, &law, SETS, 1) } else { vec![] };
    let bounds = (laws.len() >= SETS / 2)
        .then(|| bounds(laws.iter().map(|law| law.predict(&over.of(largest))).collect()));
    Some(Foretold {
        rung: largest.name.clone(),
        predicted,
        bounds,
        measured,
        error: predicted / measured - 1.0,
        has_floor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(parameters: f64, tokens: f64, loss: f64) -> Observed {
        let flops = 6.0 * parameters * tokens;
        Observed { name: format!("{parameters}-{tokens}"), parameters, tokens, flops, loss }
    }

    /// A ladder with 20 tokens for each parameter.
    fn ladder(count: i32, loss: impl Fn(f64) -> f64) -> Vec<Observed> {
        let sizes = (0..count).map(|at| 5e3 * 2.5f64.powi(at));
        sizes.map(|n| observed(n, 20.0 * n, loss(n))).collect()
    }

    fn law(found: &[Finding], over: Over) -> &Finding {
        found.iter().find(|finding| finding.over == over).unwrap()
    }

    #[test]
    fn a_ladder_with_a_law_gives_it_back_and_foretells_its_largest_rung() {
        let found = find(&ladder(6, |n| 1.5 + 30.0 / n.powf(0.4)));
        let of_size = law(&found, Over::Parameters);
        assert!(of_size.is_determined, "{of_size:?}");
        assert!((of_size.numbers[2].value - 0.4).abs() < 1e-3, "{:?}", of_size.numbers);
        let foretold = of_size.foretold.as_ref().unwrap();
        assert!(foretold.has_floor && foretold.error.abs() < 1e-3, "{foretold:?}");
        let of_compute = law(&found, Over::Compute);
        assert!((of_compute.numbers[2].value - 0.2).abs() < 1e-3, "C grows as N^2: {:?}", of_compute.numbers);
        let both = law(&found, Over::ParametersAndTokens);
        assert!(both.law.is_none() && both.notes[0].contains("grow together"), "{:?}", both.notes);
    }

    #[test]
    fn a_grid_of_sizes_and_budgets_tells_both_exponents() {
        let loss = |n: f64, d: f64| 1.0 + 20.0 / n.powf(0.35) + 60.0 / d.powf(0.3);
        let sizes = [5e3, 2e4, 8e4, 3.2e5];
        let all: Vec<Observed> =
            sizes.iter().flat_map(|&n| [1e5, 1e6, 1e7].map(|d| observed(n, d, loss(n, d)))).collect();
        let found = find(&all);
        let both = law(&found, Over::ParametersAndTokens);
        assert!(both.is_determined, "{:?}", both.notes);
        assert!((both.numbers[2].value - 0.35).abs() < 0.01 && (both.numbers[4].value - 0.3).abs() < 0.01);
        assert_eq!(law(&found, Over::Parameters).rungs.len(), 4, "of each size one");
        let frontier = law(&found, Over::Compute);
        assert!(frontier.rungs.len() < all.len() && frontier.notes[0].contains("none with less compute"));
    }

    #[test]
    fn one_size_alone_is_a_law_of_tokens() {
        let all: Vec<Observed> = (0..5)
            .map(|at| 1e5 * 3f64.powi(at))
            .map(|d| observed(1e4, d, 1.2 + 9.0 / d.powf(0.25)))
            .collect();
        let found = find(&all);
        assert!(found.iter().all(|finding| finding.over != Over::Parameters));
        assert!((law(&found, Over::Tokens).numbers[2].value - 0.25).abs() < 1e-3);
    }

    #[test]
    fn two_rungs_give_a_line_that_nobody_can_judge() {
        let found = find(&ladder(2, |n| 30.0 / n.powf(0.2)));
        let of_size = law(&found, Over::Parameters);
        let notes = of_size.notes.join(" ");
        assert!(notes.contains("E is taken as 0") && notes.contains("nothing tells how far"), "{notes}");
        assert!(!of_size.is_determined && of_size.foretold.is_none());
    }

    #[test]
    fn equal_sizes_give_no_law() {
        let all = [observed(1e4, 1e5, 3.0), observed(1e4, 1e5, 3.1)];
        let found = find(&all);
        assert!(found.iter().all(|f| f.law.is_none() && f.notes[0].contains("the same")), "{found:?}");
    }

    #[test]
    fn rising_losses_and_noise_are_no_power_law() {
        let found = find(&ladder(5, |n| n.powf(0.1)));
        let of_size = law(&found, Over::Parameters);
        assert!(
            !of_size.is_determined && of_size.notes.join(" ").contains("do not fall with N"),
            "{of_size:?}"
        );
        let noise = [3.0, 3.2, 2.9, 3.1, 3.05, 2.95];
        let at = |n: f64| noise[((n / 5e3).ln() / 2.5f64.ln()).round() as usize];
        let found = find(&ladder(6, at));
        assert!(!law(&found, Over::Parameters).is_determined, "{:?}", law(&found, Over::Parameters));
    }
}
