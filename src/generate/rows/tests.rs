use super::*;
use crate::deploy::Deployment;
use crate::generate::tests::{assert_close, families, lively, text, whole};
use crate::generate::{Agreed, CausalRows, Lengths, Outcome, PairedRows, Room, SpeculativeRows};
use crate::ops::choose_token::Choice;
use crate::train::Target;

const CONTEXT: usize = 48;

fn rows_of(family: &dyn crate::model::Family, weights: &crate::model::Weights, rows: usize) -> CausalRows {
    let deployment = Deployment::new(weights);
    CausalRows::new(family, &deployment, &Target::Host, Room { rows, tokens: CONTEXT }).unwrap()
}

#[test]
fn texts_of_different_lengths_have_the_scores_that_each_has_alone() {
    for (name, family) in families(CONTEXT) {
        let weights = lively(&*family);
        let all = text(CONTEXT);
        let mut rows = rows_of(&*family, &weights, 5);
        let mut lengths = [3, 17, 40, 1, 18];
        for turn in 0..4 {
            // Rows come and go: in some turns not all are read on.
            let chosen: Vec<usize> = (0..5).filter(|row| (row + turn) % 3 != 0 || turn == 0).collect();
            chosen.iter().for_each(|&row| lengths[row] += 1);
            let texts: Vec<Text> = chosen.iter().map(|&row| (row, &all[row..row + lengths[row]])).collect();
            let got = rows.scores(&texts).unwrap();
            for ((_, text), got) in texts.iter().zip(&got) {
                assert_close(name, got, whole(&*family, &weights, text).last().unwrap());
            }
        }
        assert_eq!(rows.held(2).len(), lengths[2]);
    }
}

#[test]
fn a_row_takes_over_what_another_has_read() {
    for (name, family) in families(CONTEXT) {
        let weights = lively(&*family);
        let all = text(CONTEXT);
        let mut rows = rows_of(&*family, &weights, 3);
        rows.scores(&[(0, &all[..9]), (1, &all[5..20]), (2, &all[3..30])]).unwrap();
        rows.order(&[1, 2, 1]).unwrap();
        for (row, start, end) in [(0, 5, 21), (1, 3, 31), (2, 5, 22)] {
            let held = rows.held(row).len();
            let got = rows.scores(&[(row, &all[start..end])]).unwrap().remove(0);
            assert!(held >= 15, "{name}: {held}");
            assert_close(name, &got, whole(&*family, &weights, &all[start..end]).last().unwrap());
        }
        assert!(matches!(rows.order(&[0, 7, 1]), Err(Error::Row { row: 7, .. })));
    }
}

#[test]
fn what_cannot_be_read_is_refused_and_leaves_the_rows_as_they_are() {
    let (_, family) = families(CONTEXT).remove(1);
    let weights = lively(&*family);
    let mut rows = rows_of(&*family, &weights, 2);
    rows.scores(&[(1, &[1, 2, 3])]).unwrap();
    let long = vec![1; CONTEXT + 1];
    assert!(matches!(rows.scores(&[(0, &[])]), Err(Error::EmptyPrompt)));
    assert!(matches!(rows.scores(&[(0, &long)]), Err(Error::TooLong { .. })));
    assert!(matches!(rows.scores(&[(0, &[23])]), Err(Error::UnknownToken { token: 23, .. })));
    assert!(matches!(rows.scores(&[(2, &[1])]), Err(Error::Row { row: 2, rows: 2 })));
    assert!(matches!(rows.scores(&[(1, &[1]), (1, &[1])]), Err(Error::Row { row: 1, .. })));
    assert_eq!(rows.held(1), [1, 2, 3]);
}

