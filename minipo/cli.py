"""`minipo fetch | data | sft | prefer | pair | sweep | evaluate | app`: the library from a shell.

Standard output holds the result alone, with --json one JSON document; progress goes to standard error. A mistake of the
user's is one sentence there, and exit code 2.
"""

import argparse
import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from minipo.experiments.configuration import PreferConfig, SFTConfig, rows_at_once
from minipo.experiments.runs import DATA, Run
from minipo.experiments.training import arithmetic, prefer, sft, sft_run
from minipo.names import lookup

HELP = {
    "dataset": "catalog, ml-100k, lastfm, goodreads, steam, or a path of your own: a table with the columns user, "
    "item, timestamp and optionally rating (CSV, RecBole, MovieLens, JSON lines, Parquet; a folder or zip archive of "
    "them); LLaRA JSON, or a folder of it",
    "dataset_seed": "seed of the dataset: of what is generated, or drawn (negatives, order within ties)",
    "ties": "order of a user's rows of equal times: file, or random, by the dataset's seed (default: file for ml-100k; "
    "for a table of your own random where more than a tenth of neighbouring liked items tie)",
    "model": "pocket-gpt2, pocket-qwen2, smollm2-135m, gpt2, qwen2.5-0.5b, or a folder that from_pretrained opens",
    "sft": "folder of the SFT run to start from (default: the shipped one for these settings, or one trained now)",
    "sft_epochs": "epochs of that SFT run",
    "sft_seed": "seed of that SFT run",
    "tuning": "full or lora",
    "rank": "rank of LoRA's adapters",
    "precision": "float32, or bfloat16 for the matrix products",
    "validation_users": "validation users that each evaluation ranks (default: all)",
    "objective": "dpo, dmpo, sdpo or mppo",
    "negatives": "K, negatives per user",
    "dynamic": "DynamicPO, off or on",
    "select": "its selection: on, off, or a control, random or hardest",
    "adjust_beta": "its dual-margin beta: on or off",
    "clusters": "groups of its k-means",
    "beta": "strength of the objective",
    "margin": "gamma of dual-margin beta",
    "evaluate_every": "steps between evaluations on validation users",
    "accumulation": "micro-batches per step",
    "template": "prompt: line, question or choice",
    "titles": "for a table of your own whose items are ids: a table of ids and titles, such as movies.csv",
    "liked_from": "for a table of your own: the least rating that counts as liked, on any scale (default: 4 of 5)",
    "whole_line": "yes: learn history and answer; no: the answer alone (default: yes for pocket models)",
}


def _add_settings(parser: argparse.ArgumentParser, config: type, lists: bool = False) -> None:
    """An option for every field of a configuration; with `lists`, each takes values joined by commas."""
    for field in fields(config):
        if field.name == "kind":
            continue
        kind = _kind_of(field)
        option, name = "--" + field.name.replace("_", "-"), field.name
        if lists and name == "seed":
            option, name = "--seeds", "seeds"
        note = HELP.get(field.name, field.name.replace("_", " "))
        default = "" if field.default is None else f" (default {field.default})"
        parser.add_argument(
            option,
            dest=name,
            type=_list_of(kind) if lists else kind,
            default=argparse.SUPPRESS,
            metavar=kind.__name__.strip("_").upper() + (",..." if lists else ""),
            help=note + default,
        )


def _kind_of(field: Field[Any]) -> Callable[[str], Any]:
    """What makes a setting of its text."""
    kinds: dict[Any, Callable[[str], Any]] = {
        int: int, float: float, int | None: int, float | None: float, bool | None: _boolean
    }  # fmt: skip
    return kinds.get(field.type, str)


def _boolean(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text == "yes"


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def values(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",") if part]

    values.__name__ = kind.__name__  # what argparse calls it in its message
    return values


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    ours = {"command", "run", "json", "quiet", "out", "workers", "split", "streamlit"}
    return {name: value for name, value in vars(arguments).items() if name not in ours}


