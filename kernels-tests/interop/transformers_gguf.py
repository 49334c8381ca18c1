"""GGUF files loaded by transformers: logits and token ids as those of the checkpoints they were made of."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, golden = Path(sys.argv[1]), Path(sys.argv[2])
with torch.no_grad():
    for path in sorted(folder.glob("*.gguf")):
        if path.stem in ("text", "stories"):
            continue
        source = golden / "models" / path.stem
        theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        # Settings that transformers does not read from GGUF: the context of GPT-2, scaled positions, head sizes of Qwen3.
        config = {"config": theirs.config} if path.stem in ("gpt2", "llama-rope-scaled", "qwen3") else {}
        ours = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32, **config).eval()
        # Mistral is a llama there, without a window: it is 6 tokens wide.
        count = 6 if path.stem == "mistral-swa" else 40
        tokens = torch.arange(3, 3 + count).remainder(theirs.config.vocab_size)[None]
        off = (ours(tokens).logits - theirs(tokens).logits).abs().max().item()
        assert off < 1e-4, f"{path.name}: logits differ by {off}"

ours = AutoTokenizer.from_pretrained(folder, gguf_file="text.gguf")
theirs = AutoTokenizer.from_pretrained(golden / "e2e" / "gpt2")
cases = json.loads((golden / "tokenizers" / "bytebpe-gpt2" / "cases.json").read_text())["cases"]
assert len(cases) > 50
for case in cases:
    got, expected = (t(case["text"], add_special_tokens=False)["input_ids"] for t in (ours, theirs))
    assert got == expected, f"{case['text']!r}: {got}, expected {expected}"

# A trained model tells its story from text to text.
real = golden / "real" / "stories260K"
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="stories.gguf")
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="stories.gguf", dtype=torch.float32).eval()
story = json.loads((real / "case.json").read_text())["generate"][0]
tokens = tokenizer(story["prompt"], return_tensors="pt")["input_ids"]
assert tokens[0].tolist() == story["prompt_ids"], f"{tokens}, expected {story['prompt_ids']}"
told = model.generate(tokens, do_sample=False, max_new_tokens=story["options"]["max_new_tokens"])
assert told[0].tolist() == story["ids"], f"{told}, expected {story['ids']}"
