"""Train runs in separate processes, several at a time."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from tqdm import std
from tqdm.auto import tqdm

from minipo.experiments.configuration import Config, PreferConfig, check_negatives, splits_of, start_config
from minipo.experiments.precision import check_precision
from minipo.experiments.runs import Run, cache_folder, finished
from minipo.experiments.training import prefer, sft, sft_run, shipped

# Importing torch and transformers takes longer than a short run's training. On Linux processes are forked from one that
# has done it, and which stays for later ones; elsewhere each does it itself.
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
IMPORTED = ["minipo.experiments.before_fork"]


def train_all(
    configs: Sequence[Config],
    *,
    workers: int | None = None,
    progress: bool = True,
    folder: Path | str | None = None,
) -> list[Run]:
    """Finished runs for `configs`, in their order; those not finished yet are trained now, `workers` at a time.

    folder: where the runs are kept, under the names that they have in minipo's cache; by default there. The SFT runs
    that they start from, always in the cache, are trained first, so that no two workers train the same one. A run that
    fails does not stop the others. An interrupt ends the workers at once; calling again resumes from there.
    Raises ValueError, before anything is trained, on settings that do not fit the dataset or the SFT run, or if a
    finished run started from an SFT model that has changed; ValueError or OSError, when the others are done, for a run
    that failed, saying which; ChildProcessError if a worker died.
    """
    for _ in train_each(configs, workers=workers, progress=progress, folder=folder):
        pass
    return [Run(_place(config, folder)) for config in configs]


def train_each(
    configs: Sequence[Config],
    *,
    workers: int | None = None,
    progress: bool = True,
    folder: Path | str | None = None,
) -> Generator[Run]:
    """The runs of `train_all` one by one, each once: those that are finished already, then each as it ends.

    Closing the generator ends the workers, as an interrupt does. Raises what `train_all` raises.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    for config in configs:
        check_precision(config.precision)
        if isinstance(config, PreferConfig):
            check_negatives(splits_of(config), config.negatives)  # the data stay in memory
            if config.sft is not None:
                sft_run(config)
    found = {config: finished(_place(config, folder), config) for config in dict.fromkeys(configs)}
    todo = [config for config, run in found.items() if run is None]
    yield from (run for run in found.values() if run is not None)
    starts = {start: config for config in todo if (start := start_config(config))}
    starts = [config for start, config in starts.items() if shipped(start) is None]
    workers = workers or os.cpu_count() or 1
    for _ in _work("SFT runs", _start, starts, workers, progress):
        pass
    for config in _work("runs", partial(_train, folder=folder), todo, workers, progress):
        yield Run(_place(config, folder))


def _place(config: Config, folder: Path | str | None) -> Path:
    return cache_folder(config) if folder is None else Path(folder, cache_folder(config).name)


def _work(
    name: str, task: Callable[[Any], None], configs: Sequence[Config], workers: int, progress: bool
) -> Generator[Config]:
    """Do `task` for each of `configs` in separate processes, `workers` at a time; yields each as it is done."""
    if not configs:
        return
    workers = min(workers, len(configs))
    begin = max(1, (os.cpu_count() or 1) // workers), dict(os.environ)
    failed: dict[Config, BaseException] = {}
    others = set(multiprocessing.active_children())
    PROCESSES.set_forkserver_preload(IMPORTED)
    with (
        ProcessPoolExecutor(workers, _processes(), _begin, begin) as pool,
        tqdm(total=len(configs), desc=name, unit="run", disable=not progress) as bar,
    ):
        try:
            with _ignoring_interrupts():
                futures = {pool.submit(task, config): config for config in configs}
            for future in as_completed(futures):
                bar.update()
                if error := future.exception():
                    failed[futures[future]] = error
                else:
                    yield futures[future]
        except BaseException:
            # Otherwise a worker would train to the end of its run, and the pool would wait for it.
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
    if failed:
        config, error = next(iter(failed.items()))
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                "A worker of the sweep died; if memory ran out, start it again with fewer workers, and it continues "
                'from here; in a script of your own, start it under `if __name__ == "__main__":`.'
            ) from error
        if len(failed) == len(configs) or not isinstance(error, (ValueError, OSError)):
            raise error  # common to all; or a bug, with its traceback
        cells = [asdict(each) for each in configs]
        settings = [
            f"{setting} = {value}"
            for setting, value in asdict(config).items()
            if len({cell.get(setting) for cell in cells}) > 1
        ]
        raise (OSError if isinstance(error, OSError) else ValueError)(
            f"{len(failed)} of {len(configs)} {name} failed; the first, with {', '.join(settings)}: {error}"
        ) from error


def _processes() -> BaseContext:
    """`PROCESSES`, or plain forks of this process if it has itself been forked from one that has imported all.

    It must not have used torch's threads, for then a fork may hang: it has no threads but Python's. Nor may it be
    importing a script that starts a sweep unguarded, which multiprocessing refuses.
    """
    importing = getattr(multiprocessing.current_process(), "_inheriting", False)
    ready = (
        not importing and IMPORTED[0] in sys.modules and len(os.listdir("/proc/self/task")) == threading.active_count()
    )
    return multiprocessing.get_context("fork") if ready else PROCESSES


@contextmanager
def _ignoring_interrupts() -> Generator[None]:
    """Processes started here ignore Ctrl-C, which goes to the whole terminal: the parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(threads: int, environment: dict[str, str]) -> None:
    """Initialise a worker: it ends with its parent, has its environment, and uses only its share of the cores."""
    import torch

    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ.clear()  # that of the process from which it was forked, which may have begun before a change
    os.environ.update(environment)
    std.tqdm.set_lock(threading.RLock())  # the default is a semaphore, which would outlive a terminated worker
    torch.set_num_threads(threads)


def end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end this one; without it, a worker of a parent that
    was killed would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # at once: a run that is cut off resumes


def _start(config: Config) -> None:
    sft_run(config, progress=False)


def _train(config: Config, folder: Path | str | None) -> None:
    train = prefer if isinstance(config, PreferConfig) else sft
    train(out=_place(config, folder), progress=False, **asdict(config))
