"""What the recorded grids say: the tables in README.md, and FINDINGS.md. `python data/record.py report` writes both."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from recipes import BETA, GRIDS, HARDEST, RANDOM, RELEASE, SELECTION, Settings, choose_more_sft

from minipo.course.figures.style import OBJECTIVE_LABELS, verdict
from minipo.experiments.comparison import older_data
from minipo.experiments.files import fill_in, markdown, read_json
from minipo.experiments.records import RECORDED, Outcomes, Recorded, check_same_data, difference, load_recorded
from minipo.experiments.runs import DATA

HEADLINE = [{"negatives": count, "dynamic": on} for count, on in ((1, "off"), (19, "off"), (19, "on"))]


def write() -> None:
    """Rewrites both files between their marks."""
    for name, text in (("README.md", readme()), ("FINDINGS.md", findings())):
        fill_in(DATA.parent / name, "python data/record.py report", text)


def points(left: Outcomes, right: Outcomes) -> str:
    """Left minus right in points of HR@1, with its 95 % interval."""
    if left is right:
        return "—"
    found = difference(left, right)
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]".replace("-", "−")


def level(outcomes: Outcomes) -> str:
    """The mean over users and seeds."""
    return f"{np.mean(list(outcomes.values())):.3f}"


def spread(rows: pd.DataFrame) -> str:
    """HR@1: mean ± standard deviation over seeds."""
    return f"{rows['hr@1'].mean():.3f} ± {rows['hr@1'].std():.3f}"


def readme() -> str:
    """The tables of the catalogue's runs in README.md."""
    settings, objectives, parts = (load_recorded(name) for name in ("settings", "objectives", "parts"))
    made, fresh = objectives.provenance, read_json(RECORDED / "fresh.json")
    chosen, versions = made["chosen"], made["versions"]
    again = [[f"{left} minus {right}", gap] for left, right, gap in fresh["differences"]]
    return f"""\
Test HR@1 on 2,000 users, mean ± standard deviation over {len(made["seeds"])} seeds; differences in points with 95 % \
intervals, paired over users and seeds. Chosen on validation users: SFT of {chosen["sft_epochs"]:g} epochs, learning \
rate {chosen["learning_rate"]:g}. Recorded {made["recorded"][:10]}, {versions["machine"]}, torch {versions["torch"]}.

**More negatives, K = 1 → 19**

{collapse_table(objectives)}

**What repairs it: parts and controls, DMPO, at the same K**

{parts_table(objectives, parts)}

**Distances at K = 19**

{distances_table(objectives)}

**The headline again on {fresh["users"]:,} users that played no part in any choice**

{markdown(["points of HR@1", ""], again)}

**The same at other SFT lengths and learning rates** (DMPO, {len(settings.provenance["seeds"])} seeds)

{regimes_table(settings, chosen)}"""


def headline(recorded: Recorded, **settings: Any) -> list[Outcomes]:
    """The runs with these settings: at K = 1, at K = 19, and at K = 19 with DynamicPO."""
    return [recorded.outcomes(**each, **settings) for each in HEADLINE]


def collapse_table(objectives: Recorded) -> str:
    header = (
        "objective | training loss | pair_loss | HR@1 | HR@1, K = 19 minus K = 1 | HR@1 with DynamicPO, K = 19 | "
        "DynamicPO minus plain"
    )
    lines = []
    for objective in ("dpo", "dmpo", "sdpo", "mppo"):
        few, many, repaired = headline(objectives, objective=objective)
        rows = [objectives.rows(objective=objective, **each) for each in HEADLINE]
        losses = [" → ".join(f"{each[loss].mean():.3f}" for each in rows[:2]) for loss in ("train_loss", "pair_loss")]
        first, last, with_dynamic = map(spread, rows)
        change = difference(many, few)
        fall = f"{points(many, few)}: {verdict(change.low, change.high)}"
        gain = points(repaired, many)
        lines.append([OBJECTIVE_LABELS[objective], *losses, f"{first} → {last}", fall, with_dynamic, gain])
    return markdown(header.split(" | "), lines)


def parts_table(objectives: Recorded, parts: Recorded) -> str:
    kinds = {
        "selection and β (DynamicPO)": WHOLE,
        "selection alone": SELECTION,
        "β alone, all negatives": BETA,
        "control: as many negatives, drawn at random": RANDOM,
        "control: as many negatives, the hardest": HARDEST,
    }
    header = ["what enters the loss"]
    lines = [[label] for label in kinds]
    for against, negatives in product(("minus plain", "selection alone minus this"), (5, 19)):
        header.append(f"{against}, K = {negatives}")
        query = {"objective": "dmpo", "negatives": negatives}
        plain, selection = objectives.outcomes(dynamic="off", **query), parts.outcomes(**SELECTION, **query)
        for line, kind in zip(lines, kinds.values(), strict=True):
            recorded = objectives if kind is WHOLE else parts
            this = selection if kind is SELECTION else recorded.outcomes(**kind, **query)
            line.append(points(this, plain) if against == "minus plain" else points(selection, this))
    return markdown(header, lines)


