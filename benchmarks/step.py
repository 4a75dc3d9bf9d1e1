"""Time a preference step: `python benchmarks/step.py` (forward, reference, backward, optimizer; about 25 minutes).

plain: the way the published trainers do it. Every candidate is a row of its own, prompt and answer, all of them in one
padded forward; float32 logits over the whole vocabulary at every position; the reference is a second such forward.
as it comes: the same, in a process that gives freed memory back to the system, as Python's do unless told otherwise.
fresh: minipo, with a reference forward in each step.  cached: minipo, with the reference's log-probs computed before.

On SmolLM2-135M (LoRA, 2 rows) and pocket-gpt2 (all weights, 32 rows of the catalogue), each K, in float32. Each side
runs in a process of its own, in turns; peak memory is the process's, all included. All but "as it comes" keep freed
memory (`reuse_memory`), which minipo does by itself. Checks that the log-probs agree, prints a table, and writes
step.json beside this file; of that, `dynamic_share` is the time of DynamicPO's selection and β as a share of the 135M
model's fresh step at K = 15.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from measure import alone, arguments, lastfm_shaped, peak_memory, prepare, provenance, smollm2, table, texts, write
from torch import Tensor

from minipo.compatibility.architectures import disable_dropout
from minipo.compatibility.tokenizers import tokenize, tokenize_answers
from minipo.dynamic import boundary, dual_margin_beta
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.models import add_lora, load_model
from minipo.packing import TokenIds, pack_groups
from minipo.preference import preference_loss
from minipo.scoring import packed_logps

THEIRS, OURS = ("as it comes", "plain"), ("fresh", "cached")
SIDES = THEIRS + OURS
NEGATIVES = (1, 5, 15, 19)
# rows a step, steps without the clock, steps on it, processes a side
MODELS = {
    "smollm2-135m": {"rows": 2, "warm_up": 1, "steps": 3, "repeats": 2},
    "pocket-gpt2": {"rows": 32, "warm_up": 5, "steps": 20, "repeats": 3},
}
QUICK = {
    "tiny-llama": {"rows": 2, "warm_up": 1, "steps": 2, "repeats": 1},
    "pocket-gpt2": {"rows": 4, "warm_up": 1, "steps": 2, "repeats": 1},
}
TOLERANCE = 1e-3  # nats, on summed log-probs; float32 leaves about a hundredth of that


def plain_logps(
    model: torch.nn.Module,
    prompt_ids: Sequence[TokenIds],
    answer_ids: Sequence[Sequence[TokenIds]],
    pad_token_id: int,
) -> Float[Tensor, "rows candidates"]:
    """The log-prob of each candidate, each in a full row of its own, as the published trainers compute it."""
    pairs = [(prompt, answer) for prompt, row in zip(prompt_ids, answer_ids, strict=True) for answer in row]
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    input_ids = torch.full((len(pairs), width), pad_token_id)
    attention_mask = torch.zeros(len(pairs), width, dtype=torch.long)
    answer_mask = torch.zeros(len(pairs), width, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        input_ids[row, : len(prompt)] = torch.from_numpy(prompt)
        input_ids[row, len(prompt) : end] = torch.from_numpy(answer)
        attention_mask[row, :end] = 1
        answer_mask[row, len(prompt) : end] = True
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.float()
    logps = logits[:, :-1].log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
    return (logps * answer_mask[:, 1:]).sum(1).view(len(prompt_ids), -1)


def setting(name: str, rows: int) -> tuple[Any, Any, str, list[TokenIds], list[list[TokenIds]]]:
    """The model to train, its tokenizer, what it is, and token ids of prompts and of their candidates, chosen first."""
    if name == "pocket-gpt2":
        splits = load_dataset("catalog")
        model, tokenizer = load_model(name, items=splits.items)
        what, users, template = f"{name}, random weights, all of them trained", list(splits.train[:rows]), "line"
    else:
        base, tokenizer, what = smollm2(small=name != "smollm2-135m")
        model, users, template = add_lora(base), lastfm_shaped(rows), "music"  # type: ignore[assignment]
        what = f"{what}, LoRA of rank 8"
    disable_dropout(model)
    prompts, candidates = texts(users, template)
    answers = iter(tokenize_answers(tokenizer, [text for row in candidates for text in row]))
    return (
        model,
        tokenizer,
        what,
        tokenize(tokenizer, prompts, special=True),
        [[next(answers) for _ in row] for row in candidates],
    )


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    """One side's steps at one K: seconds of each, of DynamicPO's part, and memory; the first step's log-probs."""
    prepare(reuse=settings["side"] != "as it comes")
    size, steps = settings["rows"], settings["warm_up"] + settings["steps"]
    model, tokenizer, what, prompt_ids, answer_ids = setting(settings["model"], size * steps)
    answer_ids = [row[: 1 + settings["negatives"]] for row in answer_ids]
    # With LoRA, the model without its adapter is the reference; without, a frozen copy.
    lora = hasattr(model, "disable_adapter")
    reference_model = model if lora else copy.deepcopy(model).requires_grad_(False)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)

    score: Callable[..., Tensor] = plain_logps if settings["side"] in THEIRS else packed_logps

    def reference(*batch: Any) -> Tensor:
        with torch.no_grad(), model.disable_adapter() if lora else nullcontext():
            return score(reference_model, *batch)

    def arguments_of(rows: slice) -> tuple[Any, ...]:
        """What `score` takes: padding and packing are part of a step."""
        batch = prompt_ids[rows], answer_ids[rows], tokenizer.pad_token_id
        return batch if score is plain_logps else (pack_groups(*batch),)

    batches = [slice(start, start + size) for start in range(0, size * steps, size)]
    cache = [reference(*arguments_of(rows)) for rows in batches] if settings["side"] == "cached" else []
    before, times, selections, first = peak_memory(), [], [], None
    for number, rows in enumerate(batches):
        start = time.perf_counter()
        batch = arguments_of(rows)
        policy = score(model, *batch)
        baseline = cache[number] if cache else reference(*batch)
        loss = preference_loss("dmpo", policy, baseline).losses.mean()
        loss.backward()
        if first is None:
            gradient = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None]).norm()
            first = {"logps": policy.tolist(), "reference": baseline.tolist(), "gradient": gradient.item()}
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
        # DynamicPO's part, once after each step, as a step finds the processor's caches.
        logps = policy.detach()
        start = time.perf_counter()
        dual_margin_beta(logps, boundary(logps), 1.0, 6.0)
        selections.append(time.perf_counter() - start)
    return {
        "model": what,
        "prompt_tokens": statistics.median(map(len, prompt_ids)),
        "candidate_tokens": statistics.fmean(len(answer) - 1 for row in answer_ids for answer in row),
        "seconds": times[settings["warm_up"] :],
        "dynamic_seconds": selections[settings["warm_up"] :],
        "before_gb": before,
        "peak_gb": peak_memory(),
        "first": first,
    }


