//! Matrices with many zeros in a safetensors file: a bit for each element that is there, and those elements alone.
//!
//! Two forms, as compressed-tensors had them up to 0.12 (later versions refuse both). "sparse-bitmask": of a module `M` the weight becomes
//! `M.bitmask` (`U8 [rows, ceil(cols / 8)]`, the first column in the lowest bit, a set bit is an element that is there), `M.compressed`
//! (the elements row by row, in the type they have), `M.row_offsets` (`I64 [rows]`: where each row begins) and `M.shape` (`I64 [2]`).
//! "sparse-24-bitmask", for 2 of each 4 consecutive elements: `M.compressed` is `[rows, cols / 2]`, `M.shape` is `[2, 1]`, and there are no
//! offsets. What is left out is zero with a plus sign, so that every bit comes back. Which form a file has stands in `sparsity_config` of
//! `quantization_config`.

use super::{Archive, Error, QUANTIZATION_KEY, Raw, Result, bits};
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Key of `quantization_config` that says how zeros are left out.
pub const SPARSITY_KEY: &str = "sparsity_config";

/// Elements of a group of which two are there.
const FOUR: usize = 4;

/// How zeros are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any element may be.
    Bitmask,
    /// Two of each four consecutive elements of a row.
    TwoOfFour,
}

impl Form {
    /// Name in `sparsity_config`.
    pub fn name(self) -> &'static str {
        match self {
            Form::Bitmask => "sparse-bitmask",
            Form::TwoOfFour => "sparse-24-bitmask",
        }
    }

    fn structure(self) -> &'static str {
        match self {
            Form::Bitmask => "unstructured",
            Form::TwoOfFour => "2:4",
        }
    }

    /// The form that a model's `config.json` names, if it names one.
    pub fn of_config(config: &Map<String, Value>, archive: &Archive) -> Result<Option<Form>> {
        let settings = config.get(QUANTIZATION_KEY).and_then(|settings| settings.get(SPARSITY_KEY));
        match settings.and_then(|sparsity| sparsity.get("format")).and_then(Value::as_str) {
            None | Some("dense") => Ok(None),
            Some("sparse-bitmask") => Ok(Some(Form::Bitmask)),
            Some("sparse-24-bitmask") => Ok(Some(Form::TwoOfFour)),
            Some(other) => Err(Error::Unsupported {
                path: archive.path().to_path_buf(),
                what: format!("a model whose zeros are left out as `{other}`"),
                expected: "sparse-bitmask, sparse-24-bitmask or dense".into(),
            }),
        }
    }
}

