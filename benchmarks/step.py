"""Time a preference step: `python benchmarks/step.py` (forward, reference, backward, optimizer; 25 to 50 minutes).

plain: as in the published trainers. Every candidate has its own row of prompt and answer, all in one padded forward;
float32 logits over the whole vocabulary at every position; the reference is a second such forward.
as it comes: the same, in a process that returns freed memory to the system, as Python's do by default.
fresh: minipo, with a reference forward in each step.  cached: minipo, with precomputed log-probs of the reference.

On SmolLM2-135M (LoRA, 2 rows) and pocket-gpt2 (all weights, 32 rows of the catalogue), each K, in float32. Each side
runs in a separate process, in turns; peak memory is that of the whole process. All but "as it comes" keep freed memory
(`reuse_memory`), which minipo does by itself. Checks that the log-probs agree, prints a table, and writes
step.json beside this file; of that, of the 135M model's fresh step at K = 15, `dynamic_share` is the share of
DynamicPO's selection and β, and `products_share` what its products with the frozen weights would take by themselves: as
many tokens through those weights, one layer after another and nothing between, three times (policy, reference, and the
gradient of each layer's input, which takes as many operations). `tokens_per_second`: of its packed rows.
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from measure import Report, in_turns, largest_difference, peak_memory, prepare, run, setting, summary, texts
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minipo.arithmetic import fast_products, onednn_is_ahead
from minipo.compatibility.architectures import disable_dropout
from minipo.compatibility.tokenizers import tokenize_rows
from minipo.dynamic import boundary, dual_margin_beta
from minipo.experiments.models import add_lora
from minipo.packing import PackedGroups, TokenIds, pack_groups
from minipo.preference import preference_loss
from minipo.scoring import packed_logps

THEIRS, OURS = ("as it comes", "plain"), ("fresh", "cached")
SIDES = THEIRS + OURS
NEGATIVES = (1, 5, 15, 19)
# rows per step, untimed steps, timed steps, processes per side
MODELS = {
    "smollm2-135m": {"rows": 2, "warm_up": 1, "steps": 2, "repeats": 2},
    "pocket-gpt2": {"rows": 32, "warm_up": 5, "steps": 20, "repeats": 3},
}
QUICK = {name: {"rows": 2, "warm_up": 1, "steps": 2, "repeats": 1} for name in ("pocket-qwen2", "pocket-gpt2")}


def plain_logps(
    model: torch.nn.Module,
    prompt_ids: Sequence[TokenIds],
    answer_ids: Sequence[Sequence[TokenIds]],
    pad_token_id: int,
) -> Float[Tensor, "rows candidates"]:
    """The log-prob of each candidate, each in its own full row, as the published trainers compute it."""
    pairs = [(prompt, answer) for prompt, row in zip(prompt_ids, answer_ids, strict=True) for answer in row]
    rows = [torch.from_numpy(np.concatenate(pair)) for pair in pairs]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    starts, ends = torch.tensor([(len(prompt), len(prompt) + len(answer)) for prompt, answer in pairs]).T[:, :, None]
    places = torch.arange(input_ids.shape[1])
    attention_mask, answer_mask = (places < ends).long(), (places >= starts) & (places < ends)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.float()
    logps = logits[:, :-1].log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
    return (logps * answer_mask[:, 1:]).sum(1).view(len(prompt_ids), -1)


def products(model: torch.nn.Module, packed: PackedGroups) -> float:
    """Seconds of a batch's products with the model's frozen weights in one forward; the median of a few times."""
    tokens, places = (sum(group[name].numel() for group in packed["groups"]) for name in ("input_ids", "predicting"))
    head, layers = model.get_output_embeddings(), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and not layer.weight.requires_grad:
            layers.append((torch.randn(places if layer is head else tokens, layer.in_features), layer.weight))
    times = []
    with torch.no_grad(), fast_products(torch.device("cpu")):
        for _ in range(5):
            start = time.perf_counter()
            for inputs, weight in layers:
                torch.nn.functional.linear(inputs, weight)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def measured(settings: Report) -> Report:
    """One side's steps at one K: seconds of each, of DynamicPO's part, and memory; the first step's log-probs; on the
    fresh side also the seconds of the last step's products."""
    prepare(reuse=settings["side"] != "as it comes")
    size, steps = settings["rows"], settings["warm_up"] + settings["steps"]
    model, tokenizer, users, _, template = setting(settings["model"], size * steps)
    prompts, candidates = texts(users, template)
    prompt_ids, answer_ids = tokenize_rows(tokenizer, prompts, [row[: 1 + settings["negatives"]] for row in candidates])
    # With LoRA, the model without its adapter is the reference; without, a frozen copy.
    lora = settings["model"] != "pocket-gpt2"
    model = add_lora(model) if lora else model
    disable_dropout(model)
    reference_model = model if lora else copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
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
    times, selections, first = [], [], None
    for number, rows in enumerate(batches):
        start = time.perf_counter()
        batch = arguments_of(rows)
        policy = score(model, *batch)
        baseline = cache[number] if cache else reference(*batch)
        preference_loss("dmpo", policy, baseline).losses.mean().backward()
        if first is None:
            gradient = torch.nn.utils.get_total_norm(each.grad for each in model.parameters() if each.grad is not None)
            first = {"logps": policy.tolist(), "reference": baseline.tolist(), "gradient": gradient.item()}
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
        # DynamicPO's part, once after each step, with the processor's caches as in a step.
        logps = policy.detach()
        start = time.perf_counter()
        dual_margin_beta(logps, boundary(logps), 1.0, 6.0)
        selections.append(time.perf_counter() - start)
    peak_gb = peak_memory()
    fresh = {}
    if settings["side"] == "fresh":
        tokens = sum(group["input_ids"].numel() for group in batch[0]["groups"])
        fresh = {"products_seconds": 3 * products(model, *batch), "tokens": tokens}
    return fresh | {
        "prompt_tokens": statistics.median(map(len, prompt_ids)),
        "seconds": times[settings["warm_up"] :],
        "dynamic_seconds": selections[settings["warm_up"] :],
        "peak_gb": peak_gb,
        "first": first,
    }


