//! Codes of any scheme in a safetensors file, in kiln's own convention.
//!
//! A weight `NAME` becomes `NAME.codes` (`U8 [rows, bytes of a row]`: code less lowest code, packed bits), `NAME.scales` (F16 where that
//! is exact, else F32; `[rows, groups]`) and, where the scheme has them, `NAME.zeros` (U8, less lowest code), `NAME.minima` (as the
//! scales) and `NAME.input_scale` (`F32 [1]`). Where zeros are left out there is `NAME.bitmask` (`U8 [rows, ceil(cols / 8)]`, the first
//! column in the lowest bit), and `NAME.codes` (`U8 [bytes]`) holds the codes of set bits alone, in one run. Scales that are themselves codes are U8, with `NAME.scales_of_scales` (F32). The
//! numbers that describe each weight stand as JSON in the file's notes, under `kiln.codes`.

use super::{Archive, Element, Error, Found, Layer, Raw, Result, bits, sparse};
use crate::tensor::quant::{Coded, DoubleScales, Grid, Origin};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the convention, as `quant_method` in `config.json`.
pub const METHOD: &str = "kiln";
/// Key of the notes.
pub const NOTE: &str = "kiln.codes";

/// What the notes say of a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    rows: usize,
    cols: usize,
    group: usize,
    grid: Grid,
    lowest: i32,
    highest: i32,
    /// Mean of scales that are held as codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mean: Option<f32>,
}

/// What becomes of codes that stand for zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// They are written as all others.
    Held,
    /// They are left out of weights that take fewer bytes so.
    LeftOut,
}

