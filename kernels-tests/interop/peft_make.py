"""Adapters of several kinds made by PEFT beside the golden models, with the scores of each for one text."""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

out, models = Path(sys.argv[1]), Path(sys.argv[2])
llama = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
CASES = {
    "llama-gqa": [
        {**llama, "r": 4, "lora_alpha": 8},
        {"target_modules": "all-linear", "r": 3, "lora_alpha": 5, "use_rslora": True, "lora_dropout": 0.1},
        {**llama, "r": 2, "lora_alpha": 4, "use_dora": True},
        {**llama, "r": 4, "modules_to_save": ["norm", "input_layernorm"]},
        {**llama, "r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
    ],
    "gpt2": [
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "r": 4},
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "r": 4, "use_dora": True},
    ],
    "qwen2": [{**llama, "r": 4, "use_dora": True}],
    "gpt-neox-parallel": [{"target_modules": ["query_key_value", "dense_h_to_4h"], "r": 4}],
}
for name, settings in CASES.items():
    for number, setting in enumerate(settings):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32)
        # Not the usual first factors, which change nothing.
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **setting))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_magnitude" in key or "modules_to_save" in key:
                    parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
        folder = out / f"{name}.{number}"
        model.save_pretrained(folder)
        tokens = torch.arange(3, 3 + 16).remainder(base.config.vocab_size)[None]
        with torch.no_grad():
            logits, plain = model.eval()(tokens).logits, model.get_base_model()
            with model.disable_adapter():
                before = plain(tokens).logits
        assert (logits - before).abs().max() > 1e-2, f"{folder.name}: the adapter changes nothing"
        save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")
