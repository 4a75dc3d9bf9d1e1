"""A server for a browser to visit, and the browser: for the tests of the app and of JupyterLab, and the benchmarks."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def served(
    command: Callable[[int], list[str]], cwd: Path, log: Path, alive: str, environment: Mapping[str, str]
) -> Iterator[str]:
    """The address of a server while the block lasts.

    command: what starts it on a port. alive: the path that answers once it is up. environment: added to this one.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command(port), cwd=cwd, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}{alive}", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:  # in CI, JupyterLab once did not end: no fault of what was tested in it
            server.kill()
            server.wait()


@contextmanager
def served_app(folder: Path) -> Iterator[str]:
    """The address of the app, served as `make app` serves it, with its log and minipo's own folder under `folder`."""
    command = [sys.executable, "-m", "minipo", "app", "--server.headless", "true", "--server.address", "127.0.0.1"]
    with served(
        lambda port: [*command, "--server.port", str(port)], Path(__file__).parents[1], folder / "log",
        "/_stcore/health", {"MINIPO_HOME": str(folder / "home")},
    ) as address:  # fmt: skip
        yield address


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium; without one the test is skipped, but in CI it fails. One at a time: playwright starts once."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail(f"No browser on this machine: CI needs one of {', '.join(BROWSERS)}.")
        pytest.skip(f"No browser on this machine: none of {', '.join(BROWSERS)}.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET)
        yield browser
        browser.close()
