"""Quantised models in the convention of compressed-tensors, loaded by transformers: the logits of the same weights as floats."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

folders = sorted(path for path in Path(sys.argv[1]).iterdir() if not path.name.endswith(".floats"))
assert len(folders) == 6, folders
with torch.no_grad():
    for folder in folders:
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        floats = AutoModelForCausalLM.from_pretrained(f"{folder}.floats", dtype=torch.float32).eval()
        tokens = torch.arange(3, 3 + 40).remainder(floats.config.vocab_size)[None]
        expected = floats(tokens).logits
        off = (ours(tokens).logits - expected).abs().max().item()
        # Activations of 8 bits are rounded on the way, by half a step of 1/127 in each layer.
        limit = 0.1 * expected.abs().max().item() if folder.name.endswith("W8A8") else 1e-4
        assert off < limit, f"{folder.name}: logits differ by {off}"
        assert folder.name.endswith("W8A8") == (off > 1e-4), f"{folder.name}: logits differ by {off} only"
