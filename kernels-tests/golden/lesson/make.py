"""Small encoders trained by PyTorch on a handful of examples, all of them in every step, and figures of scikit-learn and seqeval.

Writes for each case a folder with config.json, model.safetensors (before any step), the examples, and `losses.json`.
Needs torch, transformers, sentence-transformers, scikit-learn, seqeval.
"""
import json
import os

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer, losses, models
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score as sk_f1, matthews_corrcoef
from transformers import (BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel,
                          LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast)

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["fine", "good", "lovely", "bad", "poor", "dull", "film", "story", "the", "a", "was", "play"]
STEPS = 6


def tokenizer(folder):
    def part(kind, name, of):
        return {kind: {"id": name, "type_id": of}}
    start, end, a = part("SpecialToken", "[CLS]", 0), part("SpecialToken", "[SEP]", 0), part("Sequence", "A", 0)
    added = [{"id": i, "content": n, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, n in enumerate(SPECIAL)]
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": [start, a, end],
            "pair": [start, a, end, part("Sequence", "B", 1), part("SpecialToken", "[SEP]", 1)],
            "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in [("[CLS]", 2), ("[SEP]", 3)]},
        },
        "model": {"type": "WordLevel", "vocab": {n: i for i, n in enumerate(SPECIAL + WORDS)}, "unk_token": "[UNK]"},
    }
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/tokenizer.json", "w") as out:
        json.dump(data, out)
    return PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="[PAD]", unk_token="[UNK]",
                                   cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def config(**more):
    return BertConfig(vocab_size=17, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                      max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                      initializer_range=0.3, **more)


def train(parameters, loss):
    step = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    all = []
    for _ in range(STEPS):
        step.zero_grad()
        value = loss()
        value.backward()
        step.step()
        all.append(value.item())
    return all + [loss().item()]


def write(folder, losses):
    with open(f"{folder}/losses.json", "w") as out:
        json.dump(losses, out)


