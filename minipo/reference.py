"""The reference's log-probs: computed once from the model as it came in, cached, and kept in checkpoints."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

REFERENCE = "reference.npz"  # the reference log-probs in a checkpoint
OTHER_MODEL = 1.0  # nats: the same model in bfloat16 on another processor stays below
SAVE_EVERY = 60.0  # seconds between two writings of the reference log-probs, so that a kill costs a minute


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Within, the model computes as it did before peft's adapters came; ValueError if theirs cannot be switched off."""
    with ExitStack() as stack:
        try:
            stack.enter_context(model.disable_adapter())
        except (ValueError, AttributeError, NotImplementedError) as error:
            kinds = ", ".join(
                str(getattr(each.peft_type, "value", each.peft_type)) for each in model.peft_config.values()
            )
            raise ValueError(
                f"An adapter of the kind {kinds} cannot be switched off ({error}), as the reference needs it; choose "
                "another, such as LoRA."
            ) from error
        yield


def fingerprint(model: torch.nn.Module) -> bytes:
    """A hash of what `model` computes: its configuration and weights. A LoRA adapter that is still the identity (B = 0)
    leaves it as it was without."""
    weights: dict[str, Tensor] = model.state_dict()
    idle = {name for name, weight in weights.items() if ".lora_B." in name and not weight.any()}
    idle |= {name.replace(".lora_B.", ".lora_A.") for name in idle}
    configuration: Any = model.config
    settings = {
        name: value
        for name, value in configuration.to_dict().items()
        if name not in ("_name_or_path", "transformers_version", "dtype", "use_cache")
    }
    if any(".lora_B." in name for name in weights.keys() - idle):
        settings["adapters"] = repr(model.peft_config)  # its scale stands there alone
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in weights.items():
        if name not in idle:
            # peft keeps the model one level down, and a layer that it adapts one more.
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            digest.update(f"{plain} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()
