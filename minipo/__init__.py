"""minipo: preference optimization with many negatives, its collapse and its repair (DynamicPO, arXiv 2605.00327)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .datasets import load_dataset
from .dynamic import DynamicPO
from .preference import PreferenceOutput, Push, preference_loss, preference_push
from .runs import prefer, sft

if TYPE_CHECKING:
    from .evaluation import evaluate, preference_rows
    from .models import load_model
    from .scoring import candidate_logps
    from .sweeps import sweep
    from .training import PreferenceTrainer, SFTTrainer

# These bring transformers or pandas with them: imported when first asked for, so that a loss costs torch alone.
_ROOMS = {
    "PreferenceTrainer": "training",
    "SFTTrainer": "training",
    "candidate_logps": "scoring",
    "evaluate": "evaluation",
    "load_model": "models",
    "preference_rows": "evaluation",
    "sweep": "sweeps",
}

__all__ = [
    "DynamicPO",
    "PreferenceOutput",
    "PreferenceTrainer",
    "Push",
    "SFTTrainer",
    "candidate_logps",
    "evaluate",
    "load_dataset",
    "load_model",
    "prefer",
    "preference_loss",
    "preference_push",
    "preference_rows",
    "sft",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"minipo.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'minipo' has no attribute {name!r}")