def _print(arguments: argparse.Namespace, content: dict[str, Any], text: str) -> None:
    # JSON knows neither NaN nor infinity.
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in content.items()
    }
    print(json.dumps(plain, ensure_ascii=False, allow_nan=False) if arguments.json else text)


def _print_run(arguments: argparse.Namespace, run: Run) -> None:
    summary = run.summary
    lines = [f"{run.folder}"]
    lines += [f"  {name:16} {value:.4f}" for name, value in summary.items() if isinstance(value, float)]
    _print(arguments, {"folder": str(run.folder), **summary}, "\n".join(lines))


def _sft(arguments: argparse.Namespace) -> None:
    _print_run(arguments, sft(arguments.out, progress=not arguments.quiet, **_settings(arguments)))


def _prefer(arguments: argparse.Namespace) -> None:
    _print_run(arguments, prefer(arguments.out, progress=not arguments.quiet, **_settings(arguments)))


def _side(text: str) -> dict[str, Any]:
    """One side of a pair, settings of `PreferConfig` with a space between: objective=dmpo negatives=1."""
    kinds = {field.name: _kind_of(field) for field in fields(PreferConfig)}
    try:
        parts = shlex.split(text)
    except ValueError:
        raise ValueError(f"The settings {text!r} have a quotation mark without its partner.") from None
    settings = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is no setting; write NAME=VALUE, as in objective=dmpo negatives=1.")
        kind = lookup("setting", name, kinds)
        try:
            settings[name] = kind(value)
        except ValueError:
            raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}.") from None
    return settings


def _pair(arguments: argparse.Namespace) -> None:
    from minipo.experiments.pairs import train_pair

    out = Path(arguments.out or f"pair-{arguments.seed}.json")
    left, right = _side(arguments.left), _side(arguments.right)
    pair = train_pair(left, right, arguments.seed, out, arguments.runs, progress=not arguments.quiet)
    hits = {"left": float((pair.left_ranks == 0).mean()), "right": float((pair.right_ranks == 0).mean())}
    content = {"out": str(out), "seed": pair.seed, **hits, "difference": float(pair.differences.mean())}
    lines = [str(out), *(f"  {name:16} {content[name]:.4f}" for name in ("left", "right", "difference"))]
    _print(arguments, content, "\n".join(lines))


def _sweep(arguments: argparse.Namespace) -> None:
    from minipo.experiments.sweeps import sweep

    table = sweep(out=arguments.out, workers=arguments.workers, progress=not arguments.quiet, **_settings(arguments))
    shown = ["objective", "negatives", "select", "adjust_beta", "seed", "train_loss", "pair_loss", "hr@1", "sft_hr@1"]
    records = json.loads(table.to_json(orient="records"))
    _print(arguments, {"runs": records, "out": arguments.out}, table[shown].round(4).to_string(index=False))


def _evaluate(arguments: argparse.Namespace) -> None:
    from minipo.experiments.users import evaluate, score, valid_ratio

    run = Run(Path(arguments.run_folder))
    config, splits = run.config, run.load_data()
    model, tokenizer = run.load_model()
    users = getattr(splits, arguments.split)
    rows = rows_at_once(config)
    with arithmetic(model, config.precision):
        reference = None
        if isinstance(config, PreferConfig):
            start = sft_run(config, progress=not arguments.quiet)
            run.check_start(start.folder / "model")
            reference = score(*start.load_model(), users, config.template, rows)
        metrics = evaluate(model, tokenizer, users, reference, config.template, rows).metrics
        metrics["valid_ratio"] = valid_ratio(model, tokenizer, users, splits.items, config.template)
    text = "\n".join(f"{name:16} {value:.4f}" for name, value in metrics.items())
    _print(arguments, {"folder": str(run.folder), "split": arguments.split, **metrics}, text)


def _fetch(arguments: argparse.Namespace) -> None:
    from minipo.experiments.fetch import fetch

    folders = {name: str(fetch(name, progress=not arguments.quiet)) for name in arguments.names}
    _print(arguments, folders, "\n".join(f"{name:16} {folder}" for name, folder in folders.items()))


