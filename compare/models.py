"""A peer of `metal-candle bench train` and `bench generate`: one JSON line at a time.

    models.py torch|mlx|llama.cpp train|generate cpu|metal

The first request names the model's files, the initial adapter, the tokens and the sizes; the answer holds the losses of
the first steps, or the logits after the prompt in a file, for the tool to compare with its own. Every further request times
one training step, or one prompt and its continuation.
"""

import json
import os
import resource
import struct
import sys
import time
from pathlib import Path

BETAS, EPS, RATE, NORM = (0.9, 0.999), 1e-8, 1e-4, 1.0


class TorchTraining:
    """LoRA by PEFT, torch eager."""

    synchronised = "the loss is read after the update"

    def __init__(self, request, device):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self.torch, self.place = torch, torch.device("mps" if device == "metal" else "cpu")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[request["dtype"]]
        base = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=dtype).to(self.place)
        self.model = PeftModel.from_pretrained(base, request["adapter"], is_trainable=True).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
        self.batch = torch.tensor(request["rows"], device=self.place)

    def where(self):
        where = self.model.device
        return f"torch {self.torch.__version__} with PEFT, {where}, {self.torch.get_num_threads()} threads"

    def form(self, request):
        return f"{request['dtype']}, eager"

    def step(self):
        loss = self.model(input_ids=self.batch, labels=self.batch).loss
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.trained, NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.place.type == "mps":
            self.torch.mps.synchronize()
        return loss.item()


class TorchGeneration:
    synchronised = "logits are read after the prompt, every token before the next"

    def __init__(self, request, device):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch, self.place = torch, torch.device("mps" if device == "metal" else "cpu")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[request["dtype"]]
        self.model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=dtype).to(self.place).eval()

    def where(self):
        return f"torch {self.torch.__version__}, {self.model.device}, {self.torch.get_num_threads()} threads"

    def form(self, request):
        return f"{request['dtype']}, eager"

    def read(self, ids):
        with self.torch.inference_mode():
            tokens = self.torch.tensor([ids], device=self.place)
            self.found = self.model(tokens, use_cache=True, logits_to_keep=1)
            return self.found.logits[0, -1].float().cpu().numpy()

    def next(self):
        with self.torch.inference_mode():
            token = self.found.logits[:, -1:].argmax(-1)
            self.found = self.model(token, past_key_values=self.found.past_key_values, use_cache=True)
            return token.item()


