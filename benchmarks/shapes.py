"""Time steps in bfloat16 as training goes on: `python benchmarks/shapes.py` (about 11 minutes).

Forward, backward and optimizer of SmolLM2-135M with LoRA on a CPU; ragged rows, histories of 3 to 10 and 1 to 19
negatives.
least padding: rows in groups of similar length, as `pack_groups` does by default.  few shapes: the numbers of
rows and positions are also rounded up (`few_shapes`), as the trainers do for bfloat16 on a CPU.

Each side runs once, in a separate process. Prints a table and writes shapes.json beside this file.
"""

import time
from typing import Any

import numpy as np
import torch
from growth import ragged
from measure import Report, alone, prepare, run, smollm2

from minipo.compatibility.architectures import disable_dropout
from minipo.experiments.models import add_lora
from minipo.packing import pack_groups, padding_share
from minipo.scoring import packed_logps

SIDES = ("least padding", "few shapes")
FULL, QUICK = {"rows": 8, "steps": 100, "shown": 10}, {"rows": 2, "steps": 2, "shown": 1}


def measured(settings: Report) -> Report:
    """Seconds of each step on one side, packing included, and padding's share of each step's tokens."""
    prepare()
    base, tokenizer = smollm2(settings["small"])
    model: Any = add_lora(base)
    disable_dropout(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
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
    return {"seconds": seconds, "padding": float(np.mean(shares))}


def benchmark(quick: bool) -> Report:
    """Both sides, one after the other; "shown" is how many steps the README takes at the beginning and at the end."""
    settings = QUICK if quick else FULL
    return {**settings, "sides": {side: alone(__file__, {"side": side, "small": quick, **settings}) for side in SIDES}}


if __name__ == "__main__":
    run(__file__, __doc__, benchmark, measured)