def _data(arguments: argparse.Namespace) -> None:
    from minipo.experiments.datasets.loading import load_dataset
    from minipo.experiments.datasets.splits import describe

    splits = load_dataset(
        arguments.dataset,
        arguments.dataset_seed,
        ties=arguments.ties,
        titles=arguments.titles,
        liked_from=arguments.liked_from,
    )
    content = {"dataset": splits.name, "fingerprint": splits.fingerprint, **splits.report}
    _print(arguments, content, describe(splits))


def _app(arguments: argparse.Namespace) -> None:
    page = DATA.parent / "app" / "main.py"
    if not page.is_file():
        raise ValueError(f"The app is missing at {page}: install minipo from a checkout of its repository.")
    from streamlit.web import cli

    os.chdir(DATA.parent)  # where Streamlit looks for its settings
    sys.argv = ["streamlit", "run", str(page), *arguments.streamlit]
    cli.main()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="minipo", description="Preference optimization with many negatives.")
    commands = top.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], note: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=note, description=note)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print one JSON document")
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        return command

    command = add("sft", _sft, "supervised fine-tuning")
    _add_settings(command, SFTConfig)
    command.add_argument("--out", help="the run's folder (default: one in minipo's cache)")

    command = add("prefer", _prefer, "preference training from an SFT run")
    _add_settings(command, PreferConfig)
    command.add_argument("--out", help="the run's folder (default: one in minipo's cache)")

    command = add("pair", _pair, "two preference runs under one seed, and every test user's rank in one small file")
    for side in ("left", "right"):
        command.add_argument(
            f"--{side}", required=True, metavar="SETTINGS", help="settings of a run, as in: objective=dmpo negatives=1"
        )
    command.add_argument("--seed", type=int, default=0, help="of both runs (default 0)")
    command.add_argument("--out", help="the pair's file, .json (default: pair-SEED.json here)")
    command.add_argument("--runs", help="folder for the two runs (default: ones in minipo's cache)")

    command = add("sweep", _sweep, "preference runs over a grid: every option takes values joined by commas")
    _add_settings(command, PreferConfig, lists=True)
    command.add_argument("--out", help="the table's file, .parquet or .csv")
    command.add_argument("--workers", type=int, help="runs at a time (default: one a core)")

    from minipo.experiments.fetch import SOURCES

    command = add("fetch", _fetch, "bring models and datasets into minipo's folder (MINIPO_HOME)")
    command.add_argument("names", nargs="+", metavar="NAME", help=", ".join(SOURCES))

    command = add("data", _data, "what a dataset holds, and what was left out of it and why")
    command.add_argument("dataset", help=HELP["dataset"])
    command.add_argument("--dataset-seed", type=int, default=0, help=HELP["dataset_seed"])
    command.add_argument("--ties", help=HELP["ties"])
    command.add_argument("--titles", help=HELP["titles"])
    command.add_argument("--liked-from", type=float, help=HELP["liked_from"])

    command = add("evaluate", _evaluate, "rank a split's users with a finished run's model")
    command.add_argument("run_folder", metavar="RUN", help="the run's folder")
    command.add_argument("--split", choices=["train", "validation", "test"], default="test")

    add("app", _app, "open the demo in the browser; further arguments go to `streamlit run`")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A user's mistake, or a disk that is full, ends it with one sentence and exit code 2."""
    try:
        try:
            _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read standard output, as `head` does, has enough; and Python itself flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13) from None  # as a shell reports whom SIGPIPE ends


def _run(arguments: Sequence[str] | None) -> None:
    top = parser()
    # argparse's own REMAINDER does not take an option in first place.
    parsed, others = top.parse_known_args(arguments)
    if others and parsed.command != "app":
        top.error(f"unrecognized arguments: {' '.join(others)}")
    parsed.streamlit = others
    # A warning is a sentence too, without the place in the code.
    warnings.formatwarning = lambda message, *_, **__: f"minipo: {' '.join(str(message).splitlines())}\n"
    try:
        parsed.run(parsed)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        sentence = " ".join(str(error).splitlines())  # on one line, whatever a library put into it
        print(f"minipo: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("minipo: stopped; the same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