class MlxLlama:
    """A Llama by mx.fast operations, as mlx-lm has it."""

    def __init__(self, request, device):
        import mlx.core as mx

        self.mx = mx
        mx.set_default_device(mx.gpu if device == "metal" else mx.cpu)
        folder = Path(request["folder"])
        config = json.loads((folder / "config.json").read_text())
        if config["model_type"] != "llama" or config.get("rope_scaling"):
            raise ValueError("this job knows Llama models without scaled rotation only")
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads", self.heads)
        self.d = config.get("head_dim") or config["hidden_size"] // self.heads
        rope = config.get("rope_parameters") or {}
        self.theta, self.eps = config.get("rope_theta") or rope.get("rope_theta", 10000.0), config["rms_norm_eps"]
        kind = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}[request["dtype"]]
        self.w = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.w.update({name: tensor.astype(kind) for name, tensor in mx.load(str(file)).items()})
        mx.eval(self.w)
        self.head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])

    def where(self):
        place = f"mlx {self.mx.__version__}, {self.mx.default_device()}"
        if not sys.platform.startswith("linux"):
            return place
        with open("/proc/self/maps") as maps:
            loaded = "openblas" in maps.read()
        return f"{place}, {'OpenBLAS preloaded' if loaded else 'the wheel’s own BLAS, thirty times slower than OpenBLAS'}"

    def form(self, request):
        return request["dtype"]

    def hidden(self, ids, lora=None, cache=None, start=0):
        mx, w, lora = self.mx, self.w, lora or {}
        b, t = ids.shape

        def linear(path, x):
            y = x @ w[path + ".weight"].T
            if path + ".A" not in lora:
                return y
            return y + (lora[path + ".scale"] * ((x @ lora[path + ".A"].T) @ lora[path + ".B"].T)).astype(y.dtype)

        def heads(x, count, turn):
            x = x.reshape(b, t, count, self.d).transpose(0, 2, 1, 3)
            return mx.fast.rope(x, self.d, traditional=False, base=self.theta, scale=1.0, offset=start) if turn else x

        h = w["model.embed_tokens.weight"][ids]
        for layer in range(self.layers):
            path = f"model.layers.{layer}."
            x = mx.fast.rms_norm(h, w[path + "input_layernorm.weight"], self.eps)
            q = heads(linear(path + "self_attn.q_proj", x), self.heads, True)
            k = heads(linear(path + "self_attn.k_proj", x), self.kv_heads, True)
            v = heads(linear(path + "self_attn.v_proj", x), self.kv_heads, False)
            if cache is not None:
                for kept, new in zip(cache[layer], (k, v)):
                    kept[..., start : start + t, :] = new
                k, v = (kept[..., : start + t, :] for kept in cache[layer])
            mask = "causal" if t > 1 else None
            y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.d**-0.5, mask=mask)
            h = h + linear(path + "self_attn.o_proj", y.transpose(0, 2, 1, 3).reshape(b, t, -1))
            x = mx.fast.rms_norm(h, w[path + "post_attention_layernorm.weight"], self.eps)
            gate, up = linear(path + "mlp.gate_proj", x), linear(path + "mlp.up_proj", x)
            h = h + linear(path + "mlp.down_proj", gate * mx.sigmoid(gate) * up)
        return mx.fast.rms_norm(h, w["model.norm.weight"], self.eps)


class MlxTraining(MlxLlama):
    synchronised = "mx.eval of the loss, the adapter and the optimizer's state"

    def __init__(self, request, device):
        super().__init__(request, device)
        mx = self.mx
        folder = Path(request["adapter"])
        config = json.loads((folder / "adapter_config.json").read_text())
        self.lora = {}
        for name, tensor in mx.load(str(folder / "adapter_model.safetensors")).items():
            path, part = name.removeprefix("base_model.model.").split(".lora_")
            self.lora[f"{path}.{part[0]}"] = tensor
        scales = {name[:-1] + "scale": config["lora_alpha"] / config["r"] for name in self.lora if name.endswith(".A")}
        self.ids, self.t = mx.array(request["rows"]), 0
        self.state = {name: (mx.zeros_like(x), mx.zeros_like(x)) for name, x in self.lora.items()}

        def loss(lora):
            h = self.hidden(self.ids, {**lora, **scales})
            logits = (h[:, :-1] @ self.head.T).astype(mx.float32)
            wanted = mx.take_along_axis(logits, self.ids[:, 1:, None], -1)[..., 0]
            return (mx.logsumexp(logits, -1) - wanted).mean()

        self.gradient = mx.compile(mx.value_and_grad(loss))

    def form(self, request):
        return f"{request['dtype']}, mx.compile"

    def step(self):
        mx = self.mx
        loss, gradient = self.gradient(self.lora)
        norm = mx.sqrt(sum((g * g).sum() for g in gradient.values()))
        factor = mx.minimum(1.0, NORM / (norm + 1e-6))
        self.t += 1
        for name, g in gradient.items():
            g = g * factor
            mean, square = self.state[name]
            mean, square = BETAS[0] * mean + (1 - BETAS[0]) * g, BETAS[1] * square + (1 - BETAS[1]) * g * g
            root = mx.sqrt(square / (1 - BETAS[1] ** self.t)) + EPS
            self.lora[name] = self.lora[name] - RATE * (mean / (1 - BETAS[0] ** self.t)) / root
            self.state[name] = (mean, square)
        mx.eval(loss, self.lora, self.state)
        return loss.item()


