"""Writes the benchmarks' results into README.md and docs/speed.md, from their JSON files: python benchmarks/report.py

What it says of each benchmark comes from a function under the script's name.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from minipo.experiments.files import fill_in, markdown, read_json


def where(found: dict[str, Any]) -> str:
    """The machine that a report is of, and the day."""
    made = found.get("provenance", found)
    machine = made.get("processor") or made["machine"]  # which says how many cores there were
    if "threads" in made:
        machine += f", {made['threads']} thread{'s' * (made['threads'] > 1)}"
    return ", ".join([machine, *([made["date"][:10]] if "date" in made else [])])


def step(found: dict[str, Any]) -> list[str]:
    results, made = found["results"], found["provenance"]
    lines, theirs, ours = [], ("as it comes", "plain"), ("fresh", "cached")
    for result in results:
        seconds, memory = result["seconds"], result["peak_gb"]
        times = [f"{seconds[side]:.3g} s" for side in theirs + ours]
        ratios = [f"{seconds[their] / seconds[our]:.1f} ×" for our in ours for their in theirs]
        peaks = [f"{memory[side]:.1f} GB" for side in ("plain", "fresh")] + [f"{memory['fresh'] / memory['plain']:.0%}"]
        lines.append([result["model"], str(result["negatives"]), *times, *ratios, *peaks])
    header = [
        "model", "K", "plain as it comes", "plain", "fresh", "cached", "fresh against plain as it comes",
        "fresh against plain", "cached against plain as it comes", "cached against plain", "plain, peak memory",
        "fresh, peak memory", "fresh of plain memory",
    ]  # fmt: skip
    library = ""
    if found["onednn"]:
        library = (
            " minipo's products ran on oneDNN, on this processor much faster than PyTorch's BLAS, plain's on that."
        )
    return [
        "**A preference step** (forward, reference, backward, optimizer), `python benchmarks/step.py`. Plain: every "
        "answer a full row, logits of the whole vocabulary at every position, a reference forward each step, as the "
        "papers' releases do it. Fresh: minipo with a reference forward each step; cached: with the reference's "
        "log-probs kept. Plain as it comes returns freed memory to the system and requests it again, as processes do "
        "by default; the others keep it (`reuse_memory`), as minipo does by itself. float32; "
        f"SmolLM2-135M with LoRA, {results[0]['rows']} rows of about "
        f"{results[0]['prompt_tokens']:.0f} prompt tokens; pocket-gpt2 with all weights, {results[-1]['rows']} rows of "
        f"the catalogue; medians of {len(results[0]['all_seconds']['fresh'])} steps with SmolLM2-135M. {where(found)}, "
        f"torch {made['torch']}, transformers {made['transformers']}.",
        markdown(header, lines),
        f"DynamicPO's selection and β take {100 * found['dynamic_share']:.2f} % of a fresh step of SmolLM2-135M at K = "
        f"15. Such a step reads {found['tokens_per_second']:.0f} tokens of packed rows a second, "
        f"{found['products_share']:.0%} of what matrix products allow on this machine: as many of them with the frozen "
        f"weights, with nothing between them, in the same process.{library} Plain and packed log-probs differ by at "
        f"most {max(each['largest_difference'] for each in results):.0e}.",
    ]


def trl_step(found: dict[str, Any]) -> list[str]:
    seconds = found["seconds"]
    ours = {side: seconds["minipo, cached" if "cached" in side else "minipo, fresh"] for side in seconds}
    lines = [
        [side, f"{seconds[side]:.2f} s", f"{seconds[side] / ours[side]:.2f} ×", f"{found['peak_gb'][side]:.1f} GB"]
        for side in seconds
    ]
    return [
        f"**One negative, against TRL's `DPOTrainer`** ({found['provenance']['trl']}), the same model, data, LoRA and "
        f"precision, `python benchmarks/trl_step.py` ({where(found)}).",
        markdown(["", "a step", "time, of minipo's", "peak memory"], lines),
    ]


def scoring(found: dict[str, Any]) -> list[str]:
    lines = []
    for result in found["results"]:
        seconds = result["seconds_a_user"]
        times = [f"{seconds[way]:.3g} s" for way in ("minipo", "plain", "generate")]
        ratios = [f"{seconds[way] / seconds['minipo']:.1f} ×" for way in ("plain", "generate")]
        lines.append([result["model"], *times, *ratios])
    header = ["model", "minipo", "a row a candidate", "generate", "minipo against rows", "against generate"]
    return [
        f"**Scoring 20 candidates per user**, `python benchmarks/scoring.py` ({where(found)}); `generate` writes one "
        "answer freely.",
        markdown(header, lines),
    ]


def growth(found: dict[str, Any]) -> list[str]:
    rate = sorted(1000 * point["seconds"] / point["tokens"] for point in found["growth"])
    loose, tight, worst = (
        max(point[name] for point in found["padding"]) for name in ("padding_one", "padding_groups", "largest_groups")
    )
    return [
        f"**As it grows**, `python benchmarks/growth.py` ({where(found)}): K from 1 to 63, prompts of 32 to 512 "
        f"tokens, batches of 1 to 64 cost {rate[0]:.2g} to {rate[-1]:.2g} s per thousand real tokens (median "
        f"{rate[len(rate) // 2]:.2g}). On ragged rows padding is up to {loose:.0%} as they come and {tight:.0%} "
        f"grouped by length, {worst:.0%} in the worst batch.",
        "![Time against tokens, and padding with and without grouping](docs/growth.svg)",
    ]


def shapes(found: dict[str, Any]) -> list[str]:
    count, sides = found["shown"], found["sides"]
    least, few = (
        f"{median(side['seconds'][:count]):.2g} s at first and {median(side['seconds'][-count:]):.2g} s after "
        f"{len(side['seconds'])} steps ({side['padding']:.0%} padding)"
        for side in (sides["least padding"], sides["few shapes"])
    )
    return [
        "**In bfloat16 on a CPU with instructions for it** steps of ever new shapes get slower and slower, so the "
        "trainers pad to a few shapes there. A step of SmolLM2-135M on ragged rows takes "
        f"{few} so, and {least} otherwise. `python benchmarks/shapes.py`, one run of each ({where(found)})."
    ]


ELSEWHERE = ("AMX (Intel, from Sapphire Rapids on)", "Apple silicon", "GPUs with CUDA")


def precision(found: dict[str, Any]) -> list[str]:
    header, lines = ["machine", "instructions"], []
    header += [f"{name}, {' × '.join(map(str, sides))}" for name, sides in found["widths"].items()]
    header += ["a step of SmolLM2-135M", "a step of pocket-gpt2"]
    for machine, by in found["machines"].items():
        for instructions, rules in by["rules"].items():
            cells = [*rules.values(), *by["steps"][instructions].values()]
            said = [f"{_ms(cell['float32'])} / {_ms(cell['bfloat16'])} ms: {cell['chosen']}" for cell in cells]
            lines.append([f"{machine}, {by['date'][:10]}", instructions, *said])
    lines += [[name, "no such machine was at hand", *[""] * (len(header) - 2)] for name in ELSEWHERE]
    return [
        "float32 / bfloat16, and what is chosen: CPU time of one thread, `python benchmarks/precision.py`. Under a "
        "model's widths: the products that the rule times, on as many tokens as it takes to be clear, so that times of "
        "different cells are not of the same work. A step: forward, "
        "backward and optimizer, of SmolLM2-135M with LoRA on 2 rows, of pocket-gpt2 on 32.",
        markdown(header, lines),
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.{1 if seconds < 0.01 else 0}f}"


def load(found: dict[str, Any]) -> list[str]:
    lines = [
        [part, *(f"{table[kind][number]:.2f} s" for kind in ("all", "in Chromium") for number in ("median", "p95")),
         f"{table['all']['actions']:,}", f"{100 * table['all']['within 1 s']:.1f} %"]
        for part, table in found["parts"].items()
    ]  # fmt: skip
    header = ["", "median", "95th percentile", "in Chromium, median", "95th percentile", "actions", "within 1 s"]
    return [
        f"**{found['sessions']} viewers of the app at once**, each acting every {found['an action every (s)']:.0f} s ("
        "a control moved, a page turned), from the action to the end of the answer, `python benchmarks/load.py`: "
        f"{found['sessions'] - 1} sessions that speak Streamlit's protocol and one headless Chromium, on the same "
        f"machine ({where(found)}). By page: benchmarks/load.json.",
        markdown(header, lines),
    ]


def page(found: dict[str, Any]) -> list[str]:
    lines = [[name, f"{seconds:.2f} s"] for name, seconds in found["seconds"].items()]
    return [
        "**How long things take on the page**, one viewer in headless Chromium and no others, `python "
        f"benchmarks/page.py` ({where(found)}).",
        markdown(["", ""], lines),
    ]


def selection(found: dict[str, Any]) -> list[str]:
    return [
        f"**DynamicPO's selection and β** for {found['rows']:,} rows of {found['negatives']} negatives take "
        f"{1000 * found['seconds']['vectorised']:.0f} ms on one thread, {found['ratio']:.0f} times less than an exact "
        f"loop over the rows in the same run, `python benchmarks/selection.py` ({where(found)})."
    ]


def against(found: dict[str, Any]) -> list[str]:
    def middle(what: str, *path: Any) -> list[float]:
        values = []
        for build in ("before", "now"):
            numbers = found[what][build]
            for key in path:
                numbers = [each.get(key, 0.0) if isinstance(each, dict) else each[key] for each in numbers]
            values.append(median(median(each) if isinstance(each, list) else each for each in numbers))
        return values

    def line(label: str, before: float, now: float) -> list[str]:
        return [label, f"{before:.3g} s", f"{now:.3g} s", f"{now / before:.2f}" if before else ""]

    rows = [
        line("click to HR@1, first run on a server", *middle("live", 0, "end")),
        line("click to HR@1, a later run", *middle("live", 1, "end")),
        line("click to the first point, first run", *middle("live", 0, "first")),
        line("click to the first point, a later run", *middle("live", 1, "first")),
        line("click to HR@1, a later run, every core busy", *middle("busy", 1, "end")),
        line("a step of SmolLM2-135M at K = 15, reference each time", *middle("fresh", "seconds")),
        line("a step of SmolLM2-135M at K = 15, reference kept", *middle("cached", "seconds")),
    ]
    names = ("imports", "reference", "steps", "evaluations", "the rest", "in all")
    profiles = [
        line(f"{label}: {part}", *middle(what, part))
        for what, label in (("prefer", "preference run"), ("sft", "SFT"))
        for part in names
        if any(middle(what, part))
    ]
    made, header = found["provenance"], ["", f"at {found['commit']}", "now", "now / then"]
    share = median(each["products_seconds"] / median(each["seconds"]) for each in found["fresh"]["now"])
    return [
        f"`python benchmarks/against.py {found['commit']}`, both builds in turns, medians. A live run: 300 steps of "
        f"DMPO at K = 15 on the catalogue through the app's queue. {where(found)}, torch {made['torch']}, transformers "
        f"{made['transformers']}.",
        markdown(header, rows),
        f"Of SmolLM2's step with a reference each time, its products with the frozen weights take {share:.0%}, at the "
        "speed that they reach with nothing between them, measured in the same process.",
        "Where the time goes, in a process of its own from its start: a preference run of 300 steps at K = 15 on the "
        "catalogue, and ten epochs of SFT there.",
        markdown(header, profiles),
    ]


def plus_minus(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


def sft_rows(found: dict[str, Any]) -> list[str]:
    config, runs, lines = found["config"], found["runs"]["target"], []
    for side, name in (("target", "a row per target"), ("sequence", "rows of sequences")):
        counts, metrics = found["counts"][side], found["metrics"][side]
        tokens = [f"{counts['tokens'] / counts['targets']:.2f}", f"{counts['computed']:.2f}"]
        step = [f"{found['seconds'][side]:.2f} s", f"{found['peak_gb'][side]:.1f} GB"]
        lines.append([name, *tokens, *step, *(plus_minus(metrics[name]) for name in ("hr@1", "ndcg@5"))])
    header = ["", "tokens per target", "with padding", "a step", "peak memory", "HR@1", "NDCG@5"]
    ratio = found["seconds"]["target"] / found["seconds"]["sequence"]
    differences = [
        f"{metric} {100 * each['mean']:+.1f} [{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]".replace("-", "−")
        for metric, each in (("HR@1", found["differences"]["hr@1"]), ("NDCG@5", found["differences"]["ndcg@5"]))
    ]
    return [
        f"**SFT on rows of sequences**, {config['model']} on {config['dataset']}, `python benchmarks/sft_rows.py` "
        f"({where(found)}): "
        f"{config['epochs']:g} of an epoch in {runs[0]['steps']:,} steps of {config['batch_size']} targets either way, "
        f"LoRA of rank {config['rank']}, learning rate {config['learning_rate']:g}; HR@1 and NDCG@5 of "
        f"{found['users']:,} validation users, mean and standard deviation of {len(runs)} seeds.",
        markdown(header, lines),
        f"A step on rows of sequences takes {ratio:.1f} times less time. Rows of sequences minus a row per target, in "
        f"points with 95 % intervals over users and seeds: {', '.join(differences)}.",
    ]


def models(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, jobs in found["models"].items():
        sft, many = jobs["SFT"], jobs["K = 15"]
        times = {job: median(each["seconds"]) for job, each in jobs.items()}
        epoch = times["SFT"] * sft["targets"] / sft["batch_size"] / 3600
        settings = f"{many['precision']}, {many['batch_size']} users in {many['accumulation']} parts"
        seconds = [f"{times[job]:.1f} s" for job in ("K = 1", "K = 15")]
        memory = [f"{jobs[job]['peak_gb']:.1f} GB" for job in ("SFT", "K = 15")]
        real = "" if name.startswith(("smollm2", "pocket")) else " (random weights of its shape)"
        lines.append([name + real, f"{many['parameters'] / 1e6:.0f} M", settings, f"{epoch:.1f} h", *seconds, *memory])
    header = [
        "", "parameters", "a preference step", "SFT, an epoch of MovieLens-100K", "a step at K = 1", "at K = 15",
        "memory, SFT", "at K = 15",
    ]  # fmt: skip
    return [
        f"`python benchmarks/models.py` ({where(found)}): LoRA, MovieLens-100K, the recipe's settings.",
        markdown(header, lines),
    ]


def said(*parts: Callable[[dict[str, Any]], list[str]]) -> str:
    """What there is to say of these benchmarks, from the reports that there are beside this file."""
    there = [(part, Path(__file__).with_name(f"{part.__name__}.json")) for part in parts]
    return "\n\n".join(text for part, path in there if path.is_file() for text in part(read_json(path)))


def readme() -> str:
    return said(step, trl_step, scoring, growth, shapes, selection, sft_rows, page, load)


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    fill_in(root / "README.md", "python benchmarks/report.py", readme())
    fill_in(root / "docs" / "speed.md", "python benchmarks/against.py 6602be4", said(against))
    fill_in(root / "docs" / "speed.md", "python benchmarks/precision.py", said(precision))
    fill_in(root / "docs" / "speed.md", "python benchmarks/models.py", said(models))
