//! What labels mean, and what classes are called: as the recipe says, as the model has it, or as the examples show.

use crate::data::Result;
use crate::data::labelled::{Label, WithLabel};
use crate::data::tagged::Tagged;
use crate::model::{Family, Labels, Task, class_names};
use crate::train::recipe::Head;
use std::collections::BTreeSet;

/// Most classes that numbers alone may ask for.
const MOST: usize = 1 << 16;

/// Classes of a model, and what its labels mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Names by number; of a regression those of its numbers.
    pub names: Vec<String>,
    /// What labels mean.
    pub labels: Labels,
}

/// What a model is to give for a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The class of that number.
    Class(usize),
    /// For each class one if it is right, or the numbers of a regression.
    Numbers(Vec<f32>),
    /// For each token the class of that number, or none.
    Tags(Vec<Option<usize>>),
    /// Its texts are alike.
    Alike,
}

impl Classes {
    /// No classes at all.
    pub fn none() -> Classes {
        Classes { names: vec![], labels: Labels::One }
    }

    /// Those of a model that classifies.
    pub fn of(family: &dyn Family) -> Option<Classes> {
        let names = class_names(family);
        match family.interface().task {
            Task::SequenceClass { labels, .. } => Some(Classes { names, labels }),
            Task::TokenClass { .. } | Task::NextSentence => Some(Classes { names, labels: Labels::One }),
            _ => None,
        }
    }

    /// For texts: the model's own where it has some and every label is among them; else, where a head may be put on it, as the recipe
    /// names them or as the training examples show.
    pub fn find<R: WithLabel>(head: Option<&Head>, own: Option<Classes>, rows: &[R]) -> Result<Classes> {
        let Some(head) = head else {
            return Ok(own.expect("a model without a head for classes is refused before"));
        };
        let says = |own: &Classes| {
            head.labels.is_empty() && head.problem_type.is_none_or(|labels| labels == own.labels)
        };
        if let Some(own) = own.filter(|own| says(own) && rows.iter().all(|row| own.target(row).is_ok())) {
            return Ok(own);
        }
        let labels = head.problem_type.unwrap_or_else(|| meaning(rows));
        if !head.labels.is_empty() {
            return Ok(Classes { names: head.labels.clone(), labels });
        }
        shown(rows, labels)
    }

    /// The same for sentences with a tag for each word.
    pub fn of_tags(head: Option<&Head>, own: Option<Classes>, rows: &[&Tagged]) -> Result<Classes> {
        let Some(head) = head else {
            return Ok(own.expect("a model without a head for classes is refused before"));
        };
        if !head.labels.is_empty() {
            return Ok(Classes { names: head.labels.clone(), labels: Labels::One });
        }
        if let Some(own) = own.filter(|own| rows.iter().all(|row| own.tags(row).is_ok())) {
            return Ok(own);
        }
        let words: BTreeSet<&str> =
            rows.iter().flat_map(|row| row.tags.iter().flatten().map(String::as_str)).collect();
        let numbers: Option<Vec<usize>> = words.iter().map(|word| word.parse().ok()).collect();
        let names: Vec<String> = match numbers.and_then(|numbers| numbers.into_iter().max()) {
            Some(most) if most < MOST => (0..=most).map(|id| format!("LABEL_{id}")).collect(),
            _ => words.into_iter().map(String::from).collect(),
        };
        match (names.len(), rows.first()) {
            (0 | 1, Some(row)) => {
                Err(row.refuse(0, "there is no other tag than this one in all files".into()))
            }
            _ => Ok(Classes { names, labels: Labels::One }),
        }
    }

    /// The numbers of a sentence's tags.
    pub fn tags(&self, row: &Tagged) -> Result<Vec<usize>> {
        let tags = row.tags.as_ref().ok_or_else(|| row.refuse(0, "the word has no tag".into()))?;
        let of = |(at, tag): (usize, &String)| self.id(tag).map_err(|reason| row.refuse(at, reason));
        tags.iter().enumerate().map(of).collect()
    }

