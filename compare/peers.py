"""A peer of `metal-candle bench ops`: computes and times what it is told, one JSON line at a time.

    peers.py torch|mlx|flawed|flawed-mlx cpu|metal

The two flawed ones are lazy libraries used as the plan's MLX benchmark used MLX: several results are asked for, one is
evaluated before the clock stops. `metal-candle bench` must refuse them; `flawed` needs nothing but Python.
"""

import json
import math
import os
import struct
import sys
import time

EPS = 1e-5
SAMPLES = 64


def values(shape, scale, index, copy):
    """As `Case::values` in src/bench.rs, in f32."""
    import numpy as np

    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    whole = (i * 7919 + copy * 104_729 + index * 1_299_709) % 2003
    return (np.float32(scale) * (whole.astype(np.float32) / np.float32(1001.5) - np.float32(1.0))).reshape(shape)


class Torch:
    synchronised = "each call returns with its result; on a GPU the device is synchronised before the clock stops"

    def __init__(self, device):
        import torch

        self.torch = torch
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.device = torch.device("mps" if device == "metal" else "cpu")

    def tensor(self, array, dtype, gradient):
        kind = {"f32": self.torch.float32, "f16": self.torch.float16, "bf16": self.torch.bfloat16}[dtype]
        return self.torch.from_numpy(array).to(self.device, kind).requires_grad_(gradient)

    def where(self, result):
        return f"torch {self.torch.__version__}, {result.device}, {self.torch.get_num_threads()} threads"

    def finish(self, results):
        if self.device.type == "mps":
            self.torch.mps.synchronize()

    def array(self, tensor):
        return tensor.detach().float().cpu().numpy()

    def look(self, tensor):
        """Reads an element, which cannot be had before it is computed."""
        tensor.detach().reshape(-1)[-1].item()

    def forms(self, kind, sizes, gradient):
        """Ways to compute it: name, what is done to the inputs beforehand, the function. The fastest is timed."""
        torch, f = self.torch, self.torch.nn.functional
        same = lambda t: t
        turned = lambda t: [t[0], t[1].detach().t().contiguous(), *t[2:]]
        if kind == "matmul":
            forms = [("linear", same, lambda x, w: f.linear(x, w))]
            return forms if gradient else forms + [("weight stored [k, n]", turned, lambda x, w: x @ w)]
        if kind in ("softmax", "softmax_inner"):
            return [("softmax", same, lambda x: torch.softmax(x, 1))]
        if kind == "rms_norm":
            return [("rms_norm", same, lambda x, w: f.rms_norm(x, (sizes["n"],), w, EPS))]
        if kind == "layer_norm":
            return [("layer_norm", same, lambda x, w, b: f.layer_norm(x, (sizes["n"],), w, b, EPS))]
        if kind == "lora":
            add = lambda y, x, a, b: torch.addmm(y, f.linear(x, a), b.t(), alpha=2.0)
            return [
                ("linear, addmm", same, lambda x, w, a, b: add(f.linear(x, w), x, a, b)),
                ("weight stored [k, n], addmm", turned, lambda x, w, a, b: add(x @ w, x, a, b)),
            ]
        scale = 1 / math.sqrt(sizes["d"])

        def attention(q, k, v, **options):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return f.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, **options).transpose(1, 2)

        def repeated(q, k, v):
            groups = q.shape[2] // k.shape[2]
            return attention(q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2))

        grouped = lambda q, k, v: attention(q, k, v, enable_gqa=True)
        return [("SDPA, is_causal, enable_gqa", same, grouped), ("SDPA, is_causal, keys repeated", same, repeated)]

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
    synchronised = "mx.eval of every result before the clock stops"

    def __init__(self, device):
        import mlx.core as mx

        self.mx = mx
        mx.set_default_device(mx.gpu if device == "metal" else mx.cpu)

    def tensor(self, array, dtype, gradient):
        kind = {"f32": self.mx.float32, "f16": self.mx.float16, "bf16": self.mx.bfloat16}[dtype]
        tensor = self.mx.array(array).astype(kind)
        self.mx.eval(tensor)
        return tensor

    def where(self, result):
        place = f"mlx {self.mx.__version__}, {self.mx.default_device()}"
        if not sys.platform.startswith("linux"):
            return place
        with open("/proc/self/maps") as maps:
            loaded = "openblas" in maps.read()
        return f"{place}, {'OpenBLAS preloaded' if loaded else 'the wheel’s own BLAS, thirty times slower than OpenBLAS'}"

    def finish(self, results):
        self.mx.eval(results)

    def array(self, tensor):
        import numpy as np

        return np.array(tensor.astype(self.mx.float32))

    def look(self, tensor):
        """Asks for the memory, which is not there before it is computed."""
        memoryview(tensor).nbytes

    def forms(self, kind, sizes, gradient):
        mx = self.mx
        same = lambda t: t

        def turned(t):
            w = mx.contiguous(t[1].T)
            mx.eval(w)
            return [t[0], w, *t[2:]]

        scale = 1 / math.sqrt(sizes["d"]) if "d" in sizes else 1.0

        def attention(q, k, v):
            q, k, v = (t.transpose(0, 2, 1, 3) for t in (q, k, v))
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal").transpose(0, 2, 1, 3)

        forward, form = {
            "matmul": (lambda x, w: x @ w.T, "matmul"),
            "softmax": (lambda x: mx.softmax(x, axis=1), "softmax"),
            "softmax_inner": (lambda x: mx.softmax(x, axis=1), "softmax"),
            "rms_norm": (lambda x, w: mx.fast.rms_norm(x, w, EPS), "fast.rms_norm"),
            "layer_norm": (lambda x, w, b: mx.fast.layer_norm(x, w, b, EPS), "fast.layer_norm"),
            "lora": (lambda x, w, a, b: mx.addmm(x @ w.T, x @ a.T, b.T, alpha=2.0), "addmm"),
            "attention": (attention, "fast.scaled_dot_product_attention, causal"),
        }[kind]
        forms = [(form, same, forward)]
        if kind == "lora":
            other = lambda x, w, a, b: mx.addmm(x @ w, x @ a.T, b.T, alpha=2.0)
            forms.append(("weight stored [k, n], addmm", turned, other))
        elif kind == "matmul" and not gradient:
            forms.append(("weight stored [k, n]", turned, lambda x, w: x @ w))
        return forms

    def with_gradient(self, forward, wanted):
        def loss(*inputs):
            y = forward(*inputs)
            return 0.5 * (y * y).astype(self.mx.float32).sum()

        gradient = self.mx.grad(loss, argnums=wanted)

        def run(*inputs):
            found = gradient(*inputs)
            return tuple(found) if isinstance(found, (list, tuple)) else (found,)

        return run

    def without_gradient(self, forward):
        return lambda *inputs: (forward(*inputs),)


