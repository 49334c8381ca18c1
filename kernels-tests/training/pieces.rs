//! Tables and scores larger than a kernel may bind: trained in pieces, with the same result, and no trace in what is saved.

use super::{devices, settings};
use kiln::graph::{Feeds, Graph};
use kiln::model::{Mode, Weights};
use kiln::ops::Value;
use kiln::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
use kiln::ops::embedding::{EmbeddingEmit, sort_positions};
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::reshape::ReshapeEmit;
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::recipe::Rule;
use kiln::train::trainer::{Program, Settings, Trainer, Weight};
use kiln::train::{Frozen, Target};

const ROWS: usize = 300;
const COLUMNS: usize = 8;
const POSITIONS: usize = 12;

/// The next of twelve tokens, from a table that is trained and is the head as well, beside one that is neither.
fn loss(graph: &mut Graph, mode: Mode) -> kiln::train::Result<Value> {
    let table = graph.parameter("table", Type::f32([ROWS, COLUMNS]));
    let other = graph.parameter("other", Type::f32([ROWS, COLUMNS]));
    let tokens = graph.input("tokens", Type::new(DType::U32, [2, POSITIONS / 2]));
    let targets = graph.input("targets", Type::new(DType::I32, [POSITIONS]));
    let mine = match mode {
        Mode::Train => {
            let order = graph.input("order", Type::new(DType::U32, [POSITIONS]));
            let starts = graph.input("starts", Type::new(DType::U32, [ROWS + 1]));
            graph.embedding_trained(table, tokens, order, starts)?
        }
        _ => graph.embedding(table, tokens)?,
    };
    let others = graph.embedding(other, tokens)?;
    let x = graph.add(mine, others)?;
    let x = graph.pointwise("tanh", &[x], 0.0)?;
    let x = graph.reshape(x, [POSITIONS, COLUMNS].into())?;
    let scores = graph.matmul_form(Form::Nt, x, table)?;
    Ok(graph.cross_entropy(scores, targets, CrossEntropy::default())?)
}

fn feeds(mode: Mode) -> Feeds {
    let tokens: Vec<u32> = (0..POSITIONS as u32).map(|i| (i * i * 29 + 7) % ROWS as u32).collect();
    let targets =
        tokens.iter().map(|&token| if token == 7 { -100 } else { (token as i32 + 11) % ROWS as i32 });
    let feeds = Feeds::new().with("targets", Tensor::i32([POSITIONS], targets.collect()));
    let (order, starts) = sort_positions(&tokens, ROWS).unwrap();
    let feeds = feeds.with("tokens", Tensor::u32([2, POSITIONS / 2], tokens));
    match mode {
        Mode::Train => feeds
            .with("order", Tensor::u32([POSITIONS], order))
            .with("starts", Tensor::u32([ROWS + 1], starts)),
        _ => feeds,
    }
}

fn table(step: usize) -> Tensor {
    let element = |i: usize| ((i * step % 197) as f32 - 98.0) / 120.0;
    Tensor::f32([ROWS, COLUMNS], (0..ROWS * COLUMNS).map(element).collect())
}

fn weight() -> Weight {
    Weight { name: "table".into(), shape: [ROWS, COLUMNS].into(), decays: true }
}

fn frozen() -> Frozen {
    Frozen::of(&[("other".to_string(), table(41))].into_iter().collect::<Weights>(), "")
}

const ADAMW: Rule = Rule::Adamw { betas: [0.9, 0.99], eps: 1e-8 };

fn trainer(target: &Target, page_bytes: Option<u64>) -> Trainer {
    let settings = Settings { page_bytes, frozen: frozen(), ..settings(ADAMW) };
    let mut trainer = Trainer::new(target, &[weight()], &loss, settings).unwrap();
    trainer
        .set_weights(|name, shape| {
            assert_eq!((name, &shape[..]), ("table", &[ROWS, COLUMNS][..]));
            Ok(table(37))
        })
        .unwrap();
    trainer
}

fn steps(trainer: &mut Trainer, count: usize) -> Vec<f64> {
    let mut losses = vec![];
    for _ in 0..count {
        trainer.submit(vec![feeds(Mode::Train)], 0.05).unwrap();
        losses.push(trainer.collect(true).unwrap().unwrap().loss);
    }
    losses.push(trainer.evaluate([(feeds(Mode::Evaluate), 1.0)]).unwrap());
    losses
}

fn all(trainer: &mut Trainer) -> Vec<(String, Tensor)> {
    [trainer.weights().unwrap(), trainer.gradients().unwrap(), trainer.moments().unwrap()].concat()
}

fn assert_close(case: &str, a: &[(String, Tensor)], b: &[(String, Tensor)]) {
    assert_eq!(a.len(), b.len(), "{case}");
    for ((name, a), (other, b)) in a.iter().zip(b) {
        assert_eq!((name, &a.shape), (other, &b.shape), "{case}");
        let far = a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far < 1e-5, "{case}: {name} is {far} apart");
    }
}

#[test]
fn a_table_and_its_scores_in_pieces_are_trained_as_one_and_saved_as_one() {
    for device in devices() {
        let target = Target::open(device).unwrap();
        let mut whole = trainer(&target, None);
        let expected = steps(&mut whole, 4);
        assert!(expected[3] < expected[0], "{expected:?}");
        let tensors = all(&mut whole);
        // 9600 bytes of table, 14400 of scores.
        for page_bytes in [4096, 2048] {
            let case = format!("{device} {page_bytes}");
            let mut pieces = trainer(&target, Some(page_bytes));
            let largest =
                pieces.plans()[0].dispatches.iter().flat_map(|d| &d.bindings).map(|b| b.size_bytes).max();
            assert!(
                largest.unwrap() <= page_bytes.max(4 * ROWS as u64),
                "{case}: {largest:?} bytes are bound"
            );
            let got = steps(&mut pieces, 4);
            let close = expected.iter().zip(&got).all(|(e, g)| (e - g).abs() < 1e-5);
            assert!(close && got.len() == expected.len(), "{case}: {got:?}, expected {expected:?}");
            assert_close(&case, &tensors, &all(&mut pieces));
            // What is saved of either goes on in the other.
            let go_on = |from: &[(String, Tensor)], to: &mut Trainer| {
                let find = |name: &str| from.iter().find(|(n, _)| n == name).unwrap().1.clone();
                to.set_weights(|name, _| Ok(find(name))).unwrap();
                to.restore(4, &from.iter().cloned().collect()).unwrap();
                steps(to, 2)
            };
            let of_pieces = all(&mut pieces);
            let (there, back) = (
                go_on(&tensors, &mut trainer(&target, Some(page_bytes))),
                go_on(&of_pieces, &mut trainer(&target, None)),
            );
            assert!(there.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-5), "{case}: {there:?} {back:?}");
            assert!(there[1] < expected[3], "{case}: {there:?}");
        }
    }
}

#[test]
fn an_optimiser_that_needs_the_whole_weight_is_refused_by_name() {
    let target = Target::open("cpu").unwrap();
    let rule = Rule::Lamb { betas: [0.9, 0.99], eps: 1e-6 };
    let settings = Settings { page_bytes: Some(4096), frozen: frozen(), ..settings(rule) };
    let error = Program::new(&target, &[weight()], &loss, &settings).err().unwrap().to_string();
    assert!(error.contains("`table`") && error.contains("LAMB"), "{error}");
}
