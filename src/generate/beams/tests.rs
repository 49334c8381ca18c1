use super::*;
use crate::data::tokenizer::Tokenizer;
use crate::generate::rows::{Outcome, Rows, Text};
use crate::ops::choose_token::Choice;

/// A model by a table: the scores of the next token follow from the last one.
struct Table {
    held: Vec<Vec<u32>>,
    scores: fn(u32) -> Vec<f32>,
}

impl Rows for Table {
    fn count(&self) -> usize {
        self.held.len()
    }
    fn capacity(&self) -> usize {
        100
    }
    fn vocabulary(&self) -> usize {
        5
    }
    fn held(&self, row: usize) -> &[u32] {
        &self.held[row]
    }
    fn next(&mut self, texts: &[Text], _: &[Option<Choice>]) -> Result<Vec<Outcome>> {
        for &(row, text) in texts {
            // What a row has taken over must be the beginning of its text: caches were put in order.
            assert!(
                self.held[row].is_empty() || text.starts_with(&self.held[row]),
                "{:?} {text:?}",
                self.held[row]
            );
            self.held[row] = text.to_vec();
        }
        Ok(texts.iter().map(|(_, text)| Outcome::Scores((self.scores)(text[text.len() - 1]))).collect())
    }
    fn order(&mut self, from: &[usize]) -> Result<()> {
        self.held = from.iter().map(|&row| self.held[row].clone()).collect();
        Ok(())
    }
    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// Token 1 looks best at first and leads nowhere; the way over 2 is the likelier whole. Token 0 ends.
fn trap(last: u32) -> Vec<f32> {
    let p: [f32; 5] = match last {
        1 => [0.2, 0.2, 0.2, 0.2, 0.2],
        2 => [0.01, 0.01, 0.01, 0.96, 0.01],
        3 => [0.97, 0.01, 0.01, 0.005, 0.005],
        _ => [0.01, 0.5, 0.4, 0.05, 0.04],
    };
    p.iter().map(|p| p.ln()).collect()
}

fn table(rows: usize) -> Table {
    Table { held: vec![vec![]; rows], scores: trap }
}

fn settings() -> Settings {
    Settings { ends: vec![0], ..Settings::greedy(6) }
}

fn seek(beams: &Beams) -> Vec<Hypothesis> {
    let sought = [Sought { prompt: &[4], row: 0, stream: 0 }];
    search(&mut table(beams.num_beams), &sought, &settings(), beams, None).unwrap().remove(0)
}

/// Every text there is, by its score: what an endless number of beams would find.
fn exhaustive(penalty: f64) -> Hypothesis {
    let mut best = Hypothesis { ids: vec![], score: f32::NEG_INFINITY };
    let mut open = vec![(vec![4u32], 0.0f32)];
    while let Some((ids, sum)) = open.pop() {
        let length = ids.len() - 1;
        if length > 0 && (ids.last() == Some(&0) || length == 6) {
            let score = sum / (length as f64).powf(penalty) as f32;
            if score > best.score {
                best = Hypothesis { ids, score };
            }
            continue;
        }
        let scores = log_probabilities(&trap(*ids.last().unwrap()));
        open.extend((0..5).map(|token| ([&ids[..], &[token]].concat(), sum + scores[token as usize])));
    }
    best
}

#[test]
fn two_beams_find_the_likelier_whole_where_greedy_choice_does_not() {
    let greedy = seek(&Beams::of(1)).remove(0);
    assert_eq!(greedy.ids[..2], [4, 1]);
    for penalty in [0.0, 1.0, 2.0] {
        let beams = Beams { length_penalty: penalty, early_stopping: EarlyStopping::Never, ..Beams::of(4) };
        let (got, expected) = (seek(&beams).remove(0), exhaustive(penalty));
        assert_eq!(got.ids, expected.ids, "{penalty}");
        assert!((got.score - expected.score).abs() < 1e-5, "{got:?} {expected:?}");
    }
}

#[test]
fn several_are_given_in_the_order_of_their_scores_and_all_differ() {
    let beams = Beams { num_return_sequences: 3, ..Beams::of(3) };
    let found = seek(&beams);
    assert!(found.len() == 3 && found.windows(2).all(|w| w[0].score >= w[1].score && w[0].ids != w[1].ids));
    // Two texts at once have what each has alone.
    let sought = [Sought { prompt: &[2], row: 0, stream: 0 }, Sought { prompt: &[4], row: 3, stream: 0 }];
    let both = search(&mut table(6), &sought, &settings(), &beams, None).unwrap();
    assert_eq!(both[1], found);
}

#[test]
fn groups_with_a_penalty_begin_differently() {
    let begins = |penalty: f64| {
        let beams =
            Beams { num_beam_groups: 3, diversity_penalty: penalty, num_return_sequences: 3, ..Beams::of(3) };
        let mut first: Vec<u32> = seek(&beams).iter().map(|found| found.ids[1]).collect();
        first.sort();
        first.dedup();
        first.len()
    };
    assert_eq!((begins(0.0), begins(10.0)), (1, 3));
}

#[test]
fn drawn_beams_come_again_with_their_seed() {
    let drawn = |seed: u64| {
        let settings = Settings { do_sample: true, seed, temperature: 1.5, ..settings() };
        let sought = [Sought { prompt: &[4], row: 0, stream: 0 }];
        search(&mut table(3), &sought, &settings, &Beams::of(3), None).unwrap().remove(0)
    };
    assert_eq!(drawn(1), drawn(1));
    assert!((2..20).any(|seed| drawn(seed) != drawn(1)));
}

#[test]
fn what_does_not_fit_together_is_refused() {
    for wrong in [
        Beams::of(0),
        Beams { num_return_sequences: 4, ..Beams::of(3) },
        Beams { num_beam_groups: 2, ..Beams::of(3) },
        Beams { diversity_penalty: 1.0, ..Beams::of(3) },
        Beams { length_penalty: f64::NAN, ..Beams::of(3) },
    ] {
        assert!(matches!(wrong.check(), Err(Error::Setting(_))), "{wrong:?}");
    }
    let sought = [Sought { prompt: &[4], row: 1, stream: 0 }];
    let refused = search(&mut table(3), &sought, &settings(), &Beams::of(3), None);
    assert!(matches!(refused, Err(Error::Row { .. })));
}

#[test]
fn a_beam_ends_with_a_stop_text_and_goes_on_where_it_only_begins_like_one() {
    let tokenizer = Tokenizer::characters("abcde");
    let find = |stop: &str| {
        let settings = Settings { stop: vec![stop.into()], ..settings() };
        let sought = [Sought { prompt: &[4], row: 0, stream: 0 }];
        search(&mut table(3), &sought, &settings, &Beams::of(3), Some(&tokenizer)).unwrap().remove(0)
    };
    assert_eq!(find("cd")[0].ids, [4, 2, 3]);
    assert_eq!(find("ce")[0].ids, [4, 2, 3, 0]);
    let sought = [Sought { prompt: &[4], row: 0, stream: 0 }];
    let settings = Settings { stop: vec!["c".into()], ..settings() };
    let refused = search(&mut table(3), &sought, &settings, &Beams::of(3), None);
    assert!(matches!(refused, Err(Error::NoTokenizer)));
}

#[test]
fn beams_owe_more_to_the_context_as_single_texts_do() {
    use crate::generate::tests::{families, lively, text};
    use crate::generate::{CausalRows, Contrast, Request, Room, Session};
    let (_, family) = families(32).remove(1);
    let deployment = crate::deploy::Deployment::new(&lively(&*family));
    let room = Room { rows: 6, tokens: 32 };
    let rows = CausalRows::new(&*family, &deployment, &crate::train::Target::Host, room).unwrap();
    let mut session = Session::new(Box::new(rows), None);
    let (question, whole) = (vec![4, 8, 15], [&text(9)[..], &[4, 8, 15]].concat());
    let settings = |alpha: Option<f64>| Settings {
        contrast: alpha.map(|alpha| Contrast { without: question.clone(), alpha }),
        ..Settings::greedy(8)
    };
    let mut beams = |count: usize, alpha: Option<f64>| {
        let sought = [Sought { prompt: &whole, row: 0, stream: 0 }];
        search(session.rows(), &sought, &settings(alpha), &Beams::of(count), None)
            .unwrap()
            .remove(0)
            .remove(0)
    };
    assert_eq!(beams(3, Some(0.0)), beams(3, None));
    assert_ne!(beams(3, Some(3.0)).ids, beams(3, None).ids);
    // A single beam is the text of a session.
    let one = beams(1, Some(3.0)).ids;
    session.admit(Request::new(whole.clone(), settings(Some(3.0)))).unwrap();
    let mut written = whole.clone();
    while !session.is_idle() {
        written.extend(session.step().unwrap().iter().map(|event| event.token));
    }
    assert_eq!(one, written);
    let sought = [Sought { prompt: &whole, row: 1, stream: 0 }];
    let refused = search(session.rows(), &sought, &settings(Some(1.0)), &Beams::of(3), None);
    assert!(matches!(refused, Err(Error::Row { row: 6, rows: 6 })));
}
