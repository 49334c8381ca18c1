"""Weights without their zeros: put together from the parts by the helpers that compressed-tensors still has, bit for bit.

The package reads whole models in these forms up to 0.12 only; how it packs masks has not changed.
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.utils.helpers import pack_bitmasks, unpack_bitmasks
from safetensors.torch import load_file

folders = sorted(Path(sys.argv[1]).iterdir())
assert len(folders) == 3, folders
for folder in folders:
    settings = json.loads((folder / "sparse" / "config.json").read_text())["quantization_config"]
    sparsity = settings["sparsity_config"]
    two_of_four = sparsity["format"] == "sparse-24-bitmask"
    assert settings["quant_method"] == "compressed-tensors" and len(sparsity["targets"]) > 1, settings
    parts = load_file(folder / "sparse" / "model.safetensors")
    whole = load_file(folder / "whole" / "model.safetensors")
    found = 0
    for module in sparsity["targets"]:
        shape = parts[f"{module}.shape"].flatten().tolist()
        mask = unpack_bitmasks(parts[f"{module}.bitmask"], shape)
        weight = torch.zeros(shape, dtype=parts[f"{module}.compressed"].dtype)
        weight[mask] = parts[f"{module}.compressed"].flatten()
        expected = whole[f"{module}.weight"]
        assert torch.equal(weight.view(torch.int32), expected.view(torch.int32)), f"{folder.name}: other {module}"
        assert torch.equal(pack_bitmasks(mask), parts[f"{module}.bitmask"])
        if two_of_four:
            assert (mask.reshape(-1, 4).sum(1) == 2).all() and parts[f"{module}.compressed"].shape == (shape[0], shape[1] // 2)
        else:
            counts = mask.sum(1)
            assert torch.equal(parts[f"{module}.row_offsets"], torch.cumsum(counts, 0) - counts)
        found += 1
    assert found + len([name for name in parts if name in whole]) == len(whole), folder.name
