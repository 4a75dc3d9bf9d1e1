"""From dated interactions to splits: each user's last line is for the test, the one before for validation.

A user's rows are ordered by time. The data do not say how rows of equal times are ordered: `TIES` says what decides,
the order of the file's rows or chance, and the report says how much depends on it.

A negative is an item that the user has not met *yet*: in that order, no row up to that of the chosen item
names it, liked or not. What the user meets later may be a negative, as often as any other item. If it were excluded, as
where negatives are items never met, the test item would never be among its user's negatives, and each further negative
would give it away a little more. The price is false negatives: the user comes to like some of a line's negatives.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt64

from minipo.experiments.datasets.splits import ALMOST_ALL, TIES, Interaction, Splits, remarks, with_report
from minipo.names import lookup

HISTORY = 10  # the most items a line's history holds
SHORTEST = 3  # the fewest
NEGATIVES = 19
LIKED = 4  # the lowest rating, of 5, that counts as liked
FEWEST = SHORTEST + 3  # liked items of a user, so that each of the three splits gets a line
MANY_TIES = 0.1  # of neighbouring liked items: with more, chance decides by default
LINES = 500_000  # the most lines in all; each takes about a kilobyte of memory


def split_by_time(
    name: str,
    users: Int[np.ndarray, " rows"],
    items: Int[np.ndarray, " rows"],
    times: Shaped[np.ndarray, " rows"],
    liked: Bool[np.ndarray, " rows"],
    titles: Sequence[str],
    dropped: Mapping[str, int],
    seed: int,
    ties: str | None = None,
) -> Splits:
    """Lines of users' liked items in order of time, with 19 negatives each.

    users: numbers of 0 or more. items: positions in `titles`, which are distinct; no user has the same item twice.
    times: anything sortable. dropped: what was left out before, and how many of each, for the report.
    ties: the order of a user's rows of equal times, one of TIES: "file", as given here, or "random", keyed by (seed,
    user, item), so that the order given does not matter. None: "random" if more than a tenth of neighbouring liked
    items share their time, else "file". The report's `ties` has what was used (order), the pairs of neighbouring liked
    items (neighbours), how many of them share their time (tied), and for how many users the last two do, so that the
    order itself decides which is the test's answer (users).
    A line's chosen item is liked; its history is the up to 10 liked items before it, at least 3. Negatives are drawn
    uniformly, without replacement; they and the order of the candidates are keyed by (seed, user, position of the
    chosen item), so they do not depend on what else is in the data.
    Users who cannot fill all three splits or have fewer than 19 items that they never meet are dropped and counted. So
    are users drawn at random once there are more than 500,000 lines, to limit memory.
    Warns where nearly all neighbours share their time. Raises ValueError if no user is left, or if `ties` is unknown.
    """
    if ties is not None:
        lookup("order of ties", ties, TIES)
    order = np.lexsort((times, users))  # stable
    users, items, times, liked = users[order], items[order], times[order], liked[order]
    number, first, met = np.unique(users, return_index=True, return_counts=True)  # number, first row, rows of each user
    owner = np.repeat(np.arange(len(number)), met)
    likes = np.bincount(owner, weights=liked, minlength=len(number)).astype(int)
    never = len(titles) - met  # how many items each user never met

    fits = (likes >= FEWEST) & (never >= NEGATIVES)
    drawn = np.argsort(keyed(seed, number), kind="stable")
    total = np.cumsum(np.where(fits, likes - SHORTEST, 0)[drawn])
    too_many = np.zeros_like(fits)
    too_many[drawn[total > LINES]] = True
    kept = fits & ~too_many
    dropped = {
        **dropped,
        f"users with fewer than {FEWEST} liked items": int((likes < FEWEST).sum()),
        f"users who left fewer than {NEGATIVES} items for negatives": int((fits < (likes >= FEWEST)).sum()),
        f"users drawn at random, to keep to {LINES:,} lines": int((fits & too_many).sum()),
    }
    if not kept.any():
        raise ValueError(
            f"no user has {FEWEST} liked items ({SHORTEST} for a history, one for each split) and {NEGATIVES} more "
            f"that only others met (users: {len(number):,}; items: {len(titles):,}; liked items of a user: at most "
            f"{likes.max(initial=0):,}); add longer histories, more users or more items."
        )

    rows = np.flatnonzero(liked & kept[owner])
    tied = (np.diff(owner[rows]) == 0) & (times[rows][1:] == times[rows][:-1])  # with the liked item before it
    last = np.cumsum(likes[kept]) - 2  # each user's last pair, in `tied`
    neighbours = len(rows) - int(kept.sum())
    ties = ties or ("random" if tied.sum() > MANY_TIES * neighbours else "file")
    if ties == "random":
        order = np.lexsort((keyed(seed, number[owner], items, np.array([2 * NEGATIVES + 1])), times, owner))
        items, liked = items[order], liked[order]
        rows = np.flatnonzero(liked & kept[owner])

    # Liked items of kept users, in order; `start` is where a user's begin and `place` counts within the user.
    sequence, user = items[rows], owner[rows]
    start = np.cumsum(np.where(kept, likes, 0)) - likes
    place = np.arange(len(rows)) - start[user]
    chosen = np.flatnonzero(place >= SHORTEST)
    user, place = user[chosen], place[chosen]

    # Not met yet: first what the user never met, then what the rows after the chosen one name.
    after = rows[chosen] + 1
    picked = _draw(never[user] + first[user] + met[user] - after, keyed(seed, number[user], place))
    negatives = _unmet(picked, user, items, owner, first, len(titles))
    later = picked - never[user][:, None]
    negatives[later >= 0] = items[(after[:, None] + later)[later >= 0]]
    candidates = np.concatenate([sequence[chosen][:, None], negatives], axis=1)
    shuffle = keyed(seed, number[user][:, None], place[:, None], NEGATIVES + np.arange(1 + NEGATIVES))
    candidates = np.take_along_axis(candidates, np.argsort(shuffle, axis=1, kind="stable"), axis=1)

    names = np.array(titles, dtype=object)
    liked_names = names[sequence].tolist()
    lines = [
        Interaction(who, tuple(liked_names[max(row - HISTORY, row - before) : row]), liked_names[row], tuple(shown))
        for who, row, before, shown in zip(
            number[user].tolist(), chosen.tolist(), place.tolist(), names[candidates].tolist(), strict=True
        )
    ]
    from_end = likes[user] - 1 - place  # 0: the user's last line
    train, validation, test = (tuple(compress(lines, part)) for part in (from_end > 1, from_end == 1, from_end == 0))
    splits = Splits(name, train, validation, test, tuple(titles))
    found = {"order": ties, "neighbours": neighbours, "tied": int(tied.sum()), "users": int(tied[last].sum())}
    splits = with_report(splits, dropped, interactions=int(likes[kept].sum()), ties=found)
    if tied.sum() > ALMOST_ALL * neighbours:
        warnings.warn(f"{name}: {remarks(splits.report)['ties']}.", stacklevel=3)
    return splits


def keyed(seed: int, *keys: Int[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Random 64-bit numbers that depend only on the seed and the keys; the keys are broadcast against each other.

    SplitMix64's mixing (Steele, Lea and Flood, OOPSLA 2014), once for each key: every row has its own stream,
    without its own generator.
    """
    state = _mixed(np.array([seed], dtype=np.uint64))
    for key in keys:
        state = _mixed(state ^ _mixed(np.asarray(key).astype(np.uint64)))
    return state


