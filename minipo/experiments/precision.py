"""A run's precision: decided when it starts, unless its settings name one, and kept when it is resumed."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from minipo.arithmetic import GAIN, MEASURED, faster, training_device
from minipo.experiments.configuration import ConfigType
from minipo.experiments.runs import Run


def check_precision(precision: str) -> None:
    """Raises ValueError in one sentence if nothing can be trained in this precision on this machine."""
    if precision == "float16" and training_device().type == "cpu":
        raise ValueError("The precision float16 is for GPUs, and there is none here; choose float32, bfloat16 or auto.")


def decide(config: ConfigType, out: Path, model: Any, progress: bool) -> ConfigType:
    """`config` with a precision in the place of "auto": that of the run which is to be resumed in `out`, or else the
    faster one for `model` on this machine. With `progress`, standard error says which, in a line.

    Warns if the resumed run's is the slower one here; raises what `check_precision` raises.
    """
    if config.precision != "auto":
        return config
    precision, times = faster(model, training_device())
    other = next(each for each in MEASURED if each != precision)
    if (out / "config.json").is_file():
        kept = Run(out).config.precision
        check_precision(kept)
        if kept == other and times > GAIN:
            warnings.warn(
                f"The run in {out} was started in {kept} and keeps it, although {precision} is {times:.1f} times as "
                f"fast on this machine; to train in {precision}, choose another folder.",
                stacklevel=2,
            )
        return replace(config, precision=kept)
    if progress:
        than = f", {times:.1f} times as fast here as {other}" if times > GAIN else ""
        print(f"minipo: precision: {precision}{than}", file=sys.stderr)
    return replace(config, precision=precision)