/// Tensors of some weights and the note that describes them, for [`Archive::write_raw`].
pub fn write_all(layers: &[(&str, &Layer)], zeros: Zeros) -> Result<(Vec<(String, Raw<'static>)>, String)> {
    let (mut raws, mut facts) = (vec![], BTreeMap::new());
    for (name, layer) in layers {
        let (parts, fact) = write(name, layer, zeros)?;
        raws.extend(parts);
        facts.insert(*name, fact);
    }
    let note = serde_json::to_string(&facts).expect("plain numbers are JSON");
    Ok((raws, note))
}

type Parts = Vec<(String, Raw<'static>)>;

fn write(name: &str, layer: &Layer, leave: Zeros) -> Result<(Parts, Facts)> {
    let refuse = |reason: &str| Error::Layer { name: name.to_string(), reason: reason.to_string() };
    let Layer { coded, input_scale, double } = layer;
    if !coded.is_sound() {
        return Err(refuse("its codes, scales and sizes do not fit together"));
    }
    let (grid, lowest) = (coded.grid, coded.lowest);
    let shape = [coded.rows, coded.groups()];
    let below = |code: i32| (code - lowest) as u8;
    let mut parts = match leave {
        Zeros::Held => vec![("codes", packed_rows(coded))],
        Zeros::LeftOut => codes_that_are_there(coded).unwrap_or_else(|| vec![("codes", packed_rows(coded))]),
    };
    match double {
        None => parts.push(("scales", narrow(shape, &coded.scales))),
        Some(double) if double.decode().is_some_and(|scales| scales == coded.scales) => {
            parts.push(("scales", Raw::owned(Element::U8, shape, double.codes.clone())));
            parts.push(("scales_of_scales", Raw::f32([double.scales.len()], &double.scales)));
        }
        Some(_) => return Err(refuse("its scales are not what their codes stand for")),
    }
    match &coded.origin {
        Origin::Centred => {}
        Origin::Zeros(zeros) => {
            if zeros.iter().any(|zero| !(lowest..=coded.highest).contains(zero)) {
                return Err(refuse("a zero lies beyond the codes"));
            }
            let zeros = zeros.iter().map(|&zero| below(zero)).collect();
            parts.push(("zeros", Raw::owned(Element::U8, shape, zeros)));
        }
        Origin::Minima(minima) => parts.push(("minima", narrow(shape, minima))),
    }
    if let Some(scale) = input_scale {
        parts.push(("input_scale", Raw::f32([1], &[*scale])));
    }
    let mean = double.as_ref().map(|double| double.mean);
    let facts = Facts {
        rows: coded.rows,
        cols: coded.cols,
        group: coded.group,
        grid,
        lowest,
        highest: coded.highest,
        mean,
    };
    Ok((parts.into_iter().map(|(part, raw)| (format!("{name}.{part}"), raw)).collect(), facts))
}

/// All codes, packed by rows.
fn packed_rows(coded: &Coded) -> Raw<'static> {
    let row_bytes = bits::row_bytes(coded.cols, coded.bits(), 1);
    let mut packed = vec![0; coded.rows * row_bytes];
    if !packed.is_empty() {
        for (out, codes) in packed.chunks_exact_mut(row_bytes).zip(coded.codes.chunks_exact(coded.cols)) {
            bits::pack(codes.iter().map(|&code| (i32::from(code) - coded.lowest) as u8), coded.bits(), out);
        }
    }
    Raw::owned(Element::U8, [coded.rows, row_bytes], packed)
}

/// The code that stands for zero in a group; none where there may be none.
fn zero_code(grid: Grid, origin: &Origin, group: usize) -> Option<i32> {
    match (grid, origin) {
        (Grid::Integers, Origin::Centred) => Some(0),
        (Grid::Integers, Origin::Zeros(zeros)) => Some(zeros[group]),
        _ => None,
    }
}

/// Which codes do not stand for zero, and those; none where that takes no fewer bytes.
fn codes_that_are_there(coded: &Coded) -> Option<Vec<(&'static str, Raw<'static>)>> {
    let zero = |at: usize| {
        let group = at / coded.cols * coded.groups() + at % coded.cols / coded.group;
        zero_code(coded.grid, &coded.origin, group)
    };
    if coded.codes.is_empty() || zero(0).is_none() {
        return None;
    }
    let is_there = |(at, &code): (usize, &i8)| zero(at) != Some(code.into());
    let there: Vec<bool> = coded.codes.iter().enumerate().map(is_there).collect();
    let kept = coded.codes.iter().zip(&there).filter(|(_, there)| **there);
    let kept: Vec<u8> = kept.map(|(&code, _)| (i32::from(code) - coded.lowest) as u8).collect();
    let mut packed = vec![0; bits::row_bytes(kept.len(), coded.bits(), 1)];
    let mask = sparse::pack(&there, coded.rows, coded.cols);
    let whole = coded.rows * bits::row_bytes(coded.cols, coded.bits(), 1);
    if packed.len() + mask.bytes.len() >= whole {
        return None;
    }
    bits::pack(kept.into_iter(), coded.bits(), &mut packed);
    let mask = Raw::owned(Element::U8, mask.shape, mask.bytes);
    Some(vec![("codes", Raw::owned(Element::U8, [packed.len()], packed)), ("bitmask", mask)])
}

/// Floats in f16 where that loses nothing.
fn narrow(shape: [usize; 2], values: &[f32]) -> Raw<'static> {
    let half = Raw::f16(shape, values);
    let back = half.floats().expect("f16 are floats");
    let exact = back.iter().zip(values).all(|(b, v)| b.to_bits() == v.to_bits());
    if exact { half } else { Raw::f32(shape, values) }
}

/// Reads all weights that the archive's note describes.
pub fn read_all(archive: &Archive) -> Result<Found> {
    let damaged = |reason: String| Error::Damaged { path: archive.path().to_path_buf(), reason };
    let note = archive.notes().get(NOTE).ok_or_else(|| damaged(format!("it has no note `{NOTE}`")))?;
    let facts: BTreeMap<String, Facts> =
        serde_json::from_str(note).map_err(|error| damaged(format!("note `{NOTE}`: {error}")))?;
    let mut found = Found::default();
    for (name, fact) in &facts {
        found.coded.insert(name.clone(), read(archive, name, fact)?);
    }
    let is_part = |name: &str| name.rsplit_once('.').is_some_and(|(weight, _)| facts.contains_key(weight));
    found.plain = archive.names().filter(|name| !is_part(name)).map(String::from).collect();
    Ok(found)
}