def distances_table(objectives: Recorded) -> str:
    few, many, repaired = headline(objectives, objective="dmpo")
    levels = {
        "DMPO, K = 1": few,
        "SFT, where every run starts": objectives.baseline("sft"),
        "more SFT, for the compute of a preference run": objectives.outcomes(objective="sft"),
        "DMPO, K = 19": many,
        "DynamicPO-DMPO, K = 19": repaired,
        "oracle, the best attainable": objectives.baseline("oracle"),
        "first-order Markov": objectives.baseline("markov"),
        "popularity": objectives.baseline("popularity"),
        "random": objectives.baseline("random"),
    }
    return markdown(
        ["", "HR@1", "DynamicPO-DMPO minus this", "DMPO minus this"],
        [[label, level(this), points(repaired, this), points(many, this)] for label, this in levels.items()],
    )


def regimes_table(settings: Recorded, chosen: Settings) -> str:
    header = (
        "SFT epochs | learning rate | SFT | K = 1 | K = 19 | K = 19, DynamicPO | more SFT | K = 19 minus K = 1 | "
        "DynamicPO minus plain, K = 19"
    )
    lines = []
    preferred = settings.table[settings.table.objective != "sft"]
    for (epochs, rate), _ in preferred.groupby(["sft_epochs", "learning_rate"]):
        here = {"sft_epochs": epochs, "learning_rate": rate}
        few, many, repaired = headline(settings, objective="dmpo", **here)
        more = settings.outcomes(objective="sft", sft_epochs=epochs, learning_rate=choose_more_sft(settings, epochs))
        levels = [level(each) for each in (settings.baseline(f"sft-{epochs:g}"), few, many, repaired, more)]
        first = f"{epochs:g}{' (chosen)' * (here == chosen)}"
        lines.append([first, f"{rate:g}", *levels, points(many, few), points(repaired, many)])
    return markdown(header.split(" | "), lines)


# -------------------------------------------------------------------------------------------- FINDINGS.md: the claims

PLAIN, WHOLE, FEW = {"dynamic": "off"}, {"dynamic": "on"}, {"dynamic": "off", "negatives": 1}
PER_TOKEN, SDPO, WINS = {"objective": "mppo"}, {"objective": "sdpo"}, {"metric": "reward_win_rate"}
SFT, MORE_SFT = {"objective": "start"}, {"objective": "sft", "negatives": 0}
# What it says, what the paper has, two sides as `World.side` takes them, and what is claimed of left minus right.
Claim = tuple[str, str, Settings, Settings, str]
CLAIMS: Sequence[Claim] = (
    ("DMPO collapses: HR@1 at the largest K minus K = 1", "DMPO 0.585 at K = 15", PLAIN, FEW, "falls"),
    ("MPPO collapses: the same", "MPPO 0.660 at K = 15", PLAIN | RELEASE, FEW | RELEASE, "falls"),
    ("S-DPO is stable: the same", "S-DPO 0.662 at K = 15", PLAIN | SDPO, FEW | SDPO, "stable"),
    (
        "DynamicPO helps DMPO: with minus without, at the largest K",
        "+8.1 (Llama-2-7B), +5.4 (Qwen2.5-7B)",
        WHOLE,
        PLAIN,
        "gains",
    ),
    ("DynamicPO helps MPPO", "+3.1", WHOLE | RELEASE, PLAIN | RELEASE, "gains"),
    ("DynamicPO helps S-DPO", "+0.5", WHOLE | SDPO, PLAIN | SDPO, "gains"),
    ("Selection alone helps DMPO", "a gain", SELECTION, PLAIN, "gains"),
    ("Dual-margin β alone helps DMPO", "a gain", BETA, PLAIN, "gains"),
    ("DynamicPO raises DMPO's reward win rate", "a gain", WHOLE | WINS, PLAIN | WINS, "gains"),
)
QUESTIONS: Sequence[Claim] = (
    ("Is it which negatives are selected? Selection alone minus as many at random", "—", SELECTION, RANDOM, "gains"),
    ("Is it their number? As many at random minus all", "—", RANDOM, PLAIN, "gains"),
    ("Does β add to the selection? DynamicPO minus selection alone", "—", WHOLE, SELECTION, "gains"),
    ("Is one negative better than none? DMPO at K = 1 minus SFT", "—", FEW, SFT, "gains"),
    ("Is the repaired run better than its start? DynamicPO-DMPO minus SFT", "—", WHOLE, SFT, "gains"),
    ("Is it better than more SFT for the same compute?", "—", WHOLE, MORE_SFT, "gains"),
    ("Does MPPO by the likelihood per token collapse?", "—", PLAIN | PER_TOKEN, FEW | PER_TOKEN, "falls"),
    ("Does DynamicPO help it?", "—", WHOLE | PER_TOKEN, PLAIN | PER_TOKEN, "gains"),
)


