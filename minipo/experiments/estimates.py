"""How long a run takes on this machine: its arithmetic, at the speed that a calibration of two seconds measures.

The calibration times steps of a pocket model in SFT and at K = 1 and 19, the ranking of users, and matrix products as
wide as SmolLM2-135M's, on one thread and on all. It is kept in minipo's folder for this machine and version of torch.
An estimate counts a run's tokens and the multiplications that each costs. It is of a run alone on the machine.
"""

import math
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from minipo.experiments.configuration import Config, PreferConfig
from minipo.experiments.datasets.splits import Splits
from minipo.experiments.files import read_json, write_json
from minipo.folder import home
from minipo.prompts import TEMPLATES, answer, render
from minipo.threads import Threads

# Multiplications per token in the layers, of models that are built here; others' are read from their config.json.
POCKET = {"pocket-gpt2": 98_304, "pocket-qwen2": 122_880}
POCKET_WIDTH, POCKET_BYTES = 64, 259  # of the output layer, and its tokens that are not words
EFFICIENCY = 0.6  # of a pretrained model's forwards and backwards against the bare matrix products
SAMPLE = 200  # users whose texts are counted
BUDGET = 0.1  # seconds for each of the calibration's measurements
QUIET = 0.25  # cores that other processes use at most on a quiet machine
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
clock = time.perf_counter


@dataclass(frozen=True)
class Speed:
    """What the calibration measured on a number of threads, in seconds: of a pocket model's step, apart from its
    multiplications (`step`); per 1e9 of a pocket model's multiplications in preference training, in SFT, which has
    dropout, and in evaluation (`train`, `learn`, `score`); per 1e9 in bare products (`float32`, `bfloat16`); per row
    that is tokenized (`row`)."""

    step: Seconds
    train: Seconds
    learn: Seconds
    score: Seconds
    float32: Seconds
    bfloat16: Seconds
    row: Seconds


@dataclass(frozen=True)
class Kept:
    """The speeds of a machine by number of threads, and whether other processes left it alone for once."""

    quiet: bool
    speeds: dict[int, Speed]


KEPT = TypeAdapter(dict[str, Kept])


def speeds(measure: bool = True) -> dict[int, Speed]:
    """This machine's speeds by number of threads, one and all; measured if they are not known yet, or only from a time
    when other processes were busy. With `measure` False, what is known, or nothing."""
    known = _kept().get(_machine())
    if measure and (known is None or not known.quiet):
        return calibrate()
    return known.speeds if known else {}


def calibrate() -> dict[int, Speed]:
    """Measure this machine's speeds again, and keep the better of old and new: another process may have disturbed
    either."""
    known, threads = _kept(), Threads()
    found, old = _measured(), known.get(_machine())
    quiet = (threads.others() or 0.0) < QUIET
    before = old.speeds if old else {}
    for number in found.keys() & before.keys():
        best = {name: min(value, getattr(before[number], name)) for name, value in asdict(found[number]).items()}
        found[number] = Speed(**best)
    content = KEPT.dump_python(known | {_machine(): Kept(quiet or bool(old and old.quiet), found)}, mode="json")
    write_json(home() / "speed.json", content)
    return found


def _kept() -> "dict[str, Kept]":
    """What speed.json says, by machine; nothing if it is missing or damaged."""
    try:
        return KEPT.validate_python(read_json(home() / "speed.json", dict))
    except ValueError:
        return {}


def _machine() -> str:
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return f"{platform.node()} {platform.machine()} {platform.processor()}, {cores} cores, torch {version('torch')}"


def _fastest(work: Callable[[], Any], most: int = 5) -> float:
    """Seconds of the fastest of a few calls, which other processes disturb least."""
    work()  # the first one is slower
    seconds, end = [], clock() + BUDGET
    while len(seconds) < most and (not seconds or clock() < end):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds)


