"""Every causal architecture and every adapter, scored: `python benchmarks/architectures.py` (about ten minutes).

A tiny model with random weights of each architecture that the installed transformers knows, and of GPT-2 and Llama with
each tuner of the installed peft, scores candidates through minipo and in the plain way: one forward per candidate, no
padding, no mask. Everything random in the configuration is turned up, so that what `disable_dropout` leaves of it shows
as a difference between training and evaluation mode. Each model has its own process: one that hangs or dies is a row
like the others.

Writes docs/architectures.md; the exit status is 1 where a score is wrong, or minipo fails without saying why.
"""

import argparse
import dataclasses
import math
import multiprocessing
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from jaxtyping import Float
from tiny_models import CONTEXT, TOKENIZER, adapted, architecture, names
from torch import Tensor, nn
from transformers import TrainingArguments

import minipo
from minipo.compatibility.architectures import disable_dropout
from minipo.experiments.files import fill_in
from minipo.scoring import candidate_logps, pack, packed_logps
from minipo.trainers import PreferenceTrainer

REPORT = Path(__file__).parent.parent / "docs" / "architectures.md"
PATIENCE = 300  # seconds for a model
TOLERANCE = 1e-3  # nats of a summed log-prob: rounding stays below a tenth of it, a wrong mask gives 0.05 to 50

