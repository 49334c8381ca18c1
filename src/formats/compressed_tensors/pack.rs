//! The tensors of a quantised module.

use super::{Config, Group, Packing};
use crate::formats::{Archive, Element, Error, Found, Layer, Raw, Result, bits};
use crate::tensor::quant::{Coded, Grid, Origin};

/// Bytes of a word of codes.
const WORD: usize = 4;

/// The tensors of a module whose weight is these codes.
///
/// Refused is what the convention has no place for: tables of floats, minima, groups that do not divide the columns, scales that
/// are codes.
pub fn write(module: &str, layer: &Layer, packing: Packing) -> Result<Vec<(String, Raw<'static>)>> {
    let refuse = |reason: &str| Error::Layer {
        name: module.to_string(),
        reason: format!("{reason}, which compressed-tensors has no place for"),
    };
    let coded = &layer.coded;
    if !coded.is_sound() || coded.grid != Grid::Integers || layer.double.is_some() {
        return Err(refuse("its codes are no whole numbers with a float scale each group"));
    }
    if !coded.cols.is_multiple_of(coded.group) {
        return Err(refuse("the last group of a row is shorter"));
    }
    let zeros = match &coded.origin {
        Origin::Centred => None,
        Origin::Zeros(zeros) => Some(zeros),
        Origin::Minima(_) => return Err(refuse("it has minima")),
    };
    let (width, shift) = signed_range(coded).ok_or_else(|| refuse("its codes are unsigned without zeros"))?;
    let signed = |code: i32| (code - shift) as i8;
    let codes: Vec<i8> = coded.codes.iter().map(|&code| signed(code.into())).collect();
    let (shape, groups) = ([coded.rows, coded.cols], coded.groups());
    let mut parts = match packing {
        Packing::Bytes => vec![("weight", Raw::i8(shape, &codes))],
        Packing::Words => vec![
            ("weight_packed", pack_rows(&codes, shape, width)),
            ("weight_shape", Raw::i64([2], &shape.map(|size| size as i64))),
        ],
    };
    parts.push(("weight_scale", Raw::f32([coded.rows, groups], &coded.scales)));
    if let Some(zeros) = zeros {
        let zeros: Vec<i8> = zeros.iter().map(|&zero| signed(zero)).collect();
        let raw = match packing {
            Packing::Bytes => Raw::i8([coded.rows, groups], &zeros),
            Packing::Words => transposed_words(&pack_rows(
                &transposed(&zeros, coded.rows, groups),
                [groups, coded.rows],
                width,
            )),
        };
        parts.push(("weight_zero_point", raw));
    }
    if let Some(scale) = layer.input_scale {
        parts.push(("input_scale", Raw::f32([1], &[scale])));
    }
    Ok(parts.into_iter().map(|(part, raw)| (format!("{module}.{part}"), raw)).collect())
}

/// Bits of two's complement that hold the codes, and what is taken off them first: asymmetric codes begin at the lowest there is.
fn signed_range(coded: &Coded) -> Option<(u32, i32)> {
    match coded.origin {
        Origin::Zeros(_) => Some((coded.bits(), coded.lowest + (1 << (coded.bits() - 1)))),
        _ => {
            let holds = |bits: &u32| coded.lowest >= -(1 << (bits - 1)) && coded.highest < 1 << (bits - 1);
            (1..=8).find(holds).map(|bits| (bits, 0))
        }
    }
}

/// Rows of signed codes as words.
fn pack_rows(codes: &[i8], [rows, cols]: [usize; 2], width: u32) -> Raw<'static> {
    let row_bytes = bits::row_bytes(cols, width, WORD);
    let mut bytes = vec![0; rows * row_bytes];
    if !bytes.is_empty() {
        let offset = 1 << (width - 1);
        for (out, codes) in bytes.chunks_exact_mut(row_bytes).zip(codes.chunks_exact(cols)) {
            bits::pack(codes.iter().map(|&code| (i32::from(code) + offset) as u8), width, out);
        }
    }
    Raw::owned(Element::I32, [rows, row_bytes / WORD], bytes)
}

