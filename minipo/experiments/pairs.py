"""Two runs under one seed, and their results as one small file: each student of a class adds one pair.

A pair's file is JSON of a dozen kilobytes: both runs' settings, the seed, the data's fingerprint and every test user's
rank under both. It is read on other machines than the one that made it, so `read_pair` trusts nothing in it.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int32
from pydantic import BaseModel, Field, ValidationError

from minipo.arithmetic import DTYPES
from minipo.evaluation import Interval
from minipo.experiments.configuration import PreferConfig, check_negatives, decided, make_config, splits_of
from minipo.experiments.datasets.loading import DATASETS
from minipo.experiments.fetch import SOURCES
from minipo.experiments.runs import versions
from minipo.experiments.training import prefer
from minipo.folder import whole_file
from minipo.names import lookup

Sides = tuple[PreferConfig, PreferConfig]


@dataclass(frozen=True)
class Pair:
    """Two finished runs on the same data under one seed, and how they rank every test user's chosen item."""

    left: PreferConfig
    right: PreferConfig
    fingerprint: str  # of the dataset
    left_ranks: Int32[np.ndarray, " users"]
    right_ranks: Int32[np.ndarray, " users"]
    sft: float  # HR@1 of the SFT run that the left one starts from
    versions: dict[str, str]

    @property
    def seed(self) -> int:
        return self.left.seed

    @property
    def differences(self) -> Float[np.ndarray, " users"]:
        """HR@1 of right minus left for every test user: −1, 0 or 1."""
        return (self.right_ranks == 0).astype(float) - (self.left_ranks == 0)


def sides(left: Mapping[str, Any], right: Mapping[str, Any], seed: int = 0) -> Sides:
    """The configurations of a pair's two runs, from their settings without the seed.

    Raises ValueError in one sentence: an invalid setting, a seed among a side's settings, two sides that are the same
    or on different data, and anything that exists only on one machine (a file of data, a folder of a model).
    """
    if "seed" in left or "seed" in right:
        raise ValueError("A pair's runs share one seed; leave it out of their settings.")
    runs = tuple(make_config(PreferConfig, {**side, "seed": seed}) for side in (left, right))
    for run in runs:
        lookup("dataset of a pair", run.dataset, DATASETS)
        if run.sft is not None or not (run.model in SOURCES or run.model.startswith("pocket-")):
            raise ValueError("A pair's runs start from minipo's own models by name; leave folders out.")
    if runs[0] == runs[1]:
        raise ValueError("The two sides have the same settings; change one of them.")
    if (runs[0].dataset, runs[0].dataset_seed) != (runs[1].dataset, runs[1].dataset_seed):
        raise ValueError("The two sides are on different data; only runs on the same data can be paired.")
    return runs[0], runs[1]


def essential(config: PreferConfig) -> dict[str, Any]:
    """The settings that identify a run, without its seed: its objective, K, and whatever is not the default."""
    # The recipe's settings for these data and this model are implied; the data and the model themselves are not.
    default = asdict(make_config(PreferConfig, {"dataset": config.dataset, "model": config.model}))
    default |= {"dataset": PreferConfig.dataset, "model": PreferConfig.model, "objective": None, "negatives": None}
    return {name: value for name, value in asdict(config).items() if name != "seed" and value != default[name]}


def spelled(settings: Mapping[str, Any]) -> str:
    """Settings as `minipo pair` takes those of one side: objective=dmpo negatives=1."""
    return shlex.join(f"{name}={value}" for name, value in settings.items())


def train_pair(
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    seed: int = 0,
    out: Path | str | None = None,
    folder: Path | str | None = None,
    *,
    progress: bool = True,
) -> Pair:
    """Train both sides under one seed and, with `out`, write the pair's file.

    left, right: settings of `PreferConfig` without the seed. folder: where the two runs are kept, as "left" and
    "right"; without it they are in minipo's cache. Runs that are finished there are not trained again, and one that was
    cut off is resumed. Raises ValueError as `sides` and `prefer` do, before anything is trained; OSError if the disk is
    full.
    """
    if out is not None and Path(out).suffix != ".json":
        raise ValueError(f"A pair's file must end in .json, not {Path(out).name!r}; give it such a name.")
    configs = sides(left, right, seed)
    splits = splits_of(configs[0])
    for config in configs:
        check_negatives(splits, config.negatives)
    folders = (folder and Path(folder, name) for name in ("left", "right"))
    runs = [prefer(run, progress=progress, **asdict(config)) for run, config in zip(folders, configs, strict=True)]
    ranks = [run.users["rank"].to_numpy(np.int32) for run in runs]
    trained = tuple(decided(config, run.config) for run, config in zip(runs, configs, strict=True))
    sft = float(runs[0].summary["sft_hr@1"])
    pair = Pair(trained[0], trained[1], splits.fingerprint, ranks[0], ranks[1], sft, versions())
    if out is not None:
        write_pair(pair, Path(out))
    return pair


def write_pair(pair: Pair, out: Path) -> None:
    """Write the pair's file atomically."""

    def side(config: PreferConfig, ranks: Int32[np.ndarray, " users"]) -> dict[str, Any]:
        return {"settings": asdict(config), "hr@1": float((ranks == 0).mean()), "ranks": ranks.tolist()}

    content = {
        "kind": "pair",
        "seed": pair.seed,
        "dataset_fingerprint": pair.fingerprint,
        "sft_hr@1": pair.sft,
        "left": side(pair.left, pair.left_ranks),
        "right": side(pair.right, pair.right_ranks),
        "versions": pair.versions,
    }
    with whole_file(out) as draft:
        draft.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