CANDIDATES = [" Fox", " Iron Lark Song Glass", " Neon Glass"]  # 1, 4 and 2 tokens
ROWS = {
    "short rows": (["Fox,", "Iron Lark,", "Glass,"], [CANDIDATES, CANDIDATES[::-1], CANDIDATES[:2]]),  # within windows
    "long rows": (["Fox, Glass, " * 7 + "Fox,", "Neon Fox, " * 13 + "Glass,", "Fox,"], [CANDIDATES] * 3),
    "many candidates": (["Fox, Neon Fox, Glass,"], [CANDIDATES * 15]),  # more tokens than the context, each one fewer
    "a full context": (["Fox, " * 45 + "Glass,", "Glass, Fox, " * 22 + "Fox, Fox,"], [CANDIDATES] * 2),
    "too many tokens": (["Fox, " * 52 + "Glass,"], [CANDIDATES]),
}
ROWS["short rows again"] = ROWS["short rows"]  # what a model keeps from longer ones must not matter
PREFERENCES = [
    {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    for prompt, (chosen, *rejected) in zip(*ROWS["short rows"], strict=True)
]


@torch.no_grad()
def plain(
    model: nn.Module, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> Float[Tensor, "rows candidates"]:
    """One forward per candidate, its end included where the context has room for it: no padding, no mask."""
    scores = torch.full((len(prompts), max(map(len, candidates))), -torch.inf)
    for row, (prompt, answers) in enumerate(zip(prompts, candidates, strict=True)):
        start = TOKENIZER.encode(prompt)
        for answer in dict.fromkeys(answers):
            ids = torch.tensor([[*start, *TOKENIZER.encode(answer), TOKENIZER.eos_token_id]])
            logits = model(input_ids=ids[:, :-1] if ids.shape[1] == CONTEXT + 1 else ids, use_cache=False)[0][0]
            logps = logits[: ids.shape[1] - 1].float().log_softmax(-1)
            score = logps.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum()
            scores[row, [column for column, text in enumerate(answers) if text == answer]] = score
    return scores


def difference(scores: Tensor, expected: Tensor) -> float:
    """The largest, in nats; inf where only one of them is a number."""
    apart = (scores - expected).abs().masked_fill(scores == expected, 0.0)
    return apart.nan_to_num(math.inf).max().item()


def said(error: Exception) -> tuple[bool, str]:
    """Whether the error is minipo's own, and what it says."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = " ".join(part.strip() for part in str(error).strip().splitlines()[:2])
    if isinstance(error, ValueError) and Path(last.filename).is_relative_to(Path(minipo.__file__).parent):
        return True, line
    return False, f"{type(error).__name__}: {line} ({Path(last.filename).name}, line {last.lineno})"


@dataclasses.dataclass
class Row:
    """A line of the table. faults: what is wrong, or fails without a reason."""

    name: str
    cls: str = ""
    how: str = ""  # packed, one by one, both, refused, not built
    reason: str = ""
    difference: float = 0.0  # nats
    training: float | None = None  # nats between the two modes
    trainer: str = ""  # what it says where it refuses
    reference: float | None = None  # nats between the trainer's reference and the model before it got its adapter
    faults: list[str] = dataclasses.field(default_factory=list)


def examine(name: str) -> Row:
    """Build the model of that name, score with it, and train it for a step."""
    row = Row(name)
    try:
        if " on " in name:
            base, adapter = adapted(name)
            row.cls = type(adapter).__name__
            model: Any = peft.get_peft_model(base, adapter)
            torch.manual_seed(1)
            with torch.no_grad():
                for weights in model.parameters():
                    if weights.requires_grad:
                        weights.add_(0.2 * torch.randn_like(weights))
            model.eval()
        else:
            model = architecture(name)
            row.cls = type(model).__name__
    except Exception as error:
        row.how, row.reason = "not built", said(error)[1]
        return row
    score(row, model)
    if row.how != "refused" and not row.faults:
        train(row, model)
        if " on " in name and not row.trainer:
            reference(row, *adapted(name))
    return row


def score(row: Row, model: nn.Module) -> None:
    """Compare minipo's scores of all `ROWS` with the plain ones."""
    told: list[str] = []
    for kind, rows in ROWS.items():
        try:
            expected = plain(model, *rows)
        except Exception:
            expected = None  # the model cannot read them
        with warnings.catch_warnings(record=True, action="always") as caught:
            try:
                scores = candidate_logps(model, TOKENIZER, *rows)
            except Exception as error:
                meant, text = said(error)
                if not meant:
                    row.faults.append(f"{kind}: {text}")
                elif kind == "short rows":
                    row.how, row.reason = "refused", text
                    return
                elif expected is not None and kind != "too many tokens":
                    told.append(f"{kind} are refused ({text})")
                continue
        alone = [str(warning.message) for warning in caught if "on its own" in str(warning.message)]
        if kind == "short rows":
            row.how = "one by one" if alone else "packed"
        if kind == "long rows" and alone and row.how == "packed":
            row.how = "both"
        if kind in ("short rows", "long rows"):
            told += [text.split(": ", 1)[1] for text in alone]
        if expected is None:
            row.faults.append(f"{kind}: scored, though the model itself cannot read them")
        else:
            row.difference = max(row.difference, difference(scores, expected))
            if not difference(scores, expected) <= TOLERANCE:
                row.faults.append(f"{kind}: wrong by {difference(scores, expected):.2g}")
    row.reason = "; ".join(dict.fromkeys(told))


def train(row: Row, model: nn.Module) -> None:
    """Compare the modes without dropout, and take a step; a trainer may refuse a model whose modes differ."""
    try:
        disable_dropout(model)
        apart = []
        for kind in ("short rows", "long rows"):
            packed = pack(TOKENIZER, *ROWS[kind])
            with torch.no_grad():
                expected = packed_logps(model.eval(), packed)
                for seed in range(3):
                    torch.manual_seed(seed)
                    apart.append(difference(packed_logps(model.train(), packed), expected))
        row.training = max(apart)
    except Exception as error:
        row.trainer = said(error)[1]
    try:
        trainer(model.eval()).train()
    except Exception as error:
        meant, row.trainer = said(error)
        if not meant:
            row.faults.append(f"training: {row.trainer}")
    else:
        if row.trainer or not row.training <= TOLERANCE:
            row.faults.append(f"training: noise of {row.training:.2g} is not refused {row.trainer}")


def trainer(model: nn.Module, **more: Any) -> PreferenceTrainer:
    arguments = TrainingArguments(
        tempfile.gettempdir(), max_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    return PreferenceTrainer(model, arguments, PREFERENCES, processing_class=TOKENIZER, **more)


def reference(row: Row, base: nn.Module, adapter: peft.PeftConfig) -> None:
    """Compare the trainer's reference with the model that had no adapter yet."""
    expected = plain(base, *ROWS["short rows"])
    try:
        found = trainer(base, peft_config=adapter).reference_logps(PREFERENCES)
        row.reference = difference(torch.as_tensor(found), expected)
    except Exception as error:
        row.faults.append(f"reference: {said(error)[1]}")
    else:
        if not row.reference <= TOLERANCE:
            row.faults.append(f"reference: wrong by {row.reference:.2g}")


def alone(name: str) -> Row:
    """`examine`, in a separate process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minipo.trainers", "peft"])  # so that no process has to import them again
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(name, sender))
    process.start()
    sender.close()
    row = Row(name, faults=[f"it did not end within {PATIENCE} seconds"])
    try:
        if receiver.poll(PATIENCE):
            row = receiver.recv()
    except EOFError:
        process.join()
        row.faults = [f"its process ended with status {process.exitcode}"]
    process.kill()
    process.join()
    return row


def _send(name: str, sender: Any) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sender.send(examine(name))


def report(rows: Sequence[Row]) -> str:
    """The tables of docs/architectures.md, whose beginning explains them."""
    tables = [[row for row in rows if (" on " in row.name) == adapters] for adapters in (False, True)]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    counts = f"{_counts(tables[0], 'architectures')} {_counts(tables[1], 'kinds of adapters')}"
    lines = [f"{datetime.now(UTC):%-d %B %Y}, {libraries}, float32 on a CPU. {counts}"]
    headers = [
        "architecture | class | scored | why | difference | train",
        "adapter | scored | why | difference | train | reference",
    ]
    for table, header in zip(tables, headers, strict=True):
        lines += ["", f"| {header} |", "|---" * (header.count("|") + 1) + "|", *map(_line, table)]
    return "\n".join(lines)


def _counts(rows: Sequence[Row], what: str) -> str:
    kinds = {row.name.split(" on ")[0].split(", ")[0] for row in rows}
    counts = Counter("wrong or failing" if row.faults else row.how for row in rows)
    told = ", ".join(f"{count} {how}" for how, count in counts.most_common())
    return f"{len(kinds)} {what} in {len(rows)} rows: {told}."


def _line(row: Row) -> str:
    how = f"**{'; '.join(row.faults)}**" if row.faults else row.how
    why = "; ".join(filter(None, [row.reason, row.trainer and f"PreferenceTrainer: {row.trainer}"])).replace("|", "\\|")
    numbers = [row.difference if row.how not in ("refused", "not built") else None, row.training]
    first, last = ([row.name], [row.reference]) if " on " in row.name else ([row.name, row.cls], [])
    told = ["" if value is None else f"{value:.0e}" if value else "0" for value in numbers + last]
    return f"| {' | '.join([*first, how, why, *told])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="these rows, with semicolons between them; no file is written")
    given = parser.parse_args()
    chosen = given.only.split(";") if given.only else names()
    rows = []
    with ThreadPoolExecutor(2) as threads:
        for row in threads.map(alone, chosen):
            rows.append(row)
            print(f"{len(rows)}/{len(chosen)}", row.name, row.how, *row.faults, sep="  ", flush=True)
            if given.only:
                print(row)
    if not given.only:
        fill_in(REPORT, "python benchmarks/architectures.py", report(rows))
    sys.exit(any(row.faults for row in rows))


if __name__ == "__main__":
    main()
