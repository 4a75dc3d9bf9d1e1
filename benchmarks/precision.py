"""Which precision is faster, by processor: `python benchmarks/precision.py` (10 to 20 minutes, most of them for AVX2).

The rule (`minipo.arithmetic.measured`) on the widths of three models, and whole steps of SmolLM2-135M (LoRA, 2 rows,
K = 5) and of pocket-gpt2 (all weights, 32 rows of the catalogue, K = 15) in both precisions, in turns: each where
oneDNN and PyTorch may use fewer of this processor's instructions than it has, as on lesser ones, and where they may use
all. In seconds of CPU time on one thread, so that other processes matter little.

Checks that the precision which the rule chooses takes at most 1.1 times as long in a step as the other; prints a table,
and writes precision.json beside this file, where what other machines measured stays. `python benchmarks/report.py`
writes it into docs/speed.md.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measure import Report, alone, prepare, provenance, run, setting, texts

from minipo.arithmetic import MEASURED, autocast, builds_kernels, faster, machine
from minipo.arithmetic import measured as rule
from minipo.compatibility.architectures import disable_dropout
from minipo.compatibility.tokenizers import tokenize_rows
from minipo.experiments.files import read_json
from minipo.experiments.models import add_lora
from minipo.packing import pack_groups
from minipo.preference import preference_loss
from minipo.scoring import packed_logps

CPU = torch.device("cpu")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
LESSER = {"AVX2": AVX2, "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}}  # of a processor with AVX-512
WIDTHS = {"SmolLM2-135M": (576, 1536), "GPT-2": (768, 3072), "Qwen2.5-0.5B": (896, 4864)}
# rows and negatives of a step, and steps in each precision, of which the first is not counted
STEPS = {
    "smollm2-135m": {"rows": 2, "negatives": 5, "turns": 4},
    "pocket-gpt2": {"rows": 32, "negatives": 15, "turns": 20},
}
QUICK = {name: {"rows": 2, "negatives": 2, "turns": 2} for name in ("pocket-qwen2", "pocket-gpt2")}
MOST = 1.1  # times the other precision's


def measured(settings: Report) -> Report:
    """The rule's seconds for a model's widths, or those of steps of a model; one thread, in this process."""
    torch.set_num_threads(1)
    if "widths" in settings:
        found = rule(*settings["widths"], CPU)
        return {"float32": found.float32, "bfloat16": found.bfloat16, "chosen": found.faster[0]}
    prepare()
    model, tokenizer, users, _, template = setting(settings["model"], settings["rows"])
    model = model if settings["model"] == "pocket-gpt2" else add_lora(model)
    disable_dropout(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    prompts, candidates = texts(users, template)
    rows = tokenize_rows(tokenizer, prompts, [row[: 1 + settings["negatives"]] for row in candidates])
    packed = pack_groups(*rows, tokenizer.pad_token_id)

    def step(precision: str) -> float:
        start = time.process_time()
        with autocast(CPU, precision):
            logps = packed_logps(model, packed)
        preference_loss("dmpo", logps, logps.detach()).losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start

    turns = [{precision: step(precision) for precision in MEASURED} for _ in range(settings["turns"])][1:]
    return {
        **{precision: statistics.median(turn[precision] for turn in turns) for precision in MEASURED},
        "ratio": statistics.median(turn["bfloat16"] / turn["float32"] for turn in turns),
        "chosen": faster(model, CPU)[0],
        "few_shapes": builds_kernels(),
    }


def benchmark(quick: bool) -> Report:
    """Rules and steps by processor; SystemExit where the rule chooses a precision that takes too long."""
    wide = not quick and torch.backends.cpu.get_cpu_capability() == "AVX512"
    processors: dict[str, dict[str, str]] = (LESSER if wide else {}) | {"all of its own": {}}
    widths = {"a small one": (192, 512)} if quick else WIDTHS
    rules: dict[str, Any] = {}
    steps: dict[str, Any] = {}
    for name, environment in processors.items():
        rules[name] = {
            model: alone(__file__, {"widths": sides, "environment": environment}) for model, sides in widths.items()
        }
        steps[name] = {}
        for model, settings in (QUICK if quick else STEPS).items():
            steps[name][model] = found = alone(__file__, {"model": model, **settings, "environment": environment})
            over = found["ratio"] if found["chosen"] == "bfloat16" else 1 / found["ratio"]
            if over > MOST and not quick:
                raise SystemExit(f"{name}, {model}: {found['chosen']} takes {over:.2f} times as long as the other.")
    kept = Path(__file__).with_suffix(".json")
    machines = {} if quick or not kept.is_file() else read_json(kept)["machines"]
    machines[machine(CPU)] = {"date": provenance()["date"], "rules": rules, "steps": steps}
    return {"widths": widths, "machines": machines}


if __name__ == "__main__":
    run(__file__, __doc__, benchmark, measured)
