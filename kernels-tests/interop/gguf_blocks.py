"""blocks.gguf in a folder: decoded by the gguf package to the floats beside it, encoded to the same bytes, written again to the same file."""

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants
from safetensors.numpy import load_file

folder = Path(sys.argv[1])
reader = GGUFReader(folder / "blocks.gguf")
floats = load_file(folder / "floats.safetensors")
assert len(reader.tensors) == len(floats) - 1 > 8, "tensors are missing"
for tensor in reader.tensors:
    decoded = quants.dequantize(tensor.data, tensor.tensor_type)
    same = decoded.reshape(6, 512).view(np.uint32) == floats[tensor.name].view(np.uint32)
    assert same.all(), f"{tensor.name}: other floats"
    try:
        encoded = quants.quantize(floats["x"], tensor.tensor_type)
    except NotImplementedError:
        assert tensor.name in ("Q4_K", "Q6_K"), f"{tensor.name} is not encoded by the package"
        continue
    assert encoded.tobytes() == tensor.data.tobytes(), f"{tensor.name}: other bytes"

writer = GGUFWriter(folder / "again.gguf", "llama")
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture":
        continue
    kind = field.types[0]
    inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
    writer.add_key_value(name, field.contents(), kind, inner)
for tensor in reader.tensors:
    kind = tensor.tensor_type
    plain = kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=None if plain else kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
ours, theirs = ((folder / name).read_bytes() for name in ("blocks.gguf", "again.gguf"))
assert ours == theirs, "the package writes another file"
