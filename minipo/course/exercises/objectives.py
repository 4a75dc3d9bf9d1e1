"""Assignment 1, the objectives: unlabelled curves of the push, and planted wrong losses for a test to catch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log10
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from minipo.course.exercises.checks import Wrong, dictionary, plant, task
from minipo.course.figures.style import INK, OBJECTIVE_LABELS, lay_out, short
from minipo.names import lookup
from minipo.preference import preference_loss, preference_push

# ------------------------------------------------------------------------------------------------- unlabelled curves


@dataclass(frozen=True)
class _Panel:
    """Rows of negatives along an axis; the push on negative 1, in column 0, is drawn."""

    title: str
    axis: str
    at: Tensor  # (points,)
    likelihood: float  # π of the chosen item, which MPPO's push depends on
    margins: Tensor  # (points, negatives), nan where a row has fewer
    letters: dict[str, str]

    def push(self, objective: str) -> Tensor:
        """Push on negative 1, its dilution and its saturation: (3, points). The reference is the same for all."""
        chosen = torch.full_like(self.at, self.likelihood).log()[:, None]
        policy = torch.cat([chosen, chosen - self.margins], dim=1)
        result = preference_push(objective, policy, chosen.expand_as(policy), mask=~self.margins.isnan())
        return torch.stack([result.push[:, 0], result.dilution[:, 0], result.saturation[:, 0]])


def _beside(own: Tensor, others: Tensor, number: int) -> Tensor:
    """Margins of a negative (points,), and of `number` others that share one, (points,) or (points, number)."""
    return torch.cat([own[:, None], others.reshape(len(own), -1).expand(-1, number)], dim=1)


_UP = torch.linspace(-1, 9, 57, dtype=torch.float64)
_ACROSS = torch.linspace(-5, 9, 57, dtype=torch.float64)
_NUMBERS = torch.arange(19, dtype=torch.float64)
_PANELS = {
    "one": _Panel(
        "Push on a mistake at margin −1, as eighteen other negatives get easier",
        "margin of each of the eighteen others, nats", _UP, 0.3, _beside(torch.full_like(_UP, -1), _UP, 18),
        {"A": "mppo", "B": "sdpo", "C": "dmpo", "D": "dpo"},
    ),
    "two": _Panel(
        "Push on one negative, as it gets easier itself; nine others stay at margin 2",
        "own margin of this negative, nats", _ACROSS, 0.0025, _beside(_ACROSS, torch.full_like(_ACROSS, 2), 9),
        {"A": "dmpo", "B": "dpo", "C": "mppo", "D": "sdpo"},
    ),
    "three": _Panel(
        "Push on a mistake at margin −1, as easy negatives at margin 4 are added", "number of easy negatives",
        _NUMBERS, 0.3,
        _beside(torch.full_like(_NUMBERS, -1),
                torch.where(torch.arange(18) < _NUMBERS[:, None], 4.0, torch.nan).double(), 18),
        {"A": "dpo", "B": "mppo", "C": "sdpo", "D": "dmpo"},
    ),
}  # fmt: skip


def unlabelled(panel: str) -> go.Figure:
    """Push curves of DPO, DMPO, S-DPO and MPPO without their names: panel "one", "two" or "three".

    β is 1. Every candidate has the same log-prob under the reference, so that a margin in log-ratios is one in
    log-probs. Raises ValueError for an unknown panel.
    """
    drawn = lookup("panel", panel, _PANELS)
    at = drawn.at.tolist()
    figure = go.Figure()
    for (letter, objective), dash in zip(drawn.letters.items(), ("solid", "dash", "dot", "dashdot"), strict=True):
        pushes = drawn.push(objective)[0].tolist()
        figure.add_scatter(
            x=at, y=pushes, mode="lines", name=letter, line={"color": INK, "dash": dash, "width": 2},
            hovertemplate=f"{letter}: %{{y:.2g}} at %{{x:.1f}}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(x=at[-1], y=log10(pushes[-1]), text=f"<b>{letter}</b>", xanchor="left", xshift=6)
    note = f"Chosen item's likelihood π<sub>w</sub> = {drawn.likelihood:g}, β = 1"
    title, axis = f"{drawn.title}<br><sup>{note}</sup>", "push −∂loss/∂s, log scale"
    figure.update_xaxes(range=[at[0], at[-1]])
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, tickfont={"size": 12})
    return lay_out(figure, 440, title, drawn.axis, axis, width=820, showlegend=False, margin_t=70, margin_r=32)


def _matched(panel: _Panel, answer: Any) -> str:
    given = dictionary(answer, panel.letters, "the name of an objective")
    given = {letter: str(name).lower().replace("-", "") for letter, name in given.items()}
    if sorted(given.values()) != sorted(panel.letters.values()):
        raise Wrong(
            f"The names are {', '.join(given.values())}: give each of dpo, dmpo, sdpo and mppo to exactly one letter."
        )
    wrong = [letter for letter in panel.letters if given[letter] != panel.letters[letter]]
    if not wrong:
        return "All four letters are matched."
    # Name the curve and the place where the claim is furthest from the drawing.
    drawn = torch.stack([panel.push(panel.letters[letter])[0] for letter in wrong])  # (letters, points)
    claimed = torch.stack([panel.push(given[letter]) for letter in wrong], dim=1)  # (3, letters, points)
    which, where = divmod(int((claimed[0] / drawn).log().abs().argmax()), len(panel.at))
    letter, name = wrong[which], OBJECTIVE_LABELS[given[wrong[which]]]
    push, dilution, saturation = (short(number) for number in claimed[:, which, where].tolist())
    likelihood = " × π of the negative" if given[letter] == "mppo" else ""
    place = f"{panel.at[where].item():g}".replace("-", "−")
    raise Wrong(
        f"{letter} is not {name}: where the {panel.axis.removesuffix(', nats')} is {place}, curve "
        f"{letter} is at {short(drawn[which, where].item())}, but {name}'s push is {push} there: dilution "
        f"{dilution} × saturation {saturation}{likelihood}. {len(wrong)} letters are matched wrongly."
    )


for _number, _name in enumerate(_PANELS, start=1):
    task(f"1.{_number} panel {_name}")(partial(_matched, _PANELS[_name]))


# ---------------------------------------------------------------------------------------------- planted wrong losses

Loss = Callable[[Tensor, Tensor, float], Tensor]  # policy, reference (B, 1 + K), β → losses (B,)


def right(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """DMPO, the library's."""
    return preference_loss("dmpo", policy, reference, beta).losses


