#!/usr/bin/env python3
"""Linear layers in 8 bits on the CPU: PyTorch's dynamic int8 linear against kiln's matmul of codes, on the same cores.

    pip install torch
    cargo build --release
    python benches/int8.py --kiln target/release/kiln

PyTorch quantises activations within its layer; kiln does that in an operator of its own, whose time is added. Both have their
weights in 8 bits beforehand, and both give f32. Rounds alternate; the medians over rounds count, in multiply-adds counted as
two. f32 layers of both stand beside them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

SHAPES = [(1, 1024, 1024), (128, 1024, 1024), (512, 512, 512), (1024, 1024, 1024)]
SECONDS = 0.3


def pytorch(threads):
    """Milliseconds of [int8, f32] for each shape; runs in a process of its own."""
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)

    def measure(layer, x):
        with torch.no_grad():
            for _ in range(5):
                layer(x)
            times, end = [], time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                start = time.perf_counter()
                layer(x)
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    rows = []
    for m, n, k in SHAPES:
        single = torch.nn.Linear(k, n, bias=False)
        whole = torch.nn.Sequential(single)
        codes = torch.ao.quantization.quantize_dynamic(whole, {torch.nn.Linear}, dtype=torch.qint8)
        x = torch.randn(m, k)
        rows.append([measure(codes, x), measure(single, x)])
    return rows


def bench(binary, family, shape, threads):
    """Median milliseconds of an operator on the host."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.json")
        command = [binary, "bench", "kernels", "--device", "cpu", "--only", family, "--dtype", "f32", "-o", out]
        command += ["--shape", "x".join(map(str, shape)), "--seconds", str(SECONDS)]
        environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(out) as file:
            return json.load(file)["rows"][0]["ms"]["median"]


def kiln(binary, threads):
    """Milliseconds of [product of codes, quantising the activations, f32] for each shape."""
    rows = []
    for m, n, k in SHAPES:
        families = [("matmul_int8", (m, n, k)), ("quantize_rows", (m, k)), ("matmul_nt", (m, n, k))]
        rows.append([bench(binary, family, shape, threads) for family, shape in families])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", default="target/release/kiln", help="the binary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pytorch-times", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pytorch_times:
        print(json.dumps(pytorch(arguments.threads)))
        return
    theirs, ours = [], []
    for _ in range(arguments.rounds):
        command = [sys.executable, __file__, "--pytorch-times", "--threads", str(arguments.threads)]
        # Its own process, so that neither's idle threads disturb the other.
        theirs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        ours.append(kiln(arguments.kiln, arguments.threads))
    print(f"{'GOP/s':16} {'PyTorch int8':>12} {'kiln int8':>10} {'product alone':>13} {'PyTorch f32':>12} {'kiln f32':>9}")
    for i, (m, n, k) in enumerate(SHAPES):
        middle = lambda rounds, of: statistics.median(of(one[i]) for one in rounds)
        rate = lambda ms: 2e-6 * m * n * k / ms
        int8, single = middle(theirs, lambda row: row[0]), middle(theirs, lambda row: row[1])
        product, quantise = middle(ours, lambda row: row[0]), middle(ours, lambda row: row[1])
        own = middle(ours, lambda row: row[2])
        cells = [rate(int8), rate(product + quantise), rate(product), rate(single), rate(own)]
        name = f"{m} x {n} x {k}"
        print(f"{name:16} {cells[0]:12.0f} {cells[1]:10.0f} {cells[2]:13.0f} {cells[3]:12.0f} {cells[4]:9.0f}", flush=True)


if __name__ == "__main__":
    main()
