//! Log-mel spectrograms as WhisperFeatureExtractor makes them.
//!
//! ```text
//! power[f, t] = |sum over i of hann[i] x[160 t + i - 200] e^(-2 pi i f / 400)|^2     x mirrored at both ends
//! y = log10(max(filters power, 1e-10))
//! features = (max(y, max y - 8) + 4) / 4
//! ```
//! The filters are triangles on Slaney's scale, linear below 1000 Hz and logarithmic above, each of the same area. All of it is
//! computed in f64.

use super::{Error, Result};
use realfft::{RealFftPlanner, RealToComplex};
use serde_json::Value as Json;
use std::f64::consts::TAU;
use std::path::Path;
use std::sync::Arc;

/// Where the settings stand in a model's folder: of old, and since transformers 5.
const FILES: [&str; 2] = ["preprocessor_config.json", "processor_config.json"];

/// Samples a second, from a telephone's on; and samples that a frame sees at most.
const RATES: [usize; 2] = [2000, 384_000];
const MOST_WINDOW: usize = 1 << 15;

/// Least energy of a band, and how far below the loudest one all else is cut off, in powers of ten.
const LEAST: f64 = 1e-10;
const RANGE: f64 = 8.0;

/// How a sound is cut and seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Samples a second.
    pub rate: usize,
    /// Samples that a frame sees.
    pub window: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    /// Bands.
    pub bands: usize,
    /// Frames: what is shorter is filled up with silence.
    pub frames: usize,
}

impl Settings {
    /// As a model's folder has them, for so many bands and frames; Whisper's own where it has no such file.
    pub fn beside(folder: &Path, bands: usize, frames: usize) -> Result<Settings> {
        let mut settings = Settings { rate: 16000, window: 400, hop: 160, bands, frames };
        let Some(path) = FILES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) else {
            return Ok(settings);
        };
        let wrap = |source| Error::Settings { path: path.clone(), source };
        let text = std::fs::read(&path).map_err(wrap)?;
        let all: Json = serde_json::from_slice(&text).map_err(|error| wrap(error.into()))?;
        let keys = all.get("feature_extractor").unwrap_or(&all);
        let refuse = |key, expected: &str| {
            let got = keys[key].to_string();
            Err(Error::Setting { path: path.clone(), key, expected: expected.into(), got })
        };
        let number = |key: &'static str, [least, most]: [usize; 2], usual: usize| match keys.get(key) {
            None => Ok(usual),
            Some(given) => match given.as_u64().and_then(|number| usize::try_from(number).ok()) {
                Some(number) if (least..=most).contains(&number) => Ok(number),
                _ => refuse(key, &format!("a whole number from {least} to {most}")).map(|_: Settings| 0),
            },
        };
        settings.rate = number("sampling_rate", RATES, settings.rate)?;
        // A frame a millisecond at most: else an hour of sound is cut into millions of parts. And none longer than a second.
        settings.hop = number("hop_length", [settings.rate / 1000, settings.rate], settings.hop)?;
        settings.window = number("n_fft", [2, settings.rate.min(MOST_WINDOW)], settings.window)?;
        if keys.get("feature_size").is_some_and(|given| given.as_u64() != Some(bands as u64)) {
            return refuse("feature_size", &format!("{bands}, as the model has it"));
        }
        match keys.get("dither").and_then(Json::as_f64) {
            Some(share) if share != 0.0 => refuse("dither", "0: noise is not added here"),
            _ => Ok(settings),
        }
    }

    /// Samples that are heard at once.
    pub fn samples(&self) -> usize {
        self.frames * self.hop
    }
}

/// Makes features of samples.
pub struct Listener {
    settings: Settings,
    transform: Arc<dyn RealToComplex<f64>>,
    hann: Vec<f64>,
    /// For each band where its triangle begins among the frequencies, and its shares.
    filters: Vec<(usize, Vec<f64>)>,
}