    /// What the model is to give for a row, by its label.
    pub fn target(&self, row: &impl WithLabel) -> Result<Target> {
        let label = row.label().ok_or_else(|| row.refuse("there is no label".into()))?;
        let id = |word: &str| self.id(word).map_err(|reason| row.refuse(reason));
        match (self.labels, label) {
            (Labels::One, Label::One(word)) => Ok(Target::Class(id(word.trim())?)),
            (Labels::One, Label::Several(_)) => Err(
                row.refuse("expected one label, got a list; model.problem_type says what labels mean".into())
            ),
            (Labels::Any, label) => {
                let mut right = vec![0.0; self.names.len()];
                for word in label.words() {
                    right[id(word)?] = 1.0;
                }
                Ok(Target::Numbers(right))
            }
            (Labels::Numbers, label) => {
                let number = |word: &str| word.parse::<f32>().ok().filter(|number| number.is_finite());
                let numbers: Option<Vec<f32>> = label.words().into_iter().map(number).collect();
                let expected = self.names.len();
                let numbers = numbers.filter(|numbers| numbers.len() == expected).ok_or_else(|| {
                    let what = if expected == 1 { "a number".into() } else { format!("{expected} numbers") };
                    row.refuse(format!("expected {what} as label, got {:?}", label.words().join("|")))
                })?;
                Ok(Target::Numbers(numbers))
            }
        }
    }

    /// The number of a class by its name, or by that number itself.
    pub fn id(&self, word: &str) -> Result<usize, String> {
        if let Some(id) = self.names.iter().position(|name| name == word) {
            return Ok(id);
        }
        let count = self.names.len();
        match word.parse::<usize>() {
            Ok(id) if id < count => Ok(id),
            Ok(id) => {
                Err(format!("label {id} is beyond the {count} classes of the model, 0 to {}", count - 1))
            }
            Err(_) => {
                let shown: Vec<&str> = self.names.iter().take(8).map(String::as_str).collect();
                let more = if count > 8 { format!(" and {} more", count - 8) } else { String::new() };
                Err(format!("label `{word}` is none of {}{more}", shown.join(", ")))
            }
        }
    }
}

/// Lists are several classes, fractions are numbers, and all else is one class.
fn meaning(rows: &[impl WithLabel]) -> Labels {
    let mut fractions = false;
    for label in rows.iter().filter_map(WithLabel::label) {
        match label {
            Label::Several(_) => return Labels::Any,
            Label::One(word) => match (word.parse::<u64>(), word.parse::<f64>()) {
                (Ok(_), _) => {}
                (Err(_), Ok(_)) => fractions = true,
                _ => return Labels::One,
            },
        }
    }
    if fractions { Labels::Numbers } else { Labels::One }
}

