"""Adapters and merged folders beside PEFT, transformers and mlx-lm, on tiny random models.

    python compare/adapters.py [--binary target/release/metal-candle] [--only WORD] [--without-mlx]

Writes random Llama, Qwen2 and Qwen3 models, each with a tied and an untied head, and compares logits (`metal-candle eval
--logits`) for: adapters that metal-candle trains, loaded by PEFT; PEFT's adapters in every form of their names, loaded
by metal-candle; merged folders in f32, bf16 and f16, loaded by transformers and mlx-lm; merges of GGUF files; mlx-lm's
adapters. An adapter that can only be refused must be refused with the right words. Prints one line per comparison and a
table of the greatest relative errors, ‖difference‖ / ‖logits‖. Exits with 1 if one is above its limit.
"""

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TEXT = "The quick brown fox jumps over 12 lazy dogs.\n\tÉté!"
LAYERS = 2
# Two f32 computations of the same numbers in another order.
EXACT = 1e-5
SHAPE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
             vocab_size=256, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.2)
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
          "rope_theta": 10000.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def limit(dtype):
    """The error that storing weights as a dtype explains: the rule of `metal-candle merge`."""
    unit = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}[dtype]
    return max(8 * unit * (2 * LAYERS + 1) ** 0.5, EXACT)


class Table:
    def __init__(self, only):
        self.only, self.rows, self.failed = only, collections.OrderedDict(), 0

    def wants(self, name):
        return not self.only or self.only in name

    def add(self, group, name, error, allowed, note=""):
        """`error` is a number, or the text of what went wrong."""
        bad = isinstance(error, str) or not error <= allowed
        shown = error if isinstance(error, str) else f"{error:.1e}"
        print(f"{'FAIL' if bad else 'ok  '} {group}: {name}: {shown} {note}".rstrip(), flush=True)
        count, worst, _, failed = self.rows.get(group, (0, 0.0, 0.0, 0))
        worst = worst if isinstance(error, str) else max(worst, error)
        self.rows[group] = (count + 1, worst, allowed, failed + bad)
        self.failed += bad

    def print(self):
        print(f"\n{'comparison':60} {'pairs':>5} {'failed':>6} {'greatest error':>14} {'limit':>8}")
        for group, (count, worst, allowed, failed) in self.rows.items():
            print(f"{group:60} {count:5} {failed:6} {worst:14.1e} {allowed:8.0e}")


class Tool:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.count = binary, folder, 0

    def run(self, *arguments):
        self.count += 1
        environment = {**os.environ, "METAL_CANDLE_OFFLINE": "1", "METAL_CANDLE_CACHE": str(self.folder / "cache")}
        return subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=600)

    def logits(self, model, adapter=None):
        """Token ids and logits of TEXT, or the text of the error."""
        data, out = self.folder / "text.jsonl", self.folder / f"logits-{self.count}.safetensors"
        data.write_text(json.dumps({"text": TEXT}) + "\n", encoding="utf-8")
        more = ["--adapter", adapter] if adapter else []
        done = self.run("eval", "--device", "cpu", "--threads", 1, "--model", model, "--data", data, "--train-on", "all",
                        "--logits", out, "--json", *more)
        if done.returncode:
            return done.stderr.strip()
        tensors = load_file(out)
        return tensors["ids"].to(torch.int64), tensors["logits"]


