//! The keys that describe a model, and its `config.json`.

use super::names::Architecture;
use super::{Error, Result};
use crate::formats::gguf::{Gguf, Metadata, Value};
use crate::model::{Config, Family, shortest};
use serde_json::{Map, Value as Json, json};

/// Tensor with a divisor for the rate of each pair of rotary elements.
pub(super) const RATES: &str = "rope_freqs.weight";
/// Key with the template by which a chat becomes a text.
pub const TEMPLATE: &str = "tokenizer.chat_template";
/// Key of our own: the settings behind those divisors.
const RATES_KEY: &str = "kiln.rope.llama3";
/// Key of our own: the activation, where it is not the one that a family has in this format.
const ACTIVATION_KEY: &str = "kiln.activation";
/// What llama.cpp's converter finds in Llama 3.1 and 3.2: factor, low, high, original context.
const USUAL_RATES: &[(f64, f64, f64, usize)] = &[(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192)];

/// GPT-2's activation as its programs take it, and as it is defined.
const USUAL_GELU: &str = "gelu_new";
const EXACT_GELU: &str = "gelu";

/// What a family's configuration becomes.
pub(super) struct Described {
    /// Keys of the architecture.
    pub keys: Vec<(String, Value)>,
    /// Divisors of the rotary rates, where they are not all one.
    pub rates: Option<Vec<f32>>,
    /// What other programs may not follow.
    pub notes: Vec<String>,
}

/// The keys of a family.
pub(super) fn describe(family: &dyn Family, architecture: &Architecture) -> Result<Described> {
    let config = Config::new(format!("this {}", family.name()), family.config());
    let writer = Writer { family: family.name(), config, architecture: architecture.name, keys: vec![] };
    match family.name() {
        "gpt2" => writer.gpt2(),
        "gpt_neox" => writer.neox(),
        _ => writer.llama(),
    }
}

struct Writer<'a> {
    family: &'a str,
    config: Config,
    architecture: &'a str,
    keys: Vec<(String, Value)>,
}

