"""Our adapters loaded by PEFT beside the golden models: every tensor finds its place, and the scores are ours."""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# A key that PEFT does not know, or a tensor that it misses, is only warned of.
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=FutureWarning)
folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
assert len(folders) == int(sys.argv[2]), folders
for folder in folders:
    config = json.loads((folder / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    ours, theirs = load_file(folder / "adapter_model.safetensors"), get_peft_model_state_dict(model)
    assert ours.keys() == theirs.keys(), f"{folder.name}: {ours.keys() ^ theirs.keys()}"
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), f"{folder.name}: {name}"
    expected = load_file(folder / "logits.safetensors")["logits"]
    tokens = torch.arange(3, 3 + 16).remainder(base.config.vocab_size)[None]
    with torch.no_grad():
        for how, logits in [("beside", model(tokens).logits), ("merged", model.merge_and_unload()(tokens).logits)]:
            off = (logits.reshape(expected.shape) - expected).abs().max().item()
            assert off < 1e-4, f"{folder.name}, {how}: scores differ by {off}"
