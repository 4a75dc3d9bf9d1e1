"""How long a viewer waits on a shared server: `python benchmarks/load.py` (needs chromium on the PATH).

Starts the app as `make app` does and opens 30 sessions on it: 29 that speak Streamlit's own protocol, as a browser does
(they load a page, move a control or turn to another page every five seconds, and let live parts refresh themselves),
and one headless Chromium with a viewer who moves a slider. First with the server otherwise idle, then with two runs
training. A wait is the time from an action to the end of the page's answer; in Chromium, to the new sentence on the
screen. All of it shares this machine's cores. Prints a table and writes load.json beside this file.
"""

import asyncio
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import websockets
from measure import Report, run
from page import ROOT, SIZE, paint, slide
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState

sys.path.insert(0, str(ROOT / "app"))
import forms
import jobs
import limits

from tests.browser import chromium, served_app

SESSIONS, EVERY = 30, 5.0  # sessions; seconds between a session's actions
ARRIVAL = "arrival, all at once"
TURN = 0.15  # share of actions that turn to another page


class Session:
    """One viewer, as the server sees a browser."""

    def __init__(self, address: str, waits: dict[str, list[float]], seed: int):
        self.address, self.waits, self.random = address, waits, random.Random(seed)
        self.pages: dict[str, str] = {}  # path to the page's hash
        self.page = ""
        self.controls: dict[str, tuple[str, Any]] = {}  # id to the control's fragment and the control
        self.values: dict[str, WidgetState] = {}
        self.refreshed: dict[str, float] = {}  # fragments that refresh themselves to their interval
        self.finished = asyncio.Event()
        self.busy = asyncio.Lock()

    async def live(self, seconds: float) -> None:
        """Open a page, and act on it until time is up."""
        uri = f"{self.address.replace('http', 'ws')}/_stcore/stream"
        async with websockets.connect(uri, subprotocols=["streamlit"], max_size=None) as self.socket:  # type: ignore
            reader = asyncio.create_task(self.read())
            await self.ask(ARRIVAL, page_name="")
            refreshing = asyncio.create_task(self.refresh())
            end = time.monotonic() + seconds
            await asyncio.sleep(self.random.uniform(0, EVERY))
            await self.turn()
            while time.monotonic() < end:
                await asyncio.sleep(EVERY * self.random.uniform(0.8, 1.2))
                if self.random.random() < TURN or not self.controls:
                    await self.turn()
                else:
                    await self.move()
            for task in (reader, refreshing):
                task.cancel()

    async def ask(self, action: str, **state: Any) -> None:
        """Send a request for a rerun, and note how long its answer takes."""
        async with self.busy:
            self.finished.clear()
            if action != "refresh" and "fragment_id" not in state:
                self.controls, self.refreshed = {}, {}
            message = BackMsg()
            asked = ClientState(page_script_hash=self.pages.get(self.page, ""), **state)
            asked.widget_states.widgets.extend(self.values.values())
            asked.context_info.timezone = "UTC"
            message.rerun_script.CopyFrom(asked)
            start = time.perf_counter()
            await self.socket.send(message.SerializeToString())
            await asyncio.wait_for(self.finished.wait(), 60)
            kind = f"{self.page or 'why'}, {action}" if action != ARRIVAL else action
            self.waits[kind].append(time.perf_counter() - start)

    async def turn(self) -> None:
        self.page = self.random.choice([page for page in self.pages if page != self.page])
        self.values = {}
        await self.ask("page")

    async def move(self) -> None:
        """Move one of the page's controls."""
        name = self.random.choice(list(self.controls))
        fragment, control = self.controls[name]
        value = WidgetState(id=name)
        kind = type(control).__name__
        if kind == "Slider":
            places = round((control.max - control.min) / control.step)
            value.double_array_value.data.append(control.min + control.step * self.random.randint(0, places))
        elif kind == "Checkbox":
            value.bool_value = self.random.random() < 0.5
        elif kind == "ButtonGroup":
            value.string_array_value.data.append(self.random.choice(control.options).content)
        else:
            value.string_value = self.random.choice(control.options)
        self.values[name] = value
        await self.ask("control", **({"fragment_id": fragment} if fragment else {}))

    async def refresh(self) -> None:
        """Let live parts refresh themselves as a browser does."""
        last: dict[str, float] = {}
        while True:
            await asyncio.sleep(0.5)
            for fragment, interval in list(self.refreshed.items()):
                if time.monotonic() - last.setdefault(fragment, time.monotonic()) >= interval:
                    last[fragment] = time.monotonic()
                    await self.ask("refresh", fragment_id=fragment, is_auto_rerun=True)

    async def read(self) -> None:
        """Process the server's messages."""
        async for content in self.socket:
            message = ForwardMsg()
            message.ParseFromString(content)
            kind = message.WhichOneof("type")
            if kind == "navigation":
                shown = [page for page in message.navigation.app_pages if not page.is_hidden]
                self.pages = {page.url_pathname: page.page_script_hash for page in shown}
            elif kind == "auto_rerun":
                self.refreshed[message.auto_rerun.fragment_id] = message.auto_rerun.interval
            elif kind == "stop_auto_rerun":
                self.refreshed.pop(message.stop_auto_rerun.fragment_id, None)
            elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
                element = message.delta.new_element
                name = element.WhichOneof("type")
                if name in ("slider", "checkbox", "selectbox", "button_group"):
                    control = getattr(element, name)
                    if not control.disabled and (name != "slider" or not control.options):
                        self.controls[control.id] = (message.delta.fragment_id, control)
            elif kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                self.finished.set()


