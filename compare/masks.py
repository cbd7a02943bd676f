"""Loss masks of chats by metal-candle, checked by transformers and by an independent derivation, template by template.

    python3 compare/masks.py --templates DIR [--binary target/release/metal-candle] [--show 10]

DIR holds one `NAME.jinja` per template and, optionally, `index.json`: a list of {"name", "bos", "eos"}. Each template is
put beside a tokenizer with one token per byte, so that masks of tokens are masks of text. For templates with
{% generation %} blocks the trained text must be what transformers' return_assistant_tokens_mask marks, and after each
answer the end-of-text token where the template writes no special token at all. For the others
it must be each answer, with the token that ends its turn: the special token that Jinja2 writes after the answer both
before a question and before another answer, or the end-of-text token if there is none. A template that reads content only
as a list of parts gets it so. A tool call that the template leaves out is not to be trained, and a chat is rightly refused
where the template leaves out an answer's text. Exits with 1 if a mask differs.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from transformers.utils.chat_template_utils import render_jinja_template

SPECIAL = re.compile(r"<\|[^|<>\n{}]{1,40}\|>|\[\|[a-z_]{1,24}\|\]|<[a-z_]{1,24}\|>|<\|[a-z_]{1,24}>|<｜[^｜<>\n]{1,40}｜>|<[a-zA-Z_]{1,40}>|</s>|\[/?[A-Z_]{2,24}\]|<\|[A-Z_]+\|>")
TAGGED = re.compile(r"{%-?\s*generation\s*-?%}")
ENDS = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "<|return|>", "[|endofturn|]", "<turn|>",
        "<end_of_utterance>"}
ANSWER, QUESTION = "SentinelOfAnAnswer", "SentinelOfAQuestion"


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


CALL = [{"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "18 degrees"}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Returns the weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "A city"}}, "required": ["city"]}}}]
CHATS = {
    "one turn": ([user("Hi"), assistant("Hello!")], None),
    "two turns": ([user("1+1?"), assistant("two"), user("2+2?"), assistant("four")], None),
    "three turns": ([user("a?"), assistant("alpha"), user("b?"), assistant("beta"), user("c?"), assistant("gamma")], None),
    "system": ([system("Be brief."), user("Hi"), assistant("Yo.")], None),
    "system, two turns": ([system("Be brief."), user("Hi"), assistant("Yo."), user("Bye"), assistant("Ciao.")], None),
    "ends with a question": ([user("Hi"), assistant("Hello!"), user("Bye")], None),
    "lines": ([user("List"), assistant("1. one\n2. two\n\ndone")], None),
    "unicode": ([user("naïve?"), assistant("日本語 — “ok” 🙂")], None),
    "markup": ([user("html?"), assistant("<b>bold</b> & more")], None),
    "equal texts": ([user("same"), assistant("same"), user("same"), assistant("same")], None),
    "tools, not called": ([user("Hi"), assistant("Hello!")], TOOLS),
    "tools, two turns": ([user("Hi"), assistant("Hello!"), user("Bye"), assistant("Ciao.")], TOOLS),
    "call, null content": ([user("Weather?"), assistant(None, tool_calls=CALL), RESULT, assistant("Sunny.")], TOOLS),
    "call, empty content": ([user("Weather?"), assistant("", tool_calls=CALL), RESULT, assistant("Sunny.")], TOOLS),
    "call with content": ([user("Weather?"), assistant("One moment.", tool_calls=CALL), RESULT, assistant("Sunny.")], TOOLS),
    "reasoning": ([user("1+1?"), assistant("two", reasoning_content="one and one")], None),
    "reasoning, two turns": ([user("1+1?"), assistant("two", reasoning_content="one and one"), user("2+2?"), assistant("four", reasoning_content="two and two")], None),
}


class Template:
    def __init__(self, path, entry):
        self.name, self.source = path.stem, path.read_text(encoding="utf-8")
        self.bos, self.eos = entry.get("bos") or "<s>", entry.get("eos") or "</s>"
        self.tagged = bool(TAGGED.search(self.source))
        # The end-of-text token in index.json can be a guess. A model whose template ends turns with a literal token has that one.
        literal = [token for token in ENDS if token in self.source]
        if "eos_token" not in self.source and self.eos not in self.source and len(literal) == 1:
            self.eos = literal[0]
        self.parts = False
        if ANSWER not in (self.render([user(ANSWER)]) or ""):
            self.parts = True
            self.parts = ANSWER in (self.render([user(ANSWER)]) or "")
        self.special = sorted({self.bos, self.eos, *SPECIAL.findall(self.source)}, key=len, reverse=True)

    def render(self, messages, tools=None, prompt=False, marks=False):
        """The text and the marked ranges, or None if the template refuses the messages."""
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        if self.parts:
            messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} if isinstance(message.get("content"), str) else message
                        for message in messages]
        try:
            texts, ranges = render_jinja_template(
                conversations=[messages], tools=tools, chat_template=self.source, add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks, bos_token=self.bos, eos_token=self.eos)
        except Exception:
            return None
        return (texts[0], ranges[0]) if marks else texts[0]

    def first_special(self, text):
        found = [(text.find(token), -len(token), token) for token in self.special if token in text]
        return min(found)[2] if found else None

    def end_token(self, messages, tools):
        """The token that ends an answer after these messages."""
        after = lambda more, prompt: (self.render(messages + more, tools, prompt) or "").rpartition(ANSWER)[2]
        question = after([assistant(ANSWER), user(QUESTION)], False).partition(QUESTION)[0]
        answer = after([assistant(ANSWER)], True)
        last = after([assistant(ANSWER)], False)
        ends = {self.eos, *ENDS}
        if self.first_special(last) in ends:
            return self.first_special(last)
        shared = self.first_special(os.path.commonprefix([question, answer]))
        header = (self.render(messages, tools, True) or "")[len(os.path.commonprefix([self.render(messages, tools, True) or "", self.render(messages, tools) or ""])):]
        if shared and (shared in ends or shared not in header):
            return shared
        return self.eos if not (self.first_special(last) and self.first_special(last) not in header and answer != last) else self.first_special(last)


def letters():
    plain = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    extra = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(extra)) for byte in range(256)]


def model_folder(folder, template, base):
    """A tiny model with this template and a token per byte."""
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    (folder / "model.safetensors").symlink_to((base / "model.safetensors").resolve())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocab = {name: index for index, name in enumerate(letters())}
    added = []
    for name in template.special:
        added.append({"id": len(vocab), "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True})
        vocab[name] = len(vocab)
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": level,
        "post_processor": None, "decoder": level, "model": {"type": "BPE", "vocab": vocab, "merges": []}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": template.bos, "eos_token": template.eos, "chat_template": template.source}))
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"], config["vocab_size"] = 1 << 20, len(vocab)
    config["bos_token_id"], config["eos_token_id"] = vocab[template.bos], vocab[template.eos]
    (folder / "config.json").write_text(json.dumps(config))


def ours(binary, folder, messages, tools):
    """The trained parts of each sample, or the error."""
    data = folder.parent / "row.jsonl"
    data.write_text(json.dumps({"messages": messages, "tools": tools}))
    done = subprocess.run([binary, "data", "--data", data, "--model", folder, "--json", "--max-length", str(1 << 19)], capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr[max(done.stderr.find("error:"), 0):].strip()
    row = json.loads(done.stdout.splitlines()[-1])["rows"][0]
    return [part["text"] for sample in row["samples"] for part in sample["parts"] if part["trained"]], None


def left_out(template, messages, tools):
    """Whether the template leaves out the text of an answer, so that a refusal is right."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and not message.get("tool_calls"):
            text = template.render([*messages[:index], assistant(ANSWER)], tools)
            if text is not None and ANSWER not in text:
                return True
    return False


