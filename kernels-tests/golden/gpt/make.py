"""Ten steps of a small GPT-2 in float64, by the autograd package: the referee of our first ten steps.

    pip install autograd numpy safetensors
    python make.py            # writes init/, windows.safetensors, text.txt, losses.json beside this file

The model is GPT-2 as published (pre-norm blocks, learned positions, tied head, tanh GELU), the update AdamW with decay on
tensors of two or more dimensions and clipping to norm 1, the rate nanoGPT's cosine with warm-up.
"""
import json, math, os
import autograd.numpy as np
from autograd import value_and_grad
import numpy
from safetensors.numpy import save_file

here = os.path.dirname(os.path.abspath(__file__))
L, H, C, T, B, steps = 2, 2, 16, 12, 4, 10
text = "".join(
    f"{n} {what} bottles on the {where} wall, and if one should fall, {n - 1} are left.\n"
    for n, (what, where) in zip(range(40, 0, -1), [("green", "old"), ("brown", "high"), ("blue", "long")] * 14)
)
symbols = sorted(set(text))
ids = numpy.array([symbols.index(c) for c in text])
V = len(symbols)
train = ids[: int(len(text) * 0.9)]
random = numpy.random.RandomState(20)
normal = lambda *s: random.normal(0, 0.08, s).astype(numpy.float32)

w = {"transformer.wte.weight": normal(V, C), "transformer.wpe.weight": normal(T, C)}
for l in range(L):
    p = f"transformer.h.{l}."
    for name in ("ln_1", "ln_2"):
        w[p + name + ".weight"], w[p + name + ".bias"] = 1 + normal(C), normal(C)
    for name, i, o in (("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C), ("mlp.c_fc", C, 4 * C), ("mlp.c_proj", 4 * C, C)):
        w[p + name + ".weight"], w[p + name + ".bias"] = normal(i, o), normal(o)
w["transformer.ln_f.weight"], w["transformer.ln_f.bias"] = 1 + normal(C), normal(C)


def norm(x, g, b):
    m = np.mean(x, -1, keepdims=True)
    v = np.mean((x - m) ** 2, -1, keepdims=True)
    return (x - m) / np.sqrt(v + 1e-5) * g + b


def loss(w, x, y):
    h = w["transformer.wte.weight"][x] + w["transformer.wpe.weight"][np.arange(T)]
    mask = numpy.where(numpy.tril(numpy.ones((T, T))) > 0, 0.0, -1e30)
    for l in range(L):
        g = lambda name: w[f"transformer.h.{l}.{name}"]
        a = norm(h, g("ln_1.weight"), g("ln_1.bias")) @ g("attn.c_attn.weight") + g("attn.c_attn.bias")
        q, k, v = (np.transpose(a[:, :, i * C : (i + 1) * C].reshape(B, T, H, C // H), (0, 2, 1, 3)) for i in range(3))
        s = q @ np.transpose(k, (0, 1, 3, 2)) / math.sqrt(C // H) + mask
        s = np.exp(s - np.max(s, -1, keepdims=True))
        o = (s / np.sum(s, -1, keepdims=True)) @ v
        o = np.transpose(o, (0, 2, 1, 3)).reshape(B, T, C)
        h = h + o @ g("attn.c_proj.weight") + g("attn.c_proj.bias")
        m = norm(h, g("ln_2.weight"), g("ln_2.bias")) @ g("mlp.c_fc.weight") + g("mlp.c_fc.bias")
        m = 0.5 * m * (1 + np.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m**3)))
        h = h + m @ g("mlp.c_proj.weight") + g("mlp.c_proj.bias")
    z = norm(h, w["transformer.ln_f.weight"], w["transformer.ln_f.bias"]) @ w["transformer.wte.weight"].T
    top = np.max(z, -1, keepdims=True)
    lse = np.log(np.sum(np.exp(z - top), -1)) + top[..., 0]
    picked = z[np.arange(B)[:, None], np.arange(T)[None, :], y]
    return np.mean(lse - picked)


os.makedirs(os.path.join(here, "init"), exist_ok=True)
save_file(w, os.path.join(here, "init", "model.safetensors"))
config = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": V, "n_positions": T, "n_embd": C,
    "n_layer": L, "n_head": H, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": True,
}
json.dump(config, open(os.path.join(here, "init", "config.json"), "w"), indent=1)
open(os.path.join(here, "text.txt"), "w").write(text)
offsets = random.randint(0, len(train) - T - 1, (steps, B)).astype(numpy.int64)
some = offsets.reshape(-1)[:8].copy()
save_file(
    {"train_offsets": offsets, "eval_train_offsets": some, "eval_val_offsets": some % 60},
    os.path.join(here, "windows.safetensors"),
)

w = {k: v.astype(numpy.float64) for k, v in w.items()}
m = {k: numpy.zeros_like(v) for k, v in w.items()}
v2 = {k: numpy.zeros_like(v) for k, v in w.items()}
b1, b2, eps, decay, peak, floor, warmup = 0.9, 0.99, 1e-8, 0.1, 1e-2, 1e-3, 3
losses, norms, rates = [], [], []
for step in range(steps):
    rate = peak * (step + 1) / (warmup + 1)
    if step >= warmup:
        rate = floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    x = numpy.stack([train[o : o + T] for o in offsets[step]])
    y = numpy.stack([train[o + 1 : o + 1 + T] for o in offsets[step]])
    value, grad = value_and_grad(loss)(w, x, y)
    total = math.sqrt(sum(float((g**2).sum()) for g in grad.values()))
    scale = min(1.0, 1.0 / (total + 1e-6))
    for k in w:
        g = grad[k] * scale
        if w[k].ndim >= 2:
            w[k] = w[k] * (1 - rate * decay)
        m[k] = b1 * m[k] + (1 - b1) * g
        v2[k] = b2 * v2[k] + (1 - b2) * g * g
        w[k] = w[k] - rate * (m[k] / (1 - b1 ** (step + 1))) / (numpy.sqrt(v2[k] / (1 - b2 ** (step + 1))) + eps)
    losses.append(float(value)), norms.append(total), rates.append(rate)
json.dump({"loss": losses, "grad_norm": norms, "lr": rates}, open(os.path.join(here, "losses.json"), "w"), indent=1)
print(losses)
