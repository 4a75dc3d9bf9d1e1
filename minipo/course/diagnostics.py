"""Under the microscope: what a loss does to each negative while a model trains.

`watch` trains a run and records it every few steps; `pushes` computes gap, push, dilution and saturation of every
negative from recorded log-probs; `gradient_parts` splits the gradient of the model's parameters by groups of negatives.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from minipo.compatibility.architectures import context_of
from minipo.dynamic import DynamicPO, LogProbs, Selection, boundary
from minipo.evaluation import Report, Scores, report
from minipo.experiments.configuration import PreferConfig, check_negatives, make_config, splits_of
from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.precision import decide
from minipo.experiments.recorder import probe_table
from minipo.experiments.training import preference_trainer, sft_run
from minipo.experiments.users import fit_prompts, preference_rows
from minipo.folder import home
from minipo.objectives import Aggregate, Losses, Margins, Objective, Used, log_ratio
from minipo.preference import OBJECTIVES, preference_loss, preference_push
from minipo.prompts import answer
from minipo.scoring import pack, packed_logps
from minipo.trainers import mean_logps

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


GROUPS = ("boundary", "discriminative")


@dataclass(frozen=True)
class Moment:
    """A probe's log-probs at one step, chosen first; −inf if a user has fewer candidates than the longest row."""

    step: int
    users: tuple[int, ...]
    items: tuple[tuple[str, ...], ...]
    policy: Float[Tensor, "users candidates"]
    reference: Float[Tensor, "users candidates"]


def moments(probe: pd.DataFrame) -> list[Moment]:
    """A run's probe (`Run.probe`: step, user, candidate, item, reference, policy) as tensors, step by step.

    Raises ValueError if a column is missing.
    """
    needed = ("step", "user", "candidate", "item", "reference", "policy")
    if missing := [name for name in needed if name not in probe]:
        raise ValueError(f"The probe lacks the columns {', '.join(missing)}: give a run's probe, or that of `watch`.")
    found = []
    for step, lines in probe.groupby("step"):
        table = lines.pivot(index="user", columns="candidate")
        policy, reference = (
            torch.from_numpy(table[name].to_numpy(np.float64, na_value=-np.inf)) for name in ("policy", "reference")
        )
        here = table["reference"].notna().to_numpy()  # a user's candidates; a name may be missing
        items = tuple(tuple(names[each]) for names, each in zip(table["item"].to_numpy(), here, strict=True))
        found.append(Moment(int(str(step)), tuple(table.index), items, policy, reference))
    return found


