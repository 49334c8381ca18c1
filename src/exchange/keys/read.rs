//! The `config.json` that a file's keys describe.

use super::super::Result;
use super::super::names::Architecture;
use super::{ACTIVATION_KEY, EXACT_GELU, RATES, RATES_KEY, USUAL_GELU, USUAL_RATES, divisors};
use crate::formats::gguf::{Gguf, Metadata};
use crate::model::shortest;
use serde_json::{Map, Value as Json, json};

/// The `config.json` that a file's keys describe.
pub(in crate::exchange) fn read(file: &Gguf, architecture: &Architecture) -> Result<Map<String, Json>> {
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
