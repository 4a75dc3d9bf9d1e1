"""One forward of a packed batch, or of ordinary rows: the only place that turns logits into log-probs."""

import math
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minipo.arithmetic import LARGE, Float32Attention, fast_products
from minipo.packing import PackedBatch

# transformers' own models in which only the final norm and the head follow the last layer's MLP, and their layers.
LAYERS = {"GPT2LMHeadModel": "transformer.h", "LlamaForCausalLM": "model.layers", "Qwen2ForCausalLM": "model.layers"}
ADAPTED = "peft.tuners.lora.layer.Linear.forward"  # by its name, so that peft need not be imported
TANH_GELU = ("transformers.activations.GELUTanh.forward", "transformers.activations.NewGELUActivation.forward")
VOCABULARY = 2**14  # tokens from which on log-probs are computed a few rows at a time
FEW = 0.8  # of a batch's tokens: to take more out and put them back costs what is saved


def packed_forward(model: nn.Module, packed: PackedBatch) -> Float[Tensor, "B C"]:
    """Log-probs of all candidates of a packed batch, with its attention mask and positions."""
    dtype, device = model.get_input_embeddings().weight.dtype, device_of(model)  # pyrefly: ignore[not-callable]
    segments, since, positions = (packed[name].to(device) for name in ("segments", "since", "position_ids"))
    return forward(model, packed, attention_mask=attention_mask(segments, since, dtype), position_ids=positions)


def forward(model: nn.Module, packed: PackedBatch, **arguments: Tensor) -> Float[Tensor, "B C"]:
    names = ("input_ids", "predicting", "sources", "targets", "target_mask", "mask")
    device = device_of(model)
    inputs = {name: packed[name].to(device) for name in names}
    with head_at(model, inputs["predicting"]), fast_layers(model):
        logits = logits_of(model, inputs["input_ids"], **arguments).squeeze(0)
    large = device.type == "cpu" and logits.shape[-1] >= VOCABULARY and not transformed()
    logps = (LogProbs.apply if large else log_probs)(logits, inputs["sources"], inputs["targets"])
    logps = logps.masked_fill(~inputs["target_mask"], 0).sum(-1)
    return logps.masked_fill(~inputs["mask"], -torch.inf)


