"""The checks of assignments 4 and 5, without nbgrader: right answers pass, slips are named with their numbers."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from minipo.course.diagnostics import moments, pushes
from minipo.course.exercises import rule as assignment
from minipo.course.exercises.checks import Wrong, check
from minipo.course.exercises.push import MISTAKE, USER, recorded, recorded_probe
from minipo.course.exercises.rule import Experiment, cases, experiment
from minipo.dynamic import boundary, random
from minipo.evaluation import paired_interval

sigmoid = torch.sigmoid


def margins(policy, reference, beta):
    ratio = policy - reference
    return beta * (ratio[0] - ratio[1:])


def dmpo_parts(margins):
    return 1 / len(margins), sigmoid(-margins.mean())


def dmpo_push(policy, reference, beta):
    dilution, saturation = dmpo_parts(margins(policy, reference, beta))
    return beta * dilution * saturation


def sdpo_parts(margins):
    return torch.softmax(-margins, 0), sigmoid(torch.logsumexp(-margins, 0))


def fall(user, negative, start, end):
    old, new = (
        dmpo_parts(margins(seen.policy, seen.reference, 1.0)) for seen in (recorded(user, start), recorded(user, end))
    )
    return {"push": old[0] * old[1] / (new[0] * new[1]), "dilution": old[0] / new[0], "saturation": old[1] / new[1]}


def factors(dilution, saturation, together):
    return lambda: {"dilution": dilution, "saturation": saturation, "together": together}


RIGHT = {
    "4.1 prediction": factors(19, 20, 380),
    "4.2 margins": margins,
    "4.3 DMPO": dmpo_parts,
    "4.4 push": dmpo_push,
    "4.5 S-DPO": sdpo_parts,
    "4.6 fall": fall,
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes(name, capsys):
    check(name, RIGHT[name])
    assert capsys.readouterr().out.startswith("Right. ")


@pytest.mark.parametrize("name", ["4.2 margins", "4.4 push"])
def test_float32_lists_and_numpy_will_do(name):
    check(name, lambda *given: RIGHT[name](*given).float())
    check(name, lambda *given: RIGHT[name](*given).tolist())
    check(name, lambda *given: RIGHT[name](*given).numpy())


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("4.1 prediction", factors(19, 20, 39), "19 and 20, and together you have 39"),
        ("4.1 prediction", factors(20, 20, 400), "dilution is 20"),
        ("4.1 prediction", factors(19, 2, 38), "not within a factor of 2"),
        ("4.1 prediction", factors(1 / 19, 20, 1), "a factor above 1"),
        ("4.1 prediction", factors("much", 20, 1), "Give one number"),
        ("4.1 prediction", dict, "give a dict from each of 'dilution'"),
        ("4.2 margins", lambda p, r, b: -margins(p, r, b), "signs are turned round"),
        ("4.2 margins", lambda p, r, b: b * (p[0] - p[1:]), "differences of log-probs"),
        ("4.2 margins", lambda p, r, b: margins(p, r, 1), "β = 0.5: β is missing"),
        ("4.2 margins", lambda p, r, b: b * margins(p, r, b), "β is in there twice"),
        ("4.2 margins", lambda p, r, b: b * (p - r)[0] - (p - r)[1:], "β multiplies only one side"),
        ("4.2 margins", lambda p, r, b: b * ((p - r)[0] - (p - r)), "20 numbers for 19 negatives"),
        ("4.2 margins", lambda p, r, b: torch.ones(3), "has 3 numbers"),
        ("4.2 margins", lambda p, r, b: margins(p, r, b) * math.nan, "holds nan"),
        ("4.2 margins", lambda p, r, b: "3.3", "is str"),
        ("4.2 margins", lambda p: p, "could not use your answer: TypeError"),
        ("4.2 margins", 3.3, "give the function, margins"),
        ("4.3 DMPO", lambda d: (1 / len(d), sigmoid(d.mean())), "fall as z grows: you have 0.9648"),
        ("4.3 DMPO", lambda d: (1, sigmoid(-d.mean())), "no negative loses anything"),
        ("4.3 DMPO", lambda d: (1 / 19, sigmoid(-d.mean())), "whatever K is"),
        ("4.3 DMPO", lambda d: (1 / (len(d) + 1), sigmoid(-d.mean())), "one part in 20"),
        ("4.3 DMPO", lambda d: (1 / len(d), sigmoid(-d)), "each margin on its own"),
        ("4.3 DMPO", lambda d: (1 / len(d), sigmoid(-d.sum())), "the sum of the margins"),
        ("4.3 DMPO", lambda d: (1 / len(d), sigmoid(d.mean()) * sigmoid(-d.mean())), "the derivative of σ(z)"),
        ("4.3 DMPO", lambda d: sigmoid(-d.mean()), "return two things"),
        ("4.4 push", lambda p, r, b: dmpo_push(p, r, b) * b, "β is in there twice"),
        ("4.4 push", lambda p, r, b: dmpo_push(p, r, b) / b, "β is missing"),
        ("4.4 push", lambda p, r, b: dmpo_push(p, r, b) * (len(p) - 1), "the dilution is missing: 0.03525"),
        ("4.4 push", lambda p, r, b: b / (len(p) - 1), "the saturation is missing"),
        ("4.4 push", lambda p, r, b: -dmpo_push(p, r, b), "minus the push, −0.001855"),
        ("4.4 push", lambda p, r, b: 0.5 * dmpo_push(p, r, b), "0.5 times what the loss gives"),
        ("4.5 S-DPO", lambda d: (torch.softmax(d, 0), sdpo_parts(d)[1]), "turn to the easy ones"),
        ("4.5 S-DPO", lambda d: (1 / len(d), sdpo_parts(d)[1]), "your shares are equal"),
        ("4.5 S-DPO", lambda d: (torch.exp(-d), sdpo_parts(d)[1]), "do not add up to 1"),
        ("4.5 S-DPO", lambda d: (sdpo_parts(d)[0], sigmoid(-d.mean())), "that is DMPO's z"),
        ("4.5 S-DPO", lambda d: (sdpo_parts(d)[0], 1 - sdpo_parts(d)[1]), "a sign is lost"),
        ("4.5 S-DPO", lambda d: (sdpo_parts(d)[0], sigmoid(-d.min())), "the minimum is soft"),
        ("4.6 fall", lambda *a: fall(*a) | {"dilution": 19}, "within a run, what could change 1/K?"),
        ("4.6 fall", lambda *a: {key: 1 / value for key, value in fall(*a).items()}, "after over before"),
        ("4.6 fall", lambda *a: fall(*a) | {"saturation": 3}, "z goes from 0.00 to 3.31"),
    ],
)
def test_a_slip_is_named(name, answer, said):
    with pytest.raises(Wrong) as error:
        check(name, answer)
    assert said in str(error.value)
    assert "replace `raise" not in str(error.value)


def test_what_the_text_of_assignment_4_says_of_the_recorded_run():
    seen = recorded()
    number = seen.items.index(MISTAKE)
    assert seen.policy[number] > seen.policy[0]
    d = margins(seen.policy, seen.reference, 1.0)
    assert d[number - 1].item() == pytest.approx(-1.15, abs=0.005)
    assert d.mean().item() == pytest.approx(3.3, abs=0.05)
    assert [moment.step for moment in moments(recorded_probe())] == [0, 100, 200, 300]
    table = pushes(recorded_probe())
    row = table[(table.user == USER) & (table.step == 300) & (table.item == MISTAKE)].iloc[0]
    assert row.push == pytest.approx(float(dmpo_push(seen.policy, seen.reference, 1.0)))
    with pytest.raises(ValueError, match="was not recorded at step 7"):
        recorded(USER, 7)


def parts(push=(0.4, 0.6), norm=(2.0, 1.0), cosine=(0.5, 0.9)):
    along = np.multiply(norm, cosine)
    columns = {"push_share": push, "norm": norm, "cosine": cosine, "share": along / along.sum()}
    return pd.DataFrame({"group": ["boundary", "discriminative"], **columns})


def two_views(table):
    groups = table.set_index("group")
    ratio = groups.loc["boundary", "share"] / groups.loc["boundary", "push_share"]
    return {"pushes": groups["push_share"].idxmax(), "gradient": groups["share"].idxmax(), "ratio": ratio}


def disagreement(table):
    odds = table.set_index("group").pipe(lambda numbers: numbers.loc["boundary"] / numbers.loc["discriminative"])
    return {
        "length": odds["norm"] / odds["push_share"],
        "direction": odds["cosine"],
        "total": odds["share"] / odds["push_share"],
    }


def test_the_two_views(capsys):
    check("4.7 two views", two_views, parts())
    check("4.8 disagreement", disagreement, parts())
    assert "1.67 = 3.00 by length × 0.56 by direction" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "answer", "table", "said"),
    [
        (
            "4.7 two views",
            lambda t: two_views(t) | {"gradient": t.group[t.norm.idxmax()]},
            parts(),
            "norm is the length",
        ),
        (
            "4.7 two views",
            lambda t: two_views(t) | {"ratio": 1 / two_views(t)["ratio"]},
            parts(),
            "Yours is turned round",
        ),
        ("4.7 two views", lambda t: two_views(t) | {"pushes": "easy"}, parts(), "name the group"),
        ("4.7 two views", two_views, None, "There is no table"),
        ("4.8 disagreement", lambda t: disagreement(t) | {"length": t.norm[0] / t.norm[1]}, parts(), "*per push*"),
        ("4.8 disagreement", lambda t: {k: 1 / v for k, v in disagreement(t).items()}, parts(), "turn it round"),
        ("4.8 disagreement", lambda t: disagreement(t) | {"total": 7.0}, parts(), "Your total is 7"),
    ],
)
def test_a_slip_between_the_views_is_named(name, answer, table, said):
    with pytest.raises(Wrong) as error:
        check(name, answer, table)
    assert said in str(error.value)


# ------------------------------------------------------------------------------------------------------ assignment 5


def lowest(score, number):
    return score.argsort(dim=1, stable=True).argsort(dim=1) < number


def nearest(logps):
    return lowest((logps[:, 1:] - logps[:, :1]).abs(), boundary(logps).sum(1, keepdim=True))


def in_place(logps):
    logps[:, 0] += 1
    return nearest(logps)


VALID = ["5.1 valid", "5.2 same number", "5.3 own row", "5.4 new"]


@pytest.mark.parametrize("name", VALID)
def test_a_fair_rule_passes(name):
    check(name, nearest)


def test_the_cases_hold_what_they_promise():
    found = cases()
    assert all((logps[:, 1:] > -torch.inf).any(1).all() for logps in found.values())
    assert found["some negatives are absent, at −inf"].isneginf().any(1).float().mean() > 0.9
    above = found["all negatives above the chosen item"]
    assert boundary(above).all()
    sizes = boundary(found["a recorded model's log-probs"]).sum(1)
    assert len(sizes.unique()) > 5


@pytest.mark.parametrize(
    ("name", "rule", "said"),
    [
        ("5.1 valid", random, "Asked twice about the same log-probs"),
        ("5.1 valid", lambda s: nearest(s).float(), "return torch.bool of shape (128, 19)"),
        ("5.1 valid", lambda s: s > 0, "torch.bool of shape (128, 20)"),
        ("5.1 valid", lambda s: nearest(s).tolist(), "returned list"),
        ("5.1 valid", in_place, "it may only read them"),
        ("5.1 valid", lambda s: lowest(s[:, 1:], 3), "absent ones, whose log-prob is −inf"),
        ("5.1 valid", None, "The answer is NoneType"),
        ("5.2 same number", lambda s: lowest((s[:, 1:] - s[:, :1]).abs(), 3), "keeps 3 negatives where"),
        ("5.3 own row", lambda s: s[:, 1:] > s[:, 1:].mean(), "Along which axis"),
        ("5.3 own row", lambda s: nearest(s) & (torch.arange(len(s)) % 2 == 0)[:, None], "depend on who else"),
        ("5.4 new", boundary, "exactly the boundary"),
    ],
)
def test_an_unfair_rule_is_told_why(name, rule, said):
    with pytest.raises(Wrong) as error:
        check(name, rule)
    assert said in str(error.value)


def stub(logps):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("rule", "seeds", "said"),
    [
        (stub, assignment.SEEDS, "no rule yet"),
        (boundary, assignment.SEEDS, "the rule is not ready"),
        (nearest, (0, 10, 11, 12, 13), "Seeds 0 are those of the recorded grids"),
        (nearest, (10, 10, 11, 12, 13), "five different ones"),
        (nearest, (10, 11, 12), "The seeds are 10, 11, 12"),
    ],
)
def test_no_budget_is_spent_on_an_unfair_trial(rule, seeds, said, monkeypatch):
    monkeypatch.setattr(assignment, "_train", lambda *_: pytest.fail("trained"))
    with pytest.raises(Wrong) as error:
        experiment(rule, seeds)
    assert said in str(error.value)


def test_training_repeats_even_where_the_selection_draws_at_random():
    first, again = (assignment._train(random, 10, 2, 30) for _ in range(2))
    assert first.hits.tolist() == again.hits.tolist()
    assert first == again
    assert first.rows > 64
    assert first.unequal == 0


def test_an_experiment_is_paired_and_counts_what_was_kept(monkeypatch, capsys):
    trained = []

    def train(select, seed, steps, users):
        trained.append(seed)
        run = assignment._Run(select, hits=np.full(users, float(select is True)))
        run(cases()["a recorded model's log-probs"])
        return run

    monkeypatch.setattr(assignment, "_train", train)
    monkeypatch.setattr(assignment, "_tried", [])
    assignment._partner.cache_clear()
    found = [experiment(nearest, steps=3, users=4) for _ in range(2)][1]
    assignment._partner.cache_clear()
    assert len(trained) == 5 * (2 + 1 + 1)  # the partners once
    assert found.table["rule − boundary, points"].tolist() == [-100.0] * 5
    assert found.kept["rule"] == found.kept["random"] == found.kept["boundary"]
    assert "seed 10: HR@1 rule 0.000, random 0.000, boundary 1.000" in capsys.readouterr().out
    check("5.5 budget", found)
    said = capsys.readouterr().out
    assert "3 steps and 4 users are a rehearsal" in said
    assert "this was experiment 2" in said


def outcome(against_random=0.0, against_boundary=0.0, **changed):
    """An experiment with these true differences of HR@1, over few users, who are ranked quickly."""
    generator = np.random.default_rng(0)
    draws = generator.random((1, 400)) + 0.05 * generator.random((5, 400))
    hits = {"rule": draws < 0.7, "random": draws < 0.7 - against_random, "boundary": draws < 0.7 - against_boundary}
    hits = {name: values.astype(float) for name, values in hits.items()}
    for name, values in hits.items():
        if name != "rule":  # users at odds in both directions
            values[:, :5] = 1 - hits["rule"][:, :5]
    found = Experiment(assignment.SEEDS, 300, 400, hits, dict.fromkeys(hits, 4.7), unequal=0, tried=1)
    return replace(found, **changed)


def interval(result, other):
    return paired_interval(result.hits["rule"] - result.hits[other])


def unpaired(result, other):
    left, right = (paired_interval(result.hits[name]) for name in ("rule", other))
    return left.mean - right.mean, left.low - right.high, left.high - right.low


def test_the_budget(capsys):
    whole = {name: np.ones((5, 2000)) for name in ("rule", "random", "boundary")}
    check("5.5 budget", outcome(users=2000, hits=whole))
    assert "Note" not in capsys.readouterr().out
    for found, said in [
        (outcome(seeds=(10, 11, 12, 13, 4)), "Seeds 4 are those"),
        (outcome(unequal=7), "in 7 rows"),
        (outcome(users=100), "not paired any more"),
        (None, "There is no result"),
    ]:
        with pytest.raises(Wrong) as error:
            check("5.5 budget", found)
        assert said in str(error.value)


def test_the_interval():
    found = outcome(0.04, -0.02)
    check("5.6 interval", interval, found)
    check("5.6 interval", lambda r, o: paired_interval(r.hits["rule"] - r.hits[o], seed=1, resamples=4000), found)
    for function, said in [
        (unpaired, "subtracts the ends of two intervals"),
        (lambda r, o: paired_interval(r.hits[o] - r.hits["rule"]), "partner minus the rule"),
        (lambda r, o: paired_interval((r.hits["rule"] - r.hits[o]).mean(0)), "not seeds"),
        (lambda r, o: paired_interval((r.hits["rule"] - r.hits[o]).mean(1, keepdims=True)), "not users"),
        (lambda r, o: paired_interval(100 * (r.hits["rule"] - r.hits[o])), "is in points"),
        (lambda r, o: paired_interval(r.hits["rule"][:3] - r.hits[o][:3]), "The mean is another one"),
        (
            lambda r, o: paired_interval((r.hits["rule"] - r.hits[o])[:, :, None].reshape(1, -1)),
            "but not the ends",
        ),
        (lambda r, o: 0.5, "give an Interval"),
    ]:
        with pytest.raises(Wrong) as error:
            check("5.6 interval", function, found)
        assert said in str(error.value), error.value


@pytest.mark.parametrize(
    ("differences", "verdicts"),
    [
        ((0.06, -0.06), {"random": "helps", "boundary": "hurts"}),
        ((0.0, 0.06), {"random": "undecided", "boundary": "helps"}),
        ((0.0, 0.0), {"random": "undecided", "boundary": "undecided"}),
    ],
)
def test_any_verdict_that_follows_from_the_interval_is_right(differences, verdicts):
    found = outcome(*differences)
    check("5.7 verdict", lambda: verdicts, found)
    for other, said in verdicts.items():
        for wrong in {"helps", "hurts", "undecided"} - {said}:
            with pytest.raises(Wrong, match=f"Against {other} you say '{wrong}'"):
                check("5.7 verdict", lambda other=other, wrong=wrong: verdicts | {other: wrong}, found)
    with pytest.raises(Wrong, match="say one of"):
        check("5.7 verdict", lambda: {"random": "significant", "boundary": "hurts"}, found)
    with pytest.raises(Wrong, match="give a dict from each of 'random', 'boundary'"):
        check("5.7 verdict", lambda: "helps", found)