@dataclass(frozen=True)
class World:
    """One dataset and model: the largest K, and the grids of its runs, that of objectives first."""

    name: str
    many: int
    grids: Sequence[Recorded]

    def runs(self, query: Settings) -> tuple[Recorded, Settings] | None:
        """The grid with the runs that have these settings, of DMPO at the largest K unless they say otherwise, and the
        settings in full; None where such runs were not made."""
        query = {"objective": "dmpo", "negatives": self.many} | query
        form = query.pop("likelihood_of", "token")
        for recorded in self.grids:
            if (query["objective"] == "mppo" and form != form_of(recorded)) or recorded.rows(**query).empty:
                continue
            if query == MORE_SFT:
                query["learning_rate"] = choose_more_sft(recorded, recorded.provenance["chosen"]["sft_epochs"])
            return recorded, query
        return None

    def side(self, query: Settings) -> Outcomes | None:
        """Test users' outcomes by seed, of the runs with these settings or of the SFT model that all start from; None
        where such runs were not made, or their outcomes not kept."""
        if query == SFT:
            return self.grids[0].baseline("sft")
        metric = query.get("metric", "hr@1")
        found = self.runs({name: value for name, value in query.items() if name != "metric"})
        if found is None or (metric == "reward_win_rate" and found[0].wins is None):
            return None
        return found[0].outcomes(metric, **found[1])

    def answer(self, left: Settings, right: Settings, claim: str) -> str:
        """A claim's cell: the difference, its interval and the verdict; a fall counts only if the loss falls too."""
        said = cell(self.side(left), self.side(right), claim)
        if claim != "falls":
            return said
        sides = [found for side in (left, right) if (found := self.runs(side)) is not None]
        losses = [recorded.rows(**query).train_loss.mean() for recorded, query in sides]
        return said if len(losses) == 2 and losses[0] < losses[1] else said.replace("**shown**", "**not shown**")


def form_of(recorded: Recorded) -> str:
    """The likelihood that a grid's MPPO takes."""
    recipe = GRIDS.get(recorded.folder.name)
    settings = (recipe.shared, *recipe.grids) if recipe else ()
    return next((str(each["likelihood_of"]) for each in settings if "likelihood_of" in each), "token")


def judge(low: float, high: float, claim: str) -> str:
    """What an interval says of a claim: "falls", "gains" or "stable"."""
    if claim == "falls":
        low, high = -high, -low
    shown = low >= -0.01 and high <= 0.01 if claim == "stable" else low > 0
    return "shown" if shown else "opposite" if high < 0 else "not shown"


def cell(left: Outcomes | None, right: Outcomes | None, claim: str) -> str:
    """A difference with its interval and its verdict, for a table."""
    if left is None or right is None or (not set(left) & set(right) and None not in {*left, *right}):
        return "not run"
    found, seeds = difference(left, right), {*left, *right} if None in {*left, *right} else {*left} & {*right}
    # Of one seed, the interval is over users alone.
    verdict = "one seed, no verdict" if len(seeds - {None}) == 1 else judge(found.low, found.high, claim)
    return f"{points(left, right)} **{verdict}**"


WORLDS = {
    "catalogue, pocket-gpt2": (19, ["objectives", "parts", "mppo"]),
    "ml-100k, pocket-gpt2": (19, ["ml-100k-objectives", "ml-100k-parts"]),
    "ml-100k, SmolLM2-135M": (15, ["ml-100k-smollm2"]),
}


def worlds() -> list[World]:
    """What is recorded; ValueError if the grids of a world are on different data."""
    here = [World(name, many, [load_recorded(grid) for grid in grids]) for name, (many, grids) in WORLDS.items()]
    for world in here:
        check_same_data(*world.grids)
    return here