fn read(archive: &Archive, name: &str, facts: &Facts) -> Result<Layer> {
    let refuse = |reason: String| Error::Layer { name: name.to_string(), reason };
    let &Facts { rows, cols, group, grid, lowest, highest, mean } = facts;
    if group == 0 || lowest < -128 || highest > 127 || highest <= lowest {
        return Err(refuse(format!("codes of {lowest}..={highest} in groups of {group} are impossible")));
    }
    let width = u32::BITS - ((highest - lowest) as u32).leading_zeros();
    let part = |part: &str| format!("{name}.{part}");
    let has = |which: &str| archive.shape(&part(which)).is_some();
    let bytes = |which: &str, shape: [usize; 2]| -> Result<Raw> {
        let raw = archive.raw(&part(which))?;
        match *raw.shape == shape {
            true => Ok(raw),
            false => Err(refuse(format!("`{which}` has shape {:?}, expected {shape:?}", raw.shape))),
        }
    };
    let floats = |which: &str, shape: [usize; 2]| -> Result<Vec<f32>> {
        let raw = bytes(which, shape)?;
        raw.floats().ok_or_else(|| Error::of_element(&part(which), "F16 or F32", raw.element))
    };
    let counted = |which: &str, shape: [usize; 2]| -> Result<Vec<u8>> {
        let raw = bytes(which, shape)?;
        match raw.element {
            Element::U8 => Ok(raw.bytes.into_owned()),
            other => Err(Error::of_element(&part(which), "U8", other)),
        }
    };
    // Sizes come from a file: a row that would not fit into memory cannot be there either.
    let row_bits = cols.checked_mul(8).ok_or_else(|| refuse(format!("{cols} columns are impossible")))?;
    let row_bytes = if row_bits == 0 { 0 } else { bits::row_bytes(cols, width, 1) };
    let shape = [rows, cols.div_ceil(group)];
    let double = match mean {
        None => None,
        Some(mean) => {
            let scales = archive.tensor(&part("scales_of_scales"))?.real::<f32>().to_vec();
            Some(DoubleScales { codes: counted("scales", shape)?, scales, mean })
        }
    };
    let scales = match &double {
        None => floats("scales", shape)?,
        Some(double) => double.decode().ok_or_else(|| refuse("there are too few scales of scales".into()))?,
    };
    let origin = match (has("zeros"), has("minima")) {
        (false, false) => Origin::Centred,
        (true, false) => {
            let zeros = counted("zeros", shape)?;
            Origin::Zeros(zeros.into_iter().map(|zero| i32::from(zero) + lowest).collect())
        }
        (false, true) => Origin::Minima(floats("minima", shape)?),
        (true, true) => return Err(refuse("it has both zeros and minima".into())),
    };
    let up = |code: u8| (i32::from(code) + lowest) as i8;
    let codes: Vec<i8> = match has("bitmask") {
        true => {
            let mask = counted("bitmask", [rows, cols.div_ceil(8)])?;
            let packed = archive.raw(&part("codes"))?;
            let zero = |at: usize| zero_code(grid, &origin, at / cols * shape[1] + at % cols / group);
            let codes = codes_beside(&mask, &packed.bytes, [rows, cols], width, up, zero);
            codes.ok_or_else(|| refuse("its codes are not as many as its bits say".into()))?
        }
        false => {
            let packed = counted("codes", [rows, row_bytes])?;
            let rows = packed.chunks_exact(row_bytes.max(1));
            rows.flat_map(|row| bits::unpack(row, width, cols).map(up)).collect()
        }
    };
    let coded = Coded { rows, cols, group, grid, lowest, highest, codes, scales, origin };
    if !coded.is_sound() || !coded.scales.iter().all(|scale| scale.is_finite()) {
        return Err(refuse("a code lies beyond its range, or a scale is no number".into()));
    }
    let input_scale = match has("input_scale") {
        true => archive.tensor(&part("input_scale"))?.real::<f32>().first().copied(),
        false => None,
    };
    Ok(Layer { coded, input_scale, double })
}

