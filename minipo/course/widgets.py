"""A notebook's interactive parts: a guess before a figure, and controls beside one.

Figures come from `course.figures`, numbers from the notebook's own cells. Without a kernel, each control is described
by a line of text, and each figure is shown in its first state.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ipywidgets
import plotly.graph_objects as go
import plotly.io
from IPython.core.getipython import get_ipython
from IPython.display import Markdown, display


def start() -> None:
    """Every notebook's first call: prints versions, and makes minipo's own errors one line long.

    Figures are sent as data that Jupyter draws itself, unless the variable PLOTLY_RENDERER or the environment (Colab,
    for example) chooses another renderer.
    """
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((ValueError, OSError), _one_line)
    if "PLOTLY_RENDERER" not in os.environ and plotly.io.renderers.default == "plotly_mimetype+notebook":
        plotly.io.renderers.default = "plotly_mimetype"
    print(f"minipo {version('minipo')}, torch {version('torch')}, {os.cpu_count()} cores: ready.")


def _one_line(shell: Any, kind: type[BaseException], error: BaseException, trace: Any, tb_offset: Any = None) -> None:
    """Show an error that minipo raises as one sentence, and any other with its traceback."""
    deepest = traceback.extract_tb(trace)[-1].filename
    if Path(deepest).is_relative_to(Path(__file__).parents[1]):
        shell._showtraceback(kind, error, [str(error)])
    else:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def _show_controls(controls: Sequence[ipywidgets.Widget], described: str) -> None:
    """The controls, side by side if there is room, and a line of text in case there is no kernel."""
    box = ipywidgets.Box(list(controls), layout={"flex_flow": "row wrap", "align_items": "center"})
    bundle = {**box._repr_mimebundle_(), "text/plain": described, "text/markdown": described}
    display(bundle, raw=True)


def _described(widget: Any) -> str:
    name = widget.description or getattr(widget, "placeholder", "")
    if hasattr(widget, "options"):
        return f"{name}: {', '.join(str(option) for option in widget._options_labels)}"
    if hasattr(widget, "max"):
        return f"{name}: {widget.min:g} to {widget.max:g}"
    return str(name)


class Explorer:
    """Controls above a sentence and a figure, which are computed again whenever a control moves.

    draw: takes the controls' values by name and returns a figure, a sentence in Markdown, or both as (figure,
    sentence). controls: ipywidgets by name. `figure` and `sentence` are the latest. A ValueError of `draw` replaces the
    sentence, and the figure stays as it was.
    """

    figure: Any = None
    sentence = ""
    buttons: Sequence[ipywidgets.Button] = ()

    def __init__(self, draw: Callable[..., Any], **controls: Any):
        self.draw, self.controls = draw, controls
        for control in controls.values():
            control.style.description_width = "initial"
            control.observe(self._changed, "value")
        self._take(draw(**self._values()))
        shown = [*controls.values(), *self.buttons]
        _show_controls(shown, f"*Controls in a running notebook:* {'; '.join(map(_described, shown))}")
        self._text: Any = display(Markdown(self.sentence), display_id=True)
        self._plot: Any = None
        if self.figure is not None:
            self._plot = go.FigureWidget(self.figure)
            # Without a kernel, the figure's data or picture is shown instead of the widget.
            display({**self.figure._repr_mimebundle_(), **self._plot._repr_mimebundle_()}, raw=True)

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _take(self, drawn: Any) -> None:
        for part in drawn if isinstance(drawn, tuple) else (drawn,):
            if isinstance(part, str):
                self.sentence = part
            else:
                self.figure = part

    def _changed(self, _: Any) -> None:
        try:
            self._take(self.draw(**self._values()))
        except ValueError as error:
            self.sentence = str(error)
        self._show()

    def _show(self) -> None:
        if self._text is not None:
            self._text.update(Markdown(self.sentence))
        if self._plot is not None:
            with self._plot.batch_update():
                self._plot.data = []
                self._plot.add_traces(self.figure.data)
                self._plot.layout = self.figure.layout


class Training(Explorer):
    """An explorer with a button that trains: what comes is drawn as it comes.

    draw: as of an `Explorer`, what is shown before. train: takes the controls' values by name and yields what `draw`
    returns. label: the button's, which cannot be pressed while it trains. Interrupting the kernel stops it. The
    message of a ValueError or OSError of `train` follows the sentence.
    """

    def __init__(self, draw: Callable[..., Any], train: Callable[..., Iterator[Any]], label: str, **controls: Any):
        self.train, self.label = train, label
        self.button = ipywidgets.Button(description=label, icon="play", layout={"width": "auto"})
        self.button.on_click(self._pressed)
        self.buttons = (self.button,)
        super().__init__(draw, **controls)

    def _pressed(self, _: Any) -> None:
        self.button.disabled, self.button.description = True, "Training …"
        try:
            for drawn in self.train(**self._values()):
                self._take(drawn)
                self._show()
        except (ValueError, OSError, KeyboardInterrupt) as error:
            self.sentence += f" {error}" if str(error) else " Stopped; press the button to go on from here."
            self._show()
        finally:
            self.button.disabled, self.button.description = False, self.label


class Choice:
    """A question with a few answers, to guess before `reveal` shows the truth; `guess` is None without a guess."""

    def __init__(self, question: str, options: Sequence[str]):
        self.options = tuple(options)
        self.buttons = ipywidgets.ToggleButtons(
            options=self.options, value=None, style={"button_width": "auto"}, layout={"width": "auto"}
        )
        display(Markdown(f"**Your guess.** {question}"))
        _show_controls([self.buttons], f"*To be guessed in a running notebook:* {' / '.join(self.options)}")

    @property
    def guess(self) -> str | None:
        """The chosen answer."""
        return self.buttons.value

    def reveal(self, truth: str, why: str = "") -> None:
        """Show the answer beside the guess, and why. Raises ValueError if `truth` is not one of the options."""
        display(Markdown(self.result(truth) + (f" {why}" if why else "")))

    def result(self, truth: str) -> str:
        """The text of `reveal`, in Markdown."""
        if truth not in self.options:
            raise ValueError(f"The answer {truth!r} is not one of the options: {', '.join(self.options)}.")
        if self.guess is None:
            return f"No guess was made. The answer: **{truth}**."
        right = self.guess == truth
        return f"Your guess was right: **{truth}**." if right else f"You guessed *{self.guess}*; it is **{truth}**."


class Numbers:
    """A number to guess for each of a few labels, with sliders, before the truth is shown by `reveal`.

    labels: of the sliders. low, high, step: of the sliders, which start at `begin`. unit: of a guess, as text.
    `guesses` maps each label to its slider's value; `made` says whether any slider was moved.
    """

    def __init__(
        self, question: str, labels: Sequence[str], low: float, high: float, step: float, begin: float, unit: str = ""
    ):
        self.unit, self.begin = unit, begin
        self.sliders = {
            label: ipywidgets.FloatSlider(
                value=begin, min=low, max=high, step=step, description=label, style={"description_width": "initial"}
            )
            for label in labels
        }
        display(Markdown(f"**Your guess.** {question}"))
        described = f"{f'{low:g} to {high:g} {unit}'.strip()}: {', '.join(labels)}"
        _show_controls(list(self.sliders.values()), f"*To be guessed in a running notebook,* {described}")

    @property
    def guesses(self) -> dict[str, float]:
        """The sliders' values."""
        return {label: slider.value for label, slider in self.sliders.items()}

    @property
    def made(self) -> bool:
        """Whether any slider was moved."""
        return any(slider.value != self.begin for slider in self.sliders.values())

    def reveal(self, truth: Mapping[str, float]) -> None:
        """Show how far the guesses are from the truth. Raises ValueError if a label has none."""
        display(Markdown(self.result(truth)))

    def result(self, truth: Mapping[str, float]) -> str:
        """The text of `reveal`, in Markdown."""
        if missing := [label for label in self.sliders if label not in truth]:
            raise ValueError(f"There is no truth for {', '.join(missing)}: give a number for each label.")
        if not self.made:
            return "No guess was made: the sliders are where they began."
        error = sum(abs(guess - truth[label]) for label, guess in self.guesses.items()) / len(self.sliders)
        return f"Your guesses are off by **{f'{error:.2g} {self.unit}'.strip()}** on average."
