//! `[prune]`: weights that training removes by and by, and weights it leaves removed.

use std::fmt;

use serde::{Serialize, Serializer};

use super::error::Error;
use super::quantize::heads;
use super::read::{Given, Section};
use super::{Held, Precision, States};
use crate::tensor::sparse::{Pattern, Scope, Sparsity};

/// All keys of the section.
pub(super) const KEYS: &[&str] = &[
    "keep_zeros",
    "method",
    "sparsity",
    "pattern",
    "initial",
    "begin",
    "end",
    "every",
    "scope",
    "strength",
    "targets",
    "ignore",
];

/// Steps between choices, unless the recipe says otherwise, where there is time for as many.
const USUAL_EVERY: u64 = 100;

/// What stays removed, and what is removed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prune {
    /// Weights of linear layers that are zero when training begins stay exactly zero.
    pub keep_zeros: bool,
    /// What training removes. Absent: nothing.
    #[serde(flatten)]
    pub removal: Option<Removal>,
}

/// How weights are removed while training goes on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Removal {
    /// By what they are chosen.
    pub method: Method,
    /// Share of the weights that is gone in the end; or `pattern`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// So many of each few consecutive inputs stay in the end: `2:4`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub pattern: Option<Pattern>,
    /// Share that is gone at `begin`.
    #[serde(skip_serializing_if = "is_zero")]
    pub initial: f64,
    /// The step before which weights are chosen first.
    pub begin: u64,
    /// The step before which they are chosen last; from there on masks stay as they are.
    pub end: u64,
    /// Steps between choices; zero for `l1`, which has one.
    #[serde(skip_serializing_if = "is_never")]
    pub every: u64,
    /// Which weights are compared with each other.
    #[serde(serialize_with = "as_name")]
    pub scope: Scope,
    /// l1: weight of the term; each step brings weights nearer to zero by the learning rate times it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Weights meant, as name patterns with `*`; each must fit one.
    pub targets: Vec<String>,
    /// Weights among them that stay as they are.
    pub ignore: Vec<String>,
}

/// By what weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The smallest go, little by little, and do not return (Zhu and Gupta 2017).
    Magnitude,
    /// Those that training moves towards zero go, and may return (Sanh et al. 2020).
    Movement,
    /// An L1 term draws weights to zero; what is zero at `end`, and with `sparsity` the smallest besides, goes.
    L1,
}

fn is_zero(share: &f64) -> bool {
    *share == 0.0
}

fn is_never(every: &u64) -> bool {
    *every == 0
}

fn as_text<S: Serializer>(pattern: &Option<Pattern>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&pattern.expect("left out where there is none"))
}

fn as_name<S: Serializer>(scope: &Scope, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(scope.name())
}

impl fmt::Display for Prune {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(removal) = &self.removal else { return f.write_str("zeros stay zero") };
        let Removal { method, begin, end, every, scope, .. } = removal;
        let scope = scope.name();
        match method {
            Method::L1 => write!(f, "l1 from step {begin} to {end}, then what is zero stays so")?,
            Method::Magnitude => write!(f, "magnitude by {scope}")?,
            Method::Movement => write!(f, "movement by {scope}")?,
        }
        if *method != Method::L1 {
            let (initial, amount) = (removal.initial, removal.amount());
            write!(
                f,
                ", {initial} to {amount} from step {begin} to {end}, masks chosen every {every} steps"
            )?;
        }
        if self.keep_zeros { f.write_str("; zeros stay zero") } else { Ok(()) }
    }
}

impl Removal {
    /// What is gone in the end; with `l1` it may be only what has become zero by itself.
    pub fn amount(&self) -> Sparsity {
        match (self.pattern, self.sparsity) {
            (Some(pattern), _) => Sparsity::Pattern(pattern),
            (None, share) => Sparsity::Share(share.unwrap_or(0.0)),
        }
    }

