"""Time the scoring of 20 candidates a user: `python benchmarks/scoring.py` (about 10 minutes).

minipo: `evaluation.score`, a user's prompt once.  plain: a full row for each candidate, a user's 20 rows in one padded
forward, logits over the whole vocabulary at every position.  generate: `evaluation.valid_ratio`, greedy generation of
one answer, several users at a time with a cache of keys and values, as ValidRatio does; it gives a name, no ranking.

On SmolLM2-135M (LastFM-shaped prompts) and pocket-gpt2 (the catalogue), each way in a process of its own, in turns, all
with `reuse_memory`. Checks that the log-probs agree, prints a table, and writes scoring.json beside this file.
"""

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from measure import (
    NAMES,
    alone,
    arguments,
    lastfm_shaped,
    peak_memory,
    prepare,
    provenance,
    smollm2,
    table,
    texts,
    write,
)
from step import TOLERANCE, plain_logps

from minipo.compatibility.tokenizers import tokenize, tokenize_answers
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.models import load_model
from minipo.experiments.users import score, valid_ratio

WAYS = ("minipo", "plain", "generate")
# users, of them in one forward of minipo's and of generate's, runs on the clock after one without, processes a way
MODELS = {
    "smollm2-135m": {"users": 16, "batch_size": 8, "runs": 2, "repeats": 3},
    "pocket-gpt2": {"users": 256, "batch_size": 64, "runs": 5, "repeats": 3},
}
QUICK = {
    "tiny-llama": {"users": 3, "batch_size": 2, "runs": 1, "repeats": 1},
    "pocket-gpt2": {"users": 3, "batch_size": 2, "runs": 1, "repeats": 1},
}


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    """One way's runs over all users: seconds of each, log-probs (users, 20) if it gives any, and memory."""
    prepare()
    items: Any
    if settings["model"] == "pocket-gpt2":
        splits = load_dataset("catalog")
        model, tokenizer = load_model(settings["model"], items=splits.items)
        what, users, items, template = "pocket-gpt2, random weights", splits.test, splits.items, "line"
    else:
        model, tokenizer, what = smollm2(small=settings["model"] != "smollm2-135m")
        users, items, template = tuple(lastfm_shaped(settings["users"])), NAMES, "music"
    users = users[: settings["users"]]

    def plain() -> Any:
        prompts, candidates = texts(users, template)
        prompt_ids = tokenize(tokenizer, prompts, special=True)
        answer_ids = [tokenize_answers(tokenizer, row) for row in candidates]
        with torch.no_grad():
            return torch.cat(
                [
                    plain_logps(model, [prompt], [row], tokenizer.pad_token_id)
                    for prompt, row in zip(prompt_ids, answer_ids, strict=True)
                ]
            )

    ways: dict[str, Any] = {
        "minipo": lambda: score(model, tokenizer, users, template, settings["batch_size"]),
        "plain": plain,
        "generate": lambda: valid_ratio(model, tokenizer, users, items, template, settings["batch_size"]),
    }
    times, result = [], None
    for _ in range(1 + settings["runs"]):
        start = time.perf_counter()
        result = ways[settings["way"]]()
        times.append(time.perf_counter() - start)
    logps = None if settings["way"] == "generate" else result.tolist()  # type: ignore[union-attr]
    return {"model": what, "seconds": times[1:], "logps": logps, "peak_gb": peak_memory()}


def compare(name: str, settings: dict[str, int]) -> dict[str, Any]:
    """All ways on one model, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(settings["repeats"]):
        for way in WAYS:
            runs[way].append(alone(__file__, {"model": name, "way": way, **settings}))
    ours, plain = (torch.tensor(runs[way][0]["logps"]) for way in ("minipo", "plain"))
    difference = (ours - plain).abs().max().item()
    if not difference < TOLERANCE:
        raise SystemExit(f"On {name} log-probs differ by {difference:.2g}: no timing is worth a report.")
    times = {way: [second / settings["users"] for run in runs[way] for second in run["seconds"]] for way in WAYS}
    seconds = {way: statistics.median(times[way]) for way in WAYS}
    return {
        "model": name,
        "weights": runs["minipo"][0]["model"],
        **settings,
        "seconds_a_user": seconds,
        "times_as_fast": {way: seconds[way] / seconds["minipo"] for way in WAYS[1:]},
        "peak_gb": {way: statistics.median(run["peak_gb"] for run in runs[way]) for way in WAYS},
        "largest_difference": difference,
        "all_seconds_a_user": times,
    }


def shown(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table."""
    header = "model,minipo ms,plain ms,generate ms,× plain,× generate,minipo GB,plain GB,generate GB,difference"
    return table(
        header.split(","),
        [
            [
                result["model"],
                *(1000 * seconds for seconds in result["seconds_a_user"].values()),
                *result["times_as_fast"].values(),
                *result["peak_gb"].values(),
                f"{result['largest_difference']:.0e}",
            ]
            for result in results
        ],
    )


def main() -> None:
    given = arguments(__doc__)
    if given.measure:
        print(json.dumps(measured(given.measure)))
        return
    made = provenance()
    results = [compare(name, settings) for name, settings in (QUICK if given.quick else MODELS).items()]
    print(f"\nMilliseconds a user of 20 candidates and peak memory, {made['threads']} threads, {made['processor']}")
    for result in results:
        print(f"{result['model']}: {result['weights']}")
    print(shown(results))
    if not given.quick:
        write(__file__, {"provenance": made, "results": results})


if __name__ == "__main__":
    main()