class _Side(BaseModel, strict=True):
    settings: dict[str, Any]
    ranks: list[int]


class _Content(BaseModel, strict=True):
    """What is read of a pair's file."""

    kind: Literal["pair"]
    seed: int
    fingerprint: str = Field(alias="dataset_fingerprint")
    sft: float = Field(alias="sft_hr@1", ge=0, le=1)
    left: _Side
    right: _Side
    versions: dict[str, str]


NOT_A_PAIR = "This is not a result of `minipo pair`: {}; give the JSON file that the command wrote."


def read_pair(source: Path | str | bytes, expected: Sides | None = None) -> Pair:
    """The pair in a file, given by its path or as the file's bytes.

    expected: what the two runs must have been, from `sides`. Every type, length and range is checked, the ranks against
    the data on this machine. The caller limits the file's size.
    Raises ValueError in one sentence.
    """
    try:
        content = _Content.model_validate_json(source if isinstance(source, bytes) else Path(source).read_bytes())
    except OSError as error:
        raise ValueError(f"{source!s} cannot be read ({error.strerror}); check the path.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(NOT_A_PAIR.format(f"{short_text(where)}: {first['msg']}")) from None
    settings = [content.left.settings, content.right.settings]
    if any(each.pop("seed", None) != content.seed for each in settings):
        raise ValueError(NOT_A_PAIR.format("its seed is not that of both runs"))
    try:
        expected = expected or sides(settings[0], settings[1], content.seed)
    except (TypeError, OverflowError):  # a number that is too large for a float
        raise ValueError(NOT_A_PAIR.format("a setting is out of range")) from None
    expected = _decided(expected[0], settings[0]), _decided(expected[1], settings[1])
    _compare(settings, content.seed, expected)

    splits = splits_of(expected[0])
    if content.fingerprint != splits.fingerprint:
        raise ValueError(
            f"This result was made on other data (fingerprint {short_text(content.fingerprint)}) than this machine's "
            f"{splits.name!r} (fingerprint {splits.fingerprint}); install the same version of minipo and run the pair "
            f"again."
        )
    for name, side in (("left", content.left), ("right", content.right)):
        if len(side.ranks) != len(splits.test):
            raise ValueError(NOT_A_PAIR.format(f"{name} has no rank for each of the {len(splits.test):,} test users"))
        if not all(0 <= rank < len(user.candidates) for rank, user in zip(side.ranks, splits.test, strict=True)):
            raise ValueError(NOT_A_PAIR.format(f"a rank on the {name} is not a place among the user's candidates"))
    left, right = (np.array(side.ranks, np.int32) for side in (content.left, content.right))
    return Pair(*expected, content.fingerprint, left, right, content.sft, content.versions)


def _decided(config: PreferConfig, settings: dict[str, Any]) -> PreferConfig:
    """`config` with the precision of a pair's run, where it leaves that to the machine."""
    known = config.precision == "auto" and settings.get("precision") in [*DTYPES]
    return replace(config, precision=settings["precision"]) if known else config


def _compare(settings: list[dict[str, Any]], seed: int, expected: Sides) -> None:
    if seed != expected[0].seed:
        raise ValueError(f"This result is of seed {short_text(seed)}, not of seed {expected[0].seed}; give that one.")
    for side, found, config in zip(("left", "right"), settings, expected, strict=True):
        wanted = {name: value for name, value in asdict(config).items() if name != "seed"}
        for name in (*wanted, *found):
            if name not in wanted or name not in found or found[name] != wanted[name]:
                there = short_text(found.get(name, "missing"))
                raise ValueError(
                    f"This result is of other runs: on the {side}, {short_text(name)} is {there}, not "
                    f"{wanted.get(name, 'a setting')}; run the pair with these settings."
                )


def short_text(value: object) -> str:
    """A value from an untrusted file, shortened."""
    text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number out of range"
    return text if len(text) <= 40 else text[:39] + "…"


def closing_in(differences: Float[np.ndarray, "seeds users"], resamples: int = 2000, seed: int = 0) -> list[Interval]:
    """How the interval narrows: the mean paired difference after 1, 2, 3, … seeds with its 95 % interval.

    differences: as for `paired_interval`, with the same bootstrap over seeds and users; the users of each resample are
    drawn once for all numbers of seeds, so that this costs little more than the last interval.
    """
    differences = np.asarray(differences, dtype=np.float64)
    seeds, users = differences.shape
    generator = np.random.default_rng(seed)
    drawn = generator.integers(users, size=(resamples, users)) + users * np.arange(resamples)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=resamples * users).reshape(resamples, users)
    means = weights @ differences.T / users  # (resamples, seeds): of every seed, over the users drawn
    intervals = []
    for count in range(1, seeds + 1):
        seed_weights = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
        low, high = np.quantile((seed_weights * means[:, :count]).sum(axis=1) / count, [0.025, 0.975])
        intervals.append(Interval(float(differences[:count].mean()), float(low), float(high)))
    return intervals