    /// The share to be gone before a step, if weights are chosen then: `s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3`.
    pub fn due(&self, step: u64) -> Option<f64> {
        let last = self.amount().share();
        if step == self.end {
            return Some(last);
        }
        let chosen = self.method != Method::L1 && (self.begin..self.end).contains(&step);
        if !chosen || !(step - self.begin).is_multiple_of(self.every) {
            return None;
        }
        let left = 1.0 - (step - self.begin) as f64 / (self.end - self.begin) as f64;
        let share = last + (self.initial - last) * left.powi(3);
        (share > 0.0).then_some(share)
    }

    /// How much nearer to zero a step brings weights, for each unit of learning rate.
    pub fn pull(&self, step: u64) -> f64 {
        match self.strength {
            Some(strength) if (self.begin..self.end).contains(&step) => strength,
            _ => 0.0,
        }
    }
}

/// Reads the section for a run of `steps`; none where nothing is removed and nothing stays so.
pub(super) fn prune(
    section: &Section,
    steps: u64,
    precision: &Precision,
    adapts: bool,
) -> Result<Option<Prune>, Error> {
    if let Some(key) = KEYS.iter().find(|key| adapts && section.has(key)) {
        let hint = "what adapters add to a weight has no zeros: merge them, then prune";
        return Err(section.refuse(key, "absent beside [adapter]", hint));
    }
    let keep_zeros = section.flag("keep_zeros")?;
    let words = [("magnitude", Method::Magnitude), ("movement", Method::Movement), ("l1", Method::L1)];
    let method = section.word("method", &words)?.or(Method::Magnitude);
    let amount = ["sparsity", "pattern"].into_iter().find(|key| section.has(key));
    if amount.is_none() && method != Method::L1 {
        let hint = "sparsity = 0.5 removes half of the weights, pattern = \"2:4\" two of each four";
        if let Some(key) = KEYS[1..].iter().find(|key| section.has(key)) {
            return Err(section.refuse(key, "absent without `sparsity` or `pattern`", hint));
        }
        return Ok(keep_zeros.or(false).then_some(Prune { keep_zeros: true, removal: None }));
    }
    let removal = removal(section, method, steps)?;
    refuse_held(section, precision, amount.unwrap_or("method"))?;
    Ok(Some(Prune { keep_zeros: keep_zeros.or(true), removal: Some(removal) }))
}

fn removal(section: &Section, method: Method, steps: u64) -> Result<Removal, Error> {
    let within = |share: &f64| *share > 0.0 && *share < 1.0;
    let hint = "0.5 removes half of the weights";
    let sparsity = section.number("sparsity")?.must(within, "above 0 and below 1", hint)?.take();
    let pattern = pattern(section)?;
    if sparsity.is_some() && pattern.is_some() {
        return Err(section.refuse("pattern", "absent beside `sparsity`", "keep one of the two"));
    }
    let last = pattern.map_or(sparsity, |pattern| Some(pattern.sparsity())).unwrap_or(0.0);
    let only = |key, other| match method == Method::L1 && section.has(key) {
        true => Err(section.refuse(key, "absent beside method = \"l1\"", other)),
        false => Ok(()),
    };
    only("initial", "the term itself says what becomes zero, and when")?;
    only("every", "weights are chosen once, at `end`")?;
    let begin = begin(section, steps)?;
    let hint = "a longer run, or an earlier end: what is removed last is trained around";
    let fits = format!("at most train.steps - 1 = {}", steps - 1);
    let end = section.count("end")?.must(|&end| end < steps, fits, hint)?;
    let expected = format!("at least prune.begin = {begin}");
    let end = end.must(|&end| end >= begin, expected, "masks are chosen from begin to end")?;
    let end = end.or((begin + steps) / 2);
    let hint = "0 begins with all weights; the share grows from here to `sparsity`";
    let initial = section.number("initial")?;
    let expected = format!("from 0 to below {last}, the share in the end");
    let initial = initial.must(|&share| (0.0..last).contains(&share), expected, hint)?;
    let hint = "scores are summed up from step 0 on: begin = 100";
    let known = |&share: &f64| share == 0.0 || begin > 0 || method != Method::Movement;
    let initial = initial.must(known, "0 where movement begins at step 0", hint)?;
    let every = section.count("every")?.must(|&n| n > 0, "at least 1", "1 chooses before each step")?;
    let usual = ((end - begin) / 10).clamp(1, USUAL_EVERY);
    let some = |names: &Vec<String>| !names.is_empty();
    let targets = section.texts("targets")?.must(some, "at least one pattern", "\"*\" means every layer")?;
    Ok(Removal {
        method,
        sparsity,
        pattern,
        initial: initial.or(0.0),
        begin,
        end,
        every: if method == Method::L1 { 0 } else { every.or(usual) },
        scope: section.word("scope", &Scope::ALL.map(|scope| (scope.name(), scope)))?.or(Scope::Layer),
        strength: strength(section, method)?,
        targets: targets.or(vec!["*".to_string()]),
        ignore: section.texts("ignore")?.or(heads()),
    })
}

