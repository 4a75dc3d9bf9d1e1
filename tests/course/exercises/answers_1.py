"""Typical wrong answers to assignment 1; the format stands in test_scores.py."""

WRONG = {
    "one negative, beta 1, no reference": {
        "cells": {
            "test-dmpo": """
def test_dmpo(loss):
    value = loss(torch.tensor([[0.0, -2.0]]), torch.zeros(1, 2), 1.0)
    assert torch.allclose(value, torch.tensor([0.1269]), atol=1e-3)
""",
        },
        "messages": {
            "test-w": ["The planted loss passed your test", "at margins −1 and 4", "0.666 and DMPO 0.201"],
            "test-x": ["At β = 0.1 that gap gives 0.683, and DMPO 0.598"],
            "test-y": ["it gives 0.018 and DMPO 0.693"],
            "test-z": ["0.00, 0.25, 0.25", "−0.50, 0.25, 0.25"],
        },
    },
    "exact equality": {
        "cells": {
            "test-dmpo": """
def test_dmpo(loss):
    value = loss(torch.tensor([[0.0, -4.0, 1.0]]), torch.zeros(1, 3), 0.5)
    assert value.item() == 0.387, f"{value.item():.3f} is not 0.387"
""",
        },
        "messages": {
            test: ["fails on the right loss, saying: 0.387 is not 0.387", "tolerance"]
            for test in ("test-w", "test-x", "test-y", "test-z")
        },
    },
    "values alone, and DPO taken for MPPO": {
        "cells": {
            "panel-one": """
def panel_one():
    return {"A": "dpo", "B": "sdpo", "C": "dmpo", "D": "mppo"}
""",
            "panel-three": """
def panel_three():
    return {"A": "dpo", "B": "mppo", "C": "sdpo"}
""",
            "test-dmpo": """
def test_dmpo(loss):
    policy = torch.tensor([[0.0, -4.0, 1.0]])
    assert torch.allclose(loss(policy, torch.zeros(1, 3), 0.5), torch.tensor([0.3868]), atol=1e-3)
    assert torch.allclose(loss(policy, policy, 0.5), torch.tensor([0.6931]), atol=1e-3)
""",
        },
        "messages": {
            "test-one": ["A is not DPO", "dilution 0.053 × saturation 0.73"],
            "test-three": "give a dict from each of 'A'",
            "test-z": "Its value is DMPO's everywhere. Its gradient is not",
        },
    },
}
