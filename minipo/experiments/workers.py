"""Train runs in separate processes, several at a time."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tqdm import std
from tqdm.auto import tqdm

from minipo.experiments.configuration import Config, PreferConfig, check_negatives, splits_of, start_config
from minipo.experiments.precision import check_precision
from minipo.experiments.runs import Run, cache_folder, finished
from minipo.experiments.training import prefer, sft, sft_run


def train_all(configs: Sequence[Config], *, workers: int | None = None, progress: bool = True) -> list[Run]:
    """Finished runs for `configs`, in their order; those not in the cache are trained now, `workers` at a time.

    The SFT runs that they start from are trained first, so that no two workers train the same one. A run that fails
    does not stop the others. An interrupt ends the workers at once; calling again resumes from there.
    Raises ValueError, before anything is trained, on settings that do not fit the dataset or the SFT run, or if a run
    in the cache started from an SFT model that has changed; ValueError or OSError, when the others are done, for a run
    that failed, saying which; ChildProcessError if a worker died.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    for config in configs:
        check_precision(config.precision)
        if isinstance(config, PreferConfig):
            check_negatives(splits_of(config), config.negatives)  # the data stay in memory
            if config.sft is not None:
                sft_run(config)
    todo = [config for config in dict.fromkeys(configs) if finished(cache_folder(config), config) is None]
    starts = list({start: config for config in todo if (start := start_config(config))}.values())
    workers = workers or os.cpu_count() or 1
    _work("SFT runs", _start, starts, workers, progress)
    _work("runs", _train, todo, workers, progress)
    return [Run(cache_folder(config)) for config in configs]


def _work(name: str, task: Callable[[Any], None], configs: Sequence[Config], workers: int, progress: bool) -> None:
    """Do `task` for each of `configs` in separate processes, `workers` at a time."""
    if not configs:
        return
    workers = min(workers, len(configs))
    threads = max(1, (os.cpu_count() or 1) // workers)
    failed: dict[Config, BaseException] = {}
    others = set(multiprocessing.active_children())
    # Spawned, because a fork of a process that has used torch's threads may hang.
    with (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (threads,)) as pool,
        tqdm(total=len(configs), desc=name, unit="run", disable=not progress) as bar,
    ):
        try:
            with _ignoring_interrupts():
                futures = {pool.submit(task, config): config for config in configs}
            for future in as_completed(futures):
                if error := future.exception():
                    failed[futures[future]] = error
                bar.update()
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


def _begin(threads: int) -> None:
    """Initialise a worker: it ends with its parent and uses only its share of the cores."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    std.tqdm.set_lock(threading.RLock())  # the default is a semaphore, which would outlive a terminated worker
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """Without this, the workers of a parent that was killed would wait for it forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # at once: a run that is cut off resumes


def _start(config: Config) -> None:
    sft_run(config, progress=False)


def _train(config: Config) -> None:
    (prefer if isinstance(config, PreferConfig) else sft)(progress=False, **asdict(config))