def findings() -> str:
    """The tables of FINDINGS.md; the rule above them was written before any run on real data was looked at."""
    here, sft, pilot = worlds(), load_recorded("ml-100k-smollm2-sft"), load_recorded("ml-100k-smollm2-settings")
    header = ["", "the paper, HR@1 on LastFM", *(f"{world.name}, K = {world.many}" for world in here)]
    claims, questions = (
        markdown(header, [[text, paper, *(world.answer(*sides) for world in here)] for text, paper, *sides in group])
        for group in (CLAIMS, QUESTIONS)
    )
    overhead = read_json(DATA.parent / "benchmarks" / "step.json")["dynamic_share"]
    origins = "\n".join(origin(world.name, world.grids[0]) for world in here)
    return f"""\
## The paper's claims

Differences in points of HR@1 (of reward win rate in the last row) with 95 % intervals.

{claims}

Overhead of DynamicPO: the paper +0.85 % of training time; here {100 * overhead:.2f} % of a step at K = 15 on \
SmolLM2-135M (`benchmarks/step.py`): **{"shown" if overhead <= 0.01 else "opposite"}**, for at most 1 %.

## The questions that a careful reader asks

{questions}

## Levels

Test HR@1 of the baselines; the oracle is known only in the invented world.

{levels_table(here)}

## How fast SmolLM2-135M learns

SFT of SmolLM2-135M on MovieLens-100K through LoRA, `{sft.command}`: {len(sft.table)} runs of one seed each, \
compared on validation users. Rows of sequences learn each title once; a row per target repeats its history. Minutes \
are those of training, on a machine that other runs may have shared.

{sft_table(sft)}

## What three seeds of SmolLM2-135M can show

Worked out from the spread in `{pilot.command}` before any run of the grid of K and DynamicPO was read: DMPO at K = 1, \
one learning rate against another, paired over {len(pilot.provenance["seeds"])} seeds and {pilot.ranks.shape[1]} test \
users. A difference is shown with a chance of 80 % if it is as large as the last column says, for two settings whose \
runs differ from user to user as much as these rates do.

{power_table(pilot)}

## How much hangs on the order within ties

{ties_report()}

## Every cell

HR@1 of each seed; the others are means over seeds. Losses at different K are different functions; pair_loss is the \
same one for every K.

{cells_table(here)}

## Where the numbers come from

{origins}"""


def levels_table(here: Sequence[World]) -> str:
    names = ("random", "popularity", "markov", "sft", "oracle")
    found = [{name: level(world.grids[0].baseline(name)) for name in world.grids[0].baselines} for world in here]
    lines = [[world.name, *(each.get(name, "—") for name in names)] for world, each in zip(here, found, strict=True)]
    return markdown(["", "random", "popularity", "first-order Markov", "SFT", "oracle"], lines)


def sft_table(recorded: Recorded) -> str:
    """How fast a language model learns in SFT, the best on validation users first."""
    lines = []
    for number, run in recorded.table.sort_values("val_hr@1", ascending=False).iterrows():
        config = recorded.configs[int(str(number))]
        rows = "of sequences" if run["rows"] == "sequence" else "one per target"
        settings = [rows, f"{config.rank}", f"{run['learning_rate']:g}", f"{run['epochs']:g}"]
        cost = [f"{run['tokens'] / 1e6:.2f} M", f"{run['seconds'] / 60:.0f}"]
        lines.append([*settings, *cost, f"{run['val_hr@1']:.3f}", f"{run['hr@1']:.3f}"])
    header = ["rows", "rank", "learning rate", "epochs", "tokens read", "minutes", "validation HR@1", "test HR@1"]
    return markdown(header, lines)


def power_table(pilot: Recorded) -> str:
    """The smallest differences that three seeds can show, for each two learning rates of a grid."""
    lines = []
    for one, other in combinations(sorted(pilot.table["learning_rate"].unique(), reverse=True), 2):
        sides = [pilot.outcomes(learning_rate=rate) for rate in (one, other)]
        seeds = [seed for seed in sides[0] if seed in sides[1]]
        half, least = power(np.stack([sides[0][seed] - sides[1][seed] for seed in seeds]), seeds=3)
        lines.append([f"{one:g} against {other:g}", points(*sides), f"±{100 * half:.1f}", f"{100 * least:.1f}"])
    header = "learning rates | HR@1 of the pilot, points | expected interval, 3 seeds | shown in 80 % of studies from"
    return markdown(header.split(" | "), lines)


