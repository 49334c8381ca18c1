"""Modules in the convention of compressed-tensors, decompressed by that package: the floats beside them, bit for bit."""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file

folders = sorted(Path(sys.argv[1]).iterdir())
assert len(folders) == 32, folders
for folder in folders:
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(settings)
    scheme = config.config_groups["group_0"]
    assert scheme.targets == ["Linear"] and config.ignore == ["lm_head"]
    tensors = load_file(folder / "model.safetensors")
    local = {name.removeprefix("layer."): tensor for name, tensor in tensors.items()}
    compressor = BaseCompressor.get_value_from_registry(config.format)
    weight = compressor.decompress(dict(local), scheme)["weight"]
    expected = load_file(folder / "floats.safetensors")["weight"]
    assert weight.dtype == torch.float32 and torch.equal(weight, expected), f"{folder.name}: other values"
    # And the package makes the same tensors of those values.
    again = {"weight": weight, "weight_scale": local["weight_scale"]}
    if not scheme.weights.symmetric:
        zeros = local["weight_zero_point"]
        if config.format == "pack-quantized":
            from compressed_tensors.compressors.pack_quantized import unpack_from_int32

            shape = (24, local["weight_scale"].shape[1])
            zeros = unpack_from_int32(zeros, scheme.weights.num_bits, shape, packed_dim=0)
        again["weight_zero_point"] = zeros
    made = compressor.compress(again, scheme)
    assert made.keys() == local.keys(), f"{folder.name}: {made.keys()}, expected {local.keys()}"
    for name, tensor in made.items():
        assert torch.equal(tensor, local[name]), f"{folder.name}: other {name}"