#[test]
fn a_draft_changes_nothing_of_what_is_written_drawn_or_not() {
    for number in [0, 1, 5] {
        let (name, family) = families(CONTEXT).remove(number);
        let weights = lively(&*family);
        // A draft that is mostly right, and one that hardly ever is.
        let mut near = weights.clone();
        for (at, spec) in family.parameters().iter().enumerate().filter(|(_, spec)| spec.shape.len() > 1) {
            let mut weight = near.get(&spec.name).unwrap().clone();
            let mut random = crate::tensor::random::Stream::new(&[at as u32]);
            weight.real_mut::<f32>().iter_mut().for_each(|x| *x += 0.01 * random.normal() as f32);
            near.set(spec.name.clone(), weight);
        }
        let far = crate::model::initial(&family.parameters(), 9);
        let room = Room { rows: 2, tokens: CONTEXT };
        for (draft, least) in [(&near, 0.5), (&far, 0.0)] {
            let deployment = Deployment::new(&weights);
            let made = CausalRows::verifying(&*family, &deployment, &Target::Host, room, 5).unwrap();
            let draft = CausalRows::new(&*family, &Deployment::new(draft), &Target::Host, room).unwrap();
            let mut helped = SpeculativeRows::new(made, draft).unwrap();
            let mut plain = rows_of(&*family, &weights, 2);
            for noise in [None, Some([77, 0])] {
                let mut texts = [text(7), text(20)[9..].to_vec()];
                while texts[0].len() < CONTEXT {
                    let how: Vec<Option<Choice>> = texts
                        .iter()
                        .map(|text| {
                            let noise = noise.map(|[key, _]: [u32; 2]| [key, text.len() as u32]);
                            Some(Choice { noise, top_k: 9, ..Choice::BEST })
                        })
                        .collect();
                    let given: Vec<Text> = texts.iter().enumerate().map(|(r, t)| (r, &t[..])).collect();
                    let got = helped.next(&given, &how).unwrap();
                    assert_eq!(got, plain.next(&given, &how).unwrap(), "{name} at {}", texts[0].len());
                    for (text, outcome) in texts.iter_mut().zip(got) {
                        let Outcome::Chosen(token, _) = outcome else { panic!("a choice was asked for") };
                        text.push(token);
                    }
                    if texts[1].len() == CONTEXT {
                        texts[1].truncate(9);
                    }
                }
            }
            let Agreed { proposed, accepted, passes } = helped.agreed;
            let share = accepted as f64 / proposed as f64;
            assert!(share >= least && proposed > 0 && passes > 0, "{name}: {accepted} of {proposed}");
            assert!(least == 0.0 || passes < 110, "{name}: {passes} passes");
        }
    }
    let (_, one) = families(CONTEXT).remove(0);
    let weights = lively(&*one);
    let own = rows_of(&*one, &weights, 1);
    let grown = crate::generate::tests::with_vocabulary(CONTEXT, 29);
    let other = rows_of(&*grown, &lively(&*grown), 1);
    assert!(matches!(SpeculativeRows::new(own, other), Err(Error::Draft { vocabulary: 23, got: 29 })));
}

#[test]
fn caches_in_16_bits_give_almost_the_same_scores() {
    for (name, family) in families(CONTEXT) {
        let weights = lively(&*family);
        let deployment = Deployment::new(&weights).with_cache(crate::deploy::Cache::Halves);
        let room = Room { rows: 2, tokens: CONTEXT };
        let mut rows = CausalRows::new(&*family, &deployment, &Target::Host, room).unwrap();
        let all = text(CONTEXT);
        let mut differs = false;
        for count in [30, 31, 32] {
            let got = rows.scores(&[(1, &all[..count])]).unwrap().remove(0);
            let expected = whole(&*family, &weights, &all[..count]).pop().unwrap();
            differs |= got != expected;
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 0.02 * expected.abs().max(1.0), "{name}: {got} {expected}");
            }
        }
        assert!(differs, "{name}");
    }
}

#[test]
fn sources_and_texts_of_encoder_decoders_are_kept_in_fewer_bits_and_score_almost_the_same() {
    use crate::deploy::Cache;
    for name in ["t5", "bart", "marian"] {
        let family = crate::generate::tests::small(name, CONTEXT);
        let weights = lively(&*family);
        let lengths = Lengths { source: 24, target: 16 };
        let run = |cache: Cache| {
            let deployment = Deployment::new(&weights).with_cache(cache);
            let mut rows = PairedRows::new(&*family, &deployment, &Target::Host, 2, lengths).unwrap();
            for (row, count) in [(0, 20), (1, 13)] {
                let source = rows.source_of(&text(count)).unwrap();
                rows.begin(row, &source).unwrap();
            }
            let start = rows.start().unwrap();
            let written = [&[start], &text(9)[..]].concat();
            let mut all = rows.scores(&[(0, &written[..6]), (1, &written[..4])]).unwrap();
            // Texts change places, with their sources.
            rows.share(&[1, 0]).unwrap();
            all.extend(rows.scores(&[(1, &written[..9])]).unwrap());
            // What a model of more layers needs beside these is what one of its layers needs.
            let read = super::paired::reading(&*family, &deployment, 2, lengths).unwrap();
            let write = super::paired::writing(&*family, &deployment, 2, lengths).unwrap();
            assert!(
                super::causal::states(&read)
                    .iter()
                    .all(|state| super::causal::states(&write).contains(state))
            );
            let kept = super::causal::states(&write);
            let is_cache = |name: &str| name.contains(".keys") || name.contains(".values");
            let bytes: u64 =
                kept.iter().filter(|(n, _)| is_cache(n)).map(|(_, kind)| kind.size_bytes()).sum();
            (all.concat(), bytes)
        };
        let (expected, most) = run(Cache::Full);
        // Heads of four elements: codes and a scale are eight bytes, where numbers are sixteen.
        for (cache, far) in [(Cache::Halves, 0.01), (Cache::Codes, 0.05)] {
            let (got, bytes) = run(cache);
            assert!(most > 0 && 2 * bytes == most && got != expected, "{name}, {cache:?}: {bytes} of {most}");
            let size = (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt();
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size;
            assert!(worst < far, "{name}, {cache:?}: {worst} of scores of {size}");
        }
    }
}
