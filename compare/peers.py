"""A peer of `metal-candle bench ops`: computes and times what it is told, one JSON line at a time.

    peers.py torch|mlx|flawed cpu|metal

`flawed` needs nothing but Python. It is a lazy library used as the plan's MLX benchmark used MLX: eight results are
asked for, one is evaluated before the clock stops. `metal-candle bench` must refuse it.
"""

import json
import math
import os
import struct
import sys
import time

EPS = 1e-5


def values(shape, scale, index, copy):
    """As `Case::values` in src/bench.rs, in f32."""
    import numpy as np

    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    whole = (i * 7919 + copy * 104_729 + index * 1_299_709) % 2003
    return (np.float32(scale) * (whole.astype(np.float32) / np.float32(1001.5) - np.float32(1.0))).reshape(shape)


class Torch:
    def __init__(self, device):
        import torch

        self.torch = torch
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.device = torch.device("mps" if device == "metal" else "cpu")

    def tensor(self, array, dtype, gradient):
        kind = {"f32": self.torch.float32, "f16": self.torch.float16, "bf16": self.torch.bfloat16}[dtype]
        return self.torch.from_numpy(array).to(self.device, kind).requires_grad_(gradient)

    def where(self, tensor):
        return f"torch {self.torch.__version__}, {tensor.device}, {self.torch.get_num_threads()} threads"

    def finish(self, results):
        if self.device.type == "mps":
            self.torch.mps.synchronize()

    def array(self, tensor):
        return tensor.detach().float().cpu().numpy()

    def forward(self, kind, sizes):
        f = self.torch.nn.functional
        if kind == "matmul":
            return lambda x, w: f.linear(x, w)
        if kind in ("softmax", "softmax_inner"):
            return lambda x: self.torch.softmax(x, 1)
        if kind == "rms_norm":
            return lambda x, w: f.rms_norm(x, (sizes["n"],), w, EPS)
        if kind == "layer_norm":
            return lambda x, w, b: f.layer_norm(x, (sizes["n"],), w, b, EPS)
        if kind == "lora":
            return lambda x, w, a, b: self.torch.addmm(f.linear(x, w), f.linear(x, a), b.t(), alpha=2.0)

        def attention(q, k, v):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            scale = 1 / math.sqrt(sizes["d"])
            return f.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)

        return attention

    def with_gradient(self, forward, wanted):
        def run(*inputs):
            y = forward(*inputs)
            return self.torch.autograd.grad(0.5 * (y * y).float().sum(), [inputs[i] for i in wanted])

        return run

    def without_gradient(self, forward):
        def run(*inputs):
            with self.torch.no_grad():
                return (forward(*inputs),)

        return run


class Mlx:
    def __init__(self, device):
        import mlx.core as mx

        self.mx = mx
        mx.set_default_device(mx.gpu if device == "metal" else mx.cpu)

    def tensor(self, array, dtype, gradient):
        kind = {"f32": self.mx.float32, "f16": self.mx.float16, "bf16": self.mx.bfloat16}[dtype]
        tensor = self.mx.array(array).astype(kind)
        self.mx.eval(tensor)
        return tensor

    def where(self, tensor):
        preloaded = ", OpenBLAS" if "openblas" in os.environ.get("LD_PRELOAD", "") else ""
        return f"mlx {self.mx.__version__}, {self.mx.default_device()}{preloaded}"

    def finish(self, results):
        self.mx.eval(results)

    def array(self, tensor):
        import numpy as np

        return np.array(tensor.astype(self.mx.float32))

    def forward(self, kind, sizes):
        mx = self.mx
        if kind == "matmul":
            return lambda x, w: x @ w.T
        if kind in ("softmax", "softmax_inner"):
            return lambda x: mx.softmax(x, axis=1)
        if kind == "rms_norm":
            return lambda x, w: mx.fast.rms_norm(x, w, EPS)
        if kind == "layer_norm":
            return lambda x, w, b: mx.fast.layer_norm(x, w, b, EPS)
        if kind == "lora":
            return lambda x, w, a, b: x @ w.T + 2.0 * ((x @ a.T) @ b.T)

        def attention(q, k, v):
            q, k, v = (t.transpose(0, 2, 1, 3) for t in (q, k, v))
            y = mx.fast.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(sizes["d"]), mask="causal")
            return y.transpose(0, 2, 1, 3)

        return attention

    def with_gradient(self, forward, wanted):
        def loss(*inputs):
            y = forward(*inputs)
            return 0.5 * (y * y).astype(self.mx.float32).sum()

        gradient = self.mx.grad(loss, argnums=wanted)
        return lambda *inputs: tuple(gradient(*inputs)) if len(wanted) > 1 else (gradient(*inputs)[0],)

    def without_gradient(self, forward):
        return lambda *inputs: (forward(*inputs),)


