"""Writes tests/golden: what transformers computes, for our tests to agree with.

    python compare/golden.py --model FOLDER_WITH_GGUF_OR_HF_MODEL --out tests/golden

Small random models of each family are made here; of SmolLM2 only sums, a sample of the logits and token ids are kept.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

PROMPTS = ["What is the capital of France?", "Write a haiku about the sea.", "How do I list files by size in Linux?"]
TEXT = (
    "The lighthouse keeper climbed the 214 steps every evening, counting them aloud. In 1987 the lamp was automated, "
    "but he kept climbing: def main(): print('light', 3.14) was the only line of code he ever wrote. Ships passed at "
    "night; some answered with a short blast of the horn, and he would wave."
)
# No superscripts: transformers leaves out the splitting of digits when it rebuilds a tokenizer from GGUF, and "²" is one.
STRINGS = [
    "", " ", "  two  spaces ", "Hello, world!", "hello\nworld\n\n", "tab\tand\r\nline", "1234567890", "3.14159", "year 2026",
    "naïve café", "Grüße aus Köln", "東京タワー", "Привет, мир", "مرحبا", "😀 emoji 👩‍👩‍👧", "a_b-c.d/e\\f", "x = y[0] + z['k']",
    "for (int i = 0; i < 10; i++) {}", "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "don't can't we'll I'm",
    "UPPER lower MiXeD", "...!!!???", "http://example.org/a?b=c&d=1", "\u200bzero width", "e\u0301 combining", "ﬁ ligature",
    "0x1F600", "1,000,000.00", " leading", "trailing ", "\n\n\n", "\t\t", "a" * 40, "日本語 and English mixed 123",
    "SELECT * FROM t WHERE id = 7;", "`ls -la | grep \"x\"`", "C++ & C#",
]


def tiny(kind, out):
    """A random model of one family as a folder, with logits of one sequence."""
    torch.manual_seed(7)
    common = dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=256,
        max_position_embeddings=128, rms_norm_eps=1e-5, attn_implementation="eager", dtype="float32",
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.2,
    )
    if kind == "llama":
        scaling = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 32}
        config = LlamaConfig(**common, tie_word_embeddings=False, rope_parameters=scaling, attention_bias=False)
    elif kind == "mistral":
        config = MistralConfig(**common, tie_word_embeddings=False, sliding_window=8)
    elif kind == "qwen2":
        config = Qwen2Config(**common, tie_word_embeddings=True)
    else:
        config = Qwen3Config(**common, tie_word_embeddings=True, head_dim=32)
    model = AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    folder = out / kind
    # One family in two shards, so that the index is read too.
    model.save_pretrained(folder, max_shard_size="200KB" if kind == "mistral" else "10MB")
    ids = torch.randint(3, 256, (1, 24))
    with torch.no_grad():
        logits = model(ids).logits[0].float()
    save_file({"ids": ids[0].to(torch.int32), "logits": logits.contiguous()}, folder / "expected.safetensors")


def load(path):
    path = Path(path)
    if path.is_file():
        kwargs = dict(gguf_file=path.name)
        path = path.parent
    else:
        kwargs = {}
    tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **kwargs).eval()
    return tokenizer, model


def smollm2(path, out):
    tokenizer, model = load(path)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids[:64]
    assert len(ids) == 64, len(ids)
    answers = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        given = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            found = model.generate(torch.tensor([given]), max_new_tokens=64, do_sample=False, eos_token_id=-1, pad_token_id=0)
        answers.append({"prompt": prompt, "text": text, "ids": given, "continuation": found[0, len(given):].tolist()})
    strings = []
    for text in STRINGS:
        found = tokenizer(text, add_special_tokens=False).input_ids
        strings.append({"text": text, "ids": found, "decoded": tokenizer.decode(found, skip_special_tokens=True)})
    (out / "smollm2.json").write_text(json.dumps({"answers": answers, "strings": strings}, ensure_ascii=False, indent=1) + "\n")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
        exact = model.double()(torch.tensor([ids])).logits[0]
    print("f32 against f64: greatest difference", (logits.double() - exact).abs().max().item())
    columns = torch.arange(0, logits.shape[1], 769)
    save_file(
        {"ids": torch.tensor(ids, dtype=torch.int32), "columns": columns.to(torch.int32),
         "logits": exact[:, columns].float().contiguous(), "lse": torch.logsumexp(exact, -1).float().contiguous(),
         "argmax": exact.argmax(-1).to(torch.int32)},
        out / "smollm2.safetensors",
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", help="SmolLM2-135M-Instruct as a GGUF file or a folder")
    arguments.add_argument("--out", type=Path, default=Path("tests/golden"))
    options = arguments.parse_args()
    torch.set_num_threads(2)
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in ["llama", "mistral", "qwen2", "qwen3"]:
        tiny(kind, options.out)
    if options.model:
        smollm2(options.model, options.out)


if __name__ == "__main__":
    main()
