#!/usr/bin/env python3
"""One training step on the CPU: PyTorch against `kiln train --device cpu`, in turn, on the same cores.

    pip install torch
    cargo build --release
    python benches/cpu.py --kiln target/release/kiln --data input.txt

Both train the same GPT-2 in f32 with AdamW and clipping on random or given text, with as many threads as --threads says.
Rounds alternate, so that what else the machine does falls on both; the medians over all steps but the first few count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {
    "nano-small": dict(layers=4, heads=4, width=128, context=64, batch=12, steps=50),
    "nano-large": dict(layers=6, heads=6, width=384, context=256, batch=4, steps=10),
}
VOCABULARY = 65
SKIPPED = 3


def pytorch(size, threads):
    """Milliseconds of each step in PyTorch; runs in a process of its own."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    width, heads, context, batch = (size[k] for k in ("width", "heads", "context", "batch"))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, t, c = x.shape
            q, k, v = (
                y.view(b, t, heads, c // heads).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(width, dim=2)
            )
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(context, width)
            self.blocks = nn.ModuleList(Block() for _ in range(size["layers"]))
            self.norm = nn.LayerNorm(width)

        def forward(self, tokens, targets):
            x = self.tokens(tokens) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            logits = self.norm(x) @ self.tokens.weight.t()
            return functional.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1))

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    times = []
    for _ in range(size["steps"]):
        tokens = torch.randint(VOCABULARY, (batch, context + 1))
        start = time.perf_counter()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def kiln(binary, data, size, threads):
    """Milliseconds of each step in kiln, from the run's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = os.path.join(folder, "recipe.toml")
        with open(recipe, "w") as file:
            file.write(
                f'[model]\nfamily = "gpt2"\nlayers = {size["layers"]}\nheads = {size["heads"]}\n'
                f'width = {size["width"]}\ncontext = {size["context"]}\n'
                f'[train]\nbatch = {size["batch"]}\ncontext = {size["context"]}\nsteps = {size["steps"]}\n'
            )
        out = os.path.join(folder, "run")
        command = [binary, "train", recipe, "--device", "cpu", "--data", data, "--out", out]
        environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(os.path.join(out, "metrics.jsonl")) as file:
            rows = [json.loads(line) for line in file]
    return [row["ms"] for row in rows if "ms" in row]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", default="target/release/kiln", help="the binary")
    parser.add_argument("--data", help="a text of some 100 KB or more, of at most 65 characters for equal vocabularies")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, action="append", help="may be given again; all of them by default")
    parser.add_argument("--pytorch-times", choices=SIZES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pytorch_times:
        print(json.dumps(pytorch(SIZES[arguments.pytorch_times], arguments.threads)))
        return
    if not arguments.data:
        parser.error("--data is needed: a text to train on")
    print(f"{'':12} {'PyTorch ms':>12} {'kiln ms':>12} {'kiln / PyTorch':>16}")
    for name in arguments.size or SIZES:
        theirs, ours = [], []
        for _ in range(arguments.rounds):
            command = [sys.executable, __file__, "--pytorch-times", name, "--threads", str(arguments.threads)]
            # Its own process, so that neither's idle threads disturb the other.
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            theirs += json.loads(text)[SKIPPED:]
            ours += kiln(arguments.kiln, arguments.data, SIZES[name], arguments.threads)[SKIPPED:]
        theirs, ours = statistics.median(theirs), statistics.median(ours)
        print(f"{name:12} {theirs:12.1f} {ours:12.1f} {ours / theirs:16.2f}", flush=True)


if __name__ == "__main__":
    main()