class Lazy:
    """A result that is computed when it is first looked at."""

    def __init__(self, make):
        self.make, self.value = make, None

    def get(self):
        if self.value is None:
            self.value = self.make()
        return self.value


class Flawed:
    def __init__(self, device):
        pass

    def softmax(self, row):
        top = max(row)
        powers = [math.exp(x - top) for x in row]
        total = sum(powers)
        return [power / total for power in powers]

    def serve(self, request):
        n = request["sizes"]["n"]
        scale = request["scales"][0]
        rows = [
            [scale * (((i * 7919 + copy * 104_729) % 2003) / 1001.5 - 1.0) for i in range(n)]
            for copy in range(request["copies"])
        ]
        with open(request["out"], "wb") as file:
            file.write(struct.pack(f"<{n}f", *self.softmax(rows[0])))
        say({"device": "flawed, cpu"})

        def all_results():
            results = [Lazy(lambda row=row: self.softmax(row)) for row in rows]
            results[-1].get()
            return results

        def look(results):
            return sum(result.get()[0] for result in results)

        one = lambda: Lazy(lambda: self.softmax(rows[0])).get()
        return lambda seconds: timed(seconds, one, all_results, None, look)


def timed(seconds, one, all_results, chain, look):
    """Medians of the three forms: after a call that wakes everything, calls for so many seconds and at least three."""

    def median(values):
        return sorted(values)[len(values) // 2]

    def times(call, then=None):
        call()
        samples, after, again = [], [], []
        started = time.perf_counter()
        while len(samples) < 3 or time.perf_counter() - started < seconds:
            begun = time.perf_counter()
            results = call()
            samples.append(time.perf_counter() - begun)
            if then and len(after) < 5:
                for kept in (after, again):
                    begun = time.perf_counter()
                    then(results)
                    kept.append(time.perf_counter() - begun)
        return median(samples), after and median(after), again and median(again)

    latency, _, _ = times(one)
    throughput, after, again = times(all_results, look)
    chain = times(chain)[0] if chain else None
    return {"latency": latency, "throughput": throughput, "chain": chain, "after": after, "again": again}


def serve(library, request):
    """Makes a case ready and returns what times it."""
    wanted = [i for i in range(len(request["inputs"])) if not (request["kind"] == "lora" and i == 1)]
    copies = [
        [
            library.tensor(values(shape, request["scales"][i], i, copy), request["dtype"], request["backward"] and i in wanted)
            for i, shape in enumerate(request["inputs"])
        ]
        for copy in range(request["copies"])
    ]
    forward = library.forward(request["kind"], request["sizes"])
    run = library.with_gradient(forward, wanted) if request["backward"] else library.without_gradient(forward)
    first = run(*copies[0])
    library.finish(first)
    with open(request["out"], "wb") as file:
        for tensor in first:
            file.write(library.array(tensor).astype("<f4").tobytes())
    say({"device": library.where(copies[0][0])})

    def one():
        library.finish(run(*copies[0]))

    def all_results():
        results = [tensor for inputs in copies for tensor in run(*inputs)]
        library.finish(results)
        return results

    def chain():
        x = copies[0][0]
        for _ in range(request["copies"]):
            (x,) = run(x, *copies[0][1:])
        library.finish([x])

    def look(results):
        for tensor in results:
            library.array(tensor)

    return lambda seconds: timed(seconds, one, all_results, chain if request["chains"] else None, look)


def say(answer):
    print(json.dumps(answer), flush=True)


def main():
    name, device = sys.argv[1], sys.argv[2]
    try:
        library = {"torch": Torch, "mlx": Mlx, "flawed": Flawed}[name](device)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"hello": True})
    read = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "read" in request:
                say(read(request["read"]))
            else:
                read = library.serve(request) if name == "flawed" else serve(library, request)
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
