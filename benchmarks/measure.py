"""What the benchmarks share: a process for each measurement, models and rows, provenance, tables. No benchmark itself.

A measurement in a process of its own has a peak memory of its own, and leaves nothing behind that the next one finds.
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

    measure: the settings of one measurement, if this process is there for one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run on tiny settings that writes no file")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of each measurement (all cores: {THREADS})")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def alone(script: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What `script --measure settings` prints, run in a process of its own with this one's number of threads."""
    command = [sys.executable, script, "--threads", str(torch.get_num_threads()), "--measure", json.dumps(settings)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        reason = (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]
        if child.returncode == -9:
            reason = "it was killed, as the system does where memory runs out; free some"
        raise SystemExit(f"The measurement {settings} failed: {reason}.")
    print(".", end="", file=sys.stderr, flush=True)
    result: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return result


def prepare(reuse: bool = True) -> None:
    """What all sides of a comparison get: a seed, and memory that is kept, see `reuse_memory`."""
    torch.manual_seed(0)
    if reuse:
        reuse_memory()


def peak_memory() -> float:
    """The most memory that this process has held so far, resident, in GB (1e9 bytes)."""
    # A process inherits what its parent held when it was started; the parents here have imported the same, and no more.
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
        "load": round(os.getloadavg()[0], 2),  # of the minute before: about as much as there are threads, or too much
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
    """SmolLM2-135M in float32 with its tokenizer, and which weights they are: those that `minipo fetch smollm2-135m`
    brought, or random ones in the same shape, which take as long. small: two narrow layers, for a smoke run."""
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
    """Tokens of up to four letters: names are about as long in them as in SmolLM2's."""
    splitter = pre_tokenizers.Split(Regex(r" ?\w{1,4}| ?[^\w\s]|\s"), behavior="isolated")
    text = render(TEMPLATES["music"], NAMES, NAMES)
    pieces = sorted({piece for piece, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {piece: number for number, piece in enumerate(["<pad>", "<eos>", "<unk>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


NAMES = (*catalog.SHARED_WORDS, *catalog.world(0).items)  # of one word and of two: 3 tokens, as the names in LastFM
_OFTEN = np.repeat([0.75 / 60, 0.25 / 240], [60, 240])  # seven in ten of those drawn have one word


def lastfm_shaped(
    count: int, negatives: int = 19, history: tuple[int, int] = (3, 5), seed: int = 0
) -> list[Interaction]:
    """Invented users whose prompts look like LastFM's under the template "music": about 120 tokens of SmolLM2 with 20
    candidates in the list, 3 to 4 a candidate. history: the fewest and the most items of it."""
    random = np.random.default_rng(seed)
    users = []
    for user in range(count):
        past = int(random.integers(history[0], history[1] + 1))
        names = [NAMES[place] for place in random.choice(len(NAMES), past + 1 + negatives, replace=False, p=_OFTEN)]
        candidates = tuple(names[past:])
        users.append(Interaction(user, tuple(names[:past]), candidates[random.integers(len(candidates))], candidates))
    return users


def texts(users: Sequence[Interaction], template: str) -> tuple[list[str], list[list[str]]]:
    """Prompts, and candidates as they follow them, chosen first."""
    prompts = [render(TEMPLATES[template], user.history, user.candidates) for user in users]
    return prompts, [[answer(item) for item in user.canonical] for user in users]
