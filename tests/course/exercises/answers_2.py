"""Typical wrong answers to assignment 2; the format stands in test_scores.py."""

WRONG = {
    "a violator moves": {
        "cells": {
            "leaves": """
def leaves():
    return torch.tensor([[0.0, -1.0, -1.5, -6.0], [0.0, 0.5, -1.5, -6.0]])
""",
            "enters": """
def enters():
    return torch.tensor([[0.0, 0.5, -1.5, -6.0], [0.0, -1.0, -1.5, -6.0]])
""",
        },
        "messages": {
            "test-leaves": ["In row 1 negative 1 has log-prob 0.5", "a violator"],
            "test-enters": ["In row 0 negative 1 has log-prob 0.5", "a violator"],
        },
    },
    "no neighbours": {
        "cells": {
            "all-kept": """
def all_kept():
    return torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, -1.0, -1.1, -1.2]])
""",
            "easy": """
def easy():
    return torch.tensor([[0.0, -9.0, -10.0, -100.0, -200.0]])
""",
        },
        "messages": {
            "test-kept": ["In row 1 the boundary is 1", "negatives 2, 3 are left out", "3 distinct values"],
            "test-easy": ["9, 10 nats below the chosen item", "only easy items"],
        },
    },
    "k-means by sums of squares": {
        "cells": {
            "kmeans": """
from itertools import combinations


def exact_kmeans_top(values, groups):
    levels = values.unique().flip(0)
    splits = []
    for cuts in combinations(range(1, len(levels)), min(groups, len(levels)) - 1):
        edges = [0, *cuts, len(levels)]
        parts = [
            values[(values <= levels[start]) & (values >= levels[end - 1])].float()
            for start, end in zip(edges[:-1], edges[1:])
        ]
        cost = sum(float((part**2).sum() - part.sum() ** 2 / len(part)) for part in parts)
        splits.append((cost, -len(parts[0]), levels[edges[1] - 1]))
    return values >= min(splits)[2]
""",
        },
        "messages": {"test-kmeans-special": ["−10,000", "of all splits the best has"]},
    },
    "k-means that gets stuck": {
        "cells": {
            "kmeans": """
def exact_kmeans_top(values, groups):
    groups = min(groups, len(values.unique()))
    centres = torch.linspace(float(values.min()), float(values.max()), groups, dtype=torch.float64)
    for _ in range(50):
        nearest = (values[:, None] - centres).abs().argmin(1)
        centres = torch.stack(
            [values[nearest == g].mean() if (nearest == g).any() else centres[g] for g in range(groups)]
        )
    return nearest == centres.argmax()
""",
        },
        "messages": {
            "test-kmeans": ["(plain) your top group is", "sum of squared distances"],
            "test-kmeans-special": "of all splits the best has",
        },
    },
}