def power(differences: np.ndarray, seeds: int) -> tuple[float, float]:
    """The half-width that `evaluation.paired_interval` is expected to have with this many seeds, and the difference
    that it then tells from zero with a chance of 80 %; from paired differences of a pilot, (seeds, users).

    Users and seeds are crossed, so the spread has three parts, here by the method of moments. The pigeonhole bootstrap
    counts the third, of users within seeds, three times (Owen 2007), and draws from as many seeds as there are.
    """
    number, users = differences.shape
    by_user, by_seed = differences.mean(axis=0), differences.mean(axis=1)
    rest = differences - by_user - by_seed[:, None] + differences.mean()
    within = (rest**2).sum() / ((number - 1) * (users - 1))
    of_users = max(0.0, by_user.var(ddof=1) - within / number)
    of_seeds = max(0.0, by_seed.var(ddof=1) - within / users)
    true = of_users / users + of_seeds / seeds + within / (users * seeds)
    drawn = of_users / users + of_seeds * (seeds - 1) / seeds**2 + 3 * within / (users * seeds)
    half = 1.96 * np.sqrt(drawn)
    return float(half), float(half + 0.84 * np.sqrt(true))


def cells_table(here: Sequence[World]) -> str:
    header = (
        " | objective | K | DynamicPO | seeds | training loss | pair_loss | test HR@1 by seed | NDCG@5 | "
        "reward win rate | boundary share"
    )
    parts = {("off", "off"): "off", ("on", "on"): "on", ("on", "off"): "selection alone", ("off", "on"): "β alone"}
    lines = []
    for name, recorded in [(world.name, grid) for world in here for grid in world.grids]:
        plain = recorded.table[lambda table: table.objective != "sft"]
        cells = plain.groupby(["objective", "negatives", "dynamic", "select", "adjust_beta"], sort=True)
        for (objective, negatives, _, *switches), rows in cells:
            mean = {column: f"{values.mean():.3f}" for column, values in rows.select_dtypes("number").items()}
            answer = ", whole answer" if objective == "mppo" and form_of(recorded) == "answer" else ""
            kind = parts.get(tuple(switches), f"{switches[0]} selection alone")
            setting = [name, OBJECTIVE_LABELS[objective] + answer, f"{negatives}", kind, f"{len(rows)}"]
            losses = [mean["train_loss"], mean["pair_loss"], " ".join(f"{value:.3f}" for value in rows["hr@1"])]
            more = [mean[column] for column in ("ndcg@5", "reward_win_rate", "boundary_share")]
            lines.append([*setting, *losses, *more])
    return markdown(header.split(" | "), lines)


def origin(name: str, recorded: Recorded) -> str:
    """One line on how and when a grid was recorded."""
    made = recorded.provenance
    parts = [
        f"`{recorded.command}`", f"{len(recorded.table)} runs", f"recorded {made['recorded'][:10]}",
        made["versions"]["machine"], f"torch {made['versions']['torch']}", f"commit {made['commit']}",
        f"data {recorded.fingerprint}",
    ]  # fmt: skip
    if made.get("missing"):
        parts.append(f"{made['missing']} of its cells not trained yet")
    return f"- {name}: {', '.join(parts)}. {older_data(recorded)}".removesuffix(". ")


def ties_report() -> str:
    """How far the headline moves with the order within ties: a paragraph and a table."""
    content = read_json(RECORDED / "ties.json")
    first, *others = content["orders"]
    told, labels = first["report"], [*first["hr@1"]]
    moves = []
    for label in labels:
        gaps = [100 * (other["hr@1"][label] - first["hr@1"][label]) for other in others]
        ends = dict.fromkeys(f"{gap:+.1f}" for gap in (min(gaps), max(gaps)))
        moves.append(f"{label} {' to '.join(ends).replace('-', '−')}")
    rows = []
    for order in content["orders"]:
        kind = "the file's" if order["ties"] == "file" else f"drawn, dataset seed {order['dataset_seed']}"
        rows.append([kind, *(f"{order['hr@1'][label]:.3f}" for label in labels), *order["differences"].values()])
    missing = f"; {content['missing']} of the orders not trained yet" if content["missing"] else ""
    return f"""\
Of {told["neighbours"]:,} neighbouring likes of a user in ml-100k, {told["tied"]:,} share their second, and for \
{told["users"]:,} users nothing but the order within such a tie says which is the test's answer. Test HR@1 of \
pocket-gpt2 in the file's order, which all else here has, and in orders drawn at random; {len(content["seeds"])} seeds \
of preference training, differences in points with 95 % intervals. Another dataset seed draws other negatives too; the \
file's order has data {first["dataset_fingerprint"]}. Against it, HR@1 moves in points: {"; ".join(moves)}.

{markdown(["order within ties", *labels, *first["differences"]], rows)}

`python data/record.py ties`, recorded {content["recorded"][:10]}, {content["versions"]["machine"]}, torch \
{content["versions"]["torch"]}{missing}."""