def look(address: str, seconds: float) -> list[float]:
    """The waits of a viewer in Chromium who moves the slider of the first page to and fro."""
    with chromium() as browser:
        page = browser.new_page(viewport=SIZE)
        paint(page, address)
        end, waits = time.monotonic() + seconds, []
        while time.monotonic() < end:
            time.sleep(EVERY)
            waits.append(slide(page, "ArrowRight" if len(waits) % 20 >= 10 else "ArrowLeft"))
    return waits


async def class_of_viewers(address: str, seconds: float) -> tuple[dict[str, list[float]], list[float]]:
    waits: dict[str, list[float]] = defaultdict(list)
    sessions = [Session(address, waits, seed).live(seconds) for seed in range(SESSIONS - 1)]
    seen, *_ = await asyncio.gather(asyncio.to_thread(look, address, seconds), *sessions)
    return waits, seen


def summary(waits: pd.Series) -> dict[str, float]:
    ends = {"median": waits.median(), "p95": waits.quantile(0.95), "slowest": waits.max()}
    return {"actions": len(waits), **{name: round(float(value), 3) for name, value in ends.items()}}


def hand_in(seconds: float) -> list[str]:
    """Submit enough runs that two train all the time, and wait until the first two do; their tokens."""
    settings = {**forms.OPENING, **forms.defaults("catalog", "pocket-gpt2"), "negatives": 19, "steps": limits.STEPS}
    count = 2 * math.ceil(seconds / 20)  # a run takes 50 seconds on two idle cores
    runs = [
        jobs.submit("prefer", {**settings, "seed": seed}, f"viewer {seed // limits.RUNS_AT_ONCE}", "load").token
        for seed in range(count)
    ]
    while any(jobs.find(each).state != "running" for each in runs[:2]):
        time.sleep(0.5)
    return runs


def benchmark(quick: bool) -> Report:
    """First with the server otherwise idle, then with two runs training."""
    seconds = 10.0 if quick else 120.0  # of each part
    parts: Report = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, served_app(Path(folder)) as address:
        os.environ["MINIPO_HOME"] = str(Path(folder) / "home")  # of `hand_in`: the server's queue
        server = next(child for child in psutil.Process().children() if "--server.port" in child.cmdline())
        for part, training in (("no run", False), ("two runs training", True)):
            runs = hand_in(seconds) if training else []
            waits, seen = asyncio.run(class_of_viewers(address, seconds))
            everything = pd.Series([wait for kind, times in waits.items() if kind != ARRIVAL for wait in times])
            parts[part] = {
                "all": summary(everything) | {"within 1 s": round(float((everything <= 1).mean()), 4)},
                "in Chromium": summary(pd.Series(seen)),
                **{kind: summary(pd.Series(waits[kind])) for kind in sorted(waits)},
                "server's memory (MB)": round(server.memory_info().rss / 1e6),
                "runs at the end": dict(Counter(jobs.find(each).state for each in runs)),
            }
    return {"sessions": SESSIONS, "an action every (s)": EVERY, "seconds": seconds, "parts": parts}


if __name__ == "__main__":
    run(__file__, __doc__, benchmark, packages=["streamlit"])