impl Writer<'_> {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.keys.push((format!("{}.{key}", self.architecture), value.into()));
    }

    /// A size of the model under another name.
    fn size(&mut self, key: &str, here: &'static str) -> Result<usize> {
        let size = self.config.needed_count(here)?;
        self.put(key, size as u32);
        Ok(size)
    }

    fn expect(&self, key: &str, good: &[Json]) -> Result<()> {
        let got = self.config.keys().get(key).unwrap_or(&Json::Null);
        if good.contains(got) {
            return Ok(());
        }
        let expected = good.iter().map(Json::to_string).collect::<Vec<_>>().join(" or ");
        let family = self.family.to_string();
        Err(Error::Setting { family, key: key.to_string(), expected, got: got.to_string() })
    }

    fn gpt2(mut self) -> Result<Described> {
        let mut notes = vec![];
        self.expect("activation_function", &[json!(USUAL_GELU), json!(EXACT_GELU)])?;
        if self.config.keys().get("activation_function") == Some(&json!(EXACT_GELU)) {
            self.keys.push((ACTIVATION_KEY.into(), EXACT_GELU.into()));
            notes.push(
                "other programs take GELU by its tanh form, and get logits that differ in the third digit"
                    .into(),
            );
        }
        self.expect("scale_attn_weights", &[json!(true)])?;
        self.expect("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
        // Heads that no longer share the width, as pruning leaves them, have no key there.
        self.expect("head_dim", &[Json::Null])?;
        self.size("vocab_size", "vocab_size")?;
        self.size("context_length", "n_positions")?;
        self.size("embedding_length", "n_embd")?;
        self.size("block_count", "n_layer")?;
        self.size("feed_forward_length", "n_inner")?;
        self.size("attention.head_count", "n_head")?;
        self.put("attention.layer_norm_epsilon", self.config.needed_number("layer_norm_epsilon")? as f32);
        Ok(Described { keys: self.keys, rates: None, notes })
    }

    fn neox(mut self) -> Result<Described> {
        self.expect("hidden_act", &[json!(EXACT_GELU)])?;
        self.expect("attention_bias", &[json!(true)])?;
        self.expect("tie_word_embeddings", &[json!(false)])?;
        // Positions that are scaled, and heads that no longer share the width, have no key there.
        self.expect("rope_scaling", &[Json::Null])?;
        self.expect("head_dim", &[Json::Null])?;
        self.size("vocab_size", "vocab_size")?;
        self.size("context_length", "max_position_embeddings")?;
        let width = self.size("embedding_length", "hidden_size")?;
        self.size("block_count", "num_hidden_layers")?;
        self.size("feed_forward_length", "intermediate_size")?;
        let heads = self.size("attention.head_count", "num_attention_heads")?;
        let share = self.config.needed_number("rotary_pct")?;
        self.put("rope.dimension_count", (share * (width / heads) as f64) as u32);
        self.put("rope.freq_base", self.config.needed_number("rotary_emb_base")? as f32);
        self.put("use_parallel_residual", self.config.keys()["use_parallel_residual"] == json!(true));
        self.put("attention.layer_norm_epsilon", self.config.needed_number("layer_norm_eps")? as f32);
        let note = "other programs take GELU by its tanh form, and get logits that differ in the third digit";
        Ok(Described { keys: self.keys, rates: None, notes: vec![note.into()] })
    }

    fn llama(mut self) -> Result<Described> {
        self.expect("hidden_act", &[json!("silu"), json!("swish")])?;
        self.expect("use_sliding_window", &[json!(false), Json::Null])?;
        self.expect("partial_rotary_factor", &[json!(1.0), Json::Null])?;
        self.size("vocab_size", "vocab_size")?;
        self.size("context_length", "max_position_embeddings")?;
        self.size("embedding_length", "hidden_size")?;
        self.size("block_count", "num_hidden_layers")?;
        self.size("feed_forward_length", "intermediate_size")?;
        self.size("attention.head_count", "num_attention_heads")?;
        self.size("attention.head_count_kv", "num_key_value_heads")?;
        for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            self.size(key, "head_dim")?;
        }
        self.put("attention.layer_norm_rms_epsilon", self.config.needed_number("rms_norm_eps")? as f32);
        self.put("rope.freq_base", self.config.needed_number("rope_theta")? as f32);
        let mut notes = vec![];
        if let Some(window) = self.config.keys().get("sliding_window").and_then(Json::as_u64) {
            self.put("attention.sliding_window", window as u32);
            let context = self.config.needed_count("max_position_embeddings")?;
            if (window as usize) < context {
                notes.push(format!(
                    "programs that know no window for llama will see all keys beyond {window} tokens"
                ));
            }
        }
        let rates = self.rotary()?;
        Ok(Described { keys: self.keys, rates, notes })
    }

    fn rotary(&mut self) -> Result<Option<Vec<f32>>> {
        let Some(table) = self.config.inner("rope_scaling")? else { return Ok(None) };
        match table.word(&["rope_type", "type"], "default")? {
            "linear" => {
                self.put("rope.scaling.type", "linear");
                self.put("rope.scaling.factor", table.needed_number("factor")? as f32);
                Ok(None)
            }
            "llama3" => {
                let number = |key| table.needed_number(key);
                let original = table.needed_count("original_max_position_embeddings")?;
                let settings =
                    (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?, original);
                let text = Json::Object(table.keys().clone()).to_string();
                self.keys.push((RATES_KEY.into(), text.as_str().into()));
                let theta = self.config.needed_number("rope_theta")?;
                Ok(Some(divisors(theta, self.config.needed_count("head_dim")?, settings)))
            }
            _ => Ok(None),
        }
    }
}

/// By what llama3's scaling divides the rate of each pair.
fn divisors(theta: f64, head: usize, (factor, low, high, original): (f64, f64, f64, usize)) -> Vec<f32> {
    let divisor = |pair: usize| {
        let rate = theta.powf(-2.0 * pair as f64 / head as f64);
        let turns = original as f64 * rate / std::f64::consts::TAU;
        let fast = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / (fast + (1.0 - fast) / factor)) as f32
    };
    (0..head / 2).map(divisor).collect()
}

