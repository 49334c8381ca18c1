"""Folders of ours loaded by transformers: the logits of each are those that kiln computes."""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

folder = Path(sys.argv[1])
count = 0
with torch.no_grad():
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        config = json.loads((place / "config.json").read_text())
        kind = getattr(transformers, config["architectures"][0])
        model, told = kind.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
        missing = [name for name in told["missing_keys"]]
        assert not missing and not told["unexpected_keys"], f"{place.name}: {told}"
        inputs = load_file(folder / f"{place.name}.inputs.safetensors")
        expected = load_file(folder / f"{place.name}.logits.safetensors")["logits"]
        got = model.eval()(**inputs).logits.reshape(expected.shape)
        off = (got - expected).abs().max().item()
        assert off < 1e-4, f"{place.name}: logits differ by {off}"
        count += 1
print(f"{count} folders")
assert count == int(sys.argv[2]), count
