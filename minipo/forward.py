"""One forward of a packed batch, or of ordinary rows: the only place that turns logits into log-probs."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minipo.arithmetic import LARGE, fast_products
from minipo.packing import PackedBatch

# transformers' own models in which only the final norm and the head follow the last layer's MLP, and their layers.
LAYERS = {"GPT2LMHeadModel": "transformer.h", "LlamaForCausalLM": "model.layers", "Qwen2ForCausalLM": "model.layers"}
ADAPTED = ("peft.tuners.lora.layer", "Linear")
FEW = 0.8  # of a batch's tokens: to take more out and put them back costs what is saved


def packed_forward(model: nn.Module, packed: PackedBatch) -> Float[Tensor, "B C"]:
    """Log-probs of all candidates of a packed batch, with its attention mask and positions."""
    dtype = model.get_input_embeddings().weight.dtype  # pyrefly: ignore[not-callable]
    segments, since, positions = (packed[name].to(device_of(model)) for name in ("segments", "since", "position_ids"))
    return forward(model, packed, attention_mask=attention_mask(segments, since, dtype), position_ids=positions)


def forward(model: nn.Module, packed: PackedBatch, **arguments: Tensor) -> Float[Tensor, "B C"]:
    names = ("input_ids", "predicting", "sources", "targets", "target_mask", "mask")
    inputs = {name: packed[name].to(device_of(model)) for name in names}
    with head_at(model, inputs["predicting"]), fast_layers(model):
        logits = logits_of(model, inputs["input_ids"], **arguments)[0]
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    logps = logps[inputs["sources"], inputs["targets"]]
    logps = logps.masked_fill(~inputs["target_mask"], 0).sum(-1)
    return logps.masked_fill(~inputs["mask"], -torch.inf)


@contextmanager
def fast_layers(model: nn.Module) -> Generator[None]:
    """Inside the context, layers are computed by `fast_products`, and those with an adapter `in_place`."""
    modules = list(model.modules())
    with ExitStack() as stack:
        # Checkpointed layers are computed again in the backward pass, outside this context, and must save the same
        # tensors.
        if not any(getattr(module, "gradient_checkpointing", False) for module in modules):
            if any(isinstance(module, nn.Linear) and module.weight.numel() >= LARGE for module in modules):
                stack.enter_context(fast_products(device_of(model)))
            for module in modules:
                if (name := plain_adapter(module)) is not None:
                    stack.enter_context(in_place(module, name))
        yield


def plain_adapter(layer: Any) -> str | None:
    """The name of a LoRA layer's adapter, if the layer is nothing but base(x) + scaling · B(A(x)) in one precision, and
    no hook looks at its parts; else None."""
    kind = type(layer)
    if (kind.__module__, kind.__name__) != ADAPTED or layer.disable_adapters or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or names[0] in layer.lora_variant:
        return None
    (name,) = names
    parts = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    plain = (
        all(type(part) is nn.Linear for part in parts)
        and {part.weight.dtype for part in parts} in ({torch.float32}, {torch.float64})
        and parts[2].bias is None
        and not (layer.training and getattr(layer.lora_dropout[name], "p", 0))
        and not torch.is_autocast_enabled(parts[0].weight.device.type)
        and not looked_at(layer, *parts)
    )
    return name if plain else None


@contextmanager
def in_place(layer: Any, name: str) -> Generator[None]:
    """Inside the context, a `plain_adapter` is added to the base layer's output in the same memory; peft allocates
    three more tensors of that size, which takes time and scatters the memory in use."""
    up, scaling = layer.lora_B[name].weight, layer.scaling[name]

    def forward(hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2)
        output = layer.base_layer(rows).addmm_(layer.lora_A[name](rows), up.T, alpha=scaling)
        return output.view(*hidden.shape[:-1], -1)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def looked_at(*modules: nn.Module) -> bool:
    """Whether somebody sees these modules' inputs or outputs, or has put another forward in place of theirs."""
    return any(each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in modules)


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
        return hidden.flatten(0, 1)[places].unsqueeze(0), *others

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
        computed = forward(hidden.flatten(0, 1)[once].unsqueeze(0))[0]
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
    key = segments.unsqueeze(1)
    allowed = ((key == 0) | (key >= since.unsqueeze(2))).tril()
    # Additive and not boolean, because eager attention adds it to the scores.
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)


def device_of(model: nn.Module) -> torch.device:
    """The device that the model needs its token ids on."""
    return model.get_input_embeddings().weight.device  # pyrefly: ignore[not-callable]
