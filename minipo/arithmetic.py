"""The precision of matrix products, and which one is faster on this machine: measured once, and kept.

Under autocast a model's matrix products run in float32, bfloat16 or float16, and its weights stay in float32. On GPUs
and some processors with instructions for it, bfloat16 takes about half the time of float32; on others, even some that
have such instructions, it takes twice to fifty times as long (`docs/speed.md`). So it is measured: a forward and a
backward pass through products of the model's own widths, in both precisions, for at most a second.

PyTorch computes float32 products on CPUs with its BLAS; where oneDNN, which is also part of it, is much faster,
`fast_products` hands large layers to that.
"""

import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
from filelock import FileLock
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from minipo.folder import home, whole_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEASURED = ("float32", "bfloat16")
LIMIT = 1.0  # seconds of a measurement, of CPU time on a CPU: other processes hardly change it
TOKENS = (4, 16, 64, 256, 1024)  # of the passes that are timed, until the answer is clear
TURNS = 3  # of both precisions at each number of tokens; the fastest counts, which other processes disturbed least
LARGE = 2**16  # weights of a layer; in smaller ones oneDNN saves less than its kernel for a new number of tokens takes
CLEAR = (0.25, 1.5)  # gains that more tokens would not turn around: with few, casting weights slows bfloat16 down
GAIN = 1.1  # how many times as fast bfloat16's products must be, for the other parts of a step gain nothing
NARROW = 128  # the width up to which those other parts take most of a step, so that float32 is the faster
WEIGHTS = 2**22  # of a layer timed on a CPU; larger ones take the same time per weight
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # variables that disable instructions

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward and backward pass through two layers, hidden → intermediate → hidden, in each precision."""

    float32: Positive
    bfloat16: Positive

    @property
    def faster(self) -> tuple[str, float]:
        """The faster precision, and how many times as fast it is. Where the other is less than `GAIN` times as fast, it
        is float32, which is exact."""
        gain = self.float32 / self.bfloat16
        return ("bfloat16", gain) if gain > GAIN else ("float32", max(1.0, 1 / gain))


KEPT = TypeAdapter(dict[str, Speed])


def training_device() -> torch.device:
    """Where the Trainer trains: on the accelerator, if there is one, else on the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which matrix products run in this precision, one of `DTYPES`."""
    enabled = precision != "float32"
    return torch.autocast(device.type, DTYPES[precision] if enabled else None, enabled=enabled)


class OneDNN(TorchFunctionMode):
    """The context in which float32 layers on the CPU are computed by oneDNN, forward and backward, instead of by
    PyTorch's BLAS. Both add up in float32: results differ by rounding."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if function is linear and not types and not named and _large_float32(*arguments):
            return _Linear.apply(*arguments, *[None] * (3 - len(arguments)))
        return function(*arguments, **named or {})