def compare(name: str, negatives: int, settings: dict[str, int]) -> dict[str, Any]:
    """All sides at one K, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(settings["repeats"]):
        for side in SIDES:
            runs[side].append(alone(__file__, {"model": name, "negatives": negatives, "side": side, **settings}))
    first = {side: runs[side][0]["first"] for side in SIDES}
    plain, packed = first["plain"], first["fresh"]
    difference = max(
        (torch.tensor(plain[what]) - torch.tensor(first[side][what])).abs().max().item()
        for side in OURS
        for what in ("logps", "reference")
    )
    if not difference < TOLERANCE:
        raise SystemExit(
            f"On {name} at K={negatives} log-probs differ by {difference:.2g}: no timing is worth a report."
        )
    times = {side: [second for run in runs[side] for second in run["seconds"]] for side in SIDES}
    seconds = {side: statistics.median(times[side]) for side in SIDES}
    peak = {side: statistics.median(run["peak_gb"] for run in runs[side]) for side in SIDES}
    dynamic = statistics.median(second for run in runs["fresh"] for second in run["dynamic_seconds"])
    return {
        "model": name,
        "weights": runs["plain"][0]["model"],
        "rows": settings["rows"],
        "negatives": negatives,
        "prompt_tokens": runs["plain"][0]["prompt_tokens"],
        "candidate_tokens": runs["plain"][0]["candidate_tokens"],
        "seconds": seconds,
        "times_as_fast": {side: {their: seconds[their] / seconds[side] for their in THEIRS} for side in OURS},
        "peak_gb": peak,
        "before_gb": {side: statistics.median(run["before_gb"] for run in runs[side]) for side in SIDES},
        "memory_share": {side: {their: peak[side] / peak[their] for their in THEIRS} for side in OURS},
        "dynamic_seconds": dynamic,
        "dynamic_share": dynamic / seconds["fresh"],
        "largest_difference": difference,
        "gradient_difference": abs(plain["gradient"] - packed["gradient"]) / plain["gradient"],
        "all_seconds": times,
    }


def shown(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table."""
    header = ["model", "K", *(f"{side}, s" for side in SIDES)]
    header += [f"{side} × {their}" for side in OURS for their in THEIRS]
    return table(
        [*header, *(f"{side}, GB" for side in SIDES), "share", "DynamicPO", "difference"],
        [
            [
                result["model"],
                result["negatives"],
                *result["seconds"].values(),
                *(times for side in OURS for times in result["times_as_fast"][side].values()),
                *result["peak_gb"].values(),
                f"{result['memory_share']['fresh']['plain']:.0%}",
                f"{result['dynamic_share']:.2%}",
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
    models, every = (QUICK, (1, 15)) if given.quick else (MODELS, NEGATIVES)
    results = [compare(name, negatives, models[name]) for name in models for negatives in every]
    print(f"\nSeconds a step and peak memory, {made['threads']} threads, {made['processor']}")
    for name in models:
        print(f"{name}: {next(result['weights'] for result in results if result['model'] == name)}")
    print(shown(results))
    print(
        "share: fresh of plain memory; DynamicPO: selection and β, of a fresh step; difference: largest, of log-probs"
    )
    share = next(result["dynamic_share"] for result in results if result["negatives"] == 15)  # the larger model's
    if not given.quick:
        write(__file__, {"dynamic_share": share, "provenance": made, "objective": "dmpo", "results": results})


if __name__ == "__main__":
    main()