/// Words of a row of codes, as packages write it today and as older ones did, which left the bits of a word unused that hold no
/// whole code.
fn row_words(cols: usize, width: u32) -> [usize; 2] {
    [bits::row_bytes(cols, width, WORD) / WORD, cols.div_ceil(32 / width as usize)]
}

/// Codes of packed rows; `None` where the words are not those of so many codes.
fn unpack_rows(bytes: &[u8], [rows, cols]: [usize; 2], words: usize, width: u32) -> Option<Vec<i8>> {
    let [dense, loose] = row_words(cols, width);
    let whole = bytes.len() == rows.checked_mul(words)?.checked_mul(WORD)?;
    if !whole || words == 0 || ![dense, loose].contains(&words) {
        return None;
    }
    let offset = 1 << (width - 1);
    let signed = |code: u8| (i32::from(code) - offset) as i8;
    let mut codes = Vec::with_capacity(rows * cols);
    for row in bytes.chunks_exact(words * WORD) {
        if words == dense {
            codes.extend(bits::unpack(row, width, cols).map(signed));
        } else {
            let each = row.chunks_exact(WORD).flat_map(|word| bits::unpack(word, width, 32 / width as usize));
            codes.extend(each.take(cols).map(signed));
        }
    }
    Some(codes)
}

fn transposed<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

fn transposed_words(raw: &Raw) -> Raw<'static> {
    let words: Vec<[u8; WORD]> =
        raw.bytes.chunks_exact(WORD).map(|w| w.try_into().expect("four bytes")).collect();
    let (rows, cols) = (raw.shape[0], raw.shape[1]);
    Raw::owned(Element::I32, [cols, rows], transposed(&words, rows, cols).concat())
}

/// Reads every quantised module; its tensors are found by their names.
pub fn read_all(archive: &Archive, config: &Config) -> Result<Found> {
    let mut found = Found::default();
    let has = |name: String| archive.element(&name);
    for name in archive.names() {
        let module = name.strip_suffix(".weight_packed").or_else(|| {
            let module = name.strip_suffix(".weight")?;
            let coded =
                has(name.into()) == Some(Element::I8) && has(format!("{module}.weight_scale")).is_some();
            coded.then_some(module)
        });
        if let Some(module) = module {
            let layer = Module { archive, module }.read(config)?;
            found.coded.insert(format!("{module}.weight"), layer);
        }
    }
    const PARTS: [&str; 8] = [
        "weight",
        "weight_packed",
        "weight_shape",
        "weight_scale",
        "weight_zero_point",
        "weight_g_idx",
        "input_scale",
        "input_zero_point",
    ];
    let is_part = |name: &str| {
        name.rsplit_once('.').is_some_and(|(module, part)| {
            PARTS.contains(&part) && found.coded.contains_key(&format!("{module}.weight"))
        })
    };
    found.plain = archive.names().filter(|name| !is_part(name)).map(String::from).collect();
    Ok(found)
}

struct Module<'a> {
    archive: &'a Archive,
    module: &'a str,
}

