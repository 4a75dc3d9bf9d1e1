"""The app's entry: `streamlit run app/main.py`, or `minipo app`."""

import math

import jobs
import shell
import streamlit as st
import torch

PAGES = {
    "why": ("Why", "Why averaging over easy negatives silences a mistake."),
    "collapse": ("Collapse", "What happens to loss and ranking when the number of negatives grows."),
    "lab": ("Live lab", "Train up to four runs side by side, and watch."),
    "microscope": ("Microscope", "One user's candidates: who is at the boundary, and how hard each is pushed."),
    "suppression": ("Suppression", "How the push on boundary and easy negatives changes with training and with K."),
    "experiment": ("Class", "An experiment that a whole class runs together, one seed each."),
    "compare": ("Compare", "Runs in one table, with paired differences."),
    "data": ("Your data", "Train a pocket model on a file of your own."),
    "about": ("About", "The paper, the words, and where each number comes from."),
}

STYLE = """
.stMainBlockContainer {padding: 3.9rem 2.2rem 2rem; max-width: 1500px}
.stMainBlockContainer h2 {padding: 0 0 .15rem !important}
[data-testid=stElementToolbar] button[aria-label^='Download as CSV'] {display: none} /* names in it could be formulas */
.figure-title {font-size: 1.05rem; font-weight: 600; line-height: 1.3; margin: 0}
@media (max-width: 640px) {.stMainBlockContainer {padding: 3.9rem .9rem 2rem}}
"""


@st.cache_resource(show_spinner=False)
def begin() -> None:
    """Once per server: start the queue's worker, and use one thread for a page's small tensors, because waiting for
    more threads takes longer, above all while runs train."""
    torch.set_num_threads(1)
    jobs.start_worker()


def infinite(text: str) -> bool:
    """Whether a link's value is an infinite number."""
    try:
        return math.isinf(float(text))
    except ValueError:
        return False


st.set_page_config(page_title="minipo: why more negatives can teach less", page_icon="📉", layout="wide")
begin()
pages = [
    st.Page(
        f"views/{name}.py", title=title, url_path="start" if name == "why" else name, default=name == "why", help=about
    )
    for name, (title, about) in PAGES.items()
]
# The first page's address is the app's own; this one lets a link name it.
pages.append(st.Page("views/why.py", title="Why", url_path="why", visibility="hidden"))
page = st.navigation(pages, position="top")
st.html(f"<style>{STYLE}</style>")
state = st.session_state
if state.get("page") != page.url_path:  # just opened: its link sets the controls
    kept = {"viewer", shell.REMOVED, *st.query_params}
    for name in [str(name) for name in state if name not in kept]:  # or a control would take another page's value
        del state[name]
    state["page"], state["link_opened"] = page.url_path, st.query_params.to_dict()
dropped = [name for name in st.query_params if any(map(infinite, st.query_params.get_all(name)))]
for name in dropped:  # Streamlit's own controls fail on infinity; the page reports that it was ignored
    del st.query_params[name]
if dropped:
    st.rerun()
page.run()