def sequence():
    folder = f"{HERE}/sequence"
    torch.manual_seed(1)
    tok = tokenizer(folder)
    rows = [("the film was good", "a fine story", "yes"), ("a bad play", "the story was dull", "no"),
            ("lovely lovely film", "poor", "perhaps"), ("the play", "the play was a play", "yes"),
            ("dull", "good good good", "no"), ("a story was the film", "bad film", "perhaps")]
    names = ["no", "perhaps", "yes"]
    model = BertForSequenceClassification(config(id2label=dict(enumerate(names)),
                                                 label2id={n: i for i, n in enumerate(names)}))
    model.save_pretrained(folder)
    with open(f"{folder}/rows.tsv", "w") as out:
        out.write("sentence1\tsentence2\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows))
    batch = tok([r[0] for r in rows], [r[1] for r in rows], padding="max_length", max_length=16, return_tensors="pt",
                return_token_type_ids=True)
    batch["labels"] = torch.tensor([names.index(r[2]) for r in rows])
    write(folder, train(model.parameters(), lambda: model(**batch).loss))


def causal():
    folder = f"{HERE}/causal"
    torch.manual_seed(4)
    tok = tokenizer(folder)
    rows = [("the film was good", "yes"), ("a bad play", "no"), ("lovely lovely film", "perhaps"), ("dull", "no"),
            ("the play", "yes"), ("a story was the film", "perhaps")]
    names = ["no", "perhaps", "yes"]
    model = LlamaForSequenceClassification(LlamaConfig(
        vocab_size=17, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=16, pad_token_id=0, initializer_range=0.3,
        id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}))
    model.save_pretrained(folder)
    with open(f"{folder}/rows.tsv", "w") as out:
        out.write("text\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows))
    batch = tok([r[0] for r in rows], padding="max_length", max_length=8, return_tensors="pt")
    batch.pop("token_type_ids", None)
    batch["labels"] = torch.tensor([names.index(r[1]) for r in rows])
    write(folder, train(model.parameters(), lambda: model(**batch).loss))


def tokens():
    folder = f"{HERE}/tokens"
    torch.manual_seed(2)
    tok = tokenizer(folder)
    rows = [(["the", "film", "was", "good"], ["O", "B-X", "O", "O"]), (["a", "bad", "play"], ["O", "B-Y", "I-Y"]),
            (["lovely", "lovely", "film"], ["O", "O", "B-X"]), (["the", "play"], ["B-X", "I-X"])]
    names = ["B-X", "B-Y", "I-X", "I-Y", "O"]
    model = BertForTokenClassification(config(id2label=dict(enumerate(names)),
                                              label2id={n: i for i, n in enumerate(names)}))
    model.save_pretrained(folder)
    with open(f"{folder}/rows.conll", "w") as out:
        out.write("\n".join("".join(f"{w} {t}\n" for w, t in zip(*row)) for row in rows))
    batch = tok([r[0] for r in rows], is_split_into_words=True, padding="max_length", max_length=8, return_tensors="pt")
    labels = torch.full((len(rows), 8), -100)
    for i, (words, tags) in enumerate(rows):
        labels[i, 1:1 + len(words)] = torch.tensor([names.index(t) for t in tags])
    batch["labels"] = labels
    write(folder, train(model.parameters(), lambda: model(**batch).loss))


def similar():
    for name, pooling, hard in [("similar", "mean", True), ("similar_first", "cls", False)]:
        folder = f"{HERE}/{name}"
        torch.manual_seed(3)
        tok = tokenizer(folder)
        rows = [("the film was good", "a fine film", "a bad film"), ("a bad play", "the play was dull", "fine play"),
                ("lovely story", "good story", "the story was poor"), ("the play", "a play", "the film")]
        model = BertModel(config())
        model.save_pretrained(folder)
        tok.save_pretrained(folder)
        columns = ["anchor", "positive", "negative"] if hard else ["anchor", "positive"]
        with open(f"{folder}/rows.tsv", "w") as out:
            out.write("\t".join(columns) + "\n" + "".join("\t".join(r[:len(columns)]) + "\n" for r in rows))
        word = models.Transformer(folder, max_seq_length=16)
        pool = models.Pooling(word.get_word_embedding_dimension(), pooling_mode=pooling)
        encoder = SentenceTransformer(modules=[word, pool], device="cpu")
        loss = losses.MultipleNegativesRankingLoss(encoder)
        encoder.train()
        features = lambda: [encoder.tokenize([r[i] for r in rows]) for i in range(len(columns))]
        write(folder, train(encoder.parameters(), lambda: loss(features(), None)))
        for extra in ["tokenizer_config.json", "special_tokens_map.json"]:
            if os.path.exists(f"{folder}/{extra}"):
                os.remove(f"{folder}/{extra}")
        tokenizer(folder)


def metrics():
    random = np.random.default_rng(5)
    y, p = random.integers(0, 4, 60), random.integers(0, 5, 60)
    p = np.where(random.random(60) < 0.5, y, p)
    right, guessed = random.random((40, 5)) < 0.4, random.random((40, 5)) < 0.4
    guessed = np.where(random.random((40, 5)) < 0.6, right, guessed)
    xs = random.normal(size=50).round(1)
    ys = (xs + random.normal(size=50)).round(1)
    tags = ["O", "B-P", "I-P", "B-L", "I-L"]
    deal = lambda: [[str(random.choice(tags)) for _ in range(n)] for n in [7, 1, 12, 5, 30, 9]]
    a = deal()
    b = [[t if random.random() < 0.8 else str(random.choice(tags)) for t in s] for s in a]
    strict = dict(mode="strict", scheme=IOB2)
    out = {
        "y": y.tolist(), "p": p.tolist(), "accuracy": accuracy_score(y, p), "macro_f1": sk_f1(y, p, average="macro"),
        "matthews": matthews_corrcoef(y, p),
        "right": right.astype(int).tolist(), "guessed": guessed.astype(int).tolist(),
        "set_accuracy": accuracy_score(right, guessed), "set_micro_f1": sk_f1(right, guessed, average="micro"),
        "set_macro_f1": sk_f1(right, guessed, average="macro"),
        "xs": xs.tolist(), "ys": ys.tolist(), "pearson": pearsonr(xs, ys)[0], "spearman": spearmanr(xs, ys)[0],
        "tags": a, "guessed_tags": b, "span_precision": precision_score(a, b, **strict),
        "span_recall": recall_score(a, b, **strict), "span_f1": f1_score(a, b, **strict),
    }
    with open(f"{HERE}/metrics.json", "w") as file:
        json.dump(out, file)


metrics()
sequence()
causal()
tokens()
similar()
