"""Why: averaging over easy negatives silences a mistake."""

from typing import Any

import recorded
import streamlit as st
import torch
from shell import WORDS, check_link, draw, head, plain

from minipo import DynamicPO, preference_loss
from minipo.course.figures.why import (
    Mistake,
    guess_sentence,
    loss_bars,
    margin_line,
    push_bars,
    push_product,
    push_sentence,
    push_table,
)
from minipo.experiments.datasets import catalog

EASY = 18  # easy negatives beside the mistake: a user has 19 negatives
KEYS = ["easy", "boundary", "user", "mistake", "margin", "beta", "predict", "guess", "loss", "reveal"]
LINK: dict[str, Any] = {"bind": "query-params"}
HONEST = (
    "This is arithmetic on one user: whether in training the silenced boundary or the easy negatives' own pushes do "
    "the harm is on the pages [Suppression](suppression) and [Collapse](collapse)."
)


def ask_again() -> None:
    """Another question: hide its answer."""
    st.session_state["reveal"] = False


def chosen_user() -> tuple[Mistake, str, int] | None:
    """The chosen recorded user, the run's name, and the number of such users; None without one."""
    number = st.session_state.get("user")
    if number is None:
        return None
    users = recorded.mistakes()
    if not users:
        st.warning("No recorded user is available: no readable probe of a recorded run has a user with one mistake.")
    elif number > len(users):
        st.warning(f"There are {len(users)} recorded users with one mistake: choose a number up to {len(users)}.")
    else:
        return *users[number - 1], len(users)
    return None


def question(easy: int, real: bool) -> None:
    """The question to predict, with its controls."""
    asking, guessing, moving, showing = st.columns([3.1, 1.25, 1.35, 0.85], vertical_alignment="bottom")
    which = "of this user's other negatives" if real else "easy negatives"
    asking.markdown(
        f"**Add {easy} {which}: by how many times does DMPO's push on the mistake fall, and does its loss rise "
        "or fall?**"
        if easy
        else "**Choose the number of easy negatives with the slider.**"
    )
    guess = guessing.number_input(
        "The push falls, times", 0.01, 1e6, None, 1.0, format="%g", placeholder="your guess", key="guess",
        help="Your guess: 10 means that a tenth of the push is left, 1 that it stays. " + WORDS["push"], **LINK,
    )  # fmt: skip
    loss = moving.segmented_control(
        "Its loss", ["falls", "rises"], key="loss", help="Your guess: what DMPO's loss on this user does.", **LINK
    )
    ready = easy > 0 and guess is not None and loss is not None
    showing.toggle(
        "Reveal", key="reveal", disabled=not (ready or st.session_state.get("reveal")),
        help="Shows the truth beside your guess, once both are given. Moving another control hides it again.", **LINK,
    )  # fmt: skip


@st.fragment
def why() -> None:
    state = st.session_state
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        head("Easy negatives silence a mistake", "One mistake among easy negatives, and how hard each loss pushes it.")
        predicting = st.toggle(
            "Predict first", key="predict", on_change=ask_again,
            help="Hides the effect of the easy negatives until you have guessed it. The link has your guess.", **LINK,
        )  # fmt: skip
    sliding, selecting, filling, setting = st.columns([3.2, 1.1, 1.25, 1], vertical_alignment="bottom")
    easy = sliding.slider(
        "Easy negatives beside the mistake", 0, EASY, EASY, key="easy", on_change=ask_again,
        help=WORDS["easy negatives"], **LINK,
    )  # fmt: skip
    user_number = filling.number_input(
        "Recorded user", 1, None, None, 1, key="user", placeholder="illustration", on_change=ask_again,
        help="Fills the line with a validation user of a recorded run who has one mistake. Empty: an illustration.",
        **LINK,
    )  # fmt: skip
    real = user_number is not None
    with setting.popover("Margins, β", icon=":material/tune:", width="stretch", help="Set the margins and β by hand."):
        mistake_margin = st.slider(
            "Mistake's margin (nats)", -4.0, 4.0, -1.0, 0.5, key="mistake", disabled=real, on_change=ask_again,
            help=WORDS["margin"], **LINK,
        )  # fmt: skip
        easy_margin = st.slider(
            "Easy negatives' margin (nats)", 0.0, 8.0, 4.0, 0.5, key="margin", disabled=real, on_change=ask_again,
            help=WORDS["margin"], **LINK,
        )  # fmt: skip
        beta = st.slider("β, strength", 0.1, 3.0, 1.0, 0.1, key="beta", on_change=ask_again, help=WORDS["β"], **LINK)
    found = chosen_user()
    if predicting:
        question(easy, found is not None)
    hidden = predicting and not (state["reveal"] and easy)
    selected = selecting.toggle(
        "boundary only", key="boundary", disabled=hidden,
        help="DynamicPO's selection: only negatives ranked at or above the chosen item enter the loss or, where there "
        "are none, the group nearest to it. β stays as it is.", **LINK,
    ) and not hidden  # fmt: skip

    if found is None:
        margins = torch.tensor([mistake_margin] + [easy_margin] * easy)
        policy = torch.cat([torch.zeros(1), -margins])[None]
        reference = torch.zeros_like(policy)
        names = catalog.world().items[7 : 8 + easy]
        ends = beta * mistake_margin, beta * easy_margin, 0
        span = (min(ends) - 1.5, max(ends) + 1)
        note = "An illustration: margins set by hand, losses and pushes computed from them as in training."
    else:
        user, run, count = found
        policy, reference = user.policy[:, : 2 + easy], user.reference[:, : 2 + easy]
        names, span = user.names[: 1 + easy], None
        note = (
            f"Validation user {user.user} after step {user.step} of a recorded run ({run}). The chosen item: "
            f"{plain(user.chosen)}. User {user_number} of {count} with one mistake."
        )
    truth = push_table(policy, reference, beta)
    if hidden:  # only the mistake
        policy, reference, names = policy[:, :2], reference[:, :2], names[:1]
    dynamic = DynamicPO(adjust_beta=False) if selected else None
    table = push_table(policy, reference, beta, dynamic) if selected or hidden else truth
    output = preference_loss("dmpo", policy, reference, beta, dynamic=dynamic)
    guess = None
    if predicting and not hidden:
        guess = state["guess"]
        st.markdown(guess_sentence(truth, guess, state["loss"]))
    if selected or not predicting:
        st.markdown(push_sentence(truth, table if selected else None))
    line = margin_line(output.rewards[0].numpy(), output.used[0].numpy(), names, span)
    draw(line, "why_line", "One user's negatives by their margin to the chosen item.")
    left, right = st.columns([1, 2.6])
    with left:
        draw(loss_bars(table, selected), "why_loss", "Loss under three objectives.")
    with right:
        bars = push_bars(table, selected, guess)
        draw(bars, "why_push", "Push on the mistake under three objectives, and what it lost.")
    st.caption(f"{push_product(table)} {note} {HONEST}")


why()
check_link("why", KEYS)