impl Module<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.module)
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::Layer { name: self.module.to_string(), reason: reason.into() }
    }

    fn has(&self, part: &str) -> bool {
        self.archive.shape(&self.name(part)).is_some()
    }

    fn read(&self, config: &Config) -> Result<Layer> {
        if self.has("weight_g_idx") {
            return Err(self.refuse("its groups are in the order of activations, which is not read"));
        }
        let [rows, cols] = self.shape()?;
        let (groups, scales) = self.scales(rows)?;
        if !cols.is_multiple_of(groups) {
            return Err(self.refuse(format!("{groups} groups do not divide {cols} columns")));
        }
        let settings = self.settings(config, cols, cols / groups)?;
        let width = settings.bits;
        let zeros = match self.has("weight_zero_point") {
            true => Some(self.zeros([rows, groups], width)?),
            false => None,
        };
        // Older packages wrote zeros for symmetric codes too.
        if settings.symmetric && zeros.iter().flatten().any(|&zero| zero != 0) {
            return Err(self.refuse("it has zero points, though its group says that codes are symmetric"));
        }
        let codes = match self.has("weight_packed") {
            true => {
                let raw = self.archive.raw(&self.name("weight_packed"))?;
                let codes = unpack_rows(&raw.bytes, [rows, cols], raw.shape.last(), width);
                codes.ok_or_else(|| {
                    self.refuse(format!("its words do not hold {rows} x {cols} codes of {width} bits"))
                })?
            }
            false => bytemuck::cast_slice(&self.archive.raw(&self.name("weight"))?.bytes).to_vec(),
        };
        let lowest = -(1 << (width - 1));
        let mut coded = Coded {
            rows,
            cols,
            group: cols / groups,
            grid: Grid::Integers,
            lowest,
            highest: -lowest - 1,
            codes,
            scales,
            origin: Origin::Centred,
        };
        if let Some(zeros) = zeros.filter(|_| !settings.symmetric) {
            // Codes of less than 8 bits are held from zero on.
            let up = if width < 8 { -lowest } else { 0 };
            (coded.lowest, coded.highest) = (lowest + up, -lowest - 1 + up);
            coded.codes.iter_mut().for_each(|code| *code = (i32::from(*code) + up) as i8);
            coded.origin = Origin::Zeros(zeros.into_iter().map(|zero| i32::from(zero) + up).collect());
        }
        if !coded.is_sound() || !coded.scales.iter().all(|scale| scale.is_finite()) {
            return Err(self.refuse("a code lies beyond its range, or a scale is no number"));
        }
        let input_scale = match self.has("input_scale") {
            true => self.archive.tensor(&self.name("input_scale"))?.real::<f32>().first().copied(),
            false => None,
        };
        Ok(Layer { coded, input_scale, double: None })
    }

    fn shape(&self) -> Result<[usize; 2]> {
        let sizes: Vec<usize> = match self.has("weight_packed") {
            true => {
                let sizes = self.archive.integers(&self.name("weight_shape"))?;
                // A code takes a bit at least, so sizes beyond that are no sizes.
                let most = self.archive.raw(&self.name("weight_packed"))?.bytes.len() as i64 * 8;
                sizes.into_iter().filter(|size| (1..=most).contains(size)).map(|size| size as usize).collect()
            }
            false => self.archive.raw(&self.name("weight"))?.shape.to_vec(),
        };
        match sizes[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            _ => Err(self.refuse("its shape is not that of a matrix")),
        }
    }

    /// Scales [rows, groups] and how many groups a row has; one scale of all counts for every row.
    fn scales(&self, rows: usize) -> Result<(usize, Vec<f32>)> {
        let tensor = self.archive.tensor(&self.name("weight_scale"))?;
        let scales: &[f32] = tensor.real();
        match scales.len() {
            1 => Ok((1, vec![scales[0]; rows])),
            count if count > 0 && count % rows == 0 => Ok((count / rows, scales.to_vec())),
            count => Err(self.refuse(format!("it has {count} scales for {rows} rows"))),
        }
    }

    /// The group of the config that this module is in: by its name, else the one whose sizes fit.
    fn settings<'a>(&self, config: &'a Config, cols: usize, group: usize) -> Result<&'a Group> {
        let named = |settings: &&Group| settings.targets.iter().any(|target| target == self.module);
        let words = match self.has("weight_packed") {
            true => Some(self.archive.raw(&self.name("weight_packed"))?.shape.last()),
            false => None,
        };
        let fits = |settings: &&Group| {
            words.is_none_or(|words| row_words(cols, settings.bits).contains(&words))
                && (settings.packing == Packing::Words) == words.is_some()
                && settings.group.unwrap_or(cols) == group
        };
        if let Some(settings) = config.groups.iter().find(named) {
            return Ok(settings);
        }
        let fitting: Vec<&Group> = config.groups.iter().filter(fits).collect();
        match fitting[..] {
            [first, ..] if fitting.iter().all(|g| (g.bits, g.symmetric) == (first.bits, first.symmetric)) => {
                Ok(first)
            }
            [] => {
                Err(self
                    .refuse(format!("no group of the config has its {cols} columns in groups of {group}")))
            }
            _ => Err(self.refuse("several groups of the config fit, and none names it")),
        }
    }

    fn zeros(&self, [rows, groups]: [usize; 2], width: u32) -> Result<Vec<i8>> {
        let raw = self.archive.raw(&self.name("weight_zero_point"))?;
        let refuse =
            || self.refuse(format!("its zero points are not {rows} x {groups} codes of {width} bits"));
        match raw.element {
            Element::I8 if raw.bytes.len() == rows * groups => Ok(bytemuck::cast_slice(&raw.bytes).to_vec()),
            Element::I32 if raw.shape.len() == 2 && raw.shape[1] == groups => {
                let turned = transposed_words(&raw);
                let codes = unpack_rows(&turned.bytes, [groups, rows], turned.shape[1], width);
                Ok(transposed(&codes.ok_or_else(refuse)?, groups, rows))
            }
            _ => Err(refuse()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::compressed_tensors::Activations;
    use crate::tensor::quant::{Scheme, Share, encode};
    use crate::tensor::random::Stream;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn coded(rows: usize, scheme: &Scheme) -> Coded {
        let mut random = Stream::new(&[21]);
        let x: Vec<f32> = (0..rows * 96).map(|_| random.normal() as f32).collect();
        encode(&x, rows, 96, scheme).unwrap()
    }

    fn group(bits: u32, symmetric: bool, group: Option<usize>, packing: Packing) -> Group {
        Group {
            targets: vec!["Linear".into()],
            bits,
            symmetric,
            group,
            activations: Activations::Floats,
            packing,
        }
    }

    fn save(path: &Path, parts: Vec<(String, Raw)>) -> Archive {
        let raws: Vec<(&str, Raw)> = parts.iter().map(|(name, raw)| (name.as_str(), raw.clone())).collect();
        Archive::write_raw(path, &raws, &BTreeMap::new()).unwrap();
        Archive::open(path).unwrap()
    }

    #[test]
    fn modules_come_back_in_both_forms_with_and_without_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for (share, size) in [(Share::Row, None), (Share::Group(32), Some(32))] {
            for bits in [2, 3, 4, 8] {
                for scheme in [Scheme::wide(bits, share), Scheme::asymmetric(bits, share)] {
                    for packing in [Packing::Bytes, Packing::Words] {
                        let layer = Layer { input_scale: Some(0.5), ..coded(11, &scheme).into() };
                        let mut parts = write("a.b", &layer, packing).unwrap();
                        parts.push(("a.b.bias".into(), Raw::f32([1], &[1.0])));
                        let archive = save(&path, parts);
                        let groups = vec![group(bits, scheme.is_symmetric(), size, packing)];
                        let found = read_all(&archive, &Config { groups, ignore: vec![] }).unwrap();
                        assert_eq!(found.coded["a.b.weight"], layer, "{scheme:?} {packing:?}");
                        assert_eq!(found.plain, ["a.b.bias"]);
                    }
                }
            }
        }
    }

    #[test]
    fn eight_codes_of_four_bits_lie_in_a_word_the_first_lowest() {
        // Codes -8..=-1 and their offset 8: the word 0x76543210.
        let codes: Vec<i8> = (-8..0).collect();
        let packed = pack_rows(&codes, [1, 8], 4);
        assert_eq!(packed.integers().unwrap(), [0x7654_3210]);
        let zeros = transposed_words(&pack_rows(&[-8, 0, 7, -8, 0, 7], [2, 3], 4));
        assert_eq!((zeros.shape.to_vec(), zeros.integers().unwrap()), (vec![1, 2], vec![0xf80, 0xf80]));
    }

    #[test]
    fn words_with_unused_bits_are_read_as_older_packages_wrote_them() {
        let word = |codes: &[i8]| codes.iter().rev().fold(0u32, |word, code| word << 3 | (code + 4) as u32);
        let codes: Vec<i8> = (0..64).map(|i| i % 8 - 4).collect();
        let loose: Vec<u8> = codes.chunks(10).flat_map(|codes| word(codes).to_le_bytes()).collect();
        assert_eq!(row_words(64, 3), [6, 7]);
        assert_eq!(unpack_rows(&loose, [1, 64], 7, 3), Some(codes));
        assert_eq!(unpack_rows(&loose[4..], [1, 43], 6, 3), None);
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let layer: Layer = coded(8, &Scheme::asymmetric(4, Share::Group(32))).into();
        let sound = write("m", &layer, Packing::Words).unwrap();
        let config = Config { groups: vec![group(4, false, Some(32), Packing::Words)], ignore: vec![] };
        let read = |parts: Vec<(String, Raw<'static>)>| read_all(&save(&path, parts), &config);
        assert!(read(sound.clone()).is_ok());
        let with = |part: &str, raw: Raw<'static>| {
            let change = |(name, old): (String, Raw<'static>)| match name.ends_with(part) {
                true => (name, raw.clone()),
                false => (name, old),
            };
            read(sound.clone().into_iter().map(change).collect())
        };
        for shape in [[8, 97], [9, 96], [-8, 96], [1 << 40, 1 << 40], [0, 96], [96, 8], [1, 768]] {
            assert!(with("weight_shape", Raw::i64([2], &shape)).is_err(), "{shape:?}");
        }
        assert!(with("weight_shape", Raw::i64([1], &[8])).is_err());
        assert!(with("weight_scale", Raw::f32([8, 2], &[1.0; 16])).is_err());
        assert!(with("weight_scale", Raw::f32([24], &[f32::NAN; 24])).is_err());
        assert!(with("weight_zero_point", Raw::i64([3], &[1; 3])).is_err());
        assert!(with("weight_packed", Raw::owned(Element::I32, [8, 1], vec![0; 32])).is_err());
        let symmetric = Config { groups: vec![group(4, true, Some(32), Packing::Words)], ignore: vec![] };
        assert!(read_all(&save(&path, sound), &symmetric).is_err());
    }

    #[test]
    fn no_flipped_byte_of_the_head_makes_it_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let layer: Layer = coded(8, &Scheme::asymmetric(4, Share::Group(32))).into();
        let config = Config { groups: vec![group(4, false, Some(32), Packing::Words)], ignore: vec![] };
        save(&path, write("m", &layer, Packing::Words).unwrap());
        let whole = std::fs::read(&path).unwrap();
        let data = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        // The shape is the first of the data: its bytes are as good as those of the head.
        for at in 0..data + 16 {
            for mask in [0x01, 0x04, 0x40, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= mask;
                std::fs::write(&path, &bytes).unwrap();
                let read = Archive::open(&path).and_then(|archive| read_all(&archive, &config));
                let shape = at >= data;
                assert!(!shape || read.is_err(), "the shape's byte {} as {:#x}", at - data, bytes[at]);
            }
        }
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let minima = coded(4, &Scheme::asymmetric(4, Share::Row));
        let minima = Coded { origin: Origin::Minima(vec![0.5; 4]), ..minima };
        for coded in [minima, coded(4, &Scheme::normal_float(32, false))] {
            assert!(matches!(write("m", &coded.into(), Packing::Words), Err(Error::Layer { .. })));
        }
    }
}
