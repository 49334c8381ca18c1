use super::*;
use crate::deploy::Deployment;
use crate::generate::tests::{assert_close, families, lively, text, whole};
use crate::generate::{CausalRows, Room};
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