def log_probs(
    logits: Float[Tensor, "N V"], sources: Int[Tensor, "*shape"], targets: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Log-probs of the tokens `targets` under the logits in the rows `sources`; at least in float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[sources, targets]


class LogProbs(torch.autograd.Function):
    """`log_probs` of a large vocabulary on a CPU, a few rows of logits at a time, which stay in the processor's cache:
    in less than half the time, and without copies of all the logits in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        sums = torch.cat([rows.to(kind).logsumexp(-1) for rows in logits.split(LogProbs.rows(logits))])
        ctx.save_for_backward(logits, sources, targets, sums)
        return logits[sources, targets].to(kind) - sums[sources]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        logits, sources, targets, sums = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient's own gradient is asked for
            return (
                *torch.autograd.grad(log_probs(logits, sources, targets), logits, gradient, create_graph=True),
                None,
                None,
            )
        sources, targets, gradient = sources.flatten(), targets.flatten(), gradient.flatten()
        of_rows = torch.zeros_like(sums).index_add_(0, sources, gradient)
        found, count = torch.empty_like(logits), LogProbs.rows(logits)
        for first in range(0, len(logits), count):
            part, here = slice(first, first + count), (sources >= first) & (sources < first + count)
            rows = (logits[part].to(sums.dtype) - sums[part, None]).exp_().mul_(-of_rows[part, None])
            found[part] = rows.index_put_((sources[here] - first, targets[here]), gradient[here], accumulate=True)
        return found, None, None

    @staticmethod
    def rows(logits: Tensor) -> int:
        """How many rows of logits are computed at a time."""
        return max(1, 2**19 // logits.shape[-1])


@contextmanager
def fast_layers(model: nn.Module) -> Generator[None]:
    """Inside the context, layers are computed by `fast_products`, adapters added by `in_place`, and GELU by `Gelu`."""
    modules = list(model.modules())
    with ExitStack() as stack:
        # Checkpointed layers are computed again in the backward pass, outside this context, and must save the same
        # tensors.
        if not any(getattr(module, "gradient_checkpointing", False) for module in modules):
            if any(isinstance(module, nn.Linear) and module.weight.numel() >= LARGE for module in modules):
                stack.enter_context(fast_products(device_of(model)))
                stack.enter_context(Float32Attention())
            for module in modules:
                own = None if "forward" in vars(module) else _name(type(module).forward)
                if own == ADAPTED:
                    stack.enter_context(in_place(module))
                elif own in TANH_GELU:
                    stack.enter_context(fast_gelu(module))
        yield


@contextmanager
def in_place(layer: Any) -> Generator[None]:
    """Inside the context, a LoRA layer adds its adapter to the base layer's output in the same memory, if it is plain
    LoRA in float32 or float64 and nobody looks at its parts. peft allocates two more tensors of that size, which takes
    time and scatters the memory in use."""

    def forward(hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        # Asked in each call: a model's forward may enter autocast, or change its adapters.
        if arguments or named or (name := plain_adapter(layer, hidden)) is None:
            return type(layer).forward(layer, hidden, *arguments, **named)
        added = layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](hidden)))
        output = layer.base_layer(hidden.flatten(0, -2))  # of 2 dimensions, or oneDNN's would be a view
        return output.add_(added.flatten(0, -2), alpha=layer.scaling[name]).view(added.shape)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def plain_adapter(layer: Any, hidden: Tensor) -> str | None:
    """The name of a layer's only active adapter, if its output for `hidden` is base(hidden) + scaling · B(A(hidden)),
    and may be computed in place; else None."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] in layer.lora_variant:
        return None
    (name,) = names
    parts = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    plain = (
        isinstance(layer.scaling[name], (int, float))
        and hidden.ndim > 1 and hidden.numel() > 0 and not hidden.is_meta
        and all(type(part) is nn.Linear and part.weight.dtype == hidden.dtype for part in parts)
        and hidden.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(hidden.device.type)
        and not looked_at(*parts, layer.lora_dropout[name])
        # Private; where it is missing, peft computes the layer.
        and not getattr(nn.modules.module, "_has_any_global_hook", lambda: True)()
        and not transformed()
    )  # fmt: skip
    return name if plain else None


@contextmanager
def fast_gelu(module: Any) -> Generator[None]:
    """Inside the context, a module that computes GELU by its approximation with tanh does so as `Gelu`, on CPUs."""

    def forward(inputs: Tensor) -> Tensor:
        ours = inputs.device.type == "cpu" and inputs.dtype in (torch.float32, torch.float64) and not transformed()
        return Gelu.apply(inputs) if ours else type(module).forward(module, inputs)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class Gelu(torch.autograd.Function):
    """x/2 · (1 + tanh(z/2)) as x · sigmoid(z), which equals it; z = √(8/π) · (x + 0.044715 x³). PyTorch's tanh takes
    three times as long on CPUs as its sigmoid."""

    LINEAR, CUBIC = math.sqrt(8 / math.pi), 0.044715 * math.sqrt(8 / math.pi)

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return Gelu.gate(inputs).mul_(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        (inputs,) = ctx.saved_tensors
        gate = Gelu.gate(inputs)
        slope = torch.addcmul(inputs.new_tensor(Gelu.LINEAR), inputs, inputs, value=3 * Gelu.CUBIC)
        rest = torch.addcmul(inputs, inputs, gate, value=-1)
        return torch.addcmul(inputs.new_tensor(1.0), rest, slope).mul_(gate) * gradient

    @staticmethod
    def gate(inputs: Tensor) -> Tensor:
        """sigmoid(z)"""
        return torch.addcmul(inputs.new_tensor(Gelu.LINEAR), inputs, inputs, value=Gelu.CUBIC).mul_(inputs).sigmoid_()


def transformed() -> bool:
    """Whether a `torch.func` transform is at work, which functions with gradients of their own do not know."""
    return getattr(torch._C, "_are_functorch_transforms_active", lambda: True)()  # private, so it may be missing


def looked_at(*modules: nn.Module) -> bool:
    """Whether somebody sees these modules' inputs, outputs or gradients, or has put another forward in their place."""
    return any(
        each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks
        or "forward" in vars(each)
        for each in modules
    )  # fmt: skip


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def logits_of(model: nn.Module, input_ids: Int[Tensor, "B T"], **arguments: Tensor) -> Float[Tensor, "B T V"]:
    """The model's logits, whether it is configured to return a tuple or an object."""
    output: Any = model(input_ids=input_ids, use_cache=False, **arguments)
    return output[0] if isinstance(output, tuple) else output.logits


@contextmanager
def head_at(model: nn.Module, places: Int[Tensor, " N"]) -> Generator[None]:
    """Inside the context, the output head computes logits (1, N, vocabulary) only at these places of the flattened
    batch, and the last layer its MLP, if nothing but the head needs that."""

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        return hidden.flatten(0, 1).index_select(0, places).unsqueeze(0), *others

    # The hook sits before the head, so that whatever the model does to its logits (scaling, capping) stays.
    # Computing the head in float32 under bfloat16 was tried: errors fell by only a tenth, as most arise before it.
    handle = model.get_output_embeddings().register_forward_pre_hook(keep)  # pyrefly: ignore[not-callable]
    with ExitStack() as stack:
        stack.callback(handle.remove)
        if (mlp := last_mlp(model)) is not None:
            stack.enter_context(computed_at(mlp, places))
        yield


def last_mlp(model: Any) -> nn.Module | None:
    """The last layer's MLP, if only the head needs its outputs, and no hook looks at them; else None."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = LAYERS.get(type(own).__name__) if type(own).__module__.startswith("transformers.models.") else None
    if layers is None:
        return None
    layer, base = own.get_submodule(layers)[-1], own.base_model
    mlp = layer.mlp
    seen = looked_at(mlp, layer, base, *base.children())
    return None if seen or layer.gradient_checkpointing else mlp  # checkpointing computes the layer again later


@contextmanager
def computed_at(module: nn.Module, places: Int[Tensor, " N"]) -> Generator[None]:
    """Inside the context, a module that takes and returns (B, T, width), each token on its own, computes only the
    tokens at these places of the flattened batch, if they are few, and returns 0 elsewhere."""
    forward = module.forward

    def at_places(hidden: Tensor) -> Tensor:
        # In bfloat16 a product's rounding depends on its number of rows, and so would log-probs on their batch.
        if len(places) > FEW * hidden.shape[:-1].numel() or torch.is_autocast_enabled(hidden.device.type):
            return forward(hidden)
        once = places.unique()  # padding repeats a place
        computed = forward(hidden.flatten(0, 1).index_select(0, once).unsqueeze(0)).squeeze(0)
        return computed.new_zeros(hidden.shape).flatten(0, 1).index_copy(0, once, computed).view(hidden.shape)

    module.forward = at_places
    try:
        yield
    finally:
        del module.forward


def attention_mask(
    segments: Int[Tensor, "B T"], since: Int[Tensor, "B T"], dtype: torch.dtype
) -> Float[Tensor, "B 1 T T"]:
    """0 where a token may attend, the lowest number elsewhere. Padding attends to itself, or softmax would be nan."""
    rows = len(segments)
    if (segments == segments[:1]).all() and (since == since[:1]).all():  # rows laid out alike share a mask
        segments, since = segments[:1], since[:1]
    later = torch.ones(2 * segments.shape[1:], dtype=torch.bool, device=segments.device).triu(1)
    key = segments.masked_fill(segments == 0, torch.iinfo(segments.dtype).max)  # which all attend to
    closed = (key.unsqueeze(1) < since.unsqueeze(2)).logical_or_(later)
    # Additive and not boolean, because eager attention adds it to the scores.
    mask = torch.zeros(closed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(closed, torch.finfo(dtype).min).unsqueeze(1).expand(rows, -1, -1, -1)


def device_of(model: nn.Module) -> torch.device:
    """The device that the model needs its token ids on."""
    return model.get_input_embeddings().weight.device  # pyrefly: ignore[not-callable]
