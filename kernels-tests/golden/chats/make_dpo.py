"""Makes dpo.json: losses of preferences and their gradients in PyTorch, by the formulas of TRL's DPOTrainer, over ../gpt/init.

    pip install torch transformers && python make_dpo.py
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

HERE = pathlib.Path(__file__).parent
CONTEXT, IGNORED = 11, -100

# Prompt and answers as tokens, the better answer first; the answers have other lengths.
PAIRS = [([1, 2, 3], [4, 5, 6, 7], [8, 9]), ([10, 11], [12, 13], [14, 15, 16, 17, 18]), ([19], [20], [21, 22, 23])]
# What the reference says: log-probabilities of answers, as sums.
REFERENCE = [(-14.0, -6.5), (-6.0, -17.5), (-3.0, -10.5)]
SETTINGS = [
    {"loss": "sigmoid", "beta": 0.3, "label_smoothing": 0.0, "reference_free": False},
    {"loss": "sigmoid", "beta": 0.5, "label_smoothing": 0.2, "reference_free": False},
    {"loss": "sigmoid", "beta": 0.5, "label_smoothing": 0.0, "reference_free": True},
    {"loss": "ipo", "beta": 0.4, "label_smoothing": 0.0, "reference_free": False},
    {"loss": "hinge", "beta": 0.05, "label_smoothing": 0.0, "reference_free": False},
]
SHOWN = ["transformer.h.0.attn.c_attn.bias", "transformer.h.1.mlp.c_proj.bias", "transformer.ln_f.weight"]


def rows():
    for prompt, chosen, rejected in PAIRS:
        for answer in (chosen, rejected):
            ids = prompt + answer
            labels = [IGNORED] * len(prompt) + answer
            pad = CONTEXT + 1 - len(ids)
            yield ids + [0] * pad, labels + [IGNORED] * pad


def run(model, settings):
    ids, labels = (torch.tensor(x) for x in zip(*rows()))
    logits = model(ids[:, :-1]).logits
    labels = labels[:, 1:]
    counted = labels != IGNORED
    each = torch.gather(logits.log_softmax(-1), 2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    each = torch.where(counted, each, torch.zeros_like(each))
    sums = each.sum(-1)
    reference = torch.tensor(REFERENCE).flatten()
    lengths = counted.sum(-1)
    if settings["loss"] == "ipo":
        sums, reference = sums / lengths, reference / lengths
    chosen, rejected = sums[0::2], sums[1::2]
    ratio = reference[0::2] - reference[1::2]
    if settings["reference_free"]:
        ratio = torch.zeros_like(ratio)
    logits = (chosen - rejected) - ratio
    beta, smoothing = settings["beta"], settings["label_smoothing"]
    if settings["loss"] == "sigmoid":
        losses = -F.logsigmoid(beta * logits) * (1 - smoothing) - F.logsigmoid(-beta * logits) * smoothing
    elif settings["loss"] == "hinge":
        losses = torch.relu(1 - beta * logits)
    else:
        losses = (logits - 1 / (2 * beta)) ** 2
    loss = losses.mean()
    model.zero_grad()
    loss.backward()
    named = dict(model.named_parameters())
    norms = {name: float(p.grad.norm()) for name, p in named.items()}
    shown = {name: named[name].grad.flatten().tolist() for name in SHOWN}
    return {**settings, "value": float(loss), "ratio": ratio.tolist(), "norms": norms, "gradients": shown}


if __name__ == "__main__":
    model = GPT2LMHeadModel.from_pretrained(HERE.parent / "gpt/init", attn_implementation="eager").eval()
    with torch.no_grad():
        # A deviation of 0.02 would leave all answers alike.
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.mul_(6.0)
    cases = [run(model, settings) for settings in SETTINGS]
    told = {"pairs": PAIRS, "context": CONTEXT, "scale": 6.0, "cases": cases}
    (HERE / "dpo.json").write_text(json.dumps(told, indent=None, separators=(",", ":")).replace('{"loss"', '\n{"loss"') + "\n")