class FlawedMlx(Mlx):
    synchronised = "only the last result is evaluated: the pattern of the plan's benchmark"

    def finish(self, results):
        self.mx.eval(results[-1])


class Lazy:
    """A result that is computed when it is first looked at."""

    def __init__(self, make):
        self.make, self.value = make, None

    def get(self):
        if self.value is None:
            self.value = self.make()
        return self.value


class Flawed:
    """Softmax of one row in plain Python, lazily."""

    synchronised = FlawedMlx.synchronised

    def __init__(self, device):
        pass

    def softmax(self, row):
        top = max(row)
        powers = [math.exp(x - top) for x in row]
        total = sum(powers)
        return [power / total for power in powers]

    def serve(self, request):
        if request["kind"] != "softmax" or request["sizes"]["rows"] != 1 or request["backward"]:
            raise ValueError("it has nothing but the softmax of one row")
        n = request["sizes"]["n"]
        scale = request["scales"][0]
        rows = [
            [scale * (((i * 7919 + copy * 104_729) % 2003) / 1001.5 - 1.0) for i in range(n)]
            for copy in range(request["copies"])
        ]
        with open(request["out"], "wb") as file:
            file.write(struct.pack(f"<{n}f", *self.softmax(rows[0])))
        say({"device": "flawed, cpu", "form": "lazy", "synchronised": self.synchronised})

        def all_results():
            results = [Lazy(lambda row=row: self.softmax(row)) for row in rows]
            results[-1].get()
            return results

        def chain():
            x = rows[0]
            for _ in range(request["copies"]):
                x = self.softmax(x)
            return [x]

        def look(results):
            return sum(result.get()[0] for result in results)

        def elements(result):
            values = result.get() if isinstance(result, Lazy) else result
            return [values[j * n // SAMPLES] for j in range(SAMPLES)]

        one = lambda: Lazy(lambda: self.softmax(rows[0])).get()
        return Timer(request, one, all_results, chain, look, elements)


class Timer:
    """Times the three forms of a case and writes what they gave."""

    def __init__(self, request, one, all_results, chain, look, elements):
        self.samples = request["samples"]
        self.one, self.all_results, self.chain = one, all_results, chain
        self.look, self.elements = look, elements

    def __call__(self, seconds):
        """Medians: after a call that wakes everything, calls for so many seconds and at least three."""
        latency = times(seconds, self.one)[0]
        throughput, least, after, again, results = times(seconds, self.all_results, self.look)
        chain, last = None, []
        if self.chain:
            chain, _, _, _, last = times(seconds, self.chain)
        # Elements of what was timed, for the tool to compare with its own.
        with open(self.samples, "wb") as file:
            for result in [*results, *last]:
                file.write(struct.pack(f"<{SAMPLES}f", *self.elements(result)))
        found = {"latency": latency, "throughput": throughput, "chain": chain}
        return {**found, "least": least, "after": after, "again": again}


def median(values):
    return sorted(values)[len(values) // 2]


def times(seconds, call, look=None):
    """The median time of a call, the least of a call and of looking at its results twice, and those of the last call."""
    call()
    samples, after, again = [], [], []
    started = time.perf_counter()
    while len(samples) < 3 or time.perf_counter() - started < seconds:
        results = None
        begun = time.perf_counter()
        results = call()
        samples.append(time.perf_counter() - begun)
        if look and len(after) < 15:
            for kept in (after, again):
                begun = time.perf_counter()
                look(results)
                kept.append(time.perf_counter() - begun)
    return median(samples), min(samples), after and min(after), again and min(again), results


def serve(library, request):
    """Makes a case ready and returns what times it."""
    gradient = request["backward"]
    wanted = [i for i in range(len(request["inputs"])) if not (request["kind"] == "lora" and i == 1)]
    inputs = [
        [
            library.tensor(values(shape, request["scales"][i], i, copy), request["dtype"], gradient and i in wanted)
            for i, shape in enumerate(request["inputs"])
        ]
        for copy in range(request["copies"])
    ]
    best = None
    for name, arrange, forward in library.forms(request["kind"], request["sizes"], gradient):
        copies = [arrange(tensors) for tensors in inputs]
        run = library.with_gradient(forward, wanted) if gradient else library.without_gradient(forward)
        one = lambda: library.finish(run(*copies[0]))
        seconds = times(0.01, one)[0]
        if best is None or seconds < best[0]:
            best = (seconds, name, run, copies)
    _, name, run, copies = best
    first = run(*copies[0])
    library.finish(first)
    with open(request["out"], "wb") as file:
        for tensor in first:
            file.write(library.array(tensor).astype("<f4").tobytes())
    say({"device": library.where(first[0]), "form": name, "synchronised": library.synchronised})

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
        return [x]

    def look(results):
        for tensor in results:
            library.look(tensor)

    def elements(tensor):
        flat = library.array(tensor).reshape(-1)
        return [flat[j * len(flat) // SAMPLES] for j in range(SAMPLES)]

    timer = Timer(request, one, all_results, chain if request["chains"] else None, look, elements)
    timer.parts = (library, run, copies[0])
    return timer


def explain(timer, count):
    """Seconds a result: each evaluated, all kept and evaluated together, and the flawed way, only the last evaluated."""
    library, run, inputs = timer.parts

    def each():
        for _ in range(count):
            library.finish(run(*inputs))

    def together():
        library.finish([tensor for _ in range(count) for tensor in run(*inputs)])

    def flawed():
        results = [run(*inputs) for _ in range(count)]
        library.finish(results[-1])

    def clock(call):
        begun = time.perf_counter()
        call()
        return (time.perf_counter() - begun) / count

    library.finish(run(*inputs))
    return {"each": clock(each), "together": clock(together), "flawed": clock(flawed)}


def say(answer):
    print(json.dumps(answer), flush=True)


LIBRARIES = {"torch": Torch, "mlx": Mlx, "flawed": Flawed, "flawed-mlx": FlawedMlx}


def main():
    name, device = sys.argv[1], sys.argv[2]
    try:
        import numpy  # noqa: F401, which torch and mlx are given their values by
    except ImportError as error:
        if name != "flawed":
            return say({"error": f"{error}"})
    try:
        library = LIBRARIES[name](device)
    except Exception as error:
        return say({"error": f"{type(error).__name__}: {error}"})
    say({"hello": True})
    timer = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "read" in request:
                say(timer(request["read"]))
            elif "explain" in request:
                say(explain(timer, request["explain"]))
            else:
                timer = None
                timer = library.serve(request) if name == "flawed" else serve(library, request)
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
