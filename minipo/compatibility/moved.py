"""Former names of modules, so that exercises handed out earlier can still import them."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "minipo.diagnostics": "minipo.course.diagnostics",
    "minipo.exercises": "minipo.course.exercises",
    "minipo.sweeps": "minipo.experiments.records",
}


class Moved(MetaPathFinder, Loader):
    """Finds a module under its former name."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of a former name; None for every other name."""
        former = next((former for former in MOVED if f"{name}.".startswith(f"{former}.")), None)
        return None if former is None else ModuleSpec(name, self, is_package=name == "minipo.exercises")

    def exec_module(self, module: ModuleType) -> None:
        """Put the module itself under the former name."""
        former = next(former for former in MOVED if f"{module.__name__}.".startswith(f"{former}."))
        sys.modules[module.__name__] = import_module(MOVED[former] + module.__name__.removeprefix(former))


sys.meta_path.insert(0, Moved())  # first, because an update may leave an empty folder under a former name