fn begin(section: &Section, steps: u64) -> Result<u64, Error> {
    let fits = format!("below train.steps = {steps}");
    let hint = "0 begins at once";
    Ok(section.count("begin")?.must(|&begin| begin < steps, fits, hint)?.or(0))
}

fn pattern(section: &Section) -> Result<Option<Pattern>, Error> {
    let text: Given<String> = section.text("pattern")?;
    let Some(read) = text.get().map(|text| text.parse::<Pattern>()) else { return Ok(None) };
    let hint =
        "2:4 keeps 2 of each 4 consecutive inputs; the first number is above zero and below the second";
    read.map(Some).map_err(|_| text.impossible("a pattern such as \"2:4\"".to_string(), hint.to_string()))
}

fn strength(section: &Section, method: Method) -> Result<Option<f64>, Error> {
    let given = section.number("strength")?;
    if method != Method::L1 {
        let hint = "method = \"l1\" is what has a term";
        return match section.has("strength") {
            true => Err(section.refuse("strength", "absent beside this method", hint)),
            false => Ok(None),
        };
    }
    let hint = "each step brings weights nearer to zero by the learning rate times it: strength = 0.1 is a beginning";
    given.must(|&strength| strength > 0.0, "above zero", hint)?.need(hint).map(Some)
}

