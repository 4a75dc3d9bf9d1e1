"""Typical wrong answers to assignment 4; the format stands in test_scores.py."""

SETTINGS = {"parameters": "STEPS, USERS = 6, 8"}

WRONG = {
    "saturation rises with z": {
        "cells": {
            "dmpo-parts": """
def dmpo_parts(margins):
    return torch.full_like(margins, 1 / len(margins)), torch.sigmoid(margins.mean())
""",
            "sdpo-parts": """
def sdpo_parts(margins):
    return torch.softmax(margins, dim=0), torch.sigmoid(torch.logsumexp(-margins, dim=0))
""",
        },
        "messages": {
            "test-dmpo": ["z = 3.31: your saturation is σ(z)", "fall as z grows: you have 0.9648"],
            "test-push": "grows as the row gets easier",
            "test-sdpo": ["your shares turn to the easy ones", "soft *minimum*"],
            "test-fall": ["your factor of the saturation is 0.5183", "Which way must"],
        },
    },
    "dilution forgotten, added, and blamed": {
        "cells": {
            "prediction": """
def prediction():
    return {"dilution": 19, "saturation": 20, "together": 39}
""",
            "dmpo-push": """
def dmpo_push(policy, reference, beta):
    return torch.sigmoid(-margins(policy, reference, beta).mean()) * beta * torch.ones(len(policy) - 1)
""",
            "fall": """
def fall(user, negative, start, end):
    before, after = recorded(user, start), recorded(user, end)
    old = dmpo_parts(margins(before.policy, before.reference, 1.0))[1]
    new = dmpo_parts(margins(after.policy, after.reference, 1.0))[1]
    return {"push": 19 * float(old / new), "dilution": 19, "saturation": float(old / new)}
""",
        },
        "messages": {
            "test-prediction": ["19 and 20, and together you have 39", "two reductions in turn"],
            "test-push": ["K = 19, β = 1: the dilution is missing", "0.03525"],
            "test-fall": ["your factor of the dilution is 19", "within a run, what could change 1/K?"],
        },
    },
    "β twice, and log-probs for log-ratios": {
        "cells": {
            "margins": """
def margins(policy, reference, beta):
    return beta * (policy[0] - policy[1:])
""",
            "dmpo-push": """
def dmpo_push(policy, reference, beta):
    ratio = policy - reference
    dilution, saturation = dmpo_parts(beta * (ratio[0] - ratio[1:]))
    return dilution * saturation * beta**2
""",
        },
        "messages": {
            "test-margins": ["these are differences of log-probs", "against what is a log-ratio measured?"],
            "test-push": ["β = 0.5: β is in there twice", "nowhere else"],
            "test-fall": "whose z is in it",
        },
    },
    "norm for share": {
        "cells": {
            "two-views": """
def two_views(parts):
    groups = parts.set_index("group")
    return {
        "pushes": groups["push_share"].idxmax(),
        "gradient": groups["norm"].idxmax(),
        "ratio": groups.loc["boundary", "share"] / groups.loc["boundary", "push_share"],
    }
""",
            "disagreement": """
def disagreement(parts):
    odds = parts.set_index("group")[["push_share", "norm", "cosine", "share"]]
    odds = odds.loc["boundary"] / odds.loc["discriminative"]
    return {"length": odds["norm"], "direction": odds["cosine"], "total": odds["share"] / odds["push_share"]}
""",
        },
        "messages": {
            "test-views": ["norm is the length of a part", "how far a part takes the whole"],
            "test-disagreement": "question is length *per push*",
        },
    },
}