/// The `config.json` that a file's keys describe.
pub(super) fn read(file: &Gguf, architecture: &Architecture) -> Result<Map<String, Json>> {
    let reader = Reader { file, keys: file.metadata(), architecture: architecture.name };
    let mut config = match architecture.name {
        "gpt2" => reader.gpt2()?,
        "gptneox" => reader.neox()?,
        _ => reader.llama()?,
    };
    for (id, here) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        if let Some(token) = reader.keys.count(&format!("tokenizer.ggml.{id}_token_id"))? {
            config.insert(here.into(), json!(token));
        }
    }
    Ok(config)
}

struct Reader<'a> {
    file: &'a Gguf,
    keys: &'a Metadata,
    architecture: &'a str,
}

impl Reader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<usize> {
        Ok(self.keys.needed_count(&self.key(key))?)
    }

    /// Blocks, each of which has tensors: a count beyond theirs would have us list parameters without end.
    fn blocks(&self) -> Result<usize> {
        let (blocks, most) = (self.size("block_count")?, self.file.tensors().len());
        if blocks <= most {
            return Ok(blocks);
        }
        Err(self
            .keys
            .refuse(&self.key("block_count"), format!("at most the {most} tensors of the file"))
            .into())
    }

    fn size_or(&self, key: &str, usual: usize) -> Result<usize> {
        Ok(self.keys.count(&self.key(key))?.unwrap_or(usual))
    }

    fn number(&self, key: &str, usual: Option<f64>) -> Result<f64> {
        let key = self.key(key);
        let number = self.keys.number(&key)?.or(usual);
        Ok(shortest(number.ok_or_else(|| self.keys.refuse(&key, "a number"))? as f32))
    }

    /// Tokens, by the embedding: the key is often absent.
    fn vocabulary(&self) -> Result<usize> {
        let name = "token_embd.weight";
        let path = self.file.path().to_path_buf();
        let absent = || crate::formats::Error::NoTensor { path, name: name.to_string() };
        Ok(self.file.find(name).ok_or_else(absent)?.shape.rows())
    }

    /// Whether the head is the embedding: absent, or the same bytes again.
    fn tie(&self) -> bool {
        let (head, embedding) = (self.file.find("output.weight"), self.file.find("token_embd.weight"));
        match (head, embedding) {
            (Some(head), Some(embedding)) => {
                head.kind == embedding.kind && self.file.bytes(head) == self.file.bytes(embedding)
            }
            _ => true,
        }
    }

    fn gpt2(&self) -> Result<Map<String, Json>> {
        let activation = match self.keys.get(ACTIVATION_KEY) {
            None => USUAL_GELU,
            Some(_) => self.keys.text(ACTIVATION_KEY)?,
        };
        let config = json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": activation,
            "vocab_size": self.vocabulary()?,
            "n_positions": self.size("context_length")?,
            "n_embd": self.size("embedding_length")?,
            "n_layer": self.blocks()?,
            "n_inner": self.size("feed_forward_length")?,
            "n_head": self.size("attention.head_count")?,
            "layer_norm_epsilon": self.number("attention.layer_norm_epsilon", None)?,
            "tie_word_embeddings": self.tie(),
        });
        Ok(object(config))
    }

    fn neox(&self) -> Result<Map<String, Json>> {
        let (width, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head = width / heads;
        let turned = self.size_or("rope.dimension_count", head)?;
        if head == 0 || turned > head {
            let expected = format!("at most the {head} channels of a head");
            return Err(self.keys.refuse(&self.key("rope.dimension_count"), expected).into());
        }
        let parallel = self.keys.flag(&self.key("use_parallel_residual"))?.unwrap_or(true);
        Ok(object(json!({
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "hidden_act": EXACT_GELU,
            "attention_bias": true,
            "vocab_size": self.vocabulary()?,
            "max_position_embeddings": self.size("context_length")?,
            "hidden_size": width,
            "intermediate_size": self.size("feed_forward_length")?,
            "num_hidden_layers": self.blocks()?,
            "num_attention_heads": heads,
            "layer_norm_eps": self.number("attention.layer_norm_epsilon", None)?,
            "rotary_emb_base": self.number("rope.freq_base", Some(10_000.0))?,
            "rotary_pct": turned as f64 / head as f64,
            "use_parallel_residual": parallel,
            "tie_word_embeddings": self.tie(),
        })))
    }

    fn llama(&self) -> Result<Map<String, Json>> {
        if self.size_or("expert_count", 0)? > 0 {
            let expected = "absent or 0: mixtures of experts are not read";
            return Err(self.keys.refuse(&self.key("expert_count"), expected).into());
        }
        let window = self.keys.count(&self.key("attention.sliding_window"))?.filter(|&window| window > 0);
        let family = match (self.architecture, window) {
            ("llama", Some(_)) => "mistral",
            (other, None) => other,
            (_, Some(_)) => {
                let expected = "absent: windows of this architecture are not read";
                return Err(self.keys.refuse(&self.key("attention.sliding_window"), expected).into());
            }
        };
        let (width, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head = self.size_or("attention.key_length", width / heads)?;
        for key in ["attention.value_length", "rope.dimension_count"] {
            if self.size_or(key, head)? != head {
                let expected = format!("{head}, as attention.key_length");
                return Err(self.keys.refuse(&self.key(key), expected).into());
            }
        }
        let has = |end: &str| self.file.tensors().iter().any(|tensor| tensor.name.ends_with(end));
        let architecture = match family {
            "llama" => "LlamaForCausalLM",
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            _ => "Qwen3ForCausalLM",
        };
        let mut config = object(json!({
            "architectures": [architecture],
            "model_type": family,
            "hidden_act": "silu",
            "vocab_size": self.vocabulary()?,
            "max_position_embeddings": self.size("context_length")?,
            "hidden_size": width,
            "intermediate_size": self.size("feed_forward_length")?,
            "num_hidden_layers": self.blocks()?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.size_or("attention.head_count_kv", heads)?,
            "head_dim": head,
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon", None)?,
            "rope_theta": self.number("rope.freq_base", Some(10_000.0))?,
            "tie_word_embeddings": self.tie(),
        }));
        match family {
            "mistral" => drop(config.insert("sliding_window".into(), json!(window))),
            "qwen2" => {}
            _ => drop(config.insert("attention_bias".into(), json!(has(".attn_q.bias")))),
        }
        if family == "llama" {
            config.insert("mlp_bias".into(), json!(has(".ffn_up.bias")));
        }
        if let Some(scaling) = self.scaling(head, config["rope_theta"].as_f64().unwrap_or_default())? {
            config.insert("rope_scaling".into(), scaling);
        }
        Ok(config)
    }

    fn scaling(&self, head: usize, theta: f64) -> Result<Option<Json>> {
        let key = self.key("rope.scaling.type");
        let kind = self.keys.get(&key).map(|_| self.keys.text(&key)).transpose()?;
        let linear = match kind {
            None | Some("none") => None,
            Some("linear") => {
                let factor = self.number("rope.scaling.factor", None)?;
                Some(json!({ "rope_type": "linear", "factor": factor }))
            }
            Some(_) => return Err(self.keys.refuse(&key, "none or linear").into()),
        };
        let Some(rates) = self.file.find(RATES) else { return Ok(linear) };
        let rates = self.file.tensor(rates)?;
        if self.keys.get(RATES_KEY).is_some() {
            let text = self.keys.text(RATES_KEY)?;
            let table = serde_json::from_str(text).ok().filter(Json::is_object);
            return Ok(Some(table.ok_or_else(|| self.keys.refuse(RATES_KEY, "a table as JSON"))?));
        }
        let is = |settings: &&(f64, f64, f64, usize)| {
            let divisors = divisors(theta, head, **settings);
            let rates: &[f32] = rates.real();
            divisors.len() == rates.len()
                && divisors.iter().zip(rates).all(|(d, r)| (d - r).abs() <= 1e-3 * d)
        };
        let found = USUAL_RATES.iter().find(is);
        let (factor, low, high, original) = found.ok_or_else(|| {
            self.keys.refuse(RATES_KEY, format!("the settings of `{RATES}`, which are not those of Llama 3"))
        })?;
        Ok(Some(json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original,
        })))
    }
}

fn object(json: Json) -> Map<String, Json> {
    let Json::Object(map) = json else { unreachable!("only literals of objects are given") };
    map
}
