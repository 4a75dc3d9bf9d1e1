"""Time steps in bfloat16 as training goes on: `python benchmarks/shapes.py` (about 11 minutes).

Forward, backward and optimizer of SmolLM2-135M with LoRA on a CPU; ragged rows, histories of 3 to 10 and 1 to 19
negatives.
least padding: rows in groups of similar length, as `pack_groups` does by default.  few shapes: the numbers of
rows and positions are also rounded up (`few_shapes`), as the trainers do for bfloat16 on a CPU.

Each side runs once, in a separate process. Prints a table and writes shapes.json beside this file.
"""

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from growth import ragged
from measure import alone, arguments, prepare, provenance, smollm2, table, write

from minipo.compatibility.architectures import disable_dropout
from minipo.experiments.models import add_lora
from minipo.packing import pack_groups, padding_share
from minipo.scoring import packed_logps

SIDES = ("least padding", "few shapes")
FULL, QUICK = {"rows": 8, "steps": 100, "shown": 10}, {"rows": 2, "steps": 2, "shown": 1}


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each step on one side, packing included, and padding's share of each step's tokens."""
    prepare()
    base, tokenizer, what = smollm2(settings["small"])
    model: Any = add_lora(base)
    disable_dropout(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    rows = ragged(tokenizer, settings["rows"] * settings["steps"])
    seconds, shares = [], []
    for first in range(0, len(rows), settings["rows"]):
        prompts, answers = zip(*rows[first : first + settings["rows"]], strict=True)
        start = time.perf_counter()
        packed = pack_groups(prompts, answers, tokenizer.pad_token_id, few_shapes=settings["side"] == "few shapes")
        with torch.autocast("cpu", torch.bfloat16):
            logps = packed_logps(model, packed)
        logps[packed["mask"]].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        shares.append(padding_share(packed))
    return {"model": f"{what}, LoRA of rank 8", "seconds": seconds, "padding": float(np.mean(shares))}


def shown(runs: dict[str, dict[str, Any]], count: int) -> str:
    """The sides as a table: seconds a step at the beginning and at the end."""
    lines: Sequence[Sequence[Any]] = [
        [
            side,
            statistics.median(run["seconds"][:count]),
            statistics.median(run["seconds"][-count:]),
            sum(run["seconds"]),
            f"{run['padding']:.0%}",
        ]
        for side, run in runs.items()
    ]
    return table(["", f"first {count} steps, s", f"last {count} steps, s", "all steps, s", "padding"], lines)


def main() -> None:
    given = arguments(__doc__)
    if given.measure:
        print(json.dumps(measured(given.measure)))
        return
    made, settings = provenance(), QUICK if given.quick else FULL
    runs = {side: alone(__file__, {"side": side, "small": given.quick, **settings}) for side in SIDES}
    print(f"\nSteps in bfloat16, {made['threads']} threads, {made['processor']}; {runs[SIDES[0]]['model']}")
    print(shown(runs, settings["shown"]))
    if not given.quick:
        write(__file__, {"provenance": made, **settings, "sides": runs})


if __name__ == "__main__":
    main()