def tokenizer_json():
    """A tokenizer whose tokens are bytes, 1 and 2 being the special ones <s> and </s>."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    names = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
    names[1], names[2] = "<s>", "</s>"
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = [{"id": i, "content": names[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for i in (1, 2)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None, "pre_tokenizer": level,
            "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []}}


def write_models(folder):
    """The base models by name."""
    models = {}
    for number, (kind, rope) in enumerate([("llama", LLAMA3), ("qwen2", PLAIN), ("qwen3", PLAIN)]):
        for tied in (True, False):
            name = f"{kind}, {'tied' if tied else 'untied'}"
            torch.manual_seed(100 + 2 * number + tied)
            config = AutoConfig.for_model(kind, **SHAPE, tie_word_embeddings=tied, rope_parameters=dict(rope))
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if key.endswith("bias") or "norm" in key:
                        parameter.add_(0.1 * torch.randn_like(parameter))
            path = folder / name.replace(", ", "-")
            model.save_pretrained(path)
            # mlx-lm reads transformers 4's spelling only.
            written = json.loads((path / "config.json").read_text())
            written |= {"rope_theta": 10000.0, "rope_scaling": None if rope is PLAIN else {k: v for k, v in rope.items() if k != "rope_theta"}}
            (path / "config.json").write_text(json.dumps(written))
            (path / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
            (path / "tokenizer_config.json").write_text(json.dumps(settings))
            models[name] = path
    return models


def base(path, kind=AutoModelForCausalLM, dtype=torch.float32):
    return kind.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


def torch_logits(model, ids):
    with torch.no_grad():
        return model(ids.unsqueeze(0)).logits[0].float()


def difference(ours, theirs):
    """Relative error of our logits, or the text of our error."""
    if isinstance(ours, str):
        return ours
    ours, count = ours[1], ours[1].shape[0]
    return ((ours - theirs[:count]).norm() / theirs[:count].norm()).item()


# Settings of adapters in both tools' words.
ADAPTERS = {
    "all linear layers": ([], dict(target_modules="all-linear")),
    "two kinds, rsLoRA": (["--targets", "q_proj,v_proj", "--rslora"], dict(target_modules=["q_proj", "v_proj"], use_rslora=True)),
    "patterns": (
        ["--targets", "q_proj,o_proj,down_proj", "--rank-pattern", r"layers.0.self_attn.q_proj=2,q_proj=6,proj=3",
         "--alpha-pattern", "o_proj=3,self_attn.o_proj=7", "--rslora"],
        dict(target_modules=["q_proj", "o_proj", "down_proj"], use_rslora=True,
             rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 6, "proj": 3}, alpha_pattern={"o_proj": 3, "self_attn.o_proj": 7})),
    "expression, one layer": (
        ["--targets", r"regex:.*\.(q|up)_proj", "--layers", "1"],
        dict(target_modules=r"model\.layers\.1\..*\.(q|up)_proj")),
    "exclusions": (["--exclude", "k_proj,gate_proj"], dict(target_modules="all-linear", exclude_modules=["k_proj", "gate_proj"])),
    "embedding": (["--targets", "embed_tokens"], dict(target_modules=["embed_tokens"])),
    "head": (["--targets", "lm_head"], dict(target_modules=["lm_head"])),
    "embedding, head, q": (["--targets", "embed_tokens,lm_head,q_proj"], dict(target_modules=["embed_tokens", "lm_head", "q_proj"])),
}


def write_data(folder):
    folder.mkdir()
    rows = [{"prompt": f"count {i} ", "completion": " ".join(str(i + j) for j in range(6))} for i in range(16)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ours_to_peft(tool, models, table, folder):
    """Trains adapters and loads them by PEFT. Returns their folders."""
    data, trained = write_data(folder / "data"), {}
    for model, path in models.items():
        for name, (flags, _) in ADAPTERS.items():
            group, row = "trained by metal-candle, loaded by PEFT", f"{model}, {name}"
            out = folder / "trained" / f"{path.name}-{name}".replace(" ", "-").replace(",", "")
            trained[model, name] = out
            if not table.wants(f"{group}: {row}") and not table.wants("merged"):
                continue
            done = tool.run("train", "--device", "cpu", "--threads", 1, "--model", path, "--data", data, "--out", out, "--steps", 4,
                            "--batch-size", 4, "--max-length", 64, "--learning-rate", 0.05, "--rank", 4, "--alpha", 8, "--no-samples",
                            "--json", *flags)
            if done.returncode:
                table.add(group, row, done.stderr.strip(), EXACT)
                continue
            ours = tool.logits(path, out)
            if isinstance(ours, str):
                table.add(group, row, ours, EXACT)
                continue
            try:
                peft = PeftModel.from_pretrained(base(path), out).eval()
            except (ValueError, RuntimeError) as error:
                table.add(group, row, f"PEFT refuses it: {error}", EXACT)
                continue
            plain = torch_logits(base(path), ours[0])
            moved = difference(ours, plain)
            # An adapter that changes nothing would agree with everything.
            error = difference(ours, torch_logits(peft, ours[0])) if moved > 1e-2 else f"changes the logits by {moved:.0e} only"
            table.add(group, row, error, EXACT)
    return trained


def randomized(model):
    """The adapter's parameters, none of them zero."""
    torch.manual_seed(17)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def by_peft(path, settings, kind=AutoModelForCausalLM, wrap=lambda model: model):
    task = "CAUSAL_LM" if kind is AutoModelForCausalLM else None
    return randomized(get_peft_model(wrap(base(path, kind)), LoraConfig(r=4, lora_alpha=8, task_type=task, **settings)))


