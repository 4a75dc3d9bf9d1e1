"""minipo: preference optimization with many negatives, its collapse and its repair (DynamicPO, arXiv 2605.00327)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import minipo.compatibility.moved  # noqa: F401

if TYPE_CHECKING:
    from minipo.dynamic import DynamicPO
    from minipo.experiments.datasets.loading import load_dataset
    from minipo.experiments.models import load_model
    from minipo.experiments.sweeps import sweep
    from minipo.experiments.training import prefer, sft
    from minipo.experiments.users import evaluate, preference_rows
    from minipo.preference import PreferenceOutput, Push, preference_loss, preference_push
    from minipo.scoring import candidate_logps
    from minipo.trainers import PreferenceTrainer, SFTTrainer

# Loaded on first use: torch takes a second, transformers several, and reading a file needs neither.
_MODULES = {
    "DynamicPO": "dynamic",
    "PreferenceOutput": "preference",
    "PreferenceTrainer": "trainers",
    "Push": "preference",
    "SFTTrainer": "trainers",
    "candidate_logps": "scoring",
    "evaluate": "experiments.users",
    "load_dataset": "experiments.datasets.loading",
    "load_model": "experiments.models",
    "prefer": "experiments.training",
    "preference_loss": "preference",
    "preference_push": "preference",
    "preference_rows": "experiments.users",
    "sft": "experiments.training",
    "sweep": "experiments.sweeps",
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
    if name in _MODULES:
        return getattr(import_module(f"minipo.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'minipo' has no attribute {name!r}")