def without_call(template, messages, tools, index):
    """Whether the template leaves out the tool calls of an answer."""
    silent = {key: value for key, value in messages[index].items() if key != "tool_calls"}
    with_call = template.render(messages[: index + 1], tools)
    return "tool_calls" in messages[index] and with_call is not None and with_call == template.render([*messages[:index], silent], tools)


def trained_answers(template, messages, tools):
    """The answers of which something is left in the text, by their indices."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return [index for index in answers if messages[index]["content"] or not without_call(template, messages, tools, index)], answers


def wrong_with_marks(template, messages, tools, parts):
    """Compares with transformers' own mask. Returns None if equal, or what differs."""
    rendered = template.render(messages, tools, marks=True)
    text, ranges = rendered
    trained, answers = trained_answers(template, messages, tools)
    if len(trained) < len(answers) == len(ranges):
        ranges = [place for place, index in zip(ranges, answers) if index in trained]
    # Where the template writes no token after an answer we add the end-of-text token, as without blocks.
    added = template.eos if template.first_special(text) is None and template.eos not in template.source and "eos_token" not in template.source else ""
    expected = "".join(text[start:end] + added for start, end in ranges)
    return None if "".join(parts) == expected else f"transformers marks {expected!r}, we train {''.join(parts)!r}"


