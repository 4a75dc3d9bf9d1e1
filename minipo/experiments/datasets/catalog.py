"""The built-in dataset: an invented music catalogue, its users, and the best ranking anyone can reach on it.

A user has a taste over three genres and drifts slowly inside each of them, so that random negatives are mostly easy
and a few sit right at the boundary. Because the generator is known, so is P(next item | visible history): `oracle`.
`data/README.md` is its data card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int

from minipo.experiments.datasets.splits import Interaction, Splits, canonical_numbers

# One word of a name hints at the genre, the other is shared by all genres. No word is in two lists.
GENRES = {
    "jazz": ("Smoky", "Swinging", "Syncopated", "Bebop", "Brass"),
    "blues": ("Delta", "Weeping", "Bottleneck", "Mournful", "Juke"),
    "folk": ("Acoustic", "Hearthside", "Woodland", "Fiddling", "Meadow"),
    "rock": ("Stadium", "Amplified", "Leather", "Riffing", "Gasoline"),
    "metal": ("Iron", "Molten", "Obsidian", "Thundering", "Grim"),
    "punk": ("Spiky", "Snarling", "Scuffed", "Riotous", "Basement"),
    "electronic": ("Neon", "Modular", "Digital", "Voltage", "Pixel"),
    "hip-hop": ("Turntable", "Rhyming", "Freestyle", "Cypher", "Sampled"),
    "soul": ("Velvet", "Tender", "Gospel", "Honeyed", "Silken"),
    "classical": ("Baroque", "Chamber", "Sonata", "Symphonic", "Nocturne"),
    "country": ("Dusty", "Prairie", "Saddle", "Twangy", "Honkytonk"),
    "reggae": ("Dub", "Island", "Rootsy", "Skanking", "Offbeat"),
}
SHARED_WORDS = tuple(
    """
    Otters Herons Badgers Puffins Magpies Hedgehogs Walruses Pelicans Beetles Salamanders Marmots Curlews Lanterns
    Teapots Umbrellas Kettles Compasses Thimbles Ladders Buttons Mittens Marbles Spectacles Suitcases Beekeepers
    Ferrymen Cartographers Bakers Weavers Gardeners Clockmakers Lamplighters Tailors Glaziers Cobblers Porters
    Orchards Harbours Lighthouses Bridges Chimneys Windmills Staircases Balconies Cellars Attics Corridors Verandas
    Pancakes Dumplings Walnuts Quinces Radishes Biscuits Pickles Turnips Chestnuts Noodles Apricots Pretzels
    """.split()
)
ARTISTS = 20  # per genre
HISTORY = 6
NEGATIVES = 19

GENRES_OF_A_USER = 3
CONCENTRATION = 1.5  # of the Dirichlet over a user's genres
# Probability of staying in the genre without a redraw. With 0.75 the last item says so much about the next that a
# Markov chain and models of this size do about equally well (data/README.md).
KEEP = 0.5
REACH = 0.18 / 3  # an item's weight falls by e with every REACH of distance
MOVE = 0.7  # share of the way to the item that the user moves after taking it


@dataclass(frozen=True, eq=False)
class World:
    """What is fixed for all users. Item number i belongs to genre number i // ARTISTS.

    items: names. positions: of each item in its genre's unit square.
    """

    seed: int
    items: tuple[str, ...]
    positions: Float[np.ndarray, "items 2"]


@cache
def world(seed: int = 0) -> World:
    """The items of the catalogue with this seed. Raises ValueError if the seed is negative."""
    random = np.random.default_rng(_seeds(seed)[0])
    items = tuple(
        f"{hints[name // len(SHARED_WORDS)]} {SHARED_WORDS[name % len(SHARED_WORDS)]}"
        for hints in GENRES.values()
        for name in random.choice(len(hints) * len(SHARED_WORDS), ARTISTS, replace=False)
    )
    positions = random.random((len(items), 2))
    positions.flags.writeable = False  # the world is shared by all callers
    return World(seed, items, positions)


def generate(seed: int = 0, train: int = 4000, validation: int = 1000, test: int = 2000) -> tuple[World, Splits]:
    """The world with this seed, and its users: that many in each split, no user in two.

    Each split has a random stream of its own, so the size of one does not change the lines of the others.
    Raises ValueError if the seed or a count is negative.
    """
    here = world(seed)
    starts, counts = (0, train, train + validation), (train, validation, test)
    each = zip(_seeds(seed)[1:4], starts, counts, strict=True)
    parts = [_users(here, np.random.default_rng(stream), first_user, count) for stream, first_user, count in each]
    return here, Splits("catalog", parts[0], parts[1], parts[2], here.items)


def fresh_users(seed: int, count: int) -> tuple[Interaction, ...]:
    """`count` further users of the catalogue with this seed, from a stream that no split uses.

    For checking a result on users that can have played no part in any choice.
    Raises ValueError if the seed or the count is negative.
    """
    return _users(world(seed), np.random.default_rng(_seeds(seed)[4]), 1_000_000, count)


def _seeds(seed: int) -> list[np.random.SeedSequence]:
    """Independent streams for the world, the three splits, and fresh users."""
    return np.random.SeedSequence(seed).spawn(5)


def _users(here: World, random: np.random.Generator, first_user: int, count: int) -> tuple[Interaction, ...]:
    lines = _walk(here, random, count)
    keys = random.random((count, len(here.items)))
    np.put_along_axis(keys, lines, np.inf, axis=1)  # neither history nor chosen can be a negative
    candidates = np.concatenate([lines[:, -1:], np.argsort(keys, axis=1)[:, :NEGATIVES]], axis=1)
    candidates = random.permuted(candidates, axis=1)
    names = np.array(here.items, dtype=object)
    return tuple(
        Interaction(user, tuple(line[:-1]), line[-1], tuple(shown))
        for user, line, shown in zip(
            range(first_user, first_user + count), names[lines].tolist(), names[candidates].tolist(), strict=True
        )
    )


def _walk(here: World, random: np.random.Generator, count: int) -> Int[np.ndarray, "users steps"]:
    """Item numbers that each user takes, oldest first: HISTORY of them, then the chosen one."""
    users = np.arange(count)
    genres = np.argsort(random.random((count, len(GENRES))), axis=1)[:, :GENRES_OF_A_USER]
    cumulative = random.dirichlet([CONCENTRATION] * GENRES_OF_A_USER, count).cumsum(axis=1)
    places = random.random((count, GENRES_OF_A_USER, 2))  # the user's position in each of their genres
    seen = np.zeros((count, len(here.items)), dtype=bool)
    taste = np.zeros(count, dtype=int)  # which of the user's three genres is current
    lines = []
    for step in range(HISTORY + 1):
        redrawn = (random.random((count, 1)) > cumulative[:, :-1]).sum(axis=1)
        keeps = (random.random(count) < KEEP) & (step > 0)
        taste = np.where(keeps, taste, redrawn)
        shelf = genres[users, taste][:, None] * ARTISTS + np.arange(ARTISTS)
        chances = _chances(places[users, taste], here.positions[shelf], seen[users[:, None], shelf]).cumsum(axis=1)
        taken = (random.random((count, 1)) > chances[:, :-1]).sum(axis=1)
        item = shelf[users, taken]
        seen[users, item] = True
        places[users, taste] += MOVE * (here.positions[item] - places[users, taste])
        lines.append(item)
    return np.stack(lines, axis=1)


def oracle(here: World, interactions: Sequence[Interaction], grid: int = 24) -> Float[np.ndarray, "batch candidates"]:
    """Log-probability of each candidate to be the next item, given only the history: the best attainable ranking.

    Columns are in canonical order, chosen first. -inf: impossible after this history, most often a fourth genre after
    three were seen (and padding, where a row has fewer candidates than the longest).
    Negatives are drawn uniformly from what is neither history nor chosen, so every candidate, were it the chosen one,
    would have met the other nineteen with the same probability: by Bayes' rule P(chosen | candidates, history) is
    proportional to P(next = candidate | history), and no ranking has a higher expected HR@1.
    grid: cells along a side of the unit square, see `next_item_probabilities`.
    Raises ValueError if a candidate is not an item of this world, or if a history cannot come from it.
    """
    candidates = canonical_numbers(interactions, here.items)
    probabilities = next_item_probabilities(here, interactions, grid)
    with np.errstate(divide="ignore"):
        scores = np.log(np.take_along_axis(probabilities, candidates, axis=1))
    return np.where(candidates < 0, -np.inf, scores)


def next_item_probabilities(
    here: World, interactions: Sequence[Interaction], grid: int = 24
) -> Float[np.ndarray, "batch items"]:
    """P(next = item | history) for every item of the world, hidden taste marginalised out. Each row sums to 1.

    Genres and the items within a genre are independent, so this is a product of two parts. The genre's is exact
    (`_next_genre`). An item's, within its genre, needs the user's hidden first position in the genre's square;
    later ones follow from the moves. It is integrated by quadrature over grid x grid cells: each cell is represented by
    its centroid under the posterior after the genre's first item. data/README.md states the error of the default.
    Raises ValueError if a history cannot come from this world.
    """
    history = _histories(here, interactions)
    genres = history // ARTISTS
    probabilities, mass, centroid = _first_visit(here, grid)
    within = np.repeat(probabilities[None], len(history), axis=0)  # (batch, genres, artists)

    # A visited genre: its items in order, then -1. Equal visits of different users are computed once.
    first = (genres[:, :, None] == genres[:, None, :]).argmax(axis=2) == np.arange(HISTORY)
    users, steps = np.nonzero(first)
    visited = genres[users, steps]
    elsewhere = genres[users] != visited[:, None]
    visits = np.where(elsewhere, -1, history[users])
    visits = np.take_along_axis(visits, np.argsort(elsewhere, axis=1, kind="stable"), axis=1)
    visits, which = np.unique(visits, axis=0, return_inverse=True)
    lengths = (visits >= 0).sum(axis=1)
    after = np.empty((len(visits), ARTISTS))
    for length in range(1, HISTORY + 1):
        rows = np.nonzero(lengths == length)[0]
        for part in np.array_split(rows, len(rows) * grid**2 // 10_000 + 1):  # a part's arrays stay in the cache
            after[part] = _after_visit(here, visits[part, :length], mass, centroid)
    within[users, visited] = after[which]

    return (_next_genre(genres)[:, :, None] * within).reshape(len(history), len(here.items))


def _histories(here: World, interactions: Sequence[Interaction]) -> Int[np.ndarray, "batch steps"]:
    number = {item: place for place, item in enumerate(here.items)}
    lines = [[number.get(item, -1) for item in line.history] for line in interactions]
    for line, numbers in zip(interactions, lines, strict=True):
        known = {*numbers} - {-1}
        genres = {place // ARTISTS for place in known}
        if not len(known) == len(numbers) == HISTORY or len(genres) > GENRES_OF_A_USER:
            raise ValueError(
                f"User {line.user}: the catalogue with seed {here.seed} cannot produce this history; the oracle needs "
                f"{HISTORY} different items of that catalogue, from at most {GENRES_OF_A_USER} genres."
            )
    return np.array(lines, dtype=int).reshape(-1, HISTORY)


def _next_genre(genres: Int[np.ndarray, "batch steps"]) -> Float[np.ndarray, "batch genres"]:
    """P(genre of the next item | genres so far), exact.

    Given which steps redrew their genre, the draws are Dirichlet-multinomial; so sum over all patterns of redraws that
    the history allows. The user's set of three genres is, a posteriori, uniform over the sets that hold those seen.
    """
    own = np.eye(len(GENRES), dtype=int)[genres]  # (batch, steps, genres)
    stays = genres[:, 1:] == genres[:, :-1]
    redraws = np.array(list(product([0, 1], repeat=genres.shape[1] - 1)))  # (patterns, steps - 1)
    prior = np.where(redraws, 1 - KEEP, np.where(stays[:, None, :], KEEP, 0.0)).prod(axis=2)  # (batch, patterns)
    draws = own[:, :1] + redraws @ own[:, 1:]  # (batch, patterns, genres): how often each was drawn
    total = CONCENTRATION * GENRES_OF_A_USER + 1 + redraws.sum(axis=1)  # (patterns,)

    rising = np.cumprod([1.0, *(CONCENTRATION + np.arange(genres.shape[1]))])
    rising_total = np.cumprod([1.0, *(CONCENTRATION * GENRES_OF_A_USER + np.arange(genres.shape[1]))])
    posterior = prior * rising[draws].prod(axis=2) / rising_total[1 + redraws.sum(axis=1)]
    posterior /= posterior.sum(axis=1, keepdims=True)

    seen = np.any(own, axis=1)
    kinds = seen.sum(axis=1, keepdims=True)
    unseen = CONCENTRATION * (GENRES_OF_A_USER - kinds) / (len(GENRES) - kinds)
    drawn = np.where(seen[:, None, :], CONCENTRATION + draws, unseen[:, None, :]) / total[:, None]
    return KEEP * own[:, -1] + (1 - KEEP) * (posterior[:, None, :] @ drawn)[:, 0]


@cache
def _first_visit(
    here: World, grid: int
) -> tuple[Float[np.ndarray, "genres artists"], Float[np.ndarray, "items cells"], Float[np.ndarray, "items cells 2"]]:
    """A genre's first item, from a uniform first position: its probability, the probability of (item, cell), and the
    user's mean position in the cell.
    """
    fine = 10  # points along a cell's side: the integrand is sharpest at the first step, which is computed only once
    side = (np.arange(grid * fine) + 0.5) / (grid * fine)
    points = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
    weights = np.stack([np.ones_like(points[..., 0]), points[..., 0], points[..., 1]], axis=-1) / points[..., 0].size
    moments = np.concatenate(
        [
            np.einsum(
                "xiyja,xiyjm->axym",
                _chances(points, shelf, np.False_).reshape(grid, fine, grid, fine, ARTISTS),
                weights.reshape(grid, fine, grid, fine, 3),
            ).reshape(ARTISTS, grid**2, 3)
            for shelf in here.positions.reshape(-1, ARTISTS, 2)
        ]
    )
    mass = moments[..., 0]
    return mass.sum(axis=1).reshape(-1, ARTISTS), mass, moments[..., 1:] / mass[..., None]


def _after_visit(
    here: World,
    visits: Int[np.ndarray, "visits steps"],
    mass: Float[np.ndarray, "items cells"],
    centroid: Float[np.ndarray, "items cells 2"],
) -> Float[np.ndarray, "visits artists"]:
    """P(item | it is of this genre, the genre's items so far)."""
    rows = np.arange(len(visits))
    shelf = here.positions.reshape(-1, 1, ARTISTS, 2)[visits[:, 0] // ARTISTS]  # (visits, 1, artists, 2)
    seen = np.zeros((len(visits), 1, ARTISTS), dtype=bool)
    weights, places = mass[visits[:, 0]], centroid[visits[:, 0]]
    for step, item in enumerate(visits.T):
        places = places + MOVE * (here.positions[item][:, None] - places)
        seen[rows, 0, item % ARTISTS] = True
        chances = _chances(places, shelf, seen)  # (visits, cells, artists)
        if step + 1 < visits.shape[1]:
            weights = weights * chances[rows, :, visits[:, step + 1] % ARTISTS]
    return (weights[:, None, :] @ chances)[:, 0] / weights.sum(axis=1, keepdims=True)  # pyrefly: ignore[unbound-name]


def _chances(
    places: Float[np.ndarray, "*batch 2"],
    positions: Float[np.ndarray, "*batch artists 2"],
    seen: Bool[np.ndarray, "*batch artists"] | np.bool,
) -> Float[np.ndarray, "*batch artists"]:
    """Probability of taking each item of a genre, for users at `places`: unseen ones, by their distance."""
    right = positions[..., 0] - places[..., :1]
    up = positions[..., 1] - places[..., 1:]
    weights = np.where(seen, 0.0, np.exp(np.sqrt(right**2 + up**2) / -REACH))
    return weights / weights.sum(axis=-1, keepdims=True)