def _right_in_another_order(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    rewards = beta * (policy - reference.detach())
    return torch.log1p(torch.exp(rewards[:, 1:].mean(1) - rewards[:, 0]))


def _loss_w(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    ratio = policy - reference
    return -logsigmoid(beta * (ratio[:, :1] - ratio[:, 1:])).mean(1)


def _loss_x(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    rewards = beta * (policy - reference)
    return -logsigmoid(beta * (rewards[:, 0] - rewards[:, 1:].mean(1)))


def _loss_y(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    gap = policy[:, 0] - policy[:, 1:].mean(1)
    expected = reference[:, 0] - reference[:, 1:].mean(1)
    return -logsigmoid(beta * (gap + expected))


def _loss_z(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    ratio = policy - reference
    ratio = torch.cat([ratio[:, :1].detach(), ratio[:, 1:]], dim=1)
    return -logsigmoid(beta * (ratio[:, 0] - ratio[:, 1:].mean(1)))


def _value(loss: Loss, policy: list[float], reference: list[float] | None = None, beta: float = 1.0) -> str:
    """Loss of one row, by default under a reference that holds all candidates equal."""
    logps, expected = torch.tensor([policy, reference or [0.0] * len(policy)]).double().split(1)
    return f"{loss(logps, expected, beta).item():.3f}"


def _gradient(loss: Loss, policy: list[float]) -> str:
    logps = torch.tensor([policy], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(logps, torch.zeros_like(logps), 1.0).sum(), logps)
    return ", ".join(f"{value:.2f}" for value in gradient[0].tolist()).replace("-", "−")


def _plant(name: str, planted: Loss, visible: str) -> None:
    """visible: what the test could have seen."""
    rights = {"the right loss": right, "a right loss that sums in another order": _right_in_another_order}
    advice = (
        "A test that fails on everything catches nothing: check its numbers by hand, compare with a tolerance "
        "(torch.allclose), and remember that a push is minus a gradient."
    )
    plant(name, "test_dmpo(loss)", planted, rights, advice, f"The planted loss passed your test. {visible}")


_ONE, _TWO, _ROW = [0.0, -2.0], [0.0, 1.0, -4.0], [0.0, 1.0, -1.0]
_plant(
    "1.4 loss W",
    _loss_w,
    f"With one negative at margin 2 it gives {_value(_loss_w, _ONE)}, as DMPO does. With two, at margins −1 and 4, it "
    f"gives {_value(_loss_w, _TWO)} and DMPO {_value(right, _TWO)}. What does DMPO do with a mistake beside an easy "
    "negative?",
)
_plant(
    "1.5 loss X",
    _loss_x,
    f"At β = 1 it is DMPO: a log-ratio gap of 2 gives {_value(_loss_x, _ONE)}. At β = 0.1 that gap gives "
    f"{_value(_loss_x, _ONE, beta=0.1)}, and DMPO {_value(right, _ONE, beta=0.1)}. Which β does your test use?",
)
_plant(
    "1.6 loss Y",
    _loss_y,
    f"Under a reference that holds all candidates equal it gives {_value(_loss_y, _ONE)} for a gap of 2, as DMPO does. "
    "Where policy and reference are the same model, with that gap in both, it gives "
    f"{_value(_loss_y, _ONE, _ONE)} and DMPO {_value(right, _ONE, _ONE)}. What is the loss of a model that has not "
    "moved?",
)
_plant(
    "1.7 loss Z",
    _loss_z,
    "Its value is DMPO's everywhere. Its gradient is not: with log-ratios 0, 1, −1 and β = 1 the derivatives by the "
    f"three log-probs are {_gradient(_loss_z, _ROW)}, and DMPO's are {_gradient(right, _ROW)}. What must they add up "
    "to, and why?",
)
