"""BertForPreTraining and BertForNextSentencePrediction of transformers on a small batch: weights, inputs, scores, losses, gradients.

Run beside this file: python make.py (torch, transformers, safetensors).
"""
import os

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForNextSentencePrediction, BertForPreTraining

base = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(11)
config = BertConfig(vocab_size=23, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                    max_position_embeddings=12, initializer_range=0.3, attn_implementation="eager")
ids = torch.tensor([[2, 7, 4, 9, 3, 11, 12, 3], [2, 5, 3, 4, 17, 3, 0, 0]])
mask = (ids > 0).long()
kinds = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0]])
labels = torch.full_like(ids, -100)
labels[0, 2], labels[0, 5], labels[1, 3] = 8, 11, 6
follows = torch.tensor([0, 1])
for name, cls in [("pretraining", BertForPreTraining), ("next_sentence", BertForNextSentencePrediction)]:
    model = cls(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
    folder = os.path.join(base, name)
    model.save_pretrained(folder)
    given = dict(input_ids=ids, attention_mask=mask, token_type_ids=kinds)
    if name == "pretraining":
        out = model(**given, labels=labels, next_sentence_label=follows)
        results = {"prediction_logits": out.prediction_logits, "seq_relationship_logits": out.seq_relationship_logits}
        given |= dict(labels=labels, next_sentence_label=follows)
    else:
        out = model(**given, labels=follows)
        results = {"logits": out.logits}
        given |= dict(labels=follows)
    out.loss.backward()
    results["loss"] = out.loss.reshape(1)
    for n in ["cls.seq_relationship.weight", "bert.pooler.dense.weight", "bert.embeddings.word_embeddings.weight"]:
        results["gradient " + n] = dict(model.named_parameters())[n].grad
    save_file({f"in.{k}": v.contiguous() for k, v in given.items()} | {f"out.{k}": v.detach().contiguous() for k, v in results.items()},
              os.path.join(folder, "case.safetensors"))
    print(name, out.loss.item(), sorted(f for f in os.listdir(folder)))
