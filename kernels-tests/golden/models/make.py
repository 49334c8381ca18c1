"""Tiny random models and what transformers makes of a batch: results, loss and gradients.

Writes for each case a folder as Hugging Face has it, with `inputs.safetensors` (batches by prefix), `expected.safetensors` (what came
of each, by the same prefix) and `grads.safetensors` (of the batch `eval`). Needs torch and transformers 5. Names of cases may be given.
"""
import os
import sys

import torch
import transformers as tf
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
VOCABULARY, PADDING, CLASSES = 23, 2, 3


def awake(model):
    """Weights by which every part matters: norms and biases that are not one and zero."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shift = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.copy_(shift + 0.3 * torch.randn_like(parameter))
    return model.eval()


def write(name, model, batches, **more):
    folder = f"{HERE}/{name}"
    model.save_pretrained(folder)
    inputs, expected, gradients = {}, {}, {}
    for prefix, (batch, whole) in batches.items():
        inputs |= {f"{prefix}.{key}": value.clone() for key, value in batch.items()}
        model.zero_grad()
        out = model(**batch, output_hidden_states=whole, use_cache=False)
        expected[f"{prefix}.logits"] = out.logits
        if out.loss is not None:
            expected[f"{prefix}.loss"] = out.loss.reshape(1)
        if whole:
            for kind in ["hidden_states", "encoder_hidden_states", "decoder_hidden_states"]:
                for number, state in enumerate(getattr(out, kind, None) or ()):
                    expected[f"{prefix}.{kind}.{number}"] = state
            out.loss.backward()
            for key, parameter in model.named_parameters():
                if parameter.grad is not None:
                    gradients[key] = parameter.grad.clone()
    plain = {key: value.detach().clone().contiguous() for key, value in (expected | more).items()}
    save_file(inputs, f"{folder}/inputs.safetensors")
    save_file(plain, f"{folder}/expected.safetensors")
    save_file(gradients, f"{folder}/grads.safetensors")


def texts(left):
    """Four texts of unlike lengths, one with padding's own number inside, filled up on one side.

    A window must reach from the last place to a text: a row that sees nothing at all is anyone's guess.
    """
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, VOCABULARY, (4, 7), generator=generator)
    mask = torch.ones_like(ids)
    for row, filled in enumerate([0, 3, 1, 5]):
        where = slice(0, filled) if left else slice(7 - filled, 7)
        ids[row, where], mask[row, where] = PADDING, 0
    ids[0, 4] = PADDING
    return {"input_ids": ids, "attention_mask": mask}


def labels(kind):
    if kind == "regression":
        return torch.tensor([0.5, -1.0, 2.0, 0.0])
    if kind == "multi_label_classification":
        return torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    return torch.tensor([0, 2, 1, 2])


def judge(name, config, model, kind="single_label_classification", **sizes):
    classes = 1 if kind == "regression" else CLASSES
    config = config(vocab_size=VOCABULARY, pad_token_id=PADDING, bos_token_id=0, eos_token_id=1, problem_type=kind,
                    num_labels=classes, **sizes)
    config._attn_implementation = "eager"
    batch = lambda left: texts(left) | {"labels": labels(kind)}
    write(name, awake(model(config)), {"eval": (batch(False), True), "left": (batch(True), False)})


def llama(**more):
    return dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
                max_position_embeddings=16, **more)


def whisper(name, model, **more):
    """Two sounds of 24 frames; 5 and 3 tokens of what is said in them."""
    config = tf.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=5, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=20, max_source_positions=12, max_target_positions=10,
        dropout=0.0, pad_token_id=PADDING, bos_token_id=1, eos_token_id=1, decoder_start_token_id=0, **more)
    config._attn_implementation = "eager"
    model = awake(model(config))
    with torch.no_grad():
        # Else a token that is read is what is written next, as one table is both.
        model.model.decoder.embed_positions.weight *= 4
        for projection in ["v_proj", "out_proj"]:
            getattr(model.model.decoder.layers[0].encoder_attn, projection).weight *= 3
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(3, VOCABULARY, (2, 5), generator=generator)
    labels[1, 3:] = -100
    batch = {"input_features": torch.randn(2, 5, 24, generator=generator), "labels": labels}
    told = {key: value for key, value in batch.items() if key != "labels"}
    told["decoder_input_ids"] = torch.tensor([[0, 7, 4, 9], [0, 5, 2, 2]])
    told["decoder_attention_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    said = torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(8):
            scores = model(input_features=batch["input_features"], decoder_input_ids=said).logits[:, -1]
            said = torch.cat([said, scores.argmax(-1, keepdim=True)], 1)
    write(name, model, {"eval": (batch, True), "told": (told, False)}, greedy=said)


CASES = {
    "gpt2-score": lambda name: judge(name, tf.GPT2Config, tf.GPT2ForSequenceClassification, n_embd=16, n_layer=2, n_head=2,
                                     n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "llama-score": lambda name: judge(name, tf.LlamaConfig, tf.LlamaForSequenceClassification, **llama()),
    "mistral-score": lambda name: judge(name, tf.MistralConfig, tf.MistralForSequenceClassification, "regression",
                                        sliding_window=6, **llama()),
    "qwen2-score": lambda name: judge(name, tf.Qwen2Config, tf.Qwen2ForSequenceClassification, "multi_label_classification",
                                      **llama()),
    "qwen3-score": lambda name: judge(name, tf.Qwen3Config, tf.Qwen3ForSequenceClassification, **llama(head_dim=6)),
    "gpt-neox-score": lambda name: judge(name, tf.GPTNeoXConfig, tf.GPTNeoXForSequenceClassification, hidden_size=16,
                                         num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                                         max_position_embeddings=16, rotary_pct=0.5, hidden_dropout=0.0),
    "whisper": lambda name: whisper(name, tf.WhisperForConditionalGeneration),
}

if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        CASES[case](case)