def compare(name: str, negatives: int, settings: dict[str, int]) -> Report:
    """All sides at one K, in turns."""
    sides = {side: {"model": name, "negatives": negatives, "side": side, **settings} for side in SIDES}
    runs = in_turns(__file__, sides, settings["repeats"])
    plain, *ours = ([runs[side][0]["first"][what] for what in ("logps", "reference")] for side in ("plain", *OURS))
    found = summary(runs)
    dynamic = statistics.median(second for run in runs["fresh"] for second in run["dynamic_seconds"])
    alone = statistics.median(run["products_seconds"] for run in runs["fresh"])
    return {
        "model": name,
        "rows": settings["rows"],
        "negatives": negatives,
        "prompt_tokens": runs["plain"][0]["prompt_tokens"],
        "dynamic_share": dynamic / found["seconds"]["fresh"],
        "products_share": alone / found["seconds"]["fresh"],
        "tokens_per_second": runs["fresh"][0]["tokens"] / found["seconds"]["fresh"],
        "largest_difference": max(largest_difference(plain, each) for each in ours),
        **found,
    }


def benchmark(quick: bool) -> Report:
    """Every model and K; the shares are those of the larger model at K = 15."""
    models, every = (QUICK, (1, 15)) if quick else (MODELS, NEGATIVES)
    results = [compare(name, negatives, models[name]) for name in models for negatives in every]
    larger = next(result for result in results if result["negatives"] == 15)
    shares = {name: larger[name] for name in ("dynamic_share", "products_share", "tokens_per_second")}
    return {**shares, "onednn": onednn_is_ahead(), "objective": "dmpo", "results": results}


if __name__ == "__main__":
    run(__file__, __doc__, benchmark, measured)
