"""Two runs under one seed, and what came of them as one small file: each student of a class adds one pair.

A pair's file is JSON of a dozen kilobytes: both runs' settings, the seed, the data's fingerprint and every test user's
rank under both. It is read on machines that did not make it, so `read_pair` believes nothing that it says.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from minipo.evaluation import Interval
from minipo.experiments.configuration import PreferConfig, check_negatives, make_config, splits_of
from minipo.experiments.datasets.loading import DATASETS
from minipo.experiments.fetch import SOURCES
from minipo.experiments.files import whole_file
from minipo.experiments.runs import Run, versions
from minipo.experiments.training import prefer
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

    Raises ValueError in one sentence: a setting that does not fit, a seed of a side's own, two sides that are the same
    or on different data, and whatever means something on one machine alone (a file of data, a folder of a model).
    """
    if "seed" in left or "seed" in right:
        raise ValueError("A pair's runs have one seed, which is none of their own settings; leave it out of them.")
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
    """The settings that say which run this is, the seed aside: its objective, K, and what is not as by default."""
    # What the recipe gives for these data and this model goes without saying; data and model themselves do not.
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
    cut off goes on. Raises ValueError as `sides` and `prefer` do, before anything is trained; OSError if the disk is
    full.
    """
    if out is not None and Path(out).suffix != ".json":
        raise ValueError(f"A pair's file must end in .json, not {Path(out).name!r}; give it such a name.")
    configs = sides(left, right, seed)
    splits = splits_of(configs[0])
    for config in configs:
        check_negatives(splits, config.negatives)
    runs: list[Run] = []
    for name, config in zip(("left", "right"), configs, strict=True):
        runs.append(prefer(folder and Path(folder, name), progress=progress, **asdict(config)))
    ranks = [run.users["rank"].to_numpy(np.int32) for run in runs]
    pair = Pair(*configs, splits.fingerprint, ranks[0], ranks[1], float(runs[0].summary["sft_hr@1"]), versions())
    if out is not None:
        write_pair(pair, Path(out))
    return pair


def write_pair(pair: Pair, out: Path) -> None:
    """Write the pair's file, whole or not at all."""
    content = {
        "kind": "pair",
        "seed": pair.seed,
        "dataset_fingerprint": pair.fingerprint,
        "sft_hr@1": pair.sft,
        **{
            name: {"settings": asdict(config), "hr@1": _hits(ranks), "ranks": ranks.tolist()}
            for name, config, ranks in (
                ("left", pair.left, pair.left_ranks),
                ("right", pair.right, pair.right_ranks),
            )
        },
        "versions": pair.versions,
    }
    with whole_file(out) as draft:
        draft.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _hits(ranks: Int32[np.ndarray, " users"]) -> float:
    return float((ranks == 0).mean())


NOT_A_PAIR = "This is no result of `minipo pair`: {}; bring the JSON file that the command wrote."


def read_pair(source: Path | str | bytes, expected: Sides | None = None) -> Pair:
    """The pair in a file, given by its path or as the file's bytes.

    expected: what the two runs must have been, by `sides`; nothing else is looked at then before they are. Every type,
    length and range is checked, the ranks against the data that this machine has. How large the file may be is for the
    caller to say. Raises ValueError in one sentence.
    """
    content = _json(source)
    if not isinstance(content, dict) or content.get("kind") != "pair":
        raise ValueError(NOT_A_PAIR.format("it does not say that it is one"))
    parts: list[Any] = [content.get(name) for name in ("left", "right")]
    settings: list[Any] = [part.get("settings") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(each, dict) for each in settings):
        raise ValueError(NOT_A_PAIR.format("a side or its settings are missing"))
    seed = content.get("seed")
    if type(seed) is not int or any(each.get("seed") != seed for each in settings):
        raise ValueError(NOT_A_PAIR.format("its seed is missing, or not that of both runs"))
    if expected is None:
        expected = _configs(settings, seed)
    _compare(settings, seed, expected)

    splits = splits_of(expected[0])
    if (there := content.get("dataset_fingerprint")) != splits.fingerprint:
        raise ValueError(
            f"This result was made on other data (fingerprint {short_text(there)}) than this machine's {splits.name!r} "
            f"(fingerprint {splits.fingerprint}); install the same version of minipo and run the pair again."
        )
    candidates = [len(user.candidates) for user in splits.test]
    ranks = [_ranks(part, name, candidates) for name, part in zip(("left", "right"), parts, strict=True)]
    sft, made_with = content.get("sft_hr@1"), content.get("versions")
    if type(sft) is not float or not 0 <= sft <= 1:
        raise ValueError(NOT_A_PAIR.format("SFT's HR@1 is not a number from 0 to 1"))
    if not isinstance(made_with, dict) or not all(isinstance(value, str) for value in made_with.values()):
        raise ValueError(NOT_A_PAIR.format("the versions it was made with are missing"))
    return Pair(*expected, splits.fingerprint, ranks[0], ranks[1], sft, made_with)


def _json(source: Path | str | bytes) -> Any:
    try:
        text = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ValueError(f"{source!s} cannot be read ({error.strerror}); check the path.") from None
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):  # bytes that are no text, text that is no JSON, numbers or nests without end
        raise ValueError(NOT_A_PAIR.format("it is not JSON")) from None


def _configs(settings: list[Any], seed: int) -> Sides:
    left, right = ({name: value for name, value in side.items() if name != "seed"} for side in settings)
    try:
        return sides(left, right, seed)
    except (TypeError, OverflowError):  # a number that is too large for a float
        raise ValueError(NOT_A_PAIR.format("a setting is out of all range")) from None


def _compare(settings: list[Any], seed: int, expected: Sides) -> None:
    if seed != expected[0].seed:
        raise ValueError(f"This result is of seed {short_text(seed)}, not of seed {expected[0].seed}; bring that one.")
    for side, found, config in zip(("left", "right"), settings, expected, strict=True):
        wanted = asdict(config)
        for name in (*wanted, *found):
            if name not in wanted or name not in found or found[name] != wanted[name]:
                there = short_text(found.get(name, "missing"))
                raise ValueError(
                    f"This result is of other runs: on the {side}, {short_text(name)} is {there}, not "
                    f"{wanted.get(name, 'a setting')}; run the pair with these settings."
                )


def short_text(value: object) -> str:
    """What an untrusted file says, in a few letters."""
    text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number out of all range"
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair can be shown nowhere
    return text if len(text) <= 40 else text[:39] + "…"


def _ranks(part: Any, side: str, candidates: list[int]) -> Int32[np.ndarray, " users"]:
    found = part.get("ranks")
    if not isinstance(found, list) or len(found) != len(candidates):
        raise ValueError(NOT_A_PAIR.format(f"{side} has no rank for each of the {len(candidates):,} test users"))
    if not all(type(rank) is int and 0 <= rank < count for rank, count in zip(found, candidates, strict=True)):
        raise ValueError(NOT_A_PAIR.format(f"a rank on the {side} is not a place among the user's candidates"))
    ranks = np.array(found, np.int32)
    if part.get("hr@1") != _hits(ranks):
        raise ValueError(NOT_A_PAIR.format(f"HR@1 on the {side} is not that of its ranks"))
    return ranks


def closing_in(differences: Float[np.ndarray, "seeds users"], resamples: int = 2000, seed: int = 0) -> list[Interval]:
    """How the interval closes in: the mean paired difference after 1, 2, 3, … seeds with its 95 % interval.

    differences: as `paired_interval` takes them, and by the same bootstrap over seeds and users; the users of each
    resample are drawn once for all numbers of seeds, so that it costs little more than the last interval alone.
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