/// Masks that move are laid over weights and moments in 32 bits.
fn refuse_held(section: &Section, precision: &Precision, key: &str) -> Result<(), Error> {
    let hint = "keep_zeros = true alone goes with all of them";
    if precision.states != States::F32 {
        return Err(section.refuse(key, "absent beside precision.states = \"8bit\"", hint));
    }
    if precision.weights != Held::F32 {
        return Err(section.refuse(key, "absent beside precision.weights in fewer bits", hint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Recipe;
    use super::*;

    fn read(prune: &str, sets: &[&str]) -> Result<Option<Prune>, String> {
        let text = format!("[train]\nsteps = 100\n[prune]\n{prune}");
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        Recipe::from_text(&text, "r.toml", &sets).map(|r| r.prune).map_err(|error| error.to_string())
    }

    fn removal(prune: &str) -> Removal {
        read(prune, &[]).unwrap().unwrap().removal.unwrap()
    }

    #[test]
    fn the_share_grows_by_the_cubic_rule_and_ends_exactly() {
        let removal = removal("sparsity = 0.8\ninitial = 0.2\nbegin = 10\nend = 50\nevery = 10");
        let shares: Vec<_> = (0..100).filter_map(|step| removal.due(step).map(|s| (step, s))).collect();
        let rule = |t: f64| 0.8 + (0.2 - 0.8) * (1.0 - (t - 10.0) / 40.0).powi(3);
        assert_eq!(shares.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [10, 20, 30, 40, 50]);
        for &(step, share) in &shares {
            assert!((share - rule(step as f64)).abs() < 1e-12, "{step}: {share}");
        }
        assert_eq!(shares[4].1, 0.8);
    }

    #[test]
    fn a_schedule_that_no_period_divides_ends_where_it_says() {
        let removal = removal("pattern = \"2:4\"\nend = 25\nevery = 10");
        let steps: Vec<_> = (0..100).filter(|&step| removal.due(step).is_some()).collect();
        assert_eq!(steps, [10, 20, 25], "at step 0 there is nothing to remove yet");
    }

    #[test]
    fn what_is_not_written_has_a_usual_value_and_is_read_back() {
        let made = removal("sparsity = 0.5");
        assert_eq!((made.begin, made.end, made.every), (0, 50, 5));
        assert_eq!((made.method, made.scope), (Method::Magnitude, Scope::Layer));
        for text in [
            "sparsity = 0.5",
            "pattern = \"1:4\"\nscope = \"row\"\nkeep_zeros = false",
            "method = \"movement\"\nsparsity = 0.9\nscope = \"global\"\nbegin = 3",
            "method = \"l1\"\nstrength = 0.1",
            "keep_zeros = true",
        ] {
            let recipe = Recipe::from_text(&format!("[prune]\n{text}"), "r.toml", &[]).unwrap();
            assert!(recipe.prune.is_some());
            assert_eq!(Recipe::from_text(&recipe.to_toml(), "again", &[]).unwrap(), recipe, "{text}");
        }
        assert_eq!((read("", &[]), read("keep_zeros = false", &[])), (Ok(None), Ok(None)));
    }

    #[test]
    fn an_l1_term_pulls_until_the_end_and_chooses_there() {
        let removal = removal("method = \"l1\"\nstrength = 0.1\nbegin = 10\nend = 20\nsparsity = 0.5");
        assert_eq!([9, 10, 19, 20].map(|step| removal.pull(step)), [0.0, 0.1, 0.1, 0.0]);
        assert_eq!((0..100).filter_map(|step| removal.due(step)).collect::<Vec<_>>(), [0.5]);
    }

    #[test]
    fn what_cannot_work_is_told_with_what_would() {
        for (text, part) in [
            ("sparsity = 1.0", "above 0 and below 1"),
            ("sparsity = 0", "above 0 and below 1"),
            ("sparsity = 0.5\nbegin = 60\nend = 40", "at least prune.begin = 60"),
            ("sparsity = 0.5\nbegin = 100", "below train.steps = 100"),
            ("sparsity = 0.5\nend = 100", "at most train.steps - 1 = 99"),
            ("sparsity = 0.5\ninitial = 0.5", "below 0.5, the share in the end"),
            ("sparsity = 0.5\nevery = 0", "at least 1"),
            ("pattern = \"4:2\"", "a pattern such as"),
            ("pattern = \"2:4\"\nsparsity = 0.5", "absent beside `sparsity`"),
            ("sparsity = 0.5\nscope = \"rows\"", "did you mean \"row\""),
            ("sparsity = 0.5\nmethod = \"magnitud\"", "did you mean \"magnitude\""),
            ("sparsity = 0.5\nstrength = 0.1", "absent beside this method"),
            ("scope = \"row\"", "absent without `sparsity`"),
            ("method = \"movement\"", "absent without `sparsity`"),
            ("method = \"l1\"", "`prune.strength` is missing"),
            ("method = \"l1\"\nstrength = 0.1\nevery = 5", "chosen once"),
            ("method = \"movement\"\nsparsity = 0.5\ninitial = 0.1", "begin = 100"),
            ("sparsity = 0.5\ntargets = []", "at least one pattern"),
            ("sparisty = 0.5", "did you mean `prune.sparsity`"),
        ] {
            let error = read(text, &[]).unwrap_err();
            assert!(error.contains(part) && error.contains("hint"), "{text}: {error}");
        }
        let error = read("keep_zeros = true\n[adapter]\nrank = 2", &[]).unwrap_err();
        assert!(error.contains("absent beside [adapter]"), "{error}");
        for set in ["precision.states=8bit", "precision.weights=bf16", "precision.weights=int8"] {
            let error = read("sparsity = 0.5", &[set]).unwrap_err();
            assert!(error.contains("keep_zeros = true alone"), "{error}");
            assert!(read("keep_zeros = true", &[set]).is_ok());
        }
    }
}