type Parts = Vec<(String, Raw<'static>)>;

/// The tensors of a file with zeros left out of the matrices that become smaller so, and `sparsity_config`, if there are any.
pub fn write_all(raws: Parts) -> (Parts, Option<Value>) {
    let of_weight = |(name, raw): &(String, Raw)| module(name).and_then(|_| Sparse::of(raw));
    let found: Vec<Option<Sparse>> = raws.par_iter().map(of_weight).collect();
    let pays = |(found, (_, raw)): (&Option<Sparse>, &(String, Raw))| {
        found.as_ref().is_some_and(|sparse| sparse.size_bytes(raw, Form::Bitmask) < raw.bytes.len())
    };
    let chosen: Vec<bool> = found.iter().zip(&raws).map(pays).collect();
    let sparse = || found.iter().zip(&raws).zip(&chosen).filter(|(_, chosen)| **chosen).map(|(both, _)| both);
    if sparse().next().is_none() {
        return (raws, None);
    }
    let fits =
        |(sparse, _): (&Option<Sparse>, &(String, Raw))| sparse.as_ref().is_some_and(Sparse::is_two_of_four);
    // Where more is zero than every other element, a form that holds half of them is the larger one.
    let bytes = |form: Form| -> usize {
        sparse().filter_map(|(s, (_, raw))| Some(s.as_ref()?.size_bytes(raw, form))).sum()
    };
    let shorter = bytes(Form::TwoOfFour) <= bytes(Form::Bitmask);
    let form = if shorter && sparse().all(fits) { Form::TwoOfFour } else { Form::Bitmask };
    let count = |of: fn(&Sparse) -> usize| sparse().filter_map(|(s, _)| s.as_ref()).map(of).sum::<usize>();
    let settings = json!({
        "format": form.name(), "sparsity_structure": form.structure(),
        "global_sparsity": 1.0 - count(|s| s.kept) as f64 / count(|s| s.rows * s.cols).max(1) as f64,
        "targets": sparse().filter_map(|(_, (name, _))| module(name)).collect::<Vec<_>>(), "ignore": [],
    });
    let all = raws.into_iter().zip(found).zip(chosen);
    let parts = all.flat_map(|(((name, raw), sparse), chosen)| match sparse.filter(|_| chosen) {
        Some(sparse) => sparse.parts(module(&name).unwrap_or(&name), &raw, form),
        None => vec![(name, raw)],
    });
    (parts.collect(), Some(settings))
}

/// The module whose weight has this name.
fn module(name: &str) -> Option<&str> {
    name.strip_suffix(".weight")
}

/// Which elements of a matrix are there.
struct Sparse {
    rows: usize,
    cols: usize,
    there: Vec<bool>,
    kept: usize,
}

impl Sparse {
    /// The elements that are not zero; none for what is no matrix.
    fn of(raw: &Raw) -> Option<Sparse> {
        let &[rows, cols] = &raw.shape[..] else { return None };
        let width = raw.element.bitsize() / 8;
        if rows * cols == 0 || width == 0 {
            return None;
        }
        let there: Vec<bool> = raw.bytes.chunks_exact(width).map(|x| x.iter().any(|&b| b != 0)).collect();
        let kept = there.iter().filter(|&&there| there).count();
        Some(Sparse { rows, cols, there, kept })
    }

    /// Bytes of its parts.
    fn size_bytes(&self, raw: &Raw, form: Form) -> usize {
        let (kept, offsets) = match form {
            Form::Bitmask => (self.kept, self.rows),
            Form::TwoOfFour => (self.rows * self.cols / 2, 0),
        };
        let mask = self.rows * bits::row_bytes(self.cols, 1, 1);
        size_of::<i64>() * (2 + offsets) + mask + kept * raw.element.bitsize() / 8
    }

    fn is_two_of_four(&self) -> bool {
        let most = |group: &[bool]| group.iter().filter(|&&there| there).count() <= FOUR / 2;
        self.cols.is_multiple_of(FOUR) && self.there.chunks_exact(FOUR).all(most)
    }

    fn parts(mut self, module: &str, raw: &Raw, form: Form) -> Parts {
        if form == Form::TwoOfFour {
            self.fill_groups();
        }
        let (rows, cols) = (self.rows, self.cols);
        let mask = pack(&self.there, rows, cols);
        let each = raw.bytes.chunks_exact(raw.element.bitsize() / 8).zip(&self.there);
        let values: Vec<u8> = each.filter(|(_, there)| **there).flat_map(|(x, _)| x).copied().collect();
        let sizes = [rows as i64, cols as i64];
        let (shape, compressed) = match form {
            Form::Bitmask => (Raw::i64([2], &sizes), Raw::owned(raw.element, [self.kept], values)),
            Form::TwoOfFour => {
                (Raw::i64([2, 1], &sizes), Raw::owned(raw.element, [rows, cols / FOUR * 2], values))
            }
        };
        let mut parts = vec![
            (format!("{module}.shape"), shape),
            (format!("{module}.compressed"), compressed),
            (format!("{module}.bitmask"), Raw::owned(super::Element::U8, mask.shape, mask.bytes)),
        ];
        if form == Form::Bitmask {
            parts.push((format!("{module}.row_offsets"), Raw::i64([rows], &offsets(&self.there, cols))));
        }
        parts
    }

    /// Where fewer than two of a group are there, zeros are held in their place.
    fn fill_groups(&mut self) {
        for group in self.there.chunks_exact_mut(FOUR) {
            let mut absent = FOUR / 2 - group.iter().filter(|&&there| there).count();
            for there in group.iter_mut().filter(|there| !**there) {
                *there = absent > 0;
                absent = absent.saturating_sub(1);
            }
        }
        self.kept = self.there.len() / 2;
    }
}

/// Bits of rows, each from a byte of its own on.
pub(super) struct Packed {
    pub shape: [usize; 2],
    pub bytes: Vec<u8>,
}

pub(super) fn pack(there: &[bool], rows: usize, cols: usize) -> Packed {
    let row_bytes = bits::row_bytes(cols, 1, 1);
    let mut bytes = vec![0; rows * row_bytes];
    for (out, row) in bytes.chunks_exact_mut(row_bytes.max(1)).zip(there.chunks_exact(cols.max(1))) {
        bits::pack(row.iter().map(|&there| there.into()), 1, out);
    }
    Packed { shape: [rows, row_bytes], bytes }
}

/// The bits of rows; none where bytes are too few or many, or a bit past the end of a row is set.
pub(super) fn unpack(bytes: &[u8], rows: usize, cols: usize) -> Option<Vec<bool>> {
    let row_bytes = cols.div_ceil(8);
    if bytes.len() != rows.checked_mul(row_bytes)? {
        return None;
    }
    let mut there = Vec::with_capacity(rows * cols);
    for row in bytes.chunks_exact(row_bytes.max(1)) {
        let past = if cols.is_multiple_of(8) { 0 } else { row[row_bytes - 1] >> (cols % 8) };
        if past != 0 {
            return None;
        }
        there.extend(bits::unpack(row, 1, cols).map(|bit| bit == 1));
    }
    Some(there)
}

fn offsets(there: &[bool], cols: usize) -> Vec<i64> {
    let mut sum = 0;
    let of_row = |row: &[bool]| {
        let begins = sum;
        sum += row.iter().filter(|&&there| there).count() as i64;
        begins
    };
    there.chunks_exact(cols).map(of_row).collect()
}

/// Matrices of an archive in which zeros are left out, as f32 by their names, and the names of their parts.
pub fn read_all(archive: &Archive, form: Form) -> Result<(BTreeMap<String, Tensor>, Vec<String>)> {
    let with_mask = |name: &str| {
        let module = name.strip_suffix(".bitmask")?;
        archive.shape(&format!("{module}.compressed")).map(|_| module.to_string())
    };
    let modules: Vec<String> = archive.names().filter_map(with_mask).collect();
    let read = |module: &String| Ok((format!("{module}.weight"), read(archive, module, form)?));
    let found = modules.par_iter().map(read).collect::<Result<_>>()?;
    let parts = ["shape", "compressed", "bitmask", "row_offsets"];
    Ok((found, modules.iter().flat_map(|module| parts.map(|part| format!("{module}.{part}"))).collect()))
}

fn read(archive: &Archive, module: &str, form: Form) -> Result<Tensor> {
    let refuse = |reason: String| Error::Layer { name: module.to_string(), reason };
    let part = |part: &str| format!("{module}.{part}");
    let mask = archive.raw(&part("bitmask"))?;
    let sizes = archive.integers(&part("shape"))?;
    // An element takes a bit at least, so sizes beyond that are no sizes.
    let most = mask.bytes.len() as i64 * 8;
    let &[rows, cols] = &sizes[..] else { return Err(refuse(format!("{sizes:?} is no shape of a matrix"))) };
    if ![rows, cols].iter().all(|size| (1..=most).contains(size)) {
        return Err(refuse(format!("{rows} x {cols} elements are not those of {} bytes of bits", most / 8)));
    }
    let (rows, cols) = (rows as usize, cols as usize);
    let there = unpack(&mask.bytes, rows, cols);
    let there = there.ok_or_else(|| refuse(format!("its bits are not those of {rows} x {cols} elements")))?;
    let values = archive.tensor(&part("compressed"))?;
    let (got, expected) = (values.real::<f32>().len(), there.iter().filter(|&&there| there).count());
    if got != expected {
        return Err(refuse(format!("it has {got} elements where {expected} bits are set")));
    }
    if form == Form::Bitmask && archive.integers(&part("row_offsets"))? != offsets(&there, cols) {
        return Err(refuse("its rows do not begin where its bits say".into()));
    }
    let mut next = values.real::<f32>().iter();
    let all = there.iter().map(|&there| if there { *next.next().expect("they were counted") } else { 0.0 });
    Ok(Tensor::f32([rows, cols], all.collect::<Vec<f32>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Element;
    use crate::tensor::random::Stream;
    use std::path::Path;

    /// A matrix of which about this share is zero, with a zero of either sign that is there.
    fn matrix(rows: usize, cols: usize, share: f64) -> Vec<f32> {
        let mut random = Stream::new(&[rows as u32, cols as u32]);
        let mut element = || if random.uniform() < share { 0.0 } else { random.normal() as f32 };
        let mut x: Vec<f32> = (0..rows * cols).map(|_| element()).collect();
        x[0] = -0.0;
        x
    }

    fn two_of_four(rows: usize, cols: usize) -> Vec<f32> {
        let mut x = matrix(rows, cols, 0.02);
        x.chunks_exact_mut(4).for_each(|group| group[1..3].fill(0.0));
        x
    }

    fn save(path: &Path, parts: &[(String, Raw)]) -> Archive {
        let raws: Vec<(&str, Raw)> = parts.iter().map(|(name, raw)| (name.as_str(), raw.clone())).collect();
        Archive::write_raw(path, &raws, &BTreeMap::new()).unwrap();
        Archive::open(path).unwrap()
    }

    fn bits_of(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn every_bit_comes_back_in_both_forms_and_dense_matrices_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for (rows, cols, x, form) in [
            (7, 65, matrix(7, 65, 0.5), Form::Bitmask),
            (3, 128, matrix(3, 128, 0.9), Form::Bitmask),
            (8, 64, two_of_four(8, 64), Form::TwoOfFour),
            (5, 100, two_of_four(5, 100), Form::TwoOfFour),
        ] {
            for element in [Element::F32, Element::F16] {
                let raw = match element {
                    Element::F16 => Raw::f16([rows, cols], &x),
                    _ => Raw::f32([rows, cols], &x),
                };
                let dense = Raw::f32([4, 4], &[1.0; 16]);
                let vector = Raw::f32([64], &[0.0; 64]);
                let all = [("a.weight", raw.clone()), ("b.weight", dense), ("a.bias", vector)];
                let (parts, settings) =
                    write_all(all.map(|(name, raw)| (name.to_string(), raw)).into_iter().collect());
                let settings = settings.unwrap();
                assert_eq!((&settings["format"], &settings["targets"]), (&form.name().into(), &json!(["a"])));
                let bytes: usize = parts.iter().map(|(_, raw)| raw.bytes.len()).sum();
                assert!(bytes < raw.bytes.len() + 4 * 64 + 4 * 16, "{bytes}");
                let (found, names) = read_all(&save(&path, &parts), form).unwrap();
                assert_eq!(bits_of(found["a.weight"].real()), bits_of(&raw.floats().unwrap()));
                assert_eq!((found.len(), names.len()), (1, 4));
            }
        }
    }

    #[test]
    fn what_would_not_become_smaller_is_left_alone() {
        let raw = Raw::f32([8, 64], &matrix(8, 64, 0.03));
        let (parts, settings) = write_all(vec![("a.weight".into(), raw.clone())]);
        assert_eq!((parts, settings), (vec![("a.weight".to_string(), raw)], None));
    }

    #[test]
    fn parts_that_lie_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let (sound, _) = write_all(vec![("a.weight".into(), Raw::f32([7, 65], &matrix(7, 65, 0.5)))]);
        let with = |part: &str, raw: Raw<'static>| {
            let change = |(name, old): (String, Raw<'static>)| match name.ends_with(part) {
                true => (name, raw.clone()),
                false => (name, old),
            };
            let parts: Vec<_> = sound.clone().into_iter().map(change).collect();
            read_all(&save(&path, &parts), Form::Bitmask)
        };
        assert!(read_all(&save(&path, &sound), Form::Bitmask).is_ok());
        for shape in [[7, 64], [7, 73], [8, 65], [-7, 65], [0, 65], [1 << 40, 1 << 40]] {
            assert!(with(".shape", Raw::i64([2], &shape)).is_err(), "{shape:?}");
        }
        assert!(with(".shape", Raw::i64([1], &[7])).is_err());
        assert!(with(".bitmask", Raw::owned(Element::U8, [7, 9], vec![0xff; 63])).is_err());
        assert!(with(".compressed", Raw::f32([3], &[1.0; 3])).is_err());
        assert!(with(".compressed", Raw::i8([3], &[1; 3])).is_err());
        assert!(with(".row_offsets", Raw::i64([7], &[0; 7])).is_err());
    }

    #[test]
    fn a_form_that_is_not_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let archive =
            save(&folder.path().join("model.safetensors"), &[("a".to_string(), Raw::f32([1], &[1.0]))]);
        let config = |format: &str| {
            let settings = json!({ QUANTIZATION_KEY: { SPARSITY_KEY: { "format": format } } });
            Form::of_config(settings.as_object().unwrap(), &archive)
        };
        assert_eq!(config("dense").unwrap(), None);
        assert_eq!(config("sparse-24-bitmask").unwrap(), Some(Form::TwoOfFour));
        assert!(config("marlin-24").unwrap_err().to_string().contains("marlin-24"));
    }
}
