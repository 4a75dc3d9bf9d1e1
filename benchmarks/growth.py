"""Time a step as it grows: `python benchmarks/growth.py` (about 5 minutes).

Forward and backward of SmolLM2-135M with LoRA, float32, as K, the prompt's tokens or the rows grow, one of them at a
time, in micro-batches of at most 4 rows whose gradients add up, as a run with `accumulation` does it. And ragged rows,
histories of 3 to 10 and 1 to 19 negatives, packed as they come (one batch) and in groups of similar length
(`pack_groups`): what share of the tokens is padding, and what it costs.

Prints tables, writes growth.json beside this file and, with kaleido installed (`pip install 'minipo[benchmarks]'`, and
Chrome or Chromium), the figure docs/growth.svg: time against the tokens that are really there.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
from measure import FOLDER, arguments, lastfm_shaped, prepare, provenance, smollm2, table, texts, write
from plotly.subplots import make_subplots

from minipo.compatibility.tokenizers import tokenize, tokenize_answers
from minipo.course.figures.style import DYNAMIC_COLOUR, FAINT, OBJECTIVE_COLOURS, TEMPLATE
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
TICKS = [digit * 10**power for power in range(-2, 5) for digit in (1, 2, 5)]
LABELS = {"K": "negatives K", "prompt": "prompt tokens", "batch": "rows"}
COLOURS = dict(zip(AXES, (OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR, OBJECTIVE_COLOURS["sdpo"]), strict=True))
Row = tuple[TokenIds, list[TokenIds]]
Packing = Callable[[list[TokenIds], list[list[TokenIds]], int], Any]


def tokens(rows: list[Row]) -> dict[str, int]:
    """How many tokens the rows have: packed, and with a full row for each candidate. The last of each answer, its end,
    is predicted and not read."""
    return {
        "tokens": sum(len(prompt) + sum(len(answer) - 1 for answer in answers) for prompt, answers in rows),
        "plain_tokens": sum(len(prompt) + len(answer) - 1 for prompt, answers in rows for answer in answers),
    }


def encoded(tokenizer: Any, negatives: int, count: int, history: tuple[int, int]) -> list[Row]:
    """LastFM-shaped rows as token ids."""
    prompts, candidates = texts(lastfm_shaped(count, negatives, history), "music")
    answers = [tokenize_answers(tokenizer, row) for row in candidates]
    return list(zip(tokenize(tokenizer, prompts, special=True), answers, strict=True))


def shaped(rows: list[Row], setting: dict[str, int]) -> list[Row]:
    """As many rows, negatives and prompt tokens as `setting` says; prompts begin as the given ones do."""
    stream = np.concatenate([prompt for prompt, _ in rows])
    return [
        (np.resize(np.roll(stream, -row * 50), setting["prompt"]), rows[row % len(rows)][1][: 1 + setting["K"]])
        for row in range(setting["batch"])
    ]


def packings(rows: list[Row], together: int, packing: Packing) -> list[Any]:
    """The rows in micro-batches of `together`, packed."""
    parts = [rows[start : start + together] for start in range(0, len(rows), together)]
    return [packing([prompt for prompt, _ in part], [answers for _, answers in part], 0) for part in parts]


def step(model: Any, rows: list[Row], packing: Packing) -> float:
    """Seconds of forward and backward over all rows, packing included."""
    start = time.perf_counter()
    for packed in packings(rows, TOGETHER, packing):
        logps = packed_logps(model, packed)
        logps[packed["mask"]].mean().backward()
    model.zero_grad()
    return time.perf_counter() - start


def ragged(tokenizer: Any, count: int) -> list[Row]:
    """Rows of 1 to 19 negatives and prompts of any length, in no order."""
    rows = encoded(tokenizer, 19, count, (3, 10))
    numbers = np.random.default_rng(1).integers(2, 21, len(rows))
    return [(prompt, answers[:number]) for (prompt, answers), number in zip(rows, numbers, strict=True)]


def padding(rows: list[Row], together: int) -> dict[str, float]:
    """Padding's share of the rows' tokens in batches of `together`, as they come and grouped, and groups a batch."""
    report: dict[str, float] = {"rows_together": together}
    for name, packing in (("one", pack_ids), ("groups", pack_groups)):
        made = packings(rows, together, packing)
        shares = [padding_share(packed) for packed in made]
        batches = [packed.get("groups", [packed]) for packed in made]
        padded = [sum(batch["segments"].numel() for batch in part) for part in batches]
        report[f"padding_{name}"], report[f"largest_{name}"] = float(np.average(shares, weights=padded)), max(shares)
        report["groups_a_batch"] = statistics.fmean(map(len, batches))  # of the grouped ones, which come last
    return report


def figure(report: dict[str, Any]) -> go.Figure:
    """Time against real tokens, and padding against rows in a batch."""
    drawn = make_subplots(1, 2, column_widths=[0.6, 0.4], horizontal_spacing=0.12)
    grown = report["growth"]
    rate = statistics.median(point["seconds"] / point["tokens"] for point in grown)
    ends = [min(point["tokens"] for point in grown), max(point["tokens"] for point in grown)]
    line = {"color": FAINT, "dash": "dash"}
    drawn.add_scatter(x=ends, y=[rate * end for end in ends], mode="lines", line=line, name="proportional")
    for axis, colour in COLOURS.items():
        of = [point for point in grown if point["axis"] == axis]
        drawn.add_scatter(
            x=[point["tokens"] for point in of],
            y=[point["seconds"] for point in of],
            mode="lines+markers",
            line={"color": colour},
            marker={"size": 8},
            name=f"{LABELS[axis]}, {min(point[axis] for point in of)} to {max(point[axis] for point in of)}",
        )
    for name, label, dash in (("one", "as they come", "dot"), ("groups", "grouped by length", "solid")):
        drawn.add_scatter(
            x=[point["rows_together"] for point in report["padding"]],
            y=[point[f"padding_{name}"] for point in report["padding"]],
            mode="lines+markers",
            line={"color": "#1B2430", "dash": dash},
            name=f"padding, rows {label}",
            xaxis="x2",
            yaxis="y2",
        )
    drawn.update_xaxes(type="log", title="tokens that are really there", tickvals=TICKS, col=1)
    drawn.update_yaxes(type="log", title="seconds, forward and backward", tickvals=TICKS, col=1)
    drawn.update_xaxes(type="log", title="ragged rows in a batch", tickvals=RAGGED, col=2)
    drawn.update_yaxes(title="padding's share of all tokens", tickformat=".0%", rangemode="tozero", col=2)
    return drawn.update_layout(template=TEMPLATE, width=1000, height=460)


def measured(axes: dict[str, tuple[int, ...]], repeats: int, small: bool) -> dict[str, Any]:
    """Every point and the ragged rows, in turns, all in this process: memory is no question here."""
    made = provenance()
    prepare()
    base, tokenizer, what = smollm2(small)
    model: Any = add_lora(base)
    rows = encoded(tokenizer, max(AXES["K"]), 16, (3, 5))
    ragged_rows = ragged(tokenizer, RAGGED_ROWS)
    timed = ragged_rows[: 4 * TOGETHER]
    settings = [(axis, BASE | {axis: value}) for axis, values in axes.items() for value in values]
    ways: dict[str, Packing] = {"one": pack_ids, "groups": pack_groups}
    tasks: list[tuple[list[Row], Packing]] = [(shaped(rows, setting), pack_groups) for _, setting in settings]
    tasks += [(timed, packing) for packing in ways.values()]
    for of, packing in tasks:
        step(model, of[:TOGETHER], packing)  # without the clock
    turns = [[step(model, of, packing) for of, packing in tasks] for _ in range(repeats)]
    seconds = [statistics.median(times) for times in zip(*turns, strict=True)]
    growth = []
    for (axis, setting), (of, _), taken in zip(settings, tasks, seconds, strict=False):
        share = padding(of, TOGETHER)["padding_groups"]
        growth.append({"axis": axis, **setting, **tokens(of), "padding": share, "seconds": taken})
    return {
        "provenance": made,
        "model": f"{what}, LoRA of rank 8",
        "growth": growth,
        "ragged": {
            **tokens(timed),
            **padding(timed, TOGETHER),
            **{f"seconds_{name}": taken for name, taken in zip(ways, seconds[-2:], strict=True)},
        },
        "padding": [padding(ragged_rows, together) for together in RAGGED],
    }


def shown(report: dict[str, Any]) -> str:
    """The report as tables."""
    columns = ["axis", "K", "prompt", "batch", "tokens", "plain_tokens", "seconds"]
    points = [
        [*(point[column] for column in columns), 1000 * point["seconds"] / point["tokens"], f"{point['padding']:.1%}"]
        for point in report["growth"]
    ]
    names = ["padding_one", "largest_one", "padding_groups", "largest_groups"]
    batches = [
        [point["rows_together"], *(f"{point[name]:.1%}" for name in names), f"{point['groups_a_batch']:.1f}"]
        for point in report["padding"]
    ]
    ragged, made = report["ragged"], report["provenance"]
    return "\n".join(
        [
            f"Forward and backward, {made['threads']} threads, {made['processor']}; {report['model']}",
            table([*columns, "s per 1,000 tokens", "padding"], points),
            f"\nRagged rows, {ragged['tokens']} tokens in micro-batches of {TOGETHER}: as they come "
            f"{ragged['padding_one']:.1%} padding and {ragged['seconds_one']:.3g} s, grouped "
            f"{ragged['padding_groups']:.1%} and {ragged['seconds_groups']:.3g} s",
            table(["rows in a batch", "padding", "its worst batch", "grouped", "its worst batch", "groups"], batches),
        ]
    )


def main() -> None:
    given = arguments(__doc__)
    report = measured(QUICK, 1, small=True) if given.quick else measured(AXES, REPEATS, small=False)
    print(shown(report))
    if given.quick:
        return
    write(__file__, report)
    if importlib.util.find_spec("kaleido") is None:
        print("The figure docs/growth.svg was not drawn: pip install 'minipo[benchmarks]'.")
        return
    figure(report).write_image(FOLDER.parent / "docs" / "growth.svg")


if __name__ == "__main__":
    main()
