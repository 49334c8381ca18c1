"""Log-mel features of a sound of tones and noise by WhisperFeatureExtractor; the test makes the same sound. Needs transformers."""
import json
import os

import numpy as np
from transformers import WhisperFeatureExtractor

HERE = os.path.dirname(os.path.abspath(__file__))
EVERY = 7


def sound(count):
    state, noise = 12345, np.empty(count)
    for i in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        noise[i] = (state >> 8) / 2**24 - 0.5
    t = np.arange(count) / 16000.0
    tones = 0.3 * np.sin(2 * np.pi * 440.0 * t) + 0.2 * np.sin(2 * np.pi * (300.0 + 900.0 * t) * t)
    return (tones + 0.1 * noise).astype(np.float32)


cases = []
for bands, seconds in [(80, 30), (128, 4)]:
    count = seconds * 16000 * 2 // 3
    extractor = WhisperFeatureExtractor(feature_size=bands, chunk_length=seconds)
    features = extractor(sound(count), sampling_rate=16000, return_tensors="np").input_features[0]
    assert features.shape == (bands, seconds * 100)
    chosen = [0, 1, bands // 3, bands // 2, bands - 2, bands - 1]
    rows = {str(b): [round(float(x), 6) for x in features[b, ::EVERY]] for b in chosen}
    cases.append({"bands": bands, "frames": seconds * 100, "samples": count, "every": EVERY, "rows": rows,
                  "mean": float(features.astype(np.float64).mean())})
with open(f"{HERE}/features.json", "w") as out:
    json.dump(cases, out)
