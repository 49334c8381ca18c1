//! Samples of WAV files.

use super::{Error, Result};
use hound::{SampleFormat, WavReader};
use std::path::Path;

/// The samples of a file at so many each second, from -1 to 1; of several channels their mean.
///
/// Whole numbers of 8 to 32 bits and floats are read. Another rate is an error: to change it well is for other programs.
pub fn read(path: &Path, rate: u32) -> Result<Vec<f32>> {
    let wrap = |source| Error::Wav { path: path.to_path_buf(), source };
    let unfit =
        |what, expected: String, got: String| Error::Unfit { path: path.to_path_buf(), what, expected, got };
    let mut reader = WavReader::open(path).map_err(wrap)?;
    let spec = reader.spec();
    if spec.sample_rate != rate {
        return Err(unfit("the rate", format!("{rate} samples a second"), spec.sample_rate.to_string()));
    }
    let samples: Vec<f32> = match spec.sample_format {
        SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>().map_err(wrap)?,
        SampleFormat::Int => {
            let full = 2f64.powi(i32::from(spec.bits_per_sample) - 1);
            let sample = |sample: Result<i32, _>| sample.map(|sample| (f64::from(sample) / full) as f32);
            reader.samples::<i32>().map(sample).collect::<Result<_, _>>().map_err(wrap)?
        }
    };
    if let Some(at) = samples.iter().position(|sample| !sample.is_finite()) {
        return Err(unfit("a sample", "a number".into(), format!("{} at {at}", samples[at])));
    }
    let channels = usize::from(spec.channels);
    if samples.len() < channels.max(1) {
        return Err(unfit("its length", "at least one sample".into(), "0".into()));
    }
    Ok(samples.chunks_exact(channels).map(|all| all.iter().sum::<f32>() / channels as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hound::{WavSpec, WavWriter};

    fn spec(channels: u16, bits_per_sample: u16, sample_format: SampleFormat) -> WavSpec {
        WavSpec { channels, sample_rate: 16000, bits_per_sample, sample_format }
    }

    #[test]
    fn samples_are_shares_of_the_largest_number_and_channels_are_averaged() {
        let folder = tempfile::tempdir().unwrap();
        for bits in [8, 16, 24, 32] {
            let path = folder.path().join(format!("{bits}.wav"));
            let mut writer = WavWriter::create(&path, spec(2, bits, SampleFormat::Int)).unwrap();
            let full = 1i64 << (bits - 1);
            for sample in [full / 2, 0, -full, -full] {
                writer.write_sample(sample as i32).unwrap();
            }
            writer.finalize().unwrap();
            assert_eq!(read(&path, 16000).unwrap(), [0.25, -1.0], "{bits} bits");
        }
        let path = folder.path().join("float.wav");
        let mut writer = WavWriter::create(&path, spec(1, 32, SampleFormat::Float)).unwrap();
        [0.5f32, -0.125].into_iter().for_each(|sample| writer.write_sample(sample).unwrap());
        writer.finalize().unwrap();
        assert_eq!(read(&path, 16000).unwrap(), [0.5, -0.125]);
        assert!(matches!(read(&path, 8000), Err(Error::Unfit { what: "the rate", .. })));
    }

    #[test]
    fn what_is_no_sound_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        assert!(matches!(read(&path, 16000), Err(Error::Wav { .. })));
        std::fs::write(&path, b"RIFF, but not for long").unwrap();
        assert!(matches!(read(&path, 16000), Err(Error::Wav { .. })));
        WavWriter::create(&path, spec(1, 16, SampleFormat::Int)).unwrap().finalize().unwrap();
        assert!(matches!(read(&path, 16000), Err(Error::Unfit { what: "its length", .. })));
        let mut writer = WavWriter::create(&path, spec(1, 32, SampleFormat::Float)).unwrap();
        writer.write_sample(f32::NAN).unwrap();
        writer.finalize().unwrap();
        assert!(matches!(read(&path, 16000), Err(Error::Unfit { what: "a sample", .. })));
        // A file that was cut off says so.
        let mut writer = WavWriter::create(&path, spec(1, 16, SampleFormat::Int)).unwrap();
        (0..100i16).for_each(|sample| writer.write_sample(sample).unwrap());
        writer.finalize().unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 51]).unwrap();
        assert!(matches!(read(&path, 16000), Err(Error::Wav { .. })));
    }
}
