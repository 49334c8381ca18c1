"""Models in GGUF against their checkpoints: names by the package's own map, rows in the order of llama.cpp's converter."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFReader, quants
from safetensors.numpy import load_file

ARCHITECTURES = {"mistral": "llama", "gpt_neox": "gptneox"}


def pairs(weight, heads):
    """The converter's order of the rows of queries and keys."""
    size = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, size, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def expected(name, weight, kind, config):
    if kind == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return weight.T
    if kind == "llama" and ".q_proj." in name:
        return pairs(weight, config["num_attention_heads"])
    if kind == "llama" and ".k_proj." in name:
        return pairs(weight, config["num_key_value_heads"])
    if kind == "gptneox" and ".query_key_value." in name:
        # The converter puts all queries first, then all keys, then all values.
        heads = weight.reshape(config["num_attention_heads"], 3, -1, *weight.shape[1:])
        return heads.swapaxes(0, 1).reshape(weight.shape)
    return weight


def check(path, folder):
    config = json.loads((folder / "config.json").read_text())
    kind = ARCHITECTURES.get(config["model_type"], config["model_type"])
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    layers = config.get("num_hidden_layers") or config["n_layer"]
    names = gguf.get_tensor_name_map(number, layers)
    reader = GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.fields["general.architecture"].contents() == kind
    assert reader.fields[f"{kind}.block_count"].contents() == layers
    allowed = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[number]}
    for name, weight in load_file(folder / "model.safetensors").items():
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert there, f"the package has no name for {name}"
        tensor = tensors.pop(there)
        wanted = np.ascontiguousarray(expected(name, weight, kind, config))
        exact = tensor.tensor_type in (gguf.GGMLQuantizationType.F32,)
        if exact:
            got = tensor.data
        else:
            got = quants.dequantize(tensor.data, tensor.tensor_type)
            bytes_wanted = quants.quantize(wanted, tensor.tensor_type).tobytes()
            assert bytes_wanted == tensor.data.tobytes(), f"{path.name}: {there} has other bytes"
        assert got.shape == wanted.shape, f"{path.name}: {there} has shape {got.shape}, expected {wanted.shape}"
        assert not exact or (got == wanted).all(), f"{path.name}: {there} has other values"
    assert not tensors, f"{path.name}: {list(tensors)} are not in the checkpoint"
    assert allowed


files = sorted(Path(sys.argv[1]).glob("*.gguf"))
assert len(files) == 21, files
for path in files:
    check(path, Path(sys.argv[2]) / path.name.split(".")[0])