impl Listener {
    /// One for these settings.
    pub fn new(settings: Settings) -> Listener {
        let size = settings.window;
        let hann = (0..size).map(|i| 0.5 - 0.5 * (TAU * i as f64 / size as f64).cos()).collect();
        let transform = RealFftPlanner::new().plan_fft_forward(size);
        Listener { settings, transform, hann, filters: filters(&settings) }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Features [bands, frames] of at most [`Settings::samples`] samples; what is beyond them is not heard.
    pub fn features(&self, samples: &[f32]) -> Vec<f32> {
        let Settings { window, hop, bands, frames, .. } = self.settings;
        let (count, half) = (frames * hop, window / 2);
        let sample = |at: usize| samples.get(at).filter(|_| at < count).map_or(0.0, |&x| f64::from(x));
        // What is before the first sample is what is behind it, mirrored; and so at the end.
        let mirrored = |at: isize| {
            let last = count as isize - 1;
            let within = if at < 0 { -at } else { at };
            sample(if within > last { 2 * last - within } else { within }.clamp(0, last) as usize)
        };
        let (mut part, mut spectrum) = (self.transform.make_input_vec(), self.transform.make_output_vec());
        let mut all = vec![0.0; bands * frames];
        for frame in 0..frames {
            let first = (frame * hop) as isize - half as isize;
            for (i, (x, hann)) in part.iter_mut().zip(&self.hann).enumerate() {
                *x = hann * mirrored(first + i as isize);
            }
            self.transform.process(&mut part, &mut spectrum).expect("both are as long as the plan says");
            for (band, (from, shares)) in self.filters.iter().enumerate() {
                let energy: f64 =
                    shares.iter().zip(&spectrum[*from..]).map(|(share, x)| share * x.norm_sqr()).sum();
                all[band * frames + frame] = energy.max(LEAST).log10();
            }
        }
        let floor = all.iter().fold(f64::NEG_INFINITY, |most: f64, &y| most.max(y)) - RANGE;
        all.into_iter().map(|y| ((y.max(floor) + 4.0) / 4.0) as f32).collect()
    }
}

/// Triangles over the frequencies 0 to rate / 2, of which each begins at the top of the one before the last.
fn filters(settings: &Settings) -> Vec<(usize, Vec<f64>)> {
    let nyquist = settings.rate as f64 / 2.0;
    let step = mel(nyquist) / (settings.bands + 1) as f64;
    let corners: Vec<f64> = (0..settings.bands + 2).map(|at| hertz(step * at as f64)).collect();
    let count = settings.window / 2 + 1;
    let frequency = |bin: usize| nyquist * bin as f64 / (count - 1) as f64;
    let triangle = |corner: &[f64]| {
        let [low, top, high] = [corner[0], corner[1], corner[2]];
        let area = 2.0 / (high - low);
        let share = |bin: usize| {
            let at = frequency(bin);
            ((at - low) / (top - low)).min((high - at) / (high - top)).max(0.0) * area
        };
        let within = |bin: &usize| frequency(*bin) > low && frequency(*bin) < high;
        let bins: Vec<usize> = (0..count).filter(within).collect();
        (bins.first().copied().unwrap_or(0), bins.into_iter().map(share).collect())
    };
    corners.windows(3).map(triangle).collect()
}

/// Hertz of a step of Slaney's scale below 1000 Hz, where the scale bends, and its rate above.
const LINEAR: f64 = 200.0 / 3.0;
const BEND: f64 = 1000.0;
const OCTAVES: f64 = 27.0;

fn mel(hertz: f64) -> f64 {
    match hertz < BEND {
        true => hertz / LINEAR,
        false => BEND / LINEAR + (hertz / BEND).ln() * OCTAVES / 6.4f64.ln(),
    }
}

fn hertz(mel: f64) -> f64 {
    let above = mel - BEND / LINEAR;
    if above < 0.0 { mel * LINEAR } else { BEND * (above * 6.4f64.ln() / OCTAVES).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tones, a rising one among them, and noise from a generator of its own, in two thirds of the time that is heard.
    fn sound(count: usize) -> Vec<f32> {
        let mut state = 12345u32;
        let mut noise = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            f64::from(state >> 8) / f64::from(1 << 24) - 0.5
        };
        let at = |i: usize, noise: f64| {
            let t = i as f64 / 16000.0;
            0.3 * (TAU * 440.0 * t).sin() + 0.2 * (TAU * (300.0 + 900.0 * t) * t).sin() + 0.1 * noise
        };
        (0..count).map(|i| at(i, noise()) as f32).collect()
    }

    #[test]
    fn features_are_those_of_transformers() {
        // Written by golden/audio/make.py: WhisperFeatureExtractor over the same sound.
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden/audio/features.json");
        let cases: Json = serde_json::from_slice(&std::fs::read(place).unwrap()).unwrap();
        let cases = cases.as_array().unwrap();
        assert_eq!(cases.len(), 2);
        for case in cases {
            let size = |key: &str| case[key].as_u64().unwrap() as usize;
            let (bands, frames) = (size("bands"), size("frames"));
            let settings = Settings { rate: 16000, window: 400, hop: 160, bands, frames };
            let samples = sound(size("samples"));
            let got = Listener::new(settings).features(&samples);
            let mut compared = 0;
            for (at, row) in case["rows"].as_object().unwrap() {
                let band: usize = at.parse().unwrap();
                let row: Vec<f32> = serde_json::from_value(row.clone()).unwrap();
                for (number, expected) in row.iter().enumerate() {
                    let got = got[band * frames + number * size("every")];
                    assert!(
                        (got - expected).abs() < 1e-4,
                        "{bands} bands, {band}, {number}: {got}, {expected}"
                    );
                    compared += 1;
                }
            }
            assert!(compared > 300, "{compared}");
            let sum: f64 = got.iter().map(|&x| f64::from(x)).sum();
            let (mean, expected) = (sum / got.len() as f64, case["mean"].as_f64().unwrap());
            assert!((mean - expected).abs() < 1e-5, "{mean}, {expected}");
        }
    }

    #[test]
    fn silence_and_a_sound_that_is_too_long_are_heard_too() {
        let settings = Settings { rate: 16000, window: 400, hop: 160, bands: 5, frames: 24 };
        let listener = Listener::new(settings);
        assert!(listener.features(&[]).iter().all(|&x| x == -1.5), "log10 of the least, and a bit");
        let long = sound(settings.samples() + 999);
        assert_eq!(listener.features(&long), listener.features(&long[..settings.samples()]));
    }

    #[test]
    fn settings_are_read_where_they_stand_and_refused_where_they_do_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let read = || Settings::beside(folder.path(), 80, 3000);
        assert_eq!(read().unwrap().samples(), 480_000);
        let write = |text: &str| std::fs::write(folder.path().join(FILES[0]), text).unwrap();
        write("{\"hop_length\": 200, \"feature_size\": 80}");
        assert_eq!(read().unwrap().hop, 200);
        for (text, blamed) in [
            ("{\"feature_size\": 128}", "feature_size"),
            ("{\"n_fft\": 0}", "n_fft"),
            ("{\"n_fft\": 10000000}", "n_fft"),
            ("{\"n_fft\": 400.5}", "n_fft"),
            ("{\"hop_length\": 2}", "hop_length"),
            ("{\"hop_length\": 9000000}", "hop_length"),
            ("{\"sampling_rate\": 10000000}", "sampling_rate"),
            ("{\"dither\": 0.1}", "dither"),
        ] {
            write(text);
            assert!(matches!(read(), Err(Error::Setting { key, .. }) if key == blamed), "{text}");
        }
        write("{");
        assert!(matches!(read(), Err(Error::Settings { .. })));
    }
}