/// All codes where those of set bits are packed in one run and the others stand for zero; none where they do not fit.
fn codes_beside(
    mask: &[u8],
    packed: &[u8],
    [rows, cols]: [usize; 2],
    width: u32,
    up: impl Fn(u8) -> i8,
    zero: impl Fn(usize) -> Option<i32>,
) -> Option<Vec<i8>> {
    let there = sparse::unpack(mask, rows, cols)?;
    let count = there.iter().filter(|&&there| there).count();
    if packed.len() != bits::row_bytes(count, width, 1) {
        return None;
    }
    let mut next = bits::unpack(packed, width, count).map(up);
    let code = |(at, &there): (usize, &bool)| if there { next.next() } else { Some(zero(at)? as i8) };
    there.iter().enumerate().map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::quant::{Scheme, Share, encode};
    use crate::tensor::random::Stream;
    use std::path::Path;

    fn layers() -> Vec<(String, Layer)> {
        let mut random = Stream::new(&[11]);
        let x: Vec<f32> = (0..5 * 96).map(|_| random.normal() as f32).collect();
        let mut schemes = vec![Scheme::normal_float(32, false)];
        for share in [Share::Tensor, Share::Row, Share::Group(48)] {
            for bits in [2, 3, 4, 5, 8] {
                schemes.extend([Scheme::wide(bits, share), Scheme::asymmetric(bits, share)]);
            }
        }
        let mut layers: Vec<Layer> =
            schemes.iter().map(|scheme| encode(&x, 5, 96, scheme).unwrap().into()).collect();
        let double = DoubleScales::encode(&layers[0].coded.scales);
        let coded = Coded { scales: double.decode().unwrap(), ..layers[0].coded.clone() };
        layers.push(Layer { coded, input_scale: Some(0.25), double: Some(double) });
        let minima = (0..10).map(|i| i as f32 / 3.0).collect();
        let coded = encode(&x, 5, 96, &Scheme::asymmetric(4, Share::Group(48))).unwrap();
        layers.push(Coded { origin: Origin::Minima(minima), ..coded }.into());
        layers.into_iter().enumerate().map(|(i, layer)| (format!("layer.{i}.weight"), layer)).collect()
    }

    fn save(path: &Path, layers: &[(String, Layer)], zeros: Zeros) {
        let named: Vec<(&str, &Layer)> = layers.iter().map(|(name, layer)| (name.as_str(), layer)).collect();
        let (mut raws, note) = write_all(&named, zeros).unwrap();
        raws.push(("norm.weight".into(), Raw::f32([2], &[1.0, 2.0])));
        let raws: Vec<(&str, Raw)> = raws.iter().map(|(name, raw)| (name.as_str(), raw.clone())).collect();
        Archive::write_raw(path, &raws, &BTreeMap::from([(NOTE.to_string(), note)])).unwrap();
    }

    #[test]
    fn codes_of_every_scheme_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let (path, layers) = (folder.path().join("model.safetensors"), layers());
        for zeros in [Zeros::Held, Zeros::LeftOut] {
            save(&path, &layers, zeros);
            let found = read_all(&Archive::open(&path).unwrap()).unwrap();
            assert_eq!(found.plain, ["norm.weight"]);
            assert_eq!(found.coded.len(), layers.len());
            for (name, layer) in &layers {
                assert_eq!(&found.coded[name], layer, "{name}");
            }
        }
    }

    #[test]
    fn zeros_are_left_out_where_that_is_smaller_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut random = Stream::new(&[12]);
        let mut element = || if random.uniform() < 0.6 { 0.0 } else { random.normal() as f32 };
        let x: Vec<f32> = (0..5 * 96).map(|_| element()).collect();
        let schemes = [
            Scheme::wide(8, Share::Row),
            Scheme::asymmetric(8, Share::Group(32)),
            Scheme::wide(4, Share::Group(32)),
            Scheme::normal_float(32, false),
        ];
        let coded = |scheme: &Scheme| (format!("{scheme:?}"), encode(&x, 5, 96, scheme).unwrap().into());
        let layers: Vec<(String, Layer)> = schemes.iter().map(coded).collect();
        for (at, (name, layer)) in layers.iter().enumerate() {
            let bytes = |zeros: Zeros| -> usize {
                write(name, layer, zeros).unwrap().0.iter().map(|(_, raw)| raw.bytes.len()).sum()
            };
            let (all, fewer) = (bytes(Zeros::Held), bytes(Zeros::LeftOut));
            // Floats of a table have no code that is known to be zero.
            assert!(if at < 3 { fewer * 10 < all * 9 } else { fewer == all }, "{name}: {fewer} of {all}");
        }
        save(&path, &layers, Zeros::LeftOut);
        let found = read_all(&Archive::open(&path).unwrap()).unwrap();
        layers.iter().for_each(|(name, layer)| assert_eq!(&found.coded[name], layer, "{name}"));
        let mut flipped = std::fs::read(&path).unwrap();
        let archive = Archive::open(&path).unwrap();
        let mask = archive.raw(&format!("{}.bitmask", layers[0].0)).unwrap().bytes.into_owned();
        let at = flipped.windows(mask.len()).position(|window| window == mask).unwrap();
        flipped[at] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(read_all(&Archive::open(&path).unwrap()).is_err());
    }

    #[test]
    fn codes_take_their_bits_and_no_more() {
        let (_, layer) = &layers()[3];
        assert_eq!((layer.coded.bits(), layer.coded.rows, layer.coded.cols), (3, 5, 96));
        let (parts, _) = write("w", layer, Zeros::Held).unwrap();
        assert_eq!((parts[0].0.as_str(), parts[0].1.bytes.len()), ("w.codes", 5 * 96 * 3 / 8));
    }

    #[test]
    fn notes_that_lie_about_sizes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let layers = &layers()[2..3];
        let (raws, note) = write_all(&[(&layers[0].0, &layers[0].1)], Zeros::Held).unwrap();
        let raws: Vec<(&str, Raw)> = raws.iter().map(|(name, raw)| (name.as_str(), raw.clone())).collect();
        for (from, to) in [
            ("\"rows\":5", "\"rows\":6"),
            ("\"cols\":96", "\"cols\":18446744073709551615"),
            ("\"cols\":96", "\"cols\":97"),
            ("\"group\":96", "\"group\":0"),
            ("\"group\":96", "\"group\":1"),
            ("\"highest\":", "\"highest\":9"),
            ("\"lowest\":", "\"lowest\":-99"),
            ("\"lowest\":", "\"lost\":"),
            ("layer", "other"),
        ] {
            assert!(note.contains(from), "{note}");
            let note = note.replacen(from, to, 1);
            Archive::write_raw(&path, &raws, &BTreeMap::from([(NOTE.to_string(), note.clone())])).unwrap();
            assert!(read_all(&Archive::open(&path).unwrap()).is_err(), "{note}");
        }
    }

    #[test]
    fn no_flipped_byte_of_the_head_makes_it_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let all = layers();
        save(&path, &all[all.len() - 3..], Zeros::Held);
        let whole = std::fs::read(&path).unwrap();
        let head = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let mut refused = 0;
        for at in 0..head {
            let mut bytes = whole.clone();
            bytes[at] ^= [0x01, 0x02, 0x08, 0x40][at % 4];
            std::fs::write(&path, &bytes).unwrap();
            refused += usize::from(Archive::open(&path).and_then(|archive| read_all(&archive)).is_err());
        }
        assert!(refused > head / 3, "only {refused} of {head} flips were found");
    }

    #[test]
    fn doubled_scales_must_be_what_their_codes_stand_for() {
        let all = layers();
        let mut layer = all[all.len() - 2].1.clone();
        assert!(write("w", &layer, Zeros::Held).is_ok());
        layer.coded.scales[0] *= 1.5;
        assert!(matches!(write("w", &layer, Zeros::Held), Err(Error::Layer { .. })));
    }
}