def pushes(
    probe: pd.DataFrame,
    objective: str | Objective | Aggregate = "dmpo",
    beta: float = 1.0,
    dynamic: DynamicPO | None = None,
    negatives: int | None = None,
    lengths: float | None = None,
) -> pd.DataFrame:
    """The objective's effect on every negative of every probed user at every step: one row each.

    probe: see `moments`. negatives: take only the first ones of each user, or all. lengths: tokens of an answer, the
    same for all, for mppo's average likelihood and for simpo (3 in the catalogue, end of answer included).
    Columns: step, user, negative (1..K), item; `gap` ρ_w − ρ_k and `logp_gap` s_w − s_k, in nats; `boundary`, the
    census at this step, and `boundary_at_start`, that of the probe's first step; `used`, `beta`, `push`, `dilution`,
    `saturation`: see `preference_loss` and `preference_push`, per user, not averaged over users.
    Raises ValueError as `moments` and `preference_loss` do. Source of dilution and saturation: `minipo.objectives`.
    """
    tables: list[pd.DataFrame] = []
    at_start: Tensor | None = None
    for moment in moments(probe):
        policy, reference = (
            logps[:, : None if negatives is None else 1 + negatives] for logps in (moment.policy, moment.reference)
        )
        mask = policy[:, 1:].isfinite()
        counts = None if lengths is None else torch.full_like(policy, lengths)
        arguments = (objective, policy, reference, beta, mask, counts, dynamic)
        output, push = preference_loss(*arguments), preference_push(*arguments)
        at_start = output.boundary if at_start is None else at_start
        ratio = policy - reference
        columns = {
            "gap": ratio[:, :1] - ratio[:, 1:],
            "logp_gap": policy[:, :1] - policy[:, 1:],
            "boundary": output.boundary,
            "boundary_at_start": at_start,
            "used": output.used,
            "beta": output.beta,
            **vars(push),
        }
        rows, places = mask.nonzero(as_tuple=True)
        tables.append(
            pd.DataFrame(
                {
                    "step": moment.step,
                    "user": np.asarray(moment.users)[rows],
                    "negative": places.numpy() + 1,
                    "item": [moment.items[row][place + 1] for row, place in zip(rows, places, strict=True)],
                    **{name: values[rows, places].numpy() for name, values in columns.items()},
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def answer_logps(probe: pd.DataFrame) -> pd.DataFrame:
    """Mean log-probs, in nats, of the chosen items and of the negatives that are boundary or discriminative at first:
    columns step, logp_chosen, logp_boundary, logp_discriminative. probe: see `moments`; raises ValueError as it does.
    """
    found = moments(probe)
    return pd.DataFrame(
        [{"step": each.step, **mean_logps(each.policy.numpy(), found[0].policy.numpy())} for each in found]
    )


def by_group(pushed: pd.DataFrame, census: str = "boundary") -> pd.DataFrame:
    """`pushes`' table, averaged over the negatives of each group at each step.

    census: "boundary", which negatives are at the boundary at that step, or "boundary_at_start", so that the groups
    stay the same. Columns: step, group, `negatives` (how many), the means of gap, logp_gap, push, dilution and
    saturation, and `push_share`, the group's part of the sum of all pushes.
    """
    group = np.where(pushed[census], *GROUPS)
    grouped = pushed.assign(group=group).groupby(["step", "group"])
    table = grouped[["gap", "logp_gap", "push", "dilution", "saturation"]].mean()
    table.insert(0, "negatives", grouped.size())
    total = grouped["push"].sum()
    table["push_share"] = total / total.groupby("step").transform("sum")
    return table.reset_index()


def gradient_parts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    reference: Scores,
    objective: str = "dmpo",
    beta: float = 1.0,
    dynamic: DynamicPO | None = None,
    template: str = "line",
    batch_size: int = 64,
) -> pd.DataFrame:
    """The gradient of the mean loss over all trainable parameters, split by groups of negatives.

    Each negative's part is push_k ∇(s_k − s_w), averaged over users; the parts add up to the whole. Groups: boundary
    and discriminative, by the census of the present model. reference: the SFT model's log-probs (users, 1 + K), nats.
    One row per group: `negatives` (how many), `push_share` (its part of the sum of all pushes: the log-probs' view),
    `norm` of its gradient, `cosine` with the whole, and `share`, its projection on the whole over the whole's norm:
    shares add up to 1, and a negative one works against the step.
    Raises ValueError for an objective whose margins are not differences of log-ratios.
    """
    known = OBJECTIVES.get(objective)
    if known is None or known.utility is not log_ratio or known.selects:
        raise ValueError(
            f"gradient_parts cannot take {objective!r} apart: give dpo, dmpo or sdpo, whose margins are differences of "
            "log-ratios."
        )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    prompts, _ = fit_prompts(tokenizer, interactions, template, context_of(model))
    answers = [[answer(item) for item in user.canonical] for user in interactions]
    parts = torch.zeros(len(GROUPS), sum(parameter.numel() for parameter in parameters))
    pushed, counts = torch.zeros(len(GROUPS)), torch.zeros(len(GROUPS))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(interactions), batch_size):
            rows = slice(start, start + batch_size)
            packed = pack(tokenizer, prompts[rows], answers[rows])
            with torch.enable_grad():
                policy = packed_logps(model, packed)
                mask = packed["mask"][:, 1:]
                old = torch.as_tensor(reference[rows, : policy.shape[1]]).to(policy)
                arguments = (objective, policy.detach(), old, beta, mask, None, dynamic)
                push, census = preference_push(*arguments).push, preference_loss(*arguments).boundary
                above = (policy[:, 1:] - policy[:, :1]).masked_fill(~mask, 0)
                groups = (census, mask & ~census)
                for number, group in enumerate(groups):
                    inside = (push * above * group).sum() / len(interactions)
                    gradient = torch.autograd.grad(inside, parameters, retain_graph=number == 0, materialize_grads=True)
                    parts[number] += torch.cat([part.flatten().cpu() for part in gradient])
                    pushed[number] += push[group].sum().cpu()
                    counts[number] += group.sum().cpu()
    finally:
        model.train(training)
    whole = parts.sum(0)
    norms, along = parts.norm(dim=1), parts @ whole
    return pd.DataFrame(
        {
            "group": GROUPS,
            "negatives": counts.int(),
            "push_share": pushed / pushed.sum(),
            "norm": norms,
            "cosine": along / (norms * whole.norm()).clamp(min=1e-30),
            "share": along / whole.square().sum().clamp(min=1e-30),
        }
    )


@dataclass(frozen=True)
class Watched:
    """A preference run recorded during training.

    config: its settings, without a given DynamicPO or function, which it cannot hold. probe: as `Run.probe`, of the
    first validation users. metrics: as `Run.metrics`. test: the test users' report after the last step. seen: step to
    the result of `watch`'s `look`.
    """

    config: PreferConfig
    probe: pd.DataFrame
    metrics: pd.DataFrame
    test: Report
    seen: dict[int, Any]


Look = Callable[["PreTrainedModel | PeftModel", "PreTrainedTokenizerBase"], Any]


def watch(
    objective: str | Objective | Aggregate = "dmpo",
    dynamic: DynamicPO | None = None,
    *,
    every: int = 10,
    probed: int = 64,
    look: Look | None = None,
    users: Sequence[Interaction] | None = None,
    **settings: Any,
) -> Watched:
    """Train as `minipo.prefer` does with these settings, and record the run every few steps.

    objective, dynamic: see `preference_loss`; either may be a function, or hold one, which a run's folder cannot.
    settings: those of `PreferConfig` except DynamicPO's. every: steps between two records; the first is before the
    first step, the last after the last. probed: the number of validation users whose log-probs are recorded. look:
    called with model and tokenizer at each record. users: ranked at the end instead of the test users.
    Keeps nothing but the reference's log-probs, in minipo's cache. Raises ValueError as `prefer` does.
    """
    from transformers import TrainerCallback

    if every < 1 or probed < 1:
        raise ValueError(f"every is {every} and probed {probed}: give whole numbers of at least 1.")
    config = make_config(PreferConfig, {**settings, "objective": objective if isinstance(objective, str) else "dmpo"})
    splits = splits_of(config)
    check_negatives(splits, config.negatives)
    model, tokenizer = sft_run(config, progress=False).load_model()
    probed_users, ranked = splits.validation[:probed], splits.test if users is None else users
    train, *rest = (
        preference_rows(each, config.template, tokenizer, context_of(model))
        for each in (splits.train, probed_users, ranked)
    )
    seen: dict[int, Any] = {}
    scores: dict[int, Scores] = {}

    with tempfile.TemporaryDirectory() as folder:
        config = decide(config, Path(folder), model, progress=False)
        trainer = preference_trainer(
            config, model, tokenizer, train, None, Path(folder), home() / "reference",
            config.loss() if isinstance(objective, str) else objective, dynamic, progress=False, save_strategy="no",
        )  # fmt: skip
        probe, test = map(trainer.read, rest)
        probe_reference, test_reference = trainer.reference_logps(probe), trainer.reference_logps(test)

        class Watch(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step % every == 0 or state.global_step == config.steps:
                    scores[state.global_step] = trainer.score(probe)
                    if look is not None:
                        seen[state.global_step] = look(trainer.model, tokenizer)

            on_train_begin = on_step_end

        trainer.add_callback(Watch())
        trainer.train()
        ranking = report(trainer.score(test), test_reference)
    metrics = pd.DataFrame([{"step": line["step"], **line} for line in trainer.state.log_history if "loss" in line])
    return Watched(config, probe_table(probed_users, scores, probe_reference), metrics, ranking, seen)


def boundary_with_dmpo_weights() -> tuple[Aggregate, DynamicPO]:
    """An experiment: only boundary negatives are pushed, each as DMPO among all K would push it.

    DMPO's weight is σ(−z) / K with z the mean of all K margins. Against DMPO, the easy negatives' own pushes are gone
    and the suppression stays; against the selection (DynamicPO with `adjust_beta=False`), the suppression is back.
    Returns an objective and the `DynamicPO` it needs, for `watch`. The loss it reports is a vehicle for the gradient,
    no measure of anything. A new pair for every run: the two share a note.
    """
    kept: list[Selection] = []

    def everyone(logps: LogProbs) -> Selection:
        kept[:] = [boundary(logps)]
        return logps[:, 1:].isfinite()

    def loss(margins: Margins, used: Used) -> Losses:
        z = margins.masked_fill(~used, 0).sum(1, keepdim=True) / used.sum(1, keepdim=True)
        weight = torch.sigmoid(-z).detach() / used.sum(1, keepdim=True)
        return -(weight * margins * kept[0]).sum(1)

    return loss, DynamicPO(select=everyone, adjust_beta=False)