def _measured() -> dict[int, Speed]:
    import torch

    from minipo.arithmetic import fast_products
    from minipo.compatibility.formats import preference_answers
    from minipo.experiments.datasets.loading import load_dataset
    from minipo.experiments.models import load_model
    from minipo.experiments.users import preference_rows
    from minipo.packing import pack_groups, pack_ids
    from minipo.preference import preference_loss
    from minipo.rows import token_rows
    from minipo.scoring import packed_logps

    splits, had = load_dataset("catalog"), torch.get_num_threads()
    model, tokenizer = load_model("pocket-gpt2", items=splits.items)
    users = splits.train[:64]

    def read() -> Any:
        return token_rows(tokenizer, preference_rows(users), preference_answers)

    rows, optimizer = read(), torch.optim.AdamW(model.parameters(), lr=0.0)
    tokenizing = _fastest(read) / len(users)

    def packed(count: int, negatives: int) -> Any:
        answers = [row[: 1 + negatives] for row in rows.answers[:count]]
        return pack_groups(rows.prompts[:count], answers, tokenizer.pad_token_id)

    def step(negatives: int) -> None:
        logps = packed_logps(model, packed(32, negatives))
        preference_loss("dmpo", logps, logps.detach()).losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    lines = [np.concatenate([ids, row[0]]) for ids, row in zip(rows.prompts[:32], rows.answers, strict=False)]

    def learn() -> None:
        line = pack_ids([ids[:1] for ids in lines], [[ids[1:]] for ids in lines], tokenizer.pad_token_id)
        packed_logps(model, line).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def rank() -> None:
        with torch.no_grad():
            packed_logps(model, packed(len(users), 19))

    def product(kind: Any) -> float:
        wide, weight = torch.randn(256, 576, dtype=kind), torch.randn(1536, 576, dtype=kind)
        with fast_products(wide.device):
            return _fastest(lambda: torch.nn.functional.linear(wide, weight), 20) / (256 * 576 * 1536 / 1e9)

    texts = texts_of("pocket-gpt2", "line", Data.of(splits))
    assert texts is not None
    found = {}
    try:
        for threads in sorted({1, had}):
            torch.set_num_threads(threads)
            model.train().set_attn_implementation("sdpa")
            with torch.random.fork_rng(devices=[]):  # dropout draws
                learning = _fastest(learn)
            model.eval().set_attn_implementation("eager")  # as in preference training on a CPU
            short, long = _fastest(lambda: step(1)), _fastest(lambda: step(19))
            # A line through both, with at most half of the short step for what does not depend on length.
            slope = (long - short) / (texts.work(19) - texts.work(1))
            fixed = min(max(0.0, short - slope * texts.work(1)), short / 2)
            found[threads] = Speed(
                step=fixed,
                train=(long - fixed) / (32 * texts.work(19)),
                learn=max(0.0, learning - fixed) / (32 * texts.learnt(texts.prompt + texts.answer, texts.prompt)),
                score=_fastest(rank) / (len(users) * texts.work(19)),
                float32=product(torch.float32),
                bfloat16=product(torch.bfloat16),
                row=tokenizing,
            )
    finally:
        torch.set_num_threads(had)
    return found


@dataclass(frozen=True)
class Texts:
    """What a user's texts cost: tokens of the prompt and of an answer with its end, and multiplications, in 1e9, of a
    token in the layers and of a predicted one in the output layer."""

    prompt: float
    answer: float
    layers: float
    output: float

    def work(self, negatives: int) -> float:
        """1e9 multiplications of a forward of one user's prompt with 1 + `negatives` answers."""
        read = (1 + negatives) * (self.answer - 1)
        return self.layers * (self.prompt + read) + self.output * (1 + read)

    def learnt(self, read: float, predicted: float) -> float:
        """1e9 multiplications of a forward in SFT that reads and predicts so many tokens for a target."""
        return self.layers * read + self.output * predicted


@dataclass(frozen=True)
class Data:
    """What an estimate needs to know of a dataset: its numbers of rows, how many words its items have, and some
    histories and candidates."""

    train: int
    validation: int
    test: int
    words: int
    histories: tuple[tuple[str, ...], ...]
    candidates: tuple[str, ...]

    @staticmethod
    @lru_cache(maxsize=32)
    def of(splits: Splits) -> "Data":
        some = splits.train[:SAMPLE]
        return Data(
            *(len(split) for split in (splits.train, splits.validation, splits.test)),
            words=len({word for item in splits.items for word in item.split()}),
            histories=tuple(user.history for user in some),
            candidates=tuple(item for user in some for item in user.candidates),
        )