/// Names as rows show them: sorted words, or as many as the largest number asks for.
fn shown<R: WithLabel>(rows: &[R], labels: Labels) -> Result<Classes> {
    let numbered = |count: usize| (0..count).map(|id| format!("LABEL_{id}")).collect();
    let label = |row: &R| row.label().cloned().unwrap_or(Label::Several(vec![]));
    if labels == Labels::Numbers {
        let count = rows.first().map_or(1, |row| label(row).words().len().max(1));
        return Ok(Classes { names: numbered(count), labels });
    }
    let mut words = BTreeSet::new();
    let mut largest = Some(0);
    for row in rows {
        let list: Vec<String> = match (labels, label(row)) {
            (Labels::One, Label::One(word)) => vec![word.trim().to_string()],
            (_, label) => label.words().into_iter().map(String::from).collect(),
        };
        for word in list {
            largest = match (largest, word.parse::<usize>()) {
                (Some(most), Ok(id)) if id >= MOST => {
                    let reason = format!("label {id} would ask for {} classes, at most {MOST} are", id + 1);
                    return Err(row.refuse(format!(
                        "{reason}; model.problem_type = \"regression\" takes numbers (now at most {most})"
                    )));
                }
                (Some(most), Ok(id)) => Some(most.max(id)),
                _ => None,
            };
            words.insert(word);
        }
    }
    let names: Vec<String> = match largest {
        Some(most) if !words.is_empty() => numbered(most + 1),
        _ => words.into_iter().collect(),
    };
    match (names.len(), rows.first()) {
        (0 | 1, Some(row)) => Err(row.refuse(format!(
            "from here on there is no label but `{}`, and a classifier tells two classes apart at least",
            names.first().map_or("", String::as_str)
        ))),
        _ => Ok(Classes { names, labels }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::labelled::{Columns, Labelled, read};
    use crate::train::recipe::HeadKind;

    fn rows(labels: &[&str]) -> Vec<Labelled> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let line = |label: &&str| format!("{{\"text\": \"a\", \"label\": {label}}}\n");
        std::fs::write(&path, labels.iter().map(line).collect::<String>()).unwrap();
        read(&[path], &Columns::default(), true).unwrap()
    }

    fn head() -> Head {
        Head { kind: HeadKind::Sequence, labels: vec![], problem_type: None }
    }

    fn found(labels: &[&str]) -> Classes {
        Classes::find(Some(&head()), None, &rows(labels)).unwrap()
    }

    #[test]
    fn examples_show_their_classes_and_what_labels_mean() {
        let words = found(&["\"no\"", "\"yes\"", "\"no\""]);
        assert_eq!((words.names, words.labels), (vec!["no".to_string(), "yes".into()], Labels::One));
        let numbers = found(&["0", "2"]);
        assert_eq!(numbers.names, ["LABEL_0", "LABEL_1", "LABEL_2"]);
        let lists = found(&["[\"x\", \"y\"]", "[]"]);
        assert_eq!((lists.names.len(), lists.labels), (2, Labels::Any));
        let any = Classes { names: vec!["x".into(), "y".into()], labels: Labels::Any };
        assert_eq!(any.target(&rows(&["[\"y\"]"])[0]).unwrap(), Target::Numbers(vec![0.0, 1.0]));
        let floats = found(&["0.5", "2"]);
        assert_eq!((floats.names.len(), floats.labels), (1, Labels::Numbers));
        assert_eq!(floats.target(&rows(&["2"])[0]).unwrap(), Target::Numbers(vec![2.0]));
    }

    #[test]
    fn the_models_own_names_are_kept_where_every_label_is_among_them() {
        let own = Classes { names: vec!["yes".into(), "no".into()], labels: Labels::One };
        let of =
            |labels: &[&str]| Classes::find(Some(&head()), Some(own.clone()), &rows(labels)).unwrap().names;
        assert_eq!(of(&["\"no\"", "\"yes\""]), own.names);
        assert_eq!(of(&["\"no\"", "1"]), own.names);
        assert_eq!(of(&["\"no\"", "\"perhaps\""]), ["no", "perhaps"]);
    }

    #[test]
    fn a_label_that_does_not_fit_is_refused_with_its_line() {
        let classes = Classes { names: vec!["no".into(), "yes".into()], labels: Labels::One };
        let numbers = Classes { names: vec!["LABEL_0".into()], labels: Labels::Numbers };
        for (classes, label, part) in [
            (&classes, "\"perhaps\"", "line 1: label `perhaps` is none of no, yes"),
            (&classes, "2", "line 1: label 2 is beyond the 2 classes of the model, 0 to 1"),
            (&classes, "[\"no\"]", "expected one label, got a list"),
            (&numbers, "\"much\"", "expected a number as label, got \"much\""),
            (&numbers, "\"NaN\"", "expected a number"),
        ] {
            let error = classes.target(&rows(&[label])[0]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = Classes::find(Some(&head()), None, &rows(&["\"a\"", "\"a\""])).unwrap_err().to_string();
        assert!(error.contains("no label but `a`"), "{error}");
        let error = Classes::find(Some(&head()), None, &rows(&["1", "99999999"])).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("regression"), "{error}");
    }
}
