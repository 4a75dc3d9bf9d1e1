"""Typical wrong answers to assignment 3; the format stands in test_scores.py."""

WRONG = {
    "the graver the mistake, the more": {
        "cells": {
            "half": """
def half():
    return torch.tensor([[0.0, 50.0, -1.0, -2.0]])
""",
            "above": """
def above():
    return torch.tensor([[0.0, 40.0, -41.0, -41.0]])
""",
            "exception": """
def exception():
    return torch.tensor([[0.0, 1.0, 2.0, -3.0]])
""",
        },
        "messages": {
            "test-half": ["Δ⁺ = −50, Δ⁻ = 51.5, x = −1.059, β_k = 0.607 β", "Raising a violator further does not help"],
            "test-above": ["β_k = 0.609 β", "it is not the mistakes that are pushed hardest"],
            "test-exception": ["The bound holds", "Its Δ⁻ is not negative"],
        },
    },
    "the bound for every violator": {
        "cells": {
            "equal": """
def equal():
    return torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
""",
            "test-bound": """
def test_bound(strength):
    logps = torch.tensor([[0.0, 1.0, 50.0], [0.0, 2.0, -5.0]], dtype=torch.float64)
    violators = logps[:, 1:] >= logps[:, :1]
    assert (strength(logps, 2.0, 6.0)[violators] <= 0.6193 * 2.0).all(), "a violator above 0.62 β"
""",
        },
        "messages": {"test-equal": "That is row 1's case"}
        | {
            test: ["Your test fails on the right dual-margin β, saying: a violator above 0.62 β", "nobody is left out"]
            for test in ("test-p", "test-q", "test-r")
        },
    },
    "one setting, and the sign without the interval": {
        "cells": {
            "test-bound": """
def test_bound(strength):
    logps = torch.tensor([[0.0, 1.0, -3.0, -6.0]], dtype=torch.float64)
    assert strength(logps, 1.0, 6.0)[0, 0] <= 0.6193
""",
            "reading": """
def reading():
    return {"β without selection": "hurts", "β with selection": "helps", "selection": "helps"}
""",
        },
        "messages": {
            "test-q": ["several violators", "the bound is 0.619 β"],
            "test-r": ["At β = 1 it is right", "Which β does your test use?"],
            "test-reading": ["−0.29 [−0.63, +0.03] points", "includes zero"],
        },
    },
    "the other side subtracted": {
        "cells": {
            "intervals": """
def intervals():
    run = {"metric": "hr@1", "objective": "dmpo", "negatives": 19}
    plain = objectives.outcomes(**run, dynamic="off")
    both = objectives.outcomes(**run, dynamic="on")
    beta = parts.outcomes(**run, select="off", adjust_beta="on")
    selection = parts.outcomes(**run, select="on", adjust_beta="off")
    return {
        "β without selection": difference(plain, beta),
        "β with selection": difference(selection, both),
        "selection": difference(plain, selection),
    }
""",
        },
        "messages": {"test-intervals": "the sign is turned"},
    },
}