class Float32Attention(TorchFunctionMode):
    """The context in which `scaled_dot_product_attention` on a CPU under autocast is computed in float32: its backward
    pass in bfloat16 takes several times as long, and rounds more."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function is not scaled_dot_product_attention or types or not torch.is_autocast_enabled("cpu"):
            return function(*arguments, **named)
        with torch.autocast("cpu", enabled=False):
            return function(*map(_full, arguments), **{name: _full(value) for name, value in named.items()})


def _full(value: Any) -> Any:
    """A tensor of half precision on the CPU in float32; everything else as it is."""
    half = isinstance(value, Tensor) and value.device.type == "cpu" and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


class _Linear(torch.autograd.Function):
    """`linear` by oneDNN: inputs (..., m), weight (n, m), bias (n,) or None → (..., n)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        inputs, weight = ctx.saved_tensors
        for_inputs, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        product = linear if torch.is_grad_enabled() else _product  # which has no gradient of its own
        return (
            product(gradient, weight.T) if for_inputs else None,
            product(rows.T, inputs.flatten(0, -2).T) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


def _large_float32(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether oneDNN may compute this layer, and does so in less time even if it first has to build its kernel."""
    alike = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in (inputs, weight))
    return (
        alike and weight.numel() >= LARGE and inputs.ndim > 1 and inputs.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )  # fmt: skip


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """The context in which this device's float32 layers are computed by the faster library: `OneDNN`, or nothing."""
    return OneDNN() if device.type == "cpu" and onednn_is_ahead() else nullcontext()


@lru_cache
@torch.inference_mode(False)  # as the caller may be in it, where nothing has gradients
def onednn_is_ahead() -> bool:
    """Whether oneDNN computes float32 layers much faster than PyTorch's BLAS, which on x86 is MKL: on AMD's Zen 5 in
    less than half the time. Measured in some milliseconds.
    """
    up = down = torch.ones(512, 512, dtype=torch.float32)

    def ratio() -> float:
        theirs = seconds(up, down, 128, "float32")
        with OneDNN():
            return theirs / seconds(up, down, 128, "float32")

    try:
        return median(ratio() for _ in range(5)) > 1.5
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN, or one that calls it in another way
        return False


def faster(model: nn.Module, device: torch.device) -> tuple[str, float]:
    """The faster precision for training this model on this device, "float32" or "bfloat16", and how many times as fast
    its products are as the other's; 1 where they are about as fast, or need not be measured."""
    from transformers.utils import is_torch_bf16_gpu_available  # takes seconds, and `autocast` does not need it

    hidden, intermediate = widths(model)
    if hidden <= NARROW or (device.type != "cpu" and not is_torch_bf16_gpu_available()):
        return "float32", 1.0
    return speed(hidden, intermediate, device).faster


def widths(model: nn.Module) -> tuple[int, int]:
    """The two sides, the smaller first, of the weights that make up most of a language model besides its vocabulary:
    hidden and intermediate; (0, 0) if it has none such."""
    texts: Any = model
    parts = (texts.get_input_embeddings(), texts.get_output_embeddings())
    vocabulary = {id(part.weight) for part in parts if part is not None}
    counted: Counter[tuple[int, int]] = Counter()
    for weight in model.parameters():
        if weight.ndim > 1 and weight.is_floating_point() and id(weight) not in vocabulary:
            few, many = sorted(weight.shape[-2:])
            counted[few, many] += weight.numel()
    return max(counted, key=counted.__getitem__, default=(0, 0))


def speed(hidden: int, intermediate: int, device: torch.device) -> Speed:
    """The speed of layers of these widths on this device, measured if it is not in minipo's folder yet.

    It is kept there for this machine and version of torch, so that runs that begin at the same time, and those that
    resume, decide alike.
    """
    path, key = home() / "precision.json", f"{machine(device)}, {hidden} x {intermediate}"
    found = None
    with suppress(OSError):  # a folder that cannot be written to
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            known: dict[str, Speed] = {}
            with suppress(FileNotFoundError, ValueError):  # none yet, or damaged
                known = KEPT.validate_json(path.read_bytes())
            found = known.get(key)
            if found is None:
                found = measured(hidden, intermediate, device)
                with whole_file(path) as draft:
                    draft.write_bytes(KEPT.dump_json(known | {key: found}, indent=2))
    return found or measured(hidden, intermediate, device)


def machine(device: torch.device) -> str:
    """What a measurement depends on besides the widths: the processor with its instructions, or the GPU, and torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    described = _described()
    kinds = [flag for flag in described.get("flags", described.get("Features", "")).split() if "bf16" in flag]
    if device.type == "cpu" and onednn_is_ahead():
        kinds.append("float32 by oneDNN")
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    parts = [
        *([] if device.type == "cpu" else [device.type]),
        processor(), f"{os.cpu_count()} cores", torch.backends.cpu.get_cpu_capability(), *kinds, *limits,
    ]  # fmt: skip
    return f"{', '.join(parts)}, torch {torch.__version__}"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    return _described().get("model name") or platform.processor() or platform.machine()


def _described() -> dict[str, str]:
    """What Linux says of the first processor; nothing on other systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().partition("\n\n")[0].splitlines() if path.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


@torch.inference_mode(False)
def measured(hidden: int, intermediate: int, device: torch.device) -> Speed:
    """Time both precisions, in turns, on ever more tokens, until the answer is clear or a second would be over."""
    if device.type == "cpu" and hidden * intermediate > WEIGHTS:
        smaller = (WEIGHTS / (hidden * intermediate)) ** 0.5
        hidden, intermediate = round(smaller * hidden), round(smaller * intermediate)
    shapes = (intermediate, hidden), (hidden, intermediate)
    up, down = (torch.full(shape, 1 / hidden, device=device, dtype=torch.float32) for shape in shapes)
    spent = 0.0

    def both(tokens: int) -> dict[str, float]:
        nonlocal spent
        with fast_products(device):
            took = {precision: seconds(up, down, tokens, precision) for precision in MEASURED}
        spent += sum(took.values())
        return took

    best = both(TOKENS[0])  # which also builds kernels, so it counts only where there is no time for another turn
    ahead = spent
    for tokens in TOKENS:
        if spent + ahead > LIMIT:
            break
        turns = [both(tokens)]
        while len(turns) < TURNS and spent + sum(turns[0].values()) < LIMIT:
            turns.append(both(tokens))
        best = {precision: min(turn[precision] for turn in turns) for precision in MEASURED}
        ahead = TURNS * 4 * sum(best.values())  # with four times the tokens
        if not CLEAR[0] < best["float32"] / best["bfloat16"] < CLEAR[1]:
            break
    return Speed(**best)


@lru_cache
@torch.inference_mode(False)
def builds_kernels() -> bool:
    """Whether bfloat16's products on this CPU take far longer where their number of tokens is new: oneDNN then builds
    kernels for it. It keeps many of them, and steps of ever new shapes get slower and slower (`benchmarks/shapes.py`).

    Measured in some milliseconds, on narrow layers, because a kernel takes as long to build for wide ones.
    """
    # Widths that no model has, so that nothing is built for them.
    up, down = (torch.ones(shape, dtype=torch.float32) for shape in ((250, 60), (60, 250)))

    def ratio(tokens: int) -> float:
        new, again = (seconds(up, down, tokens, "bfloat16") for _ in range(2))
        return new / again

    return median(ratio(tokens) for tokens in range(33, 40)) > 1.5


def seconds(up: Tensor, down: Tensor, tokens: int, precision: str) -> float:
    """Seconds of a forward and a backward pass of this many tokens through two frozen layers, as under LoRA.

    On a CPU those of one thread's own time, which the others on a busy machine leave as it is. (Windows counts that in
    sixtieths of a second only.)
    """
    on_cpu = up.device.type == "cpu"
    clock = time.thread_time if on_cpu and sys.platform != "win32" else time.perf_counter
    wait: Callable[[], None] = (lambda: None) if on_cpu else torch.accelerator.synchronize
    inputs = torch.ones(tokens, up.shape[1], device=up.device, dtype=torch.float32, requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wait()
        start = clock()
        with torch.enable_grad():
            with autocast(up.device, precision):
                outputs = linear(linear(inputs, up), down)
            outputs.float().sum().backward()
        wait()
        return clock() - start
    finally:
        torch.set_num_threads(threads)
