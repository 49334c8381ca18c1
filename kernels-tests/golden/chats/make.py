"""Makes expected.json: what transformers writes by these templates, and where it sees answers.

    pip install transformers jinja2 && python make.py
"""

import json
import pathlib

from transformers.utils import chat_template_utils as utils

HERE = pathlib.Path(__file__).parent
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CHATS = {
    "one": say((USER, "Hello, is it  me? ")),
    "answered": say((USER, "Hello"), (ASSISTANT, "I'm <b>here</b> & \"well\"")),
    "rules": say((SYSTEM, " Be brief.\n"), (USER, "a\n\nb"), (ASSISTANT, " x "), (USER, "ü 日本"), (ASSISTANT, "y\n")),
    "thought": say((USER, "#1"), (USER, "2"), (ASSISTANT, "<think>hm</think>\n\n2!"), (USER, "go on"), (ASSISTANT, "")),
    "calls": [
        {"role": USER, "content": "weather?"},
        {
            "role": ASSISTANT,
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "n": 1.5, "ok": True, "no": None, "l": [1, "<"]}}}],
        },
        {"role": "tool", "content": "rain"},
        {"role": ASSISTANT, "content": "It rains."},
    ],
}


class FixedDate:
    """Stands where transformers asks for the date."""

    def __getattr__(self, name):
        return getattr(REAL, name)

    class datetime(__import__("datetime").datetime):
        @classmethod
        def now(cls, *args):
            return cls(2024, 7, 26)


def run(source, chat, opened):
    try:
        texts, spans = utils.render_jinja_template(
            conversations=[chat],
            chat_template=source,
            return_assistant_tokens_mask="{% generation" in source or "{%- generation" in source,
            add_generation_prompt=opened,
            **SPECIAL,
        )
        return texts[0], (spans[0] if spans else None)
    except Exception as error:  # What a template refuses is expected as well.
        return {"error": f"{type(error).__name__}: {error}"}, None


if __name__ == "__main__":
    import datetime as REAL

    utils.datetime = FixedDate.datetime
    cases = []
    for path in sorted(HERE.glob("*.jinja")):
        source = path.read_text()
        for name, chat in CHATS.items():
            for opened in [False, True]:
                text, spans = run(source, chat, opened)
                case = {"template": path.name, "chat": name, "opened": opened, "text": text}
                if spans is not None:
                    case["answers"] = [text[start:end] for start, end in spans]
                cases.append(case)
    (HERE / "expected.json").write_text(json.dumps({"chats": CHATS, "cases": cases}, ensure_ascii=False, indent=1) + "\n")