def texts_of(model: str, template: str, data: Data) -> Texts | None:
    """The costs of the users' texts with this model, without opening it; None if its size is unknown here."""
    if model in POCKET:
        layers, output = POCKET[model], POCKET_WIDTH * (POCKET_BYTES + data.words)
    else:
        folder = Path(model) if os.path.isabs(model) else home() / "fetched" / model
        try:
            layers, output = _multiplications(read_json(folder / "config.json", dict))
        except (KeyError, TypeError, ValueError):
            return None
    prompt, text = _tokens(template, data, model in POCKET)
    return Texts(prompt, 1 + text, layers / 1e9, output / 1e9)


@lru_cache(maxsize=32)
def _tokens(template: str, data: Data, pocket: bool) -> tuple[float, float]:
    """About how many tokens a prompt and an answer have, for a pocket model or a pretrained one."""
    prompts = [render(TEMPLATES[template], history, data.candidates[:20]) for history in data.histories]
    # In a pretrained model's vocabulary digits are tokens, and long words are cut.
    pieces = re.compile(r"[^\s,]+|," if pocket else r"[^\W\d_]{1,6}|\d|[^\w\s]+")
    texts = prompts, [answer(item) for item in data.candidates]
    prompt, text = (float(np.mean([len(pieces.findall(each)) for each in kind])) for kind in texts)
    return prompt, text


def _multiplications(config: dict[str, Any]) -> tuple[int, int]:
    """Of a token in the layers and of one in the output layer, by a model's config.json, GPT-2's or a later one."""
    width = config.get("hidden_size") or config["n_embd"]
    heads = config.get("num_attention_heads") or config["n_head"]
    attention = 2 * width * (width + width * config.get("num_key_value_heads", heads) // heads)
    inner = 3 * config["intermediate_size"] if "intermediate_size" in config else 8 * width
    depth = config.get("num_hidden_layers") or config["n_layer"]
    return depth * (attention + inner * width), width * config["vocab_size"]


def seconds(config: Config, data: Data, speed: Speed, reference: bool = True) -> float | None:
    """How long a run takes from the start of its own work, evaluations included, and without an SFT run that it starts
    from; None if the size of its model is unknown here. reference: whether its log-probs are still to be computed."""
    texts = texts_of(config.model, config.template, data)
    if texts is None:
        return None
    ranked = data.validation + data.test
    if config.model in POCKET:
        train, learn, score, step = speed.train, speed.learn, speed.score, speed.step
    else:
        product = getattr(speed, config.precision, min(speed.float32, speed.bfloat16))
        score = product / EFFICIENCY
        train, step = score * (2 if config.tuning == "lora" else 3), 0.0
        learn = train
    many = texts.work(19) * score
    rows = data.train + ranked
    if not isinstance(config, PreferConfig):
        steps = config.steps or math.ceil(config.epochs * data.train / config.batch_size)
        # Tokens a target: its history, or a separator; rows shorter than 16 targets begin with a history.
        row = 1 if config.rows == "target" else config.batch_size
        read = texts.answer + (texts.prompt / row if row < 16 else 1)
        predicted = texts.prompt if config.model in POCKET else texts.answer
        return (
            speed.row * rows
            + steps * (step + config.batch_size * texts.learnt(read, predicted) * learn)
            + ranked * many
        )
    validated = min(data.validation, config.validation_users or data.validation)
    evaluations = math.ceil(config.steps / config.evaluate_every)
    visited = min(data.train, config.steps * config.batch_size)
    return (
        speed.row * rows
        + reference * (visited + ranked) * many
        + config.steps * (step + config.batch_size * texts.work(config.negatives) * train)
        + (evaluations * validated + data.test) * many
    )


def duration(seconds: float) -> str:
    """A duration as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
