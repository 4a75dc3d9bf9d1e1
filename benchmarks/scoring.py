"""Time the scoring of 20 candidates per user: `python benchmarks/scoring.py` (about 10 minutes).

minipo: `evaluation.score`, a user's prompt once.  plain: a full row for each candidate, a user's 20 rows in one padded
forward, logits over the whole vocabulary at every position.  generate: `evaluation.valid_ratio`, greedy generation of
one answer, several users at a time with a cache of keys and values, as ValidRatio does; it gives a name, not a ranking.

On SmolLM2-135M (LastFM-shaped prompts) and pocket-gpt2 (the catalogue), each way in a separate process, in turns, all
with `reuse_memory`. Checks that the log-probs agree, prints a table, and writes scoring.json beside this file.
"""

import time
from typing import Any

import torch
from measure import Report, in_turns, largest_difference, peak_memory, prepare, run, setting, summary, texts
from step import plain_logps

from minipo.compatibility.tokenizers import tokenize_rows
from minipo.experiments.users import score, valid_ratio

WAYS = ("minipo", "plain", "generate")
# users; users in one forward of minipo and of generate; timed runs, after an untimed one; processes per way
MODELS = {
    "smollm2-135m": {"users": 16, "batch_size": 8, "runs": 2, "repeats": 3},
    "pocket-gpt2": {"users": 256, "batch_size": 64, "runs": 5, "repeats": 3},
}
QUICK = {name: {"users": 3, "batch_size": 2, "runs": 1, "repeats": 1} for name in ("pocket-qwen2", "pocket-gpt2")}


def measured(settings: Report) -> Report:
    """One way's runs over all users: seconds of each, log-probs (users, 20) if it gives any, and memory."""
    prepare()
    model, tokenizer, users, items, template = setting(settings["model"], settings["users"])

    @torch.no_grad()
    def plain() -> Any:
        rows = zip(*tokenize_rows(tokenizer, *texts(users, template)), strict=True)
        return torch.cat([plain_logps(model, [prompt], [row], tokenizer.pad_token_id) for prompt, row in rows])

    ways: dict[str, Any] = {
        "minipo": lambda: score(model, tokenizer, users, template, settings["batch_size"]),
        "plain": plain,
        "generate": lambda: valid_ratio(model, tokenizer, users, items, template, settings["batch_size"]),
    }
    times = []
    for _ in range(1 + settings["runs"]):
        start = time.perf_counter()
        result = ways[settings["way"]]()
        times.append(time.perf_counter() - start)
    logps = None if settings["way"] == "generate" else result.tolist()
    return {"seconds": times[1:], "logps": logps, "peak_gb": peak_memory()}


def compare(name: str, settings: dict[str, int]) -> Report:
    """All ways on one model, in turns."""
    runs = in_turns(__file__, {way: {"model": name, "way": way, **settings} for way in WAYS}, settings["repeats"])
    found = summary(runs, settings["users"])
    return {
        "model": name,
        **settings,
        "seconds_a_user": found["seconds"],
        "peak_gb": found["peak_gb"],
        "largest_difference": largest_difference(*(runs[way][0]["logps"] for way in ("minipo", "plain"))),
        "all_seconds_a_user": found["all_seconds"],
    }


def benchmark(quick: bool) -> Report:
    return {"results": [compare(name, settings) for name, settings in (QUICK if quick else MODELS).items()]}


if __name__ == "__main__":
    run(__file__, __doc__, benchmark, measured)
