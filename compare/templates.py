"""Chat templates by Jinja2 as transformers sets it up, and by metal-candle, on the same conversations.

    python3 compare/templates.py --templates DIR [--binary target/release/metal-candle] [--show 10]

DIR holds one `NAME.jinja` per template and, optionally, `index.json`: a list of {"name", "bos", "eos"}. Without
--templates only the constructs of template_constructs.py are rendered. Exits with 1 if a text differs or if we
refuse what Jinja2 renders.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
from collections import Counter

import transformers
from transformers.tokenization_utils_base import _normalize_chat_messages
from transformers.utils.chat_template_utils import render_jinja_template

from template_constructs import CONSTRUCTS

# Texts of objects that have none: they contain an address, which differs in every run, or a class of Python.
NO_TEXT = re.compile(r"<[^<>]* at 0x[0-9a-f]+>|<class '")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Returns the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name, e.g. \"Zürich\" or 'Paris'"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": ["integer", "null"], "minimum": 1, "maximum": 7},
                "tags": {"type": "array", "items": {"type": "string"}},
                "place": {
                    "type": "object",
                    "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                    "required": ["lat"],
                },
            },
            "required": ["city"],
        },
        "return": {"type": "string", "description": "A sentence"},
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Searches <the web> & more",
        "parameters": {"type": "object", "properties": {}},
    },
}


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def call(name, arguments, id="abcdefghi"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(content, **more):
    return {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": content, **more}


PARIS = {"city": "Paris", "days": 2, "scale": 1e-07, "big": 12345678901234567890, "ok": True, "none": None}
CHATS = {
    "plain": {"messages": [user("Hello, who are you?")]},
    "answered": {"messages": [user("Hi"), assistant("Hello!")]},
    "system": {"messages": [system("You are terse."), user("Hi"), assistant("Yo."), user("Bye")]},
    "multi-turn": {
        "messages": [user("1+1?"), assistant("2"), user("and 2+2?"), assistant("4"), user("thanks"), assistant("Sure.")]
    },
    "unicode": {
        "messages": [system("Être “précis” 🙂"), user("naïve — 日本語\t\"q\" 'q'\n\nline <b>&amp;</b>\u00a0"), assistant("Ωμέγα\u200b")]
    },
    "spaces": {"messages": [system("  s  "), user("\n hi \n"), assistant("  \n ok  \n")]},
    "empty strings": {"messages": [system(""), user(""), assistant("")]},
    "empty system": {"messages": [system(""), user("x"), assistant("y"), user("z")]},
    "tools": {"messages": [user("Weather in Paris?")], "tools": [WEATHER, SEARCH]},
    "tools and system": {"messages": [system("Use tools."), user("Weather?")], "tools": [WEATHER]},
    "no tools": {"messages": [user("Hi")], "tools": []},
    "tool call, null content": {
        "messages": [user("Weather?"), assistant(None, tool_calls=[call("get_weather", PARIS)]), tool("18 °C"), assistant("It is 18 °C.")],
        "tools": [WEATHER],
    },
    "tool call, empty content": {
        "messages": [user("Weather?"), assistant("", tool_calls=[call("get_weather", {"city": "Zürich"})]), tool("{\"t\": 18}")],
        "tools": [WEATHER],
    },
    "tool call, no content": {
        "messages": [user("Weather?"), {"role": "assistant", "tool_calls": [call("search", {})]}, tool("")],
        "tools": [WEATHER, SEARCH],
    },
    "two tool calls": {
        "messages": [
            system("s"),
            user("Both?"),
            assistant("Let me see.", tool_calls=[call("get_weather", {"city": "Rome"}), call("search", {"q": ["a", 1.5]}, "bcdefghij")]),
            tool("sun"),
            tool("found", tool_call_id="bcdefghij", name="search"),
            assistant("Sun."),
            user("Thanks"),
        ],
        "tools": [WEATHER, SEARCH],
    },
    "arguments as text": {
        "messages": [user("W?"), assistant("", tool_calls=[call("get_weather", "{\"city\": \"Paris\"}")]), tool("x"), assistant("y")],
        "tools": [WEATHER],
    },
    "reasoning_content": {
        "messages": [user("1+1?"), assistant("2", reasoning_content="One and one.\n"), user("2+2?"), assistant("4", reasoning_content="Two.")]
    },
    "reasoning": {"messages": [user("1+1?"), assistant("2", reasoning="One and one.")]},
    "thinking": {"messages": [user("1+1?"), assistant("2", thinking="One and one."), user("go on")]},
    "think tags": {
        "messages": [user("1+1?"), assistant("<think>\nOne\n</think>\n\n2"), user("2+2?"), assistant("<think>Two</think>4")]
    },
    "content parts": {
        "messages": [
            user([{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]),
            assistant([{"type": "text", "text": "Yes"}]),
        ]
    },
    "thinking off": {"messages": [user("Hi"), assistant("Yo"), user("Bye")], "variables": {"enable_thinking": False}},
    "thinking on": {"messages": [user("Hi")], "variables": {"enable_thinking": True, "reasoning_effort": "high"}},
    "roles out of order": {"messages": [assistant("Hello!"), user("a"), user("b")]},
    "null keys": {"messages": [user("Hi", name=None, tool_calls=None), assistant("Yo", tool_calls=None, refusal=None)]},
}


def requests(folder):
    """Every template with every conversation."""
    if folder is not None:
        index = folder / "index.json"
        tokens = {entry["name"]: entry for entry in json.loads(index.read_text())} if index.exists() else {}
        for path in sorted(folder.glob("*.jinja")):
            known = tokens.get(path.stem, {})
            with open(path, newline="", encoding="utf-8") as file:
                source = file.read()
            for name, chat in CHATS.items():
                for prompt in (False, True):
                    yield f"{path.stem}: {name}{' + prompt' if prompt else ''}", {
                        "template": source,
                        "bos": known.get("bos", "<s>"),
                        "eos": known.get("eos", "</s>"),
                        "messages": chat["messages"],
                        "tools": chat.get("tools"),
                        "add_generation_prompt": prompt,
                        "variables": chat.get("variables", {}),
                    }
    chat = CHATS["two tool calls"]
    for construct in CONSTRUCTS:
        yield f"construct {construct!r}", {
            "template": construct,
            "bos": "<s>",
            "eos": "</s>",
            "messages": chat["messages"],
            "tools": chat["tools"],
            "add_generation_prompt": False,
            "variables": {"text": "Hello wörld, it's “you”", "numbers": [3, 1, 2], "half": 0.5, "d": {"b": 1, "a": None}},
        }


def by_transformers(request):
    """The text, or None with the error."""
    try:
        messages = _normalize_chat_messages(request["messages"])
        rendered, _ = render_jinja_template(
            conversations=[messages],
            tools=request["tools"],
            chat_template=request["template"],
            add_generation_prompt=request["add_generation_prompt"],
            bos_token=request["bos"],
            eos_token=request["eos"],
            **request["variables"],
        )
        return rendered[0], None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=pathlib.Path, help="folder with NAME.jinja files")
    parser.add_argument("--binary", default="target/release/metal-candle", help="our command-line tool")
    parser.add_argument("--show", type=int, default=10, help="number of pairs to print of each kind that fails")
    arguments = parser.parse_args()

    pairs = list(requests(arguments.templates))
    lines = "".join(json.dumps(request) + "\n" for _, request in pairs)
    ours = subprocess.run([arguments.binary, "template"], input=lines, capture_output=True, text=True, check=True)
    ours = [json.loads(line) for line in ours.stdout.split("\n") if line]
    assert len(ours) == len(pairs), f"{len(pairs)} requests, {len(ours)} answers"

    counts = {"templates": Counter(), "constructs": Counter()}
    shown = Counter()
    for (name, request), answer in zip(pairs, ours):
        text, error = by_transformers(request)
        if text is None:
            kind = "refused by both" if "error" in answer else "rendered only by us"
        elif "error" in answer:
            kind = "an address, refused by us" if NO_TEXT.search(text) else "refused only by us"
        else:
            kind = "equal" if answer["text"] == text else "different"
        counts["constructs" if name.startswith("construct ") else "templates"][kind] += 1
        if kind in ("different", "refused only by us", "rendered only by us") and shown[kind] < arguments.show:
            shown[kind] += 1
            print(f"{kind}: {name}")
            print(f"  Jinja2: {text!r}" if text is not None else f"  Jinja2: {error}")
            print(f"  ours:   {answer.get('text', answer.get('error'))!r}")

    import jinja2

    print(f"\ntransformers {transformers.__version__}, jinja2 {jinja2.__version__}")
    kinds = ("equal", "different", "refused only by us", "rendered only by us", "refused by both", "an address, refused by us")
    print("| pairs | all | " + " | ".join(kinds) + " |\n|" + "---|" * (len(kinds) + 2))
    for name, count in counts.items():
        print(f"| {name} | {sum(count.values())} | " + " | ".join(str(count[kind]) for kind in kinds) + " |")
    failed = sum(count["different"] + count["refused only by us"] for count in counts.values())
    sys.exit(1 if failed else 0)


main()
