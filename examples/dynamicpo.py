"""The whole method in one file of plain PyTorch, to be read from top to bottom.

A language model has learnt which item follows a history (SFT). Preference optimization pushes the chosen item's
log-prob up against K others; with many of them DMPO's loss looks better while its ranking gets worse, and DynamicPO
(arXiv 2605.00327) keeps only the negatives at the boundary. `python examples/dynamicpo.py` trains the shipped model at
K = 1, at K = 19, and at K = 19 with DynamicPO, and prints HR@1, the share of test users whose chosen item comes first.

Shapes: B users, K negatives, C = 1 + K candidates (column 0 is the chosen item), T tokens per row, N targets, V words.
"""

import copy
import sys
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

import minipo

STEPS, BATCH, RATE, BETA, GAMMA = 300, 32, 3e-4, 1.0, 6.0
SFT = Path(__file__).parents[1] / "data" / "sft" / "catalog-pocket-gpt2-40" / "model"
FIELDS = ("ids", "segment", "position", "source", "target", "candidate")


def encode(user, tokenizer):
    """Token ids of a user's prompt, and of each candidate with the end-of-answer token, the chosen one first."""
    items = [user.chosen, *(item for item in user.candidates if item != user.chosen)]
    answers = [[*tokenizer(" " + item)["input_ids"], tokenizer.eos_token_id] for item in items]
    return tokenizer(", ".join(user.history) + ",")["input_ids"], answers


def pack(rows):
    """Rows of (prompt, answers) as a batch: each prompt once, then its answers, without their last tokens."""
    fields = {name: [] for name in FIELDS}
    for prompt, answers in rows:
        ids, segment, position = list(prompt), [0] * len(prompt), list(range(len(prompt)))
        source, target, candidate = [], [], []  # which place predicts which token, of which candidate
        for number, answer in enumerate(answers):
            source += [len(prompt) - 1, *range(len(ids), len(ids) + len(answer) - 1)]
            target += answer
            candidate += [number] * len(answer)
            ids += answer[:-1]
            segment += [1 + number] * (len(answer) - 1)
            position += range(len(prompt), len(prompt) + len(answer) - 1)
        for name, values in zip(FIELDS, (ids, segment, position, source, target, candidate), strict=True):
            fields[name].append(torch.tensor(values))
    padding = {"segment": -1, "candidate": len(rows[0][1])}  # one extra candidate, dropped below
    return {name: pad_sequence(values, True, padding.get(name, 0)) for name, values in fields.items()}


def log_probs(model, batch):
    """(B, C): the sum of the log-probs of each candidate's tokens, from one forward of the packed rows."""
    segment = batch["segment"]  # (B, T): 0 in the prompt, 1 + c in candidate c, -1 in padding
    query, key = segment[:, :, None], segment[:, None, :]
    allowed = ((key == 0) | (key == query)).tril()  # (B, T, T): the prompt and itself, never a sibling
    mask = torch.zeros(allowed.shape, dtype=model.dtype).masked_fill(~allowed, torch.finfo(model.dtype).min)[:, None]
    logits = model(input_ids=batch["ids"], attention_mask=mask, position_ids=batch["position"]).logits  # (B, T, V)
    rows, candidates = torch.arange(len(segment))[:, None], int(segment.max())
    of_tokens = logits.log_softmax(-1)[rows, batch["source"], batch["target"]]  # (B, N)
    sums = of_tokens.new_zeros(len(segment), candidates + 1).scatter_add(1, batch["candidate"], of_tokens)
    return sums[:, :candidates]


def boundary(s):
    """(B, K) bool, from log-probs s (B, C): the negatives at or above the chosen item or, where there are none, the
    top group of an exact 3-means of the negatives' log-probs."""
    chosen, negatives = s[:, :1].double(), s[:, 1:].double()
    number = negatives.shape[1]
    ordered, order = (negatives - negatives.mean(1, keepdim=True)).sort(1, descending=True)  # (B, K)
    sums = torch.cat([torch.zeros_like(chosen), ordered.cumsum(1)], dim=1)  # (B, K + 1)
    # All ways to cut the sorted values in three, [0, i), [i, j), [j, K); the largest top groups first, for ties.
    i, j = (torch.triu_indices(number, number) + 1).flip(1)
    parts = [(sums[:, i], i), (sums[:, j] - sums[:, i], j - i), (sums[:, -1:] - sums[:, j], number - j)]
    between = sum(total.square() / count.clamp(min=1) for total, count in parts)  # (B, cuts)
    size = i[between.argmax(1)][:, None]  # the most between groups is the least within them
    top = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, torch.arange(number) < size)
    above = negatives >= chosen
    return torch.where(above.any(1, keepdim=True), above, top)


def dual_margin_beta(s, kept):
    """(B, K): β_k = β (1 + ½ tanh((Δ⁺ − Δ⁻ − γ) / (|Δ⁺| + |Δ⁻|))), from log-probs s (B, C) and the boundary (B, K)."""
    chosen, negatives = s[:, :1], s[:, 1:]
    others = torch.where(kept.all(1, keepdim=True), kept, ~kept)
    plus = chosen - negatives  # Δ⁺
    minus = negatives - (negatives * others).sum(1, keepdim=True) / others.sum(1, keepdim=True)  # Δ⁻
    return BETA * (1 + torch.tanh((plus - minus - GAMMA) / (plus.abs() + minus.abs()).clamp(min=1e-30)) / 2)


def dmpo(policy, reference, dynamic):
    """The mean over users of −log σ(mean_k β_k (ρ_w − ρ_k)), from log-probs (B, C)."""
    ratio, s = policy - reference, policy.detach()  # ρ; boundary and β are constants for the gradient
    used = boundary(s) if dynamic else torch.ones_like(s[:, 1:], dtype=torch.bool)
    beta = dual_margin_beta(s, used) if dynamic else BETA
    margins = beta * (ratio[:, :1] - ratio[:, 1:]) * used  # (B, K)
    return -logsigmoid(margins.sum(1) / used.sum(1)).mean()


def train(sft, rows, negatives, dynamic, steps):
    """A copy of the SFT model after `steps` steps, each on BATCH users with `negatives` random negatives of theirs."""
    model, draw = copy.deepcopy(sft), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0)
    for _ in range(steps):
        users = torch.randint(len(rows), (BATCH,), generator=draw)
        columns = [[0, *(1 + torch.randperm(19, generator=draw))[:negatives]] for _ in users]
        batch = pack([(rows[u][0], [rows[u][1][c] for c in some]) for u, some in zip(users, columns, strict=True)])
        with torch.no_grad():
            reference = log_probs(sft, batch)
        loss = dmpo(log_probs(model, batch), reference, dynamic)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def hit_rate(model, rows):
    """HR@1; a tie counts against the chosen item."""
    scores = torch.cat([log_probs(model, pack(rows[at : at + 100])) for at in range(0, len(rows), 100)])
    return (scores[:, :1] > scores[:, 1:]).all(1).double().mean().item()


if __name__ == "__main__":
    data, (sft, tokenizer) = minipo.load_dataset("catalog"), minipo.load_model(SFT)
    sft.eval()  # and so its copy, the policy: dropout would make the two differ before the first step
    rows, test = ([encode(user, tokenizer) for user in users] for users in (data.train, data.test))
    for name, negatives, dynamic in (("K = 1", 1, False), ("K = 19", 19, False), ("K = 19, DynamicPO", 19, True)):
        model = train(sft, rows, negatives, dynamic, int(sys.argv[1]) if sys.argv[1:] else STEPS)
        print(f"{name:17}  HR@1 {hit_rate(model, test):.3f}", flush=True)