class MlxGeneration(MlxLlama):
    synchronised = "mx.eval of the logits after the prompt and of every token before the next"

    def __init__(self, request, device):
        super().__init__(request, device)
        self.room = len(request["prompt"]) + request["tokens"] + 1

    def forward(self, ids):
        mx = self.mx
        h = self.hidden(mx.array([ids]), None, self.cache, self.start)
        self.start += len(ids)
        self.logits = h[0, -1] @ self.head.T
        mx.eval(self.logits, self.cache)

    def read(self, ids):
        import numpy as np

        zeros = lambda: self.mx.zeros((1, self.kv_heads, self.room, self.d), dtype=self.head.dtype)
        self.cache, self.start = [[zeros(), zeros()] for _ in range(self.layers)], 0
        self.forward(ids)
        return np.array(self.logits.astype(self.mx.float32))

    def next(self):
        token = self.mx.argmax(self.logits).item()
        self.forward([token])
        return token


class LlamaCppGeneration:
    synchronised = "llama_decode returns with the logits, which are read"

    def __init__(self, request, device):
        import llama_cpp

        if not request["file"]:
            raise ValueError("llama.cpp reads GGUF files, and the model is a folder")
        self.module, self.threads = llama_cpp, int(os.environ.get("OMP_NUM_THREADS", "1"))
        room = len(request["prompt"]) + request["tokens"] + 1
        self.layers = -1 if device == "metal" else 0
        self.model = llama_cpp.Llama(
            model_path=request["file"], n_ctx=max(room, 256), n_batch=512, n_gpu_layers=self.layers,
            n_threads=self.threads, n_threads_batch=self.threads, logits_all=False, verbose=False,
        )

    def where(self):
        gpu = self.layers != 0 and self.module.llama_supports_gpu_offload()
        return f"llama.cpp (llama-cpp-python {self.module.__version__}), {'metal' if gpu else 'cpu'}, {self.threads} threads"

    def form(self, request):
        return f"{Path(request['file']).stem.split('.')[-1]}, as in the file"

    def last(self):
        import numpy as np

        pointer = self.module.llama_get_logits_ith(self.model.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab(),))

    def read(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return self.last().copy()

    def next(self):
        token = int(self.last().argmax())
        self.model.eval([token])
        return token


def continued(model, request):
    """Seconds of the prompt and of the tokens after it, and these."""
    begun = time.perf_counter()
    model.read(request["prompt"])
    prefill = time.perf_counter() - begun
    begun = time.perf_counter()
    tokens = [model.next() for _ in range(request["tokens"])]
    return {"prefill": prefill, "decode": time.perf_counter() - begun, "continuation": tokens}


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def say(answer):
    print(json.dumps(answer), flush=True)


JOBS = {
    ("torch", "train"): (TorchTraining, ["torch", "transformers", "peft"]),
    ("torch", "generate"): (TorchGeneration, ["torch", "transformers"]),
    ("mlx", "train"): (MlxTraining, ["mlx.core", "numpy"]),
    ("mlx", "generate"): (MlxGeneration, ["mlx.core", "numpy"]),
    ("llama.cpp", "generate"): (LlamaCppGeneration, ["llama_cpp", "numpy"]),
}


def main():
    name, job, device = sys.argv[1:4]
    make, modules = JOBS[name, job]
    try:
        for module in modules:
            __import__(module)
    except Exception as error:
        return say({"error": f"{type(error).__name__}: {error}"})
    say({"hello": True})
    model = request = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "time" not in asked:
                request, model = asked, make(asked, device)
                answer = {"device": model.where(), "form": model.form(request), "synchronised": model.synchronised}
                if job == "train":
                    answer["losses"] = [model.step() for _ in range(request["check"])]
                else:
                    logits = model.read(request["prompt"])
                    Path(request["out"]).write_bytes(struct.pack(f"<{len(logits)}f", *logits))
                say(answer)
            elif job == "train":
                begun = time.perf_counter()
                loss = model.step()
                say({"seconds": time.perf_counter() - begun, "loss": loss, "peak_bytes": peak_bytes()})
            else:
                say({**continued(model, request), "peak_bytes": peak_bytes()})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
