"""Time a step as it grows: `python benchmarks/growth.py` (about 5 minutes).

Forward and backward of SmolLM2-135M with LoRA, float32, as K, the prompt's tokens or the rows grow, one of them at a
time, in micro-batches of at most 4 rows whose gradients add up, as in a run with `accumulation`. And padding's share of
the tokens in batches of ragged rows, histories of 3 to 10 and 1 to 19 negatives, packed as they come (`pack_ids`) and
in groups of similar length (`pack_groups`).

Prints what the README says, writes growth.json beside this file and, with kaleido installed
(`pip install -e '.[benchmarks]'`, and Chrome or Chromium), docs/growth.svg: time against the number of real tokens.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from measure import Report, lastfm_shaped, prepare, run, smollm2, texts

from minipo.compatibility.tokenizers import tokenize_rows
from minipo.course.figures.style import DYNAMIC_COLOUR, FAINT, INK, OBJECTIVE_COLOURS, QUIET, TEMPLATE
from minipo.experiments.models import add_lora
from minipo.packing import TokenIds, pack_groups, pack_ids, padding_share
from minipo.scoring import packed_logps

BASE = {"K": 15, "prompt": 128, "batch": 2}
AXES: dict[str, tuple[int, ...]] = {
    "K": (1, 3, 7, 15, 31, 63),
    "prompt": (32, 64, 128, 256, 512),
    "batch": (1, 2, 4, 8, 16, 32, 64),
}
QUICK: dict[str, tuple[int, ...]] = {"K": (1, 3), "prompt": (32, 64), "batch": (1, 8)}
REPEATS, TOGETHER = 3, 4
RAGGED, RAGGED_ROWS = (2, 4, 8, 16, 32), 128  # rows in a batch; rows in all
LABELS = {"K": "negatives K", "prompt": "prompt tokens", "batch": "rows"}
COLOURS = [FAINT, OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR, OBJECTIVE_COLOURS["sdpo"], QUIET, INK]
Row = tuple[TokenIds, list[TokenIds]]


def encoded(tokenizer: Any, negatives: int, count: int, history: tuple[int, int]) -> list[Row]:
    """LastFM-shaped rows as token ids."""
    users = lastfm_shaped(count, negatives, history)
    return list(zip(*tokenize_rows(tokenizer, *texts(users, "music")), strict=True))


def shaped(rows: list[Row], setting: dict[str, int]) -> list[Row]:
    """As many rows, negatives and prompt tokens as `setting` says; prompts begin as the given ones do."""
    stream = np.concatenate([prompt for prompt, _ in rows])
    return [
        (np.resize(np.roll(stream, -row * 50), setting["prompt"]), rows[row % len(rows)][1][: 1 + setting["K"]])
        for row in range(setting["batch"])
    ]


def ragged(tokenizer: Any, count: int) -> list[Row]:
    """Rows of 1 to 19 negatives and prompts of any length, in no order."""
    rows = encoded(tokenizer, 19, count, (3, 10))
    numbers = np.random.default_rng(1).integers(2, 21, len(rows))
    return [(prompt, answers[:number]) for (prompt, answers), number in zip(rows, numbers, strict=True)]


def packed(rows: list[Row], together: int, packing: Callable[..., Any] = pack_groups) -> list[Any]:
    """The rows in batches of `together`."""
    parts = [rows[start : start + together] for start in range(0, len(rows), together)]
    return [packing(*zip(*part, strict=True), pad_token_id=0) for part in parts]


def step(model: Any, rows: list[Row]) -> float:
    """Seconds of forward and backward over all rows, packing included."""
    start = time.perf_counter()
    for batch in packed(rows, TOGETHER):
        packed_logps(model, batch)[batch["mask"]].mean().backward()
    model.zero_grad()
    return time.perf_counter() - start


def padding(rows: list[Row], together: int) -> dict[str, float]:
    """Padding's share of all tokens in batches of `together` rows, and the largest share of a batch, by packing."""
    report: dict[str, float] = {"rows_together": together}
    for name, packing in (("one", pack_ids), ("groups", pack_groups)):
        batches = packed(rows, together, packing)
        shares = [padding_share(batch) for batch in batches]
        tokens = [sum(part["segments"].numel() for part in batch.get("groups", [batch])) for batch in batches]
        report |= {f"padding_{name}": float(np.average(shares, weights=tokens)), f"largest_{name}": max(shares)}
    return report


def benchmark(quick: bool) -> Report:
    """Every point in turns, all in this process, because memory is not measured here."""
    prepare()
    model, tokenizer = smollm2(quick)
    model = add_lora(model)
    rows = encoded(tokenizer, max(AXES["K"]), 16, (3, 5))
    axes, base, repeats = (QUICK, BASE | {"prompt": 64}, 1) if quick else (AXES, BASE, REPEATS)
    settings = [{"axis": axis, **base, axis: value} for axis, values in axes.items() for value in values]
    points = [shaped(rows, setting) for setting in settings]
    for point in points:
        step(model, point[:TOGETHER])  # untimed
    turns = [[step(model, point) for point in points] for _ in range(repeats)]
    growth = []
    for setting, point, times in zip(settings, points, zip(*turns, strict=True), strict=True):
        # The last token of an answer, its end, is predicted and not read.
        tokens = sum(len(prompt) + sum(len(answer) - 1 for answer in answers) for prompt, answers in point)
        growth.append({**setting, "tokens": tokens, "seconds": statistics.median(times)})
    ragged_rows = ragged(tokenizer, RAGGED_ROWS)
    return {"growth": growth, "padding": [padding(ragged_rows, together) for together in RAGGED]}


def figure(report: Report) -> go.Figure:
    """Time against real tokens, and padding against rows in a batch."""
    rate = statistics.median(point["seconds"] / point["tokens"] for point in report["growth"])
    ends = [end(point["tokens"] for point in report["growth"]) for end in (min, max)]
    lines = [("time", "proportional", end, rate * end) for end in ends]
    for axis, values in AXES.items():
        label = f"{LABELS[axis]}, {values[0]} to {values[-1]}"
        of = [point for point in report["growth"] if point["axis"] == axis]
        lines += [("time", label, point["tokens"], point["seconds"]) for point in of]
    for name, label in (("one", "padding, rows as they come"), ("groups", "padding, rows grouped by length")):
        lines += [("padding", label, point["rows_together"], point[f"padding_{name}"]) for point in report["padding"]]
    drawn = px.line(
        pd.DataFrame(lines, columns=["panel", "what", "x", "y"]),
        x="x", y="y", color="what", facet_col="panel", facet_col_spacing=0.1, markers=True, template=TEMPLATE,
        color_discrete_sequence=COLOURS, labels={"what": ""}, width=1000, height=460,
    )  # fmt: skip
    drawn.layout.annotations = ()  # the panels' names: their axes say more
    drawn.update_layout(margin_t=60).update_traces(line_dash="dot", selector=0)
    drawn.update_xaxes(type="log", dtick="D2", matches=None, title="tokens that are really there", col=1)
    drawn.update_yaxes(type="log", dtick="D2", title="seconds, forward and backward", col=1)
    drawn.update_xaxes(type="log", tickvals=RAGGED, matches=None, title="ragged rows in a batch", col=2)
    title = {"matches": None, "showticklabels": True, "title": "padding's share of all tokens"}
    return drawn.update_yaxes(title, tickformat=".0%", rangemode="tozero", col=2)


if __name__ == "__main__":
    if report := run(__file__, __doc__, benchmark):
        figure(report).write_image(Path(__file__).parents[1] / "docs" / "growth.svg")
