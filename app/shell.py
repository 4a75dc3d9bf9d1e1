"""What every page shares: its head, controls, figures, escaped text, the viewer, and the link.

Text that comes from data goes through `plain` before it enters Markdown; figures do the same for themselves.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go
import recorded
import streamlit as st

from minipo.course.figures.style import darkened

COOKIE = "minipo_viewer"
REMOVED = "removed_runs"  # in the session: those that its viewer has removed, so that no page reports them missing
TOKEN = re.compile(r"[A-Za-z0-9_-]{10,40}")

# The meaning of each word, for the question mark beside a control and for the page About.
WORDS = {
    "K": "How many negatives each training example has: items that were not chosen.",
    "objective": "The loss that is minimised. DPO compares the chosen item with each negative by itself; DMPO with the "
    "mean of all; S-DPO mostly with the hardest; MPPO compares probabilities, with no reference model.",
    "DynamicPO": "Keeps only the negatives at the boundary, and gives each its own strength β.",
    "boundary": "Negatives that the model ranks at or above the chosen item or, where there are none, the group "
    "nearest below it.",
    "β": "How strongly the loss pulls chosen and negatives apart.",
    "γ": "The margin in DynamicPO's own β: how far apart, in nats, the two margins must be for β to stay as it is.",
    "clusters": "Into how many groups DynamicPO parts the negatives where none is ranked above the chosen item.",
    "SFT": "Supervised fine-tuning: the model before preference optimization, and the reference where a loss has one.",
    "training loss": "The objective's own loss on training users. At another K it is another function: values at "
    "different K cannot be compared.",
    "pair_loss": "One yardstick for every run: the mean of −log σ(ρ chosen − ρ negative) over all 19 negatives of "
    "validation users, in nats.",
    "HR@1": "Share of users whose chosen item is ranked first among the 20 candidates.",
    "NDCG@5": "Ranking quality in the first five places: 1 for the first place, less for each place below.",
    "MRR": "Mean of 1 / place of the chosen item.",
    "win rate": "Share of users whose chosen item gained more over SFT than every negative did.",
    "push": "How hard the loss pushes a negative down: the derivative of the loss with respect to its log-prob.",
    "dilution": "The part of the push that a negative gets where a mean shares it among K negatives.",
    "saturation": "The part of the push that the sigmoid leaves, σ(−z): near zero once the loss is content.",
    "seed": "Fixes the order of users and negatives; runs with the same seed are paired.",
    "learning rate": "How far each step moves the model.",
    "steps": "Optimizer steps, each on 32 users (16 for SmolLM2).",
    "interval": "A 95 % interval, paired over users and seeds: if it excludes zero, the difference is shown.",
    "oracle": "The best ranking that the history allows; known only because the catalogue is invented.",
    "log-prob": "The logarithm of the probability that the model gives to an item's name, in nats.",
    "log-ratio": "ρ: a candidate's log-prob minus its log-prob under SFT; what has changed since SFT, in nats.",
    "margin": "How far the chosen item is ahead of a negative: β times the difference of their log-ratios, in nats. "
    "Below zero the negative has gained on the chosen item.",
    "easy negatives": "Negatives that the chosen item is already far ahead of.",
    "nats": "Units of a natural logarithm: one nat is a factor of 2.7 in probability.",
}


def head(title: str, about: str) -> None:
    """A page's head: its title, and what it answers in one line."""
    with st.container(key="head", horizontal=True, vertical_alignment="bottom"):
        st.header(title, anchor=False, width="content", help=about)


def choose(label: str, options: Iterable[str], key: str, help: str, default: str | None = None, **more: Any) -> Any:
    """One of a few options as buttons, the first by default; part of the link."""
    options = list(options)
    return st.segmented_control(
        label, options, default=default or options[0], required=True, key=key, help=help, bind="query-params", **more
    )


def pick(label: str, options: Iterable[Any], key: str, help: str | None = None, index: int = 0, **more: Any) -> Any:
    """One of many options as a drop-down list; part of the link."""
    return st.selectbox(label, list(options), index, key=key, help=help, filter_mode=None, bind="query-params", **more)


def distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Runs' names by token, with a number behind a name that another one has already."""
    labels: dict[str, str] = {}
    for token, name in names.items():
        label, number = name, 1
        while label in labels.values():
            number += 1
            label = f"{name} · {number}"
        labels[token] = label
    return labels


def plain(text: object) -> str:
    """Text with everything escaped that Markdown, HTML or Streamlit would interpret."""
    # Streamlit looks for addresses, icons and arrows after Markdown has removed the escapes: an invisible word joiner
    # splits them.
    line = " ".join(str(text).split())
    parted = re.sub(r"(?i)(?<=:)(?=[/\w])|(?<=www)(?=\.)|(?=@)|(?<=-)(?=[->])|(?<=<)(?=-)", "\u2060", line)
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|$~:&@/])", r"\\\1", parted)


def draw(figure: go.Figure, key: str, alt: str, **more: Any) -> Any:
    """Show a figure in the page's theme, with its title above it, where it can wrap.

    alt: what it shows, for those who cannot see it. more: further arguments of `st.plotly_chart`.
    """
    content = figure.to_dict()
    title = content["layout"].pop("title", {}).get("text")
    if title:
        margin = content["layout"].setdefault("margin", {})
        lines = 1 + title.count("<br>")
        margin["t"] = max(28, margin.get("t", 28) - 18 - 20 * lines)
        content["layout"]["height"] = max(150, content["layout"].get("height", 400) - 18 - 20 * lines)
        st.html(f"<div class='figure-title'>{title}</div>")
    if st.context.theme.type == "dark":
        content = darkened(content)
    ready = go.Figure(content, _validate=False)  # it was validated when it was made, which is slow
    return st.plotly_chart(ready, key=key, theme=None, config={"displayModeBar": False}, alt=alt, **more)


def viewer() -> str:
    """The viewer: a random name that this browser keeps in a cookie. Runs and limits belong to it."""
    kept = st.context.cookies.get(COOKIE, "")
    if TOKEN.fullmatch(kept):
        return kept
    name = st.session_state.setdefault("viewer", secrets.token_urlsafe(16))
    attributes = "path=/; max-age=31536000; SameSite=Lax"
    st.html(f"<script>document.cookie = '{COOKIE}={name}; {attributes}'</script>", unsafe_allow_javascript=True)
    return name


def check_link(page: str, known: Iterable[str]) -> None:
    """Name the parameters of the link that opened `page` that were not recognised. Call it after the controls.

    known: the names of the page's parameters. Streamlit itself drops an invalid value of a bound control, which then
    shows its default.
    """
    state = st.session_state
    if (key := f"link_of_{page}") not in state:  # later, a control may have been moved
        link, mine = state.get("link_opened", {}), set(known)
        unknown = [name for name in link if name not in mine]
        state[key] = unknown + [name for name, value in link.items() if name in mine and not _taken(name, value)]
    if state[key]:
        names = ", ".join(plain(name[:40]) for name in state[key])
        sentence = f"Some parameters of this link were not recognised and were ignored: {names}."
        st.info(sentence, icon=":material/link_off:")


def _taken(name: str, text: str) -> bool:
    """Whether a control has taken the link's value; a parameter without a control is handled by its page."""
    if name not in st.session_state or text in st.query_params.get_all(name):
        return True
    value = st.session_state[name]  # a default, which Streamlit removes from the link, or another value
    try:
        return float(str(value)) == float(text)
    except ValueError:
        said = {str(part) for part in (value if isinstance(value, list) else [value])}
        return text.lower() in {word.lower() for part in said for word in (part, recorded.LABELS.get(part, part))}