def _mixed(bits: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _draw(free: Int[np.ndarray, " lines"], key: UInt64[np.ndarray, " lines"]) -> Int[np.ndarray, "lines negatives"]:
    """For each line, 19 different numbers below `free`, every set equally likely (Floyd's algorithm)."""
    picked = np.empty((len(free), NEGATIVES), dtype=np.int64)
    for step in range(NEGATIVES):
        top = free - NEGATIVES + step
        drawn = (_mixed(key ^ _mixed(np.full_like(key, step))) % (top + 1).astype(np.uint64)).astype(np.int64)
        again = (picked[:, :step] == drawn[:, None]).any(axis=1)
        picked[:, step] = np.where(again, top, drawn)
    return picked


def _unmet(
    picked: Int[np.ndarray, "lines negatives"],
    user: Int[np.ndarray, " lines"],
    items: Int[np.ndarray, " rows"],
    owner: Int[np.ndarray, " rows"],
    first: Int[np.ndarray, " users"],
    count: int,
) -> Int[np.ndarray, "lines negatives"]:
    """The items with the picked numbers, counting only those of all `count` that the line's user never met.

    items, owner: what each user met, user by user. The r-th item not met is r plus the number of met items before it.
    """
    ordered = np.sort(owner * (count + 1) + items)  # each user's items, sorted
    unmet_before = ordered - (np.arange(len(ordered)) - first[owner])
    wanted = user[:, None] * (count + 1) + picked
    return picked + np.searchsorted(unmet_before, wanted, side="right") - first[user][:, None]