def renamed(source, target, change):
    shutil.copytree(source, target)
    file = target / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return target


PREFIX = "base_model.model."
NAMES = {
    "the adapter's name kept": lambda name: name.replace(".weight", ".default.weight"),
    "no prefix": lambda name: name.removeprefix(PREFIX),
    "bare class": lambda name: name.replace(PREFIX + "model.", PREFIX),
    "bare class, no prefix": lambda name: name.replace(PREFIX + "model.", ""),
    "compiled outside": lambda name: "_orig_mod." + name,
    "compiled inside": lambda name: name.replace(PREFIX, PREFIX + "_orig_mod."),
    "compiled layers": lambda name: name.replace("self_attn", "_orig_mod.self_attn"),
}


def peft_to_ours(tool, models, table, folder):
    ids = torch.tensor(list(TEXT.encode()))
    for model, path in models.items():
        for name, (_, settings) in ADAPTERS.items():
            for copies in ("auto", True, False):
                group, row = "saved by PEFT, loaded by metal-candle", f"{model}, {name}, copies of embeddings: {copies}"
                if not table.wants(f"{group}: {row}") or (copies != "auto" and "embedding" not in name and "head" not in name):
                    continue
                peft, out = by_peft(path, settings), folder / "peft" / f"{len(table.rows)}-{tool.count}"
                peft.save_pretrained(out, save_embedding_layers=copies)
                ours = tool.logits(path, out)
                table.add(group, row, difference(ours, torch_logits(peft, ids)), EXACT)
        settings = dict(target_modules=["q_proj", "v_proj"])
        peft, plain = by_peft(path, settings), folder / "names" / path.name / "plain"
        theirs = torch_logits(peft, ids)
        peft.save_pretrained(plain)
        forms = {name: lambda name=name, change=change: renamed(plain, plain.parent / name, change) for name, change in NAMES.items()}

        def saved(name, adapter):
            adapter.save_pretrained(plain.parent / name)
            return plain.parent / name

        forms["saved from the bare class"] = lambda: saved("bare", by_peft(path, settings, AutoModel))
        forms["saved from a compiled model"] = lambda: saved("compiled", by_peft(path, settings, wrap=torch.compile))
        for name, write in forms.items():
            group, row = "PEFT's names in other forms, loaded by metal-candle", f"{model}, {name}"
            if table.wants(f"{group}: {row}"):
                table.add(group, row, difference(tool.logits(path, write()), theirs), EXACT)


