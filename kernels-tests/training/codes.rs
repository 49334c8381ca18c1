//! Runs that hold or compute something in codes: quantised weights, products in int8, moments in 8 bits.

use super::*;
use kiln::train::Beside;
use kiln::train::micro::need;

/// Wide enough for weights whose moments are worth 8 bits.
const WIDE: [&str; 2] = ["model.width=64", "train.learning_rate.peak=5e-3"];

const INT8: &str = "precision.int8=[\"forward\", \"input_gradient\", \"weight_gradient\"]";

#[test]
fn runs_in_codes_learn_and_resume_bit_for_bit_and_leave_plain_weights() {
    for sets in [
        &["quantize.scheme=int4-g16", "quantize.learned_step=true"][..],
        &["quantize.scheme=W8A8", "precision.states=8bit"],
        &[INT8, "precision.states=8bit"],
        &["precision.weights=bf16"],
        &["precision.weights=bf16", "precision.states=8bit"],
        &["precision.weights=int8"],
        &["precision.weights=int8", "precision.states=8bit"],
    ] {
        for device in devices() {
            let root = tempfile::tempdir().unwrap();
            let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
            let sets = [&WIDE[..], sets].concat();
            train(recipe(&whole, device, &sets), false).unwrap();
            train(recipe(&parts, device, &[&sets[..], &["train.steps=5"]].concat()), false).unwrap();
            train(recipe(&parts, device, &sets), true).unwrap();
            assert_eq!(losses(&whole), losses(&parts), "{device} {sets:?}");
            assert!(last_weights(&whole) == last_weights(&parts), "{device} {sets:?}: weights differ");
            let (first, last) = (losses(&whole)[0].1, losses(&whole)[11].1);
            assert!(last < 0.8 * first, "{device} {sets:?}: {first} to {last}");
            // What is learned or kept beside the weights stays out of the model's folder.
            let weights = String::from_utf8_lossy(&last_weights(&whole)).into_owned();
            assert!(weights.contains("c_attn.weight") && !weights.contains("log_step"), "{sets:?}");
        }
    }
}

#[test]
fn moments_in_8_bits_take_about_a_quarter_and_training_ends_where_it_did() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let target = Target::open(device).unwrap();
        let run = |name: &str, sets: &[&str]| {
            let folder = root.path().join(name);
            let recipe = recipe(&folder, device, &[&WIDE[..], sets].concat());
            let family = family_of(&recipe, 30).unwrap();
            let moments = need(&recipe, family.as_ref(), &Beside::default(), &target).unwrap().moments as f64;
            train(recipe, false).unwrap();
            (moments, losses(&folder)[11].1)
        };
        let (whole, bytes) = (run("whole", &[]), run("bytes", &["precision.states=8bit"]));
        assert!(bytes.0 < 0.4 * whole.0, "{device}: {} of {} bytes", bytes.0, whole.0);
        assert!((bytes.1 / whole.1 - 1.0).abs() < 0.02, "{device}: {} and {}", bytes.1, whole.1);
    }
}

#[test]
fn weights_in_int8_or_bf16_alone_take_their_bytes_and_training_ends_near_where_it_did() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let target = Target::open(device).unwrap();
        let run = |name: &str, sets: &[&str]| {
            let folder = root.path().join(name);
            let recipe = recipe(&folder, device, &[&["model.width=128"], sets].concat());
            let family = family_of(&recipe, 30).unwrap();
            let weights =
                need(&recipe, family.as_ref(), &Beside::default(), &target).unwrap().parameters as f64;
            train(recipe, false).unwrap();
            let losses = losses(&folder);
            (weights, losses[0].1, losses[11].1)
        };
        let whole = run("whole", &[]);
        // The first loss is that of the weights as they were rounded; after it the runs part ways.
        for (held, share, first, last) in [("int8", 0.35, 0.02, 0.05), ("bf16", 0.6, 1e-3, 0.1)] {
            let few = run(held, &[&format!("precision.weights={held}")]);
            assert!(few.0 < share * whole.0, "{device} {held}: {} of {} bytes", few.0, whole.0);
            assert!((few.1 / whole.1 - 1.0).abs() < first, "{device} {held}: {} and {}", few.1, whole.1);
            assert!((few.2 / whole.2 - 1.0).abs() < last, "{device} {held}: {} and {}", few.2, whole.2);
        }
    }
}

#[test]
fn a_pattern_that_fits_no_layer_is_refused_with_those_there_are() {
    let root = tempfile::tempdir().unwrap();
    let sets = ["quantize.scheme=int8", "quantize.targets=[\"*.q_proj.*\"]"];
    let error = train(recipe(&root.path().join("run"), "cpu", &sets), false).unwrap_err().to_string();
    assert!(error.contains("q_proj") && error.contains("c_attn.weight"), "{error}");
}
