"""`minipo fetch | data | sft | prefer | pair | sweep | evaluate | app`: the library from a shell.

Standard output has only the result, with --json one JSON document; progress goes to standard error. A user's mistake is
one sentence there, with exit code 2.
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
from functools import partial
from pathlib import Path
from typing import Any

from minipo.arithmetic import autocast
from minipo.experiments.configuration import PreferConfig, SFTConfig, purpose, rows_at_once, type_of
from minipo.experiments.runs import DATA, Run
from minipo.experiments.training import prefer, sft, sft_run
from minipo.names import lookup


def _add_settings(parser: argparse.ArgumentParser, config: type, lists: bool = False) -> None:
    """An option for every field of a configuration; with `lists`, each takes values separated by commas."""
    for field in fields(config):
        if field.name != "kind":
            name = "seeds" if lists and field.name == "seed" else field.name
            _add_setting(parser, field, "--" + name.replace("_", "-"), lists)


def _add_setting(parser: argparse.ArgumentParser, field: Field[Any], option: str, lists: bool = False) -> None:
    """A field of a configuration as an option, with the field's type, choices and description."""
    plain, choices = type_of(field)
    kind: Callable[[str], Any] = _boolean if plain is bool else plain
    default = "" if field.default is None or not option.startswith("-") else f" (default {field.default})"
    choices = ("yes", "no") if plain is bool else choices
    shown = "{" + ",".join(choices) + "}" if choices else kind.__name__.strip("_").upper()
    parser.add_argument(
        option,
        type=_list_of(kind) if lists else kind,
        default=argparse.SUPPRESS,
        metavar=shown + (",..." if lists else ""),
        help=purpose(field) + default,
    )


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
    ours = {"command", "run", "json", "quiet", "out", "workers", "split", "streamlit", "runs"}
    return {name: value for name, value in vars(arguments).items() if name not in ours}


def _print(arguments: argparse.Namespace, content: dict[str, Any], text: str) -> None:
    # JSON knows neither NaN nor infinity.
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in content.items()
    }
    print(json.dumps(plain, ensure_ascii=False, allow_nan=False) if arguments.json else text)


def _train(train: Callable[..., Run], arguments: argparse.Namespace) -> None:
    run = train(arguments.out, progress=not arguments.quiet, **_settings(arguments))
    numbers = (f"  {name:16} {value:.4f}" for name, value in run.summary.items() if isinstance(value, float))
    _print(arguments, {"folder": str(run.folder), **run.summary}, "\n".join([str(run.folder), *numbers]))


def _side(text: str) -> dict[str, Any]:
    """One side of a pair, settings of `PreferConfig` with a space between: objective=dmpo negatives=1."""
    kinds = {field.name: type_of(field)[0] for field in fields(PreferConfig)}
    try:
        parts = shlex.split(text)
    except ValueError:
        raise ValueError(f"The settings {text!r} have an unmatched quotation mark; close it.") from None
    settings = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not a setting; write NAME=VALUE, as in objective=dmpo negatives=1.")
        kind = lookup("setting", name, kinds)
        try:
            settings[name] = kind(value)
        except ValueError:
            settings[name] = value  # the configuration will refuse its type
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

    places = {"out": arguments.out, "folder": arguments.runs}
    table = sweep(**places, workers=arguments.workers, progress=not arguments.quiet, **_settings(arguments))
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
    with autocast(model.device, config.precision):
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

    settings = _settings(arguments)
    splits = load_dataset(settings.pop("dataset"), settings.pop("dataset_seed", 0), **settings)
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

    recipes = "; defaults are shown for pocket models on the catalogue, other models and data have their own"
    for name, train, config, note in (
        ("sft", sft, SFTConfig, "supervised fine-tuning"),
        ("prefer", prefer, PreferConfig, "preference training from an SFT run"),
    ):
        command = add(name, partial(_train, train), note + recipes)
        _add_settings(command, config)
        command.add_argument("--out", help="the run's folder (default: one in minipo's cache)")

    command = add("pair", _pair, "two preference runs under one seed, and every test user's rank in one small file")
    for side in ("left", "right"):
        command.add_argument(
            f"--{side}", required=True, metavar="SETTINGS", help="settings of a run, as in: objective=dmpo negatives=1"
        )
    command.add_argument("--seed", type=int, default=0, help="seed of both runs (default 0)")
    command.add_argument("--out", help="the pair's file, .json (default: pair-SEED.json here)")
    command.add_argument("--runs", help="folder for the two runs (default: in minipo's cache)")

    command = add("sweep", _sweep, "preference runs over a grid: a setting takes values separated by commas")
    _add_settings(command, PreferConfig, lists=True)
    command.add_argument("--out", help="the table's file, .parquet or .csv")
    command.add_argument("--runs", help="folder for the runs (default: in minipo's cache)")
    command.add_argument("--workers", type=int, help="runs at a time (default: one per core)")

    from minipo.experiments.fetch import SOURCES

    command = add("fetch", _fetch, "download models and datasets into minipo's folder (MINIPO_HOME)")
    command.add_argument("names", nargs="+", metavar="NAME", help=", ".join(SOURCES))

    command = add("data", _data, "what a dataset holds, and what was left out of it and why")
    shared = {field.name: field for field in fields(SFTConfig)}
    for option in ("dataset", "--dataset-seed", "--ties", "--titles", "--liked-from"):
        _add_setting(command, shared[option.removeprefix("--").replace("-", "_")], option)

    command = add("evaluate", _evaluate, "rank a split's users with a finished run's model")
    command.add_argument("run_folder", metavar="RUN", help="the run's folder")
    command.add_argument("--split", choices=["train", "validation", "test"], default="test")

    add("app", _app, "open the app in the browser; further arguments go to `streamlit run`")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A user's mistake, or a full disk, ends it with one sentence and exit code 2."""
    # A warning is one sentence too, without its place in the code; what libraries will change is not for users.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")
    warnings.formatwarning = lambda message, *_, **__: f"minipo: {' '.join(str(message).splitlines())}\n"
    try:
        try:
            top = parser()
            # argparse's own REMAINDER does not accept an option as its first argument.
            parsed, others = top.parse_known_args(arguments)
            if others and parsed.command != "app":
                top.error(f"unrecognized arguments: {' '.join(others)}")
            parsed.streamlit = others
            parsed.run(parsed)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of standard output, such as `head`, has enough; Python flushes once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13) from None  # as a shell reports the end by SIGPIPE
    except (ValueError, OSError) as error:
        sentence = " ".join(str(error).splitlines())  # on one line, whatever a library put into it
        print(f"minipo: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("minipo: stopped; the same command resumes it from its last checkpoint, if it has one.", file=sys.stderr)
        raise SystemExit(130) from None