def refusals(tool, models, table, folder):
    """Adapters that compute something else are refused by name."""
    path = models["llama, untied"]
    kinds = {
        "DoRA": (dict(target_modules=["q_proj"], use_dora=True), "use_dora"),
        "trained biases": (dict(target_modules=["q_proj"], bias="lora_only"), "bias"),
        "whole modules": (dict(target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save"),
        "bias of B": (dict(target_modules=["q_proj"], lora_bias=True), "lora_bias"),
        "trained tokens": (dict(target_modules=["q_proj"], trainable_token_indices=[3, 4]), "trainable_token_indices"),
        "PiSSA": (dict(target_modules=["q_proj"], init_lora_weights="pissa"), "init_lora_weights"),
        "parameters": (dict(target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"]), "target_parameters"),
    }
    for name, (settings, word) in kinds.items():
        group = "other kinds of PEFT, refused by name"
        if not table.wants(f"{group}: {name}"):
            continue
        try:
            peft = by_peft(path, settings)
        except (TypeError, ValueError) as error:
            table.add(group, name, f"PEFT itself refuses: {error}", 0)
            continue
        peft.save_pretrained(folder / "refused" / name)
        found = tool.logits(path, folder / "refused" / name)
        table.add(group, name, 0.0 if isinstance(found, str) and word in found else f"not refused by name: {found}"[:300], 0)
    group, name = "other kinds of PEFT, refused by name", "pickle"
    if table.wants(f"{group}: {name}"):
        by_peft(path, dict(target_modules=["q_proj"])).save_pretrained(folder / "refused" / name)
        file = folder / "refused" / name / "adapter_model.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
        found = tool.logits(path, folder / "refused" / name)
        table.add(group, name, 0.0 if isinstance(found, str) and "adapter_model.bin" in found else str(found)[:300], 0)


class Mlx:
    """mlx-lm, where it is installed."""

    def __init__(self):
        import mlx.core
        import mlx.utils
        import mlx_lm.tuner.utils
        import mlx_lm.utils

        self.core, self.utils, self.lm, self.tuner = mlx.core, mlx.utils, mlx_lm.utils, mlx_lm.tuner.utils
        # Products on the CPU are as exact as torch's.
        self.core.set_default_device(self.core.cpu)

    def load(self, path):
        model, _ = self.lm.load_model(Path(path))
        model.set_dtype(self.core.float32)
        return model.eval() or model

    def logits(self, model, ids):
        found = model(self.core.array(ids.tolist())[None])[0].astype(self.core.float32)
        return torch.tensor(found.tolist())

    def adapter(self, path, out, parameters, layers, model=None):
        """Writes a random adapter as mlx_lm.lora does and returns the model with it."""
        model = self.load(path)
        model.freeze()
        self.tuner.linear_to_lora_layers(model, layers, parameters)
        self.core.random.seed(5)
        leaves = self.utils.tree_flatten(model.trainable_parameters())
        model.update(self.utils.tree_unflatten([(name, 0.05 * self.core.random.normal(leaf.shape)) for name, leaf in leaves]))
        out.mkdir(parents=True)
        config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters, "model": str(path)}
        (out / "adapter_config.json").write_text(json.dumps(config))
        self.core.save_safetensors(str(out / "adapters.safetensors"), dict(self.utils.tree_flatten(model.trainable_parameters())))
        model.eval()
        return model


def check_merged(tool, table, mlx, name, merged, dtype, theirs, tokens):
    """A merged folder by transformers and mlx-lm, against base and adapter."""
    ids = torch.tensor(tokens)
    group = f"merged as {dtype}, loaded by transformers"
    stored = AutoModelForCausalLM.from_pretrained(merged, dtype="auto", attn_implementation="eager").eval()
    expected = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    if stored.dtype != expected:
        table.add(group, name, f"loaded as {stored.dtype}", limit(dtype))
        return
    found = torch_logits(stored.float(), ids)
    table.add(group, name, difference((ids, found), theirs), limit(dtype))
    tokenizer = AutoTokenizer.from_pretrained(merged)
    group = "merged, tokens by transformers"
    table.add(group, f"{name}, {dtype}", 0.0 if tokenizer(TEXT)["input_ids"] == tokens else f"other tokens: {tokenizer(TEXT)['input_ids']}"[:200], 0)
    if mlx:
        found = mlx.logits(mlx.load(merged), ids)
        table.add(f"merged as {dtype}, loaded by mlx-lm", name, difference((ids, found), theirs), limit(dtype))


def merges(tool, models, trained, table, mlx, folder):
    for model, path in models.items():
        for adapter in ("all linear layers", "embedding", "head", "embedding, head, q", "patterns"):
            for dtype in ("f32", "bf16", "f16"):
                name = f"{model}, {adapter}"
                if not table.wants(f"merged as {dtype}: {name}"):
                    continue
                out = folder / "merged" / f"{path.name}-{adapter}-{dtype}".replace(" ", "-").replace(",", "")
                done = tool.run("merge", "--model", path, "--adapter", trained[model, adapter], "--out", out, "--dtype", dtype, "--json")
                if done.returncode:
                    table.add(f"merged as {dtype}, loaded by transformers", name, done.stderr.strip(), limit(dtype))
                    continue
                tokens = AutoTokenizer.from_pretrained(path)(TEXT)["input_ids"]
                peft = PeftModel.from_pretrained(base(path), trained[model, adapter]).eval()
                check_merged(tool, table, mlx, name, out, dtype, torch_logits(peft, torch.tensor(tokens)), tokens)


def write_gguf(path, out):
    """The same model as a GGUF file in F32 with a byte tokenizer that adds <s>."""
    import gguf

    config, weights = AutoConfig.from_pretrained(path), load_file(path / "model.safetensors")
    kind, heads, kv = config.model_type, config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(str(out), kind)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_key_length(16)
    writer.add_value_length(16)
    tokens = sorted(tokenizer_json()["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token if i != 255 else "zz" for token, i in tokens])
    writer.add_token_types([3 if i in (1, 2) else 1 for _, i in tokens])
    # gguf writes no empty list: one merge that TEXT does not need.
    writer.add_token_merges(["z z"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    names = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
             "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for name, tensor in weights.items():
        if name not in top:
            _, _, layer, rest = name.split(".", 3)
            module, part = rest.rsplit(".", 1)
            if kind == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
                # The converter's order of rows for interleaved rotation.
                count = heads if module.endswith("q_proj") else kv
                tensor = tensor.reshape(count, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
            top[name] = f"blk.{layer}.{names[module]}.{part}"
        writer.add_tensor(top[name], tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_merges(tool, models, trained, table, mlx, folder):
    (folder / "gguf").mkdir()
    for model, path in models.items():
        name = f"{model}, of a GGUF file"
        # The Llama's scaled rotation is stored as factors, which no folder can hold.
        if not table.wants(f"merged as f32: {name}") or model.startswith("llama"):
            continue
        file, out = folder / "gguf" / f"{path.name}.gguf", folder / "merged" / f"{path.name}-gguf"
        write_gguf(path, file)
        adapter = trained[model, "all linear layers"]
        done = tool.run("merge", "--model", file, "--adapter", adapter, "--out", out, "--json")
        if done.returncode:
            table.add("merged as f32, loaded by transformers", name, done.stderr.strip(), limit("f32"))
            continue
        tokens = [1, *TEXT.encode()]
        peft = PeftModel.from_pretrained(base(path), adapter).eval()
        check_merged(tool, table, mlx, name, out, "f32", torch_logits(peft, torch.tensor(tokens)), tokens)


def mlx_to_ours(tool, models, table, mlx, folder):
    plain = {"rank": 4, "scale": 20.0, "dropout": 0.0}
    forms = {
        "every layer": (plain, LAYERS),
        "the last layer, other scale": ({**plain, "scale": 1.5, "rank": 2}, 1),
        "keys": ({**plain, "keys": ["self_attn.q_proj", "mlp.down_proj"]}, LAYERS),
        "head": ({**plain, "keys": ["lm_head"]}, LAYERS),
        "embedding": ({**plain, "scale": 2.0, "keys": ["model.embed_tokens"]}, LAYERS),
    }
    ids = torch.tensor(list(TEXT.encode()))
    for model, path in models.items():
        for name, (parameters, layers) in forms.items():
            group, row = "saved by mlx-lm, loaded by metal-candle", f"{model}, {name}"
            if not table.wants(f"{group}: {row}") or (name == "head" and ", tied" in model):
                continue
            out = folder / "mlx" / f"{path.name}-{name}".replace(" ", "-").replace(",", "")
            theirs = mlx.logits(mlx.adapter(path, out, parameters, layers), ids)
            ours = tool.logits(path, out)
            if name == "embedding":
                # mlx-lm applies it to a tied head too.
                refused = isinstance(ours, str) and "embed_tokens" in ours
                table.add("mlx-lm's adapter of the embedding, refused by name", row, 0.0 if refused else f"not refused by name: {ours}"[:300], 0)
                continue
            table.add(group, row, difference(ours, theirs), EXACT)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", default="target/release/metal-candle")
    arguments.add_argument("--only", help="compare only where this is in the line's name")
    arguments.add_argument("--without-mlx", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(2)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    table = Table(options.only)
    mlx = None if options.without_mlx else Mlx()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tool, models = Tool(os.path.abspath(options.binary), folder), write_models(folder)
        trained = ours_to_peft(tool, models, table, folder)
        peft_to_ours(tool, models, table, folder)
        refusals(tool, models, table, folder)
        merges(tool, models, trained, table, mlx, folder)
        gguf_merges(tool, models, trained, table, mlx, folder)
        if mlx:
            mlx_to_ours(tool, models, table, mlx, folder)
    table.print()
    sys.exit(1 if table.failed else 0)


if __name__ == "__main__":
    main()
