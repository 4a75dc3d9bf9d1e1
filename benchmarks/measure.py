"""Shared by the benchmarks, not one itself: a process for each measurement, models and rows, provenance, tables.

A measurement in a separate process has its own peak memory and does not affect the next one.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from minipo.compatibility.forwards import reuse_memory
from minipo.experiments.datasets import catalog
from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.fetch import present
from minipo.experiments.models import load_model
from minipo.prompts import TEMPLATES, answer, render

FOLDER = Path(__file__).parent
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arguments(description: str | None) -> argparse.Namespace:
    """The command line that all benchmarks have; sets the number of threads.

    measure: the settings of one measurement, if this process is to make one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run on tiny settings that writes no file")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of each measurement (all cores: {THREADS})")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def alone(script: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The output of `script --measure settings` in a separate process with this one's number of threads."""
    command = [sys.executable, script, "--threads", str(torch.get_num_threads()), "--measure", json.dumps(settings)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        reason = (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]
        if child.returncode == -9:
            reason = "it was killed, probably because memory ran out; free some"
        raise SystemExit(f"The measurement {settings} failed: {reason}.")
    print(".", end="", file=sys.stderr, flush=True)
    result: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return result


def prepare(reuse: bool = True) -> None:
    """The same start for all sides of a comparison: a seed, and freed memory that is kept, see `reuse_memory`."""
    torch.manual_seed(0)
    if reuse:
        reuse_memory()


def peak_memory() -> float:
    """The peak resident memory of this process so far, in GB (1e9 bytes)."""
    # A process inherits its parent's memory at its start; the parents here have only imported the same modules.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def provenance() -> dict[str, Any]:
    """Where and with what the numbers were made."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": THREADS,
        "threads": torch.get_num_threads(),
        "load": round(
            os.getloadavg()[0], 2
        ),  # of the last minute: at most about the number of threads, or the timings suffer
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "numpy")},
    }


def write(script: str, report: dict[str, Any]) -> None:
    """Write `report` beside the script, under its name."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    Path(script).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Lines of text in columns, numbers with three significant digits."""
    cells = [list(header), *([_cell(value) for value in line] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(line))
        for line in (list(zip(line, widths, strict=True)) for line in cells)
    )


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def smollm2(small: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """SmolLM2-135M in float32 with its tokenizer, and a description of its weights: those that `minipo fetch` gives,
    or random ones of the same shape, which take as long. small: two narrow layers, for a smoke run."""
    if not small and present("smollm2-135m"):
        return (*load_model("smollm2-135m"), "SmolLM2-135M-Instruct as fetched")
    tokenizer = _stand_in()
    config = LlamaConfig(
        vocab_size=1024 if small else 49152,
        hidden_size=36 if small else 576,
        intermediate_size=96 if small else 1536,
        num_hidden_layers=2 if small else 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=4 if small else 64,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    shape = "two narrow Llama layers" if small else "SmolLM2-135M's architecture"
    return LlamaForCausalLM(config).eval(), tokenizer, f"{shape}, random weights"


def _stand_in() -> PreTrainedTokenizerFast:
    """Tokens of up to four letters: names have about as many as with SmolLM2's tokenizer."""
    splitter = pre_tokenizers.Split(Regex(r" ?\w{1,4}| ?[^\w\s]|\s"), behavior="isolated")
    text = render(TEMPLATES["music"], NAMES, NAMES)
    pieces = sorted({piece for piece, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {piece: number for number, piece in enumerate(["<pad>", "<eos>", "<unk>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


NAMES = (*catalog.SHARED_WORDS, *catalog.world(0).items)  # of one word and of two: 3 tokens, like the names in LastFM
_OFTEN = np.repeat([0.75 / 60, 0.25 / 240], [60, 240])  # seven in ten of those drawn have one word


def lastfm_shaped(
    count: int, negatives: int = 19, history: tuple[int, int] = (3, 5), seed: int = 0
) -> list[Interaction]:
    """Invented users whose prompts look like LastFM's under the template "music": about 120 tokens of SmolLM2 with 20
    candidates in the list, 3 to 4 a candidate. history: its minimum and maximum number of items."""
    random = np.random.default_rng(seed)
    users = []
    for user in range(count):
        past = int(random.integers(history[0], history[1] + 1))
        names = [NAMES[place] for place in random.choice(len(NAMES), past + 1 + negatives, replace=False, p=_OFTEN)]
        candidates = tuple(names[past:])
        users.append(Interaction(user, tuple(names[:past]), candidates[random.integers(len(candidates))], candidates))
    return users


def texts(users: Sequence[Interaction], template: str) -> tuple[list[str], list[list[str]]]:
    """Prompts, and the candidates that follow them, chosen first."""
    prompts = [render(TEMPLATES[template], user.history, user.candidates) for user in users]
    return prompts, [[answer(item) for item in user.canonical] for user in users]
