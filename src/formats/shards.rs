//! Weights of a folder in one safetensors file, or in several with an index of which tensor is where.

use super::{Archive, Error, INDEX_FILE, Raw, Result, WEIGHTS_FILE, write_whole};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes tensors into a folder and gives the names of the files with weights.
///
/// All stand in one file where they fit into `most_bytes`; else files are filled in the order given, and a tensor that is
/// larger by itself has a file of its own. Names and index are those of transformers.
pub fn write_shards(
    folder: &Path,
    raws: &[(&str, Raw)],
    notes: &BTreeMap<String, String>,
    most_bytes: u64,
) -> Result<Vec<String>> {
    let cuts = cut(raws.iter().map(|(_, raw)| raw.bytes.len() as u64), most_bytes);
    if cuts.len() < 2 {
        Archive::write_raw(&folder.join(WEIGHTS_FILE), raws, notes)?;
        return Ok(vec![WEIGHTS_FILE.to_string()]);
    }
    let (count, mut from) = (cuts.len(), 0);
    let (mut files, mut places) = (vec![], BTreeMap::new());
    for (at, to) in cuts.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", at + 1);
        for (name, _) in &raws[from..to] {
            // Within one file the writer itself finds a name that is given twice.
            if places.insert(name.to_string(), file.clone()).is_some_and(|earlier| earlier != file) {
                let reason = format!("`{name}` is given twice");
                return Err(Error::Draft { path: folder.join(file), reason });
            }
        }
        Archive::write_raw(&folder.join(&file), &raws[from..to], notes)?;
        files.push(file);
        from = to;
    }
    let total: usize = raws.iter().map(|(_, raw)| raw.bytes.len()).sum();
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": places });
    let path = folder.join(INDEX_FILE);
    write_whole(&path, |out| {
        serde_json::to_writer_pretty(&mut *out, &index)?;
        out.write_all(b"\n")
    })
    .map_err(|source| Error::of_file(&path, source))?;
    Ok(files)
}

/// Where each file ends, by the number of the tensor behind it.
fn cut(sizes: impl Iterator<Item = u64>, most_bytes: u64) -> Vec<usize> {
    let (mut cuts, mut held, mut count) = (vec![], 0u64, 0);
    for size in sizes {
        if held > 0 && held.saturating_add(size) > most_bytes {
            cuts.push(count);
            held = 0;
        }
        held += size;
        count += 1;
    }
    cuts.push(count);
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_filled_in_order_and_large_tensors_stand_alone() {
        assert_eq!(cut([4, 4, 4, 20, 1].into_iter(), 8), [2, 3, 4, 5]);
        assert_eq!(cut([4, 4].into_iter(), 8), [2]);
        assert_eq!(cut([].into_iter(), 8), [0]);
    }

    #[test]
    fn shards_are_read_as_one_and_their_bytes_are_those_of_one_file() {
        let values: Vec<f32> = (0..24).map(|x| x as f32).collect();
        let raws = [("a", Raw::f32([4, 6], &values)), ("b", Raw::bf16([3], &values[..3]))];
        let (one, several) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(write_shards(one.path(), &raws, &BTreeMap::new(), 1000).unwrap(), [WEIGHTS_FILE]);
        let files = write_shards(several.path(), &raws, &BTreeMap::new(), 100).unwrap();
        assert_eq!(files, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
        let (one, several) = (Archive::open(one.path()).unwrap(), Archive::open(several.path()).unwrap());
        for (name, raw) in &raws {
            assert_eq!(&one.raw(name).unwrap(), raw);
            assert_eq!(&several.raw(name).unwrap(), raw);
        }
        let twice = [("a", Raw::f32([1], &[1.0])), ("a", Raw::f32([1], &[1.0]))];
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(write_shards(folder.path(), &twice, &BTreeMap::new(), 4), Err(Error::Draft { .. })));
    }
}
