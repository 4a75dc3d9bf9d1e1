"""minipo's folder on this machine, and atomic writes."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def home() -> Path:
    """Where minipo keeps what it makes: the folder MINIPO_HOME names, or the user's cache folder."""
    return Path(os.environ.get("MINIPO_HOME") or platformdirs.user_cache_dir("minipo", appauthor=False))


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A temporary path to write to, which becomes `path` only if the block succeeds: an atomic write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The extension stays last, because pandas and safetensors choose the format by it.
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        remove(draft)


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing happens if there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
