"""A server of ours asked by OpenAI's own client: completions, chats, streams, errors and, of an encoder, vectors."""

import sys

import openai

address, kind = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id

if kind == "vectors":
    texts = ["7 sheep", "11"]
    # The client asks for base64 unless it is told otherwise, and decodes it.
    made = client.embeddings.create(model=model, input=texts).data
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float").data
    assert [one.index for one in made] == [0, 1]
    for one, same in zip(made, plain):
        assert len(one.embedding) == len(same.embedding) > 0
        assert max(abs(a - b) for a, b in zip(one.embedding, same.embedding)) < 1e-6
    sys.exit()

asked = dict(model=model, prompt="7 sheep", max_tokens=8, temperature=0)
whole = client.completions.create(**asked, logprobs=2, n=2)
assert whole.choices[0].text == whole.choices[1].text and whole.choices[0].finish_reason == "length"
told = whole.choices[0].logprobs
assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 8
assert whole.usage.total_tokens == whole.usage.prompt_tokens + 16
parts = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
assert parts[-1].usage.completion_tokens == 8 and not parts[-1].choices
drawn = [client.completions.create(**{**asked, "temperature": 1.0}, seed=5).choices[0].text for _ in range(2)]
assert drawn[0] == drawn[1]
matched = client.completions.create(**{**asked, "max_tokens": 20}, extra_body={"regex": "[0-9]{3} sheep"})
assert matched.choices[0].text.endswith(" sheep") and matched.choices[0].finish_reason == "stop"

said = dict(model=model, messages=[{"role": "user", "content": "7"}], max_completion_tokens=6, temperature=0)
chat = client.chat.completions.create(**said, logprobs=True, top_logprobs=3)
assert chat.choices[0].message.role == "assistant" and len(chat.choices[0].logprobs.content[0].top_logprobs) == 3
text = ""
with client.chat.completions.create(**said, stream=True) as stream:
    for part in stream:
        text += part.choices[0].delta.content or ""
assert text == chat.choices[0].message.content

for wrong, error in [
    (dict(temperature=-1), openai.BadRequestError),
    (dict(model="another"), openai.NotFoundError),
    (dict(prompt=""), openai.BadRequestError),
    (dict(logit_bias={"1": 5}), openai.BadRequestError),
]:
    try:
        client.completions.create(**{**asked, **wrong})
        raise SystemExit(f"{wrong} was taken")
    except error as refused:
        assert refused.body["message"], refused
