//! `kiln export` and `kiln import`: models in other programs' files, and back.

use super::Usage;
use super::folder::{Beside, Head, ModelFolder, copy_companions, origins_of_run, resolve, write_folder};
use super::quantize::{Format, Output};
use crate::data::tokenizer::{FILE_NAME, Tokenizer};
use crate::exchange::{FolderOptions, Options, Source, TEMPLATE, WrittenFolder, export_gguf, is_gguf};
use crate::model::TASKS_FOLDER;
use crate::tensor::DType;
use crate::tensor::quant::blocks::Block;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Write a model as a Hugging Face folder, or as a GGUF file.
///
/// Tensors that nothing changed are written bit for bit as they are stored, also those that kiln does not read. Adapters are merged.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln export runs/shakespeare --to hf -o shakespeare\n  kiln export smollm2 --to hf --dtype bf16 --shard-size 500MB -o smollm2-bf16\n  kiln export smollm2 --adapter runs/tuned --to hf -o tuned\n  kiln export runs/several --task topics --to hf -o topics\n  kiln export smollm2 --to gguf --scheme Q8_0 -o smollm2.gguf"
)]
pub struct Export {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    #[command(flatten)]
    head: Head,
    /// What to write.
    #[arg(long, value_enum)]
    to: To,
    /// Type of all floats, of a GGUF file of its matrices; as they are stored if absent.
    #[arg(long, value_enum, conflicts_with = "scheme")]
    dtype: Option<Float>,
    /// gguf: blocks in which every matrix is stored: Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q6_K. See also `kiln quantize`.
    #[arg(long)]
    scheme: Option<String>,
    /// hf: most bytes of a file with weights, such as 5GB or 500MiB.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// The new folder, or the new file.
    #[arg(short, long, value_name = "OUTPUT")]
    output: PathBuf,
}

/// Write a GGUF file's model as a Hugging Face folder, with its tokenizer.
///
/// Blocks become f32, floats stay what they are, unless --dtype says otherwise.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln import smollm2-q8_0.gguf -o smollm2\n  kiln import smollm2-q8_0.gguf --dtype f16 --shard-size 1GB -o smollm2-f16"
)]
pub struct Import {
    /// The file.
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// Type of all floats.
    #[arg(long, value_enum)]
    dtype: Option<Float>,
    /// Most bytes of a file with weights, such as 5GB or 500MiB.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// The new folder.
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
}

/// Whose files.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// A folder that transformers loads.
    Hf,
    /// A file that llama.cpp loads.
    Gguf,
}

/// Types of floats.
#[derive(Clone, Copy, ValueEnum)]
enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    fn dtype(self) -> DType {
        match self {
            Float::F32 => DType::F32,
            Float::F16 => DType::F16,
            Float::Bf16 => DType::BF16,
        }
    }

    fn block(self) -> Block {
        match self {
            Float::F32 => Block::F32,
            Float::F16 => Block::F16,
            Float::Bf16 => Block::BF16,
        }
    }
}

impl Export {
    /// Writes the folder or the file, and says what it holds.
    pub fn run(self) -> anyhow::Result<()> {
        let matrices = self.matrices()?;
        expect_free(&self.output)?;
        let place = self.folder.resolve()?;
        let adapters = self.beside.resolve()?;
        let source = match self.head.name() {
            Some(_) if !adapters.is_empty() => {
                return Err(Usage("--adapter does not go with --task".into()).into());
            }
            Some(task) => Source::of_task(&place, task)?,
            None => Source::open(&place, &adapters)?,
        };
        match self.to {
            To::Hf => {
                let options =
                    FolderOptions { dtype: self.dtype.map(Float::dtype), shard_bytes: self.shard_size };
                hand_back(&source, &place, self.head.name(), &self.output, &options)
            }
            To::Gguf => {
                let weights = match matrices {
                    Some(_) => source.opened.weights.widened(),
                    None => source.as_stored()?,
                };
                let name = place.file_stem().map_or("model".into(), |name| name.to_string_lossy());
                let template = source.chat_template()?.map(|text| (TEMPLATE.to_string(), text));
                let options = Options {
                    name: name.into_owned(),
                    matrices: matrices.unwrap_or(Block::F32),
                    texts: template.into_iter().collect(),
                };
                let opened = &source.opened;
                let family = opened.family.as_ref();
                let written =
                    export_gguf(&self.output, family, &weights, opened.tokenizer.as_ref(), &options)?;
                let mut types = std::collections::BTreeMap::new();
                written
                    .tensors
                    .values()
                    .for_each(|block| *types.entry(block.name().to_string()).or_default() += 1);
                let said = WrittenFolder { files: vec![], types, notes: written.notes };
                say(&said, &self.output);
                Ok(())
            }
        }
    }