def wrong_without_marks(template, messages, tools, parts):
    """Checks that the parts are the answers with their end tokens. Returns None if so, or what differs."""
    answers, _ = trained_answers(template, messages, tools)
    if len(parts) < len(answers):
        # Answers with nothing between them are one part, because the template leaves out what is between them.
        end = re.escape(template.end_token(messages[: answers[0]], tools))
        parts = [piece for part in parts for piece in re.split(f"(?<={end})", part) if piece]
    if len(parts) != len(answers):
        return f"{len(answers)} answers, but {len(parts)} trained parts: {parts}"
    for index, part in zip(answers, parts):
        message = messages[index]
        content, reasoning = (message["content"] or "").strip(), message.get("reasoning_content")
        end = next((token for token in template.special if part.endswith(token)), None)
        if end is None:
            return f"no token ends {part!r}"
        body = part[: -len(end)].strip()
        if message.get("tool_calls") and not without_call(template, messages, tools, index):
            if "get_weather" not in body and template.render(messages[: index + 1], tools) and "get_weather" in template.render([*messages[:index], message], None):
                return f"the call is not in {part!r}"
        elif body != content:
            # What a template writes with an answer, such as a thought, is in its own rendering: after the header of an
            # answer without a thought, or after what the rendering has in common with the prompt.
            whole = template.render(messages[: index + 1], tools) or ""
            prompt = template.render(messages[:index], tools, True) or ""
            header = (template.render([*messages[:index], assistant(ANSWER)], tools) or "").rpartition(ANSWER)[0]
            starts = {len(os.path.commonprefix([whole, prompt])), *([len(header)] if header and whole.startswith(header) else [])}
            if not (body.endswith(content) and any(whole[start:].strip().startswith(body) for start in starts)):
                return f"the answer is {content!r}, we train {part!r}"
        if reasoning and reasoning not in body and reasoning in (template.render(messages[: index + 1], tools) or ""):
            return f"the reasoning {reasoning!r} is not in {part!r}"
        if not message.get("tool_calls") and end != template.end_token(messages[:index], tools):
            return f"{template.end_token(messages[:index], tools)!r} ends the turn, we train {part!r}"
        if any(other["content"] and other["content"] in part and other["content"] not in content + (reasoning or "") for other in messages if other["role"] != "assistant"):
            return f"a question is in {part!r}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=pathlib.Path, required=True, help="folder with NAME.jinja files")
    parser.add_argument("--binary", default="target/release/metal-candle", help="our command-line tool")
    parser.add_argument("--show", type=int, default=10, help="number of differences to print")
    parser.add_argument("--all", action="store_true", help="print every difference")
    parser.add_argument("--filter", default="", help="only templates whose name contains this")
    arguments = parser.parse_args()
    base = pathlib.Path(__file__).parent.parent / "tests/golden/llama"
    index = arguments.templates / "index.json"
    entries = {entry["name"]: entry for entry in json.loads(index.read_text())} if index.exists() else {}
    table, details, templates = collections.Counter(), [], collections.Counter()
    for path in sorted(arguments.templates.glob("*.jinja")):
        if arguments.filter not in path.name:
            continue
        template = Template(path, entries.get(path.stem, {}))
        kind = "with generation blocks" if template.tagged else "without generation blocks"
        templates[kind] += 1
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder) / "model"
            model_folder(model, template, base)
            for name, (messages, tools) in CHATS.items():
                if template.render(messages, tools) is None:
                    table[kind, "refused by Jinja2"] += 1
                    continue
                parts, error = ours(arguments.binary, model, messages, tools)
                if left_out(template, messages, tools):
                    outcome, what = ("rightly refused", None) if error else ("different", f"nothing is left of an answer, we train {parts}")
                elif error:
                    outcome, what = "refused by us", error
                else:
                    check = wrong_with_marks if template.tagged else wrong_without_marks
                    what = check(template, messages, tools, parts)
                    outcome = "different" if what else "right"
                table[kind, outcome] += 1
                if what:
                    details.append(f"{template.name}: {name}: {outcome}: {what}")
    outcomes = ["right", "rightly refused", "different", "refused by us", "refused by Jinja2"]
    print(f"{'templates':28}{'count':>7}" + "".join(f"{outcome:>19}" for outcome in outcomes))
    for kind in sorted(templates):
        print(f"{kind:28}{templates[kind]:>7}" + "".join(f"{table[kind, outcome]:>19}" for outcome in outcomes))
    for line in details[: None if arguments.all else arguments.show]:
        print(line)
    sys.exit(1 if details else 0)


if __name__ == "__main__":
    main()
