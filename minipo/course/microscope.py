"""One user's candidates through a run, and what a loss would do to each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from minipo.course.diagnostics import Moment
from minipo.dynamic import DynamicPO, boundary
from minipo.experiments.configuration import SELECT
from minipo.names import lookup
from minipo.preference import preference_loss, preference_push


@dataclass(frozen=True)
class Followed:
    """One user's candidates at every step of a run, chosen first; log-probs in nats."""

    user: int
    names: tuple[str, ...]
    steps: tuple[int, ...]
    policy: Float[Tensor, "steps candidates"]
    reference: Float[Tensor, "steps candidates"]


def follow(seen: Sequence[Moment], user: int) -> Followed:
    """A user of a probe (`diagnostics.moments`) through its steps; ValueError if the probe has no such user."""
    users = seen[0].users if seen else ()
    if user not in users:
        numbers = f": its users are numbered {min(users)} to {max(users)}" if users else ""
        raise ValueError(f"This run has no record of user {user}{numbers}.")
    row = users.index(user)
    names = seen[0].items[row]
    policy, reference = (
        torch.stack([getattr(moment, name)[row, : len(names)] for moment in seen]) for name in ("policy", "reference")
    )
    return Followed(user, names, tuple(moment.step for moment in seen), policy, reference)


def violations(moment: Moment) -> dict[int, int]:
    """How many negatives are ranked at or above the chosen item, for each user of a probe at one step."""
    above = (moment.policy[:, 1:] >= moment.policy[:, :1]).sum(1)
    return dict(zip(moment.users, above.tolist(), strict=True))


def groups(logps: Float[Tensor, "batch candidates"], clusters: int = 3) -> Int[np.ndarray, "batch negatives"]:
    """The groups of the best split of each row's negatives, 0 the highest, which is the one that `boundary` keeps.

    The groups below the highest one are the best split of the remaining negatives into one group fewer.
    """
    ahead = logps.clone()
    ahead[:, 0] = logps.amax(1) + 1  # then no negative violates
    left = logps[:, 1:].isfinite()
    found = torch.full(left.shape, -1)
    for group in range(clusters):
        top = boundary(ahead, left, clusters - group)
        found[top] = group
        left = left & ~top
    return found.numpy()


def examine(
    followed: Followed,
    objective: str = "dmpo",
    *,
    beta: float = 1.0,
    margin: float = 6.0,
    clusters: int = 3,
    select: str = "off",
    adjust_beta: bool = False,
    negatives: int | None = None,
    lengths: float | None = None,
) -> pd.DataFrame:
    """What a loss would do to each of a user's candidates at every step of the run.

    select: a key of `configuration.SELECT`; a random draw is always the same for a user. negatives: K, to take the
    user's first K, or all. lengths: see `pushes`.
    One row per step and candidate (0 = chosen): step, candidate, name; `logp` and `reference` in nats; `place` among
    all candidates, 1 the best (ties count against the chosen item); `kind`: chosen, above, top, rest or absent;
    `group` of the k-means, 0 the highest, -1 where it plays no part; `used`, and `beta`, `dilution`, `saturation`,
    `slope` (du/ds) and their product `push`, all 0 where unused.
    Raises ValueError as `preference_loss` and `DynamicPO` do, and for an unknown rule.
    """
    rule: Any = lookup("setting of select", select, SELECT)
    count = len(followed.names)
    kept = slice(0, count if negatives is None else 1 + negatives)
    policy, reference = followed.policy[:, kept], followed.reference[:, kept]
    if callable(rule):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(followed.user)
            drawn = rule(policy, clusters)
    selection = (lambda _: drawn) if callable(rule) else rule
    counts = None if lengths is None else torch.full_like(policy, lengths)
    arguments = (objective, policy, reference, beta, None, counts, DynamicPO(margin, clusters, selection, adjust_beta))
    output, push = preference_loss(*arguments), preference_push(*arguments)
    logps = followed.policy.numpy()
    order = np.lexsort((np.broadcast_to(np.arange(count) == 0, logps.shape), -logps), axis=1)
    above = (policy[:, 1:] >= policy[:, :1]).numpy()
    kinds = np.full(logps.shape, "absent", object)
    kinds[:, 0] = "chosen"
    kinds[:, kept][:, 1:] = np.where(above, "above", np.where(output.boundary.numpy(), "top", "rest"))
    group = np.where(above.any(1, keepdims=True), -1, groups(policy, clusters))

    def whole(values: Any, fill: Any = 0.0) -> np.ndarray:
        """Values of the negatives in use, for all candidates."""
        values = np.asarray(values)
        table = np.full(logps.shape, fill, values.dtype)
        table[:, kept][:, 1:] = values
        return table.ravel()

    columns = {name: whole(getattr(push, name)) for name in ("dilution", "saturation", "push")}
    columns["beta"] = whole(output.beta)
    parts = columns["dilution"] * columns["saturation"] * columns["beta"]
    columns["slope"] = np.divide(columns["push"], parts, out=np.zeros_like(parts), where=parts > 0)
    return pd.DataFrame(
        {
            "step": np.repeat(followed.steps, count),
            "candidate": np.tile(np.arange(count), len(followed.steps)),
            "name": np.tile(np.array(followed.names, object), len(followed.steps)),
            "logp": logps.ravel(),
            "reference": followed.reference.numpy().ravel(),
            "place": order.argsort(1).ravel() + 1,
            "kind": kinds.ravel(),
            "group": whole(group, -1),
            "used": whole(output.used, False),
            **columns,
        }
    )
