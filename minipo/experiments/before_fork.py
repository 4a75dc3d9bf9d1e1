"""Imported by the process that others are forked from (`workers`): what each of them would otherwise do first."""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import minipo.experiments.models
import minipo.experiments.training
import minipo.experiments.users
import minipo.trainers  # noqa: F401
from minipo.experiments.datasets.loading import load_dataset

get_checkpoint_conversion_mapping("gpt2")  # compiles a thousand patterns, which from_pretrained then finds
_ = load_dataset("catalog").fingerprint
gc.freeze()  # so that no collection goes through all this: the Trainer starts one, which takes it a third of a second