    /// How a GGUF file is to hold matrices, where something is said.
    fn matrices(&self) -> anyhow::Result<Option<Block>> {
        if self.to == To::Hf {
            return match &self.scheme {
                None => Ok(None),
                Some(_) => Err(Usage(
                    "--scheme is for --to gguf\n  hint: `kiln quantize` writes folders of codes".into(),
                )
                .into()),
            };
        }
        let Some(name) = &self.scheme else { return Ok(self.dtype.map(Float::block)) };
        let block = Block::named(name).filter(|block| block.can_encode());
        let known = || Block::ALL.into_iter().filter(|block| block.can_encode());
        match block {
            Some(block) => Ok(Some(block)),
            None => {
                let known = known().map(Block::name).collect::<Vec<_>>().join(", ");
                Err(Usage(format!(
                    "--scheme {name} is no format of GGUF that is written; expected one of {known}"
                ))
                .into())
            }
        }
    }
}

impl Import {
    /// Writes the folder, and says what it holds.
    pub fn run(self) -> anyhow::Result<()> {
        expect_free(&self.output)?;
        let file = resolve(&self.file, false)?;
        if !is_gguf(&file) {
            let text = format!("{} is no GGUF file\n  hint: `kiln export` reads folders", file.display());
            return Err(Usage(text).into());
        }
        let options = FolderOptions { dtype: self.dtype.map(Float::dtype), shard_bytes: self.shard_size };
        hand_back(&Source::open(&file, &[])?, &file, None, &self.output, &options)
    }
}

/// Writes a folder with all that goes with the weights.
fn hand_back(
    source: &Source,
    place: &Path,
    task: Option<&str>,
    output: &Path,
    options: &FolderOptions,
) -> anyhow::Result<()> {
    let mut written = WrittenFolder::default();
    let origins = origins_of_run(place);
    write_folder(output, |new| {
        written = source.write_folder(new, options)?;
        // What lies nearer to the weights comes later, and stays.
        for origin in &origins {
            copy_origin(origin, source.opened.tokenizer.as_ref(), new)?;
        }
        let of_task = task.map(|task| place.join(TASKS_FOLDER).join(task));
        let near = [source.base(), place].into_iter().chain(of_task.as_deref());
        for folder in near.filter(|folder| folder.is_dir()) {
            copy_companions(folder, new)?;
        }
        if let Some(tokenizer) = source.opened.tokenizer.as_ref().filter(|_| !new.join(FILE_NAME).exists()) {
            tokenizer.save(new)?;
        }
        Ok(source.complete_tokenizer(new)?)
    })?;
    if source.opened.tokenizer.is_none() {
        written.notes.push("the model has no tokenizer that is read here".into());
    }
    say(&written, output);
    Ok(())
}

/// What lay beside the weights that a run began with, where the run still has their tokenizer.
fn copy_origin(origin: &Path, tokenizer: Option<&Tokenizer>, new: &Path) -> anyhow::Result<()> {
    let file = origin.join(FILE_NAME);
    let (Some(tokenizer), true) = (tokenizer, file.is_file()) else { return Ok(()) };
    if Tokenizer::load(&file)?.to_json()? == tokenizer.to_json()? {
        copy_companions(origin, new)?;
    }
    Ok(())
}

fn say(written: &WrittenFolder, output: &Path) {
    let types: Vec<String> = written.types.iter().map(|(name, count)| format!("{count} {name}")).collect();
    println!("tensors  {}", types.join(", "));
    if written.files.len() > 1 {
        println!("files    {}", written.files.len());
    }
    written.notes.iter().for_each(|note| eprintln!("note     {note}"));
    println!("{}", output.display());
}

fn expect_free(output: &Path) -> anyhow::Result<()> {
    Output { path: output, format: Format::Kiln, from: output }.expect_free()
}

/// Bytes, with the units of powers of ten that transformers knows, or of two.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 6] =
        [("KiB", 1024.0), ("MiB", 1048576.0), ("GiB", 1073741824.0), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9)];
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1.0));
    let bytes = number.trim().parse::<f64>().ok().map(|number| number * unit);
    bytes
        .filter(|bytes| bytes.is_finite() && *bytes >= 1.0)
        .map(|bytes| bytes as u64)
        .ok_or_else(|| "expected a size such as 5GB, 500MiB or a number of bytes".into())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units_of_ten_and_of_two() {
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("1.5KiB"), Ok(1536));
        assert_eq!(size("200"), Ok(200));
        for text in ["", "GB", "-1GB", "0", "inf", "5TB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
