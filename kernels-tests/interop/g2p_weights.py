"""The weights of the package g2p-en as safetensors. The package itself is not imported: it would fetch dictionaries."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy
from safetensors.numpy import save_file

folder = Path(find_spec("g2p_en").origin).parent
weights = numpy.load(folder / "checkpoint20.npz")
save_file({name: numpy.ascontiguousarray(weights[name]) for name in weights.files}, sys.argv[1])
