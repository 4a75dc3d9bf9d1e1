"""Typical wrong answers to assignment 5; the format stands in test_scores.py."""

SETTINGS = {"parameters": "SEEDS = (10, 11, 12, 13, 14)\nSTEPS, USERS = 2, 40"}

NOT_STARTED = {
    "test-budget": "the experiment above has not run, and its cell says why",
    "test-interval": "There is no result",
    "test-verdict": "There is no result",
}

WRONG = {
    "a fixed number": {
        "cells": {
            "rule": """
def rule(logps):
    place = (logps[:, 1:] - logps[:, :1]).abs().argsort(dim=1, stable=True).argsort(dim=1)
    return (place < 3) & logps[:, 1:].isfinite()
""",
        },
        "messages": {
            "test-number": ["keeps 3 negatives where the boundary keeps", "could be the number's doing"],
            **NOT_STARTED,
        },
    },
    "absent negatives": {
        "cells": {
            "rule": """
def rule(logps):
    place = logps[:, 1:].argsort(dim=1, stable=True).argsort(dim=1)  # the lowest first
    return place < boundary(logps).sum(1, keepdim=True)
""",
        },
        "messages": {
            "test-valid": ["absent ones, whose log-prob is −inf", "what is its place in the order?"],
            **NOT_STARTED,
        },
    },
    "mixes the rows of a batch": {
        "cells": {
            "rule": """
def rule(logps):
    distance = (logps[:, 1:] - logps[:, :1]).abs()
    nearest = distance.flatten().argsort(stable=True)[: int(boundary(logps).sum())]
    return torch.zeros_like(distance).bool().flatten().index_fill(0, nearest, True).view_as(distance)
""",
        },
        "messages": {
            "test-number": "the numbers differ in",
            "test-own-row": ["depend on who else is in the batch", "Along which axis do you sort"],
            **NOT_STARTED,
        },
    },
    "the hardest": {
        "cells": {
            "rule": """
def rule(logps):
    place = logps[:, 1:].argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return place < boundary(logps).sum(1, keepdim=True)
""",
        },
        "messages": {
            "test-new": ["your rule keeps exactly the boundary", "the highest log-probs"],
            **NOT_STARTED,
        },
    },
    "intervals subtracted, verdict against the interval": {
        "cells": {
            "interval": """
def interval(result, other):
    left, right = paired_interval(result.hits["rule"]), paired_interval(result.hits[other])
    return left.mean - right.mean, left.low - right.high, left.high - right.low
""",
            "verdicts": """
def verdicts():
    def wrong(other):
        found = paired_interval(result.hits["rule"] - result.hits[other])
        return "hurts" if found.low > 0 else "helps"

    return {other: wrong(other) for other in ("random", "boundary")}
""",
        },
        "messages": {
            "test-interval": ["subtracts the ends of two intervals", "what should be subtracted first?"],
            "test-verdict": ["Against random you say 'helps'", "the interval includes zero"],
        },
    },
    "the recorded seeds": {
        "cells": {"parameters": "SEEDS = (0, 1, 2, 3, 4)\nSTEPS, USERS = 2, 40"},
        "messages": NOT_STARTED,
    },
}
