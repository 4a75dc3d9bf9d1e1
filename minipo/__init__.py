"""minipo: preference optimization with many negatives, its collapse and its repair (DynamicPO, arXiv 2605.00327)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import minipo.compatibility.moved
import minipo.threads  # noqa: F401  # before torch is loaded

if TYPE_CHECKING:
    from minipo.dynamic import DynamicPO
    from minipo.experiments.datasets.loading import load_dataset
    from minipo.experiments.models import load_model
    from minipo.experiments.sweeps import sweep
    from minipo.experiments.training import prefer, sft
    from minipo.experiments.users import evaluate, preference_rows, sequence_rows
    from minipo.preference import PreferenceOutput, Push, preference_loss, preference_push
    from minipo.scoring import candidate_logps
    from minipo.trainers import PreferenceTrainer, SFTTrainer

# Loaded on first use: torch takes a second, transformers several, and reading a file needs neither.
_NAMES = {
    "dynamic": ["DynamicPO"],
    "experiments.datasets.loading": ["load_dataset"],
    "experiments.models": ["load_model"],
    "experiments.sweeps": ["sweep"],
    "experiments.training": ["prefer", "sft"],
    "experiments.users": ["evaluate", "preference_rows", "sequence_rows"],
    "preference": ["PreferenceOutput", "Push", "preference_loss", "preference_push"],
    "scoring": ["candidate_logps"],
    "trainers": ["PreferenceTrainer", "SFTTrainer"],
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
    "sequence_rows",
    "sft",
    "sweep",
]


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"minipo.{module}"), name)
    raise AttributeError(f"module 'minipo' has no attribute {name!r}")
