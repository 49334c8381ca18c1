//! What tensors are called on either side.

use super::{Error, Result};

/// How a family's checkpoints and GGUF name the same tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// Before the number of a block, here.
    prefix: &'static str,
    /// Modules outside of blocks, here and there.
    outside: &'static [(&'static str, &'static str)],
    /// Modules of a block, here and there.
    inside: &'static [(&'static str, &'static str)],
}

/// An architecture of GGUF and the families that it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Architecture {
    /// Name in the file, and prefix of its keys.
    pub name: &'static str,
    /// Names of its tensors.
    pub names: Names,
    /// Linear weights are stored as [in, out] here, as [out, in] there.
    pub turned: bool,
    /// Rows of queries and keys stand in pairs there, in halves here.
    pub pairs: bool,
    /// Query, key and value of each head follow each other here, all queries come first there.
    pub braided: bool,
}

const GPT2: Names = Names {
    prefix: "transformer.h.",
    outside: &[
        ("transformer.wte", "token_embd"),
        ("transformer.wpe", "position_embd"),
        ("transformer.ln_f", "output_norm"),
        ("lm_head", "output"),
    ],
    inside: &[
        ("ln_1", "attn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
    ],
};

const LLAMA: Names = Names {
    prefix: "model.layers.",
    outside: &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")],
    inside: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ],
};

const NEOX: Names = Names {
    prefix: "gpt_neox.layers.",
    outside: &[
        ("gpt_neox.embed_in", "token_embd"),
        ("gpt_neox.final_layer_norm", "output_norm"),
        ("embed_out", "output"),
    ],
    inside: &[
        ("input_layernorm", "attn_norm"),
        ("attention.query_key_value", "attn_qkv"),
        ("attention.dense", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.dense_h_to_4h", "ffn_up"),
        ("mlp.dense_4h_to_h", "ffn_down"),
    ],
};

/// Tensors by names alone; what else differs is said of each.
const fn plain(name: &'static str, names: Names) -> Architecture {
    Architecture { name, names, turned: false, pairs: false, braided: false }
}

const KNOWN: &[(&str, Architecture)] = &[
    ("gpt2", Architecture { turned: true, ..plain("gpt2", GPT2) }),
    ("llama", Architecture { pairs: true, ..plain("llama", LLAMA) }),
    ("mistral", Architecture { pairs: true, ..plain("llama", LLAMA) }),
    ("qwen2", plain("qwen2", LLAMA)),
    ("qwen3", plain("qwen3", LLAMA)),
    ("gpt_neox", Architecture { braided: true, ..plain("gptneox", NEOX) }),
];

impl Architecture {
    /// The architecture of a family.
    pub fn of_family(family: &str) -> Result<Architecture> {
        let found = KNOWN.iter().find(|(name, _)| *name == family).map(|(_, architecture)| *architecture);
        found.ok_or_else(|| unknown(format!("the family `{family}`")))
    }

    /// An architecture by its own name.
    pub fn named(name: &str) -> Result<Architecture> {
        let found = KNOWN.iter().map(|(_, architecture)| *architecture).find(|a| a.name == name);
        found.ok_or_else(|| unknown(format!("the architecture `{name}`")))
    }

    /// Name in the file of a tensor that is called `here` in checkpoints.
    pub fn stored_name(&self, here: &str) -> Option<String> {
        let (module, part) = here.rsplit_once('.')?;
        let there = |list: &[(&str, &'static str)], module: &str| {
            list.iter().find(|(here, _)| *here == module).map(|(_, there)| *there)
        };
        if let Some(there) = there(self.names.outside, module) {
            return Some(format!("{there}.{part}"));
        }
        let (block, module) = module.strip_prefix(self.names.prefix)?.split_once('.')?;
        let block: usize = block.parse().ok()?;
        Some(format!("blk.{block}.{}.{part}", there(self.names.inside, module)?))
    }

    /// Whether a parameter is a linear weight that is stored as [in, out] here.
    pub fn is_turned(&self, here: &str) -> bool {
        self.turned
            && [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| here.ends_with(end))
    }

    /// Whether the rows of a parameter change their order, and how.
    pub fn turning(&self, here: &str) -> Option<Turning> {
        let (module, _) = here.rsplit_once('.')?;
        match module.rsplit_once('.')?.1 {
            "q_proj" if self.pairs => Some(Turning::Queries),
            "k_proj" if self.pairs => Some(Turning::Keys),
            "query_key_value" if self.braided => Some(Turning::Braid),
            _ => None,
        }
    }
}

/// Rows that stand in another order there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turning {
    /// Those that rotary positions turn, with as many heads as there are queries.
    Queries,
    /// The same, with as many heads as there are keys.
    Keys,
    /// Queries, keys and values in one matrix.
    Braid,
}

pub(super) fn unknown(what: String) -> Error {
    let known = KNOWN.iter().map(|(family, _)| *family).collect::<Vec<_>>().join(", ");
    Error::Family { what, known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_gguf_package() {
        // From gguf.get_tensor_name_map of gguf 0.19.0.
        let gpt2 = Architecture::of_family("gpt2").unwrap();
        let llama = Architecture::of_family("mistral").unwrap();
        for (architecture, here, there) in [
            (gpt2, "transformer.wpe.weight", "position_embd.weight"),
            (gpt2, "transformer.h.11.attn.c_attn.bias", "blk.11.attn_qkv.bias"),
            (gpt2, "transformer.h.0.mlp.c_proj.weight", "blk.0.ffn_down.weight"),
            (llama, "model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
            (llama, "model.norm.weight", "output_norm.weight"),
            (llama, "lm_head.weight", "output.weight"),
        ] {
            assert_eq!(architecture.stored_name(here).as_deref(), Some(there));
        }
        for here in ["weight", "model.layers.x.self_attn.q_proj.weight", "model.layers.1.mlp.other.weight"] {
            assert_eq!(llama.stored_name(here), None);
        }
    }

    #[test]
    fn what_changes_its_layout_is_told_by_its_name() {
        let gpt2 = Architecture::of_family("gpt2").unwrap();
        assert!(gpt2.is_turned("transformer.h.0.attn.c_proj.weight"));
        assert!(
            !gpt2.is_turned("transformer.wte.weight") && !gpt2.is_turned("transformer.h.0.attn.c_proj.bias")
        );
        let llama = Architecture::of_family("llama").unwrap();
        assert_eq!(llama.turning("model.layers.0.self_attn.q_proj.bias"), Some(Turning::Queries));
        assert_eq!(llama.turning("model.layers.0.self_attn.v_proj.weight"), None);
        let qwen = Architecture::of_family("qwen2").unwrap();
        assert_eq!(qwen.turning("model.layers.0.self_attn.q_proj.weight"), None);
        let neox = Architecture::of_family("gpt_neox").unwrap();
        let joint = "gpt_neox.layers.1.attention.query_key_value.bias";
        assert_eq!(neox.stored_name(joint).as_deref(), Some("blk.1.attn_qkv.bias"));
        assert_eq!(neox.turning(joint), Some(Turning::Braid));
        assert!(matches!(Architecture::of_family("bert"), Err(Error::Family { .. })));
    }
}
