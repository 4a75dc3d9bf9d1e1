"""From a history of items to the text a language model continues."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HISTORY = "[HistoryHere]"
CANDIDATES = "[CansHere]"


@dataclass(frozen=True)
class Template:
    """A prompt's text with the placeholders [HistoryHere] and, optionally, [CansHere].

    text: each placeholder may occur anywhere, and more than once.
    separator: goes between two items, in the history and in the candidate list.

    Raises ValueError if the text lacks [HistoryHere]. The placeholders are LLaRA's (arXiv 2312.02445).
    """

    text: str
    separator: str = ", "

    def __post_init__(self) -> None:
        if HISTORY not in self.text:
            raise ValueError(f"The template {self.text!r} lacks {HISTORY}; put it where the history belongs.")

    @property
    def lists_candidates(self) -> bool:
        """Whether the prompt shows the candidates."""
        return CANDIDATES in self.text

    @property
    def continues(self) -> bool:
        """Whether an answer goes on with the history: prompt and answer are then how a longer prompt begins."""
        after = self.text.partition(HISTORY)[2]
        return not self.lists_candidates and after + answer("") == self.separator


TEMPLATES: Mapping[str, Template] = {
    # Prompt and answer are one line, "A B, C D, E F": all that a pocket model ever reads.
    "line": Template(f"{HISTORY},"),
    # The same for a model that has read other text: an answer still goes on with the history.
    "liked": Template(f"I enjoyed these, oldest first: {HISTORY},"),
    "question": Template(f"I enjoyed these, oldest first: {HISTORY}. What would I enjoy next?\nAnswer:"),
    "choice": Template(
        f"I enjoyed these, oldest first: {HISTORY}. "
        f"Which one of the following would I enjoy next: {CANDIDATES}?\nAnswer:"
    ),
    # For published data. A semicolon between names, because many contain commas: "Earth, Wind & Fire".
    **{
        name: Template(
            f"{history}, oldest first: {HISTORY}.\n{following} is one of these: {CANDIDATES}.\nNext {item}:",
            separator="; ",
        )
        for name, history, following, item in (
            ("music", "Artists that a listener discovered", "The listener's next artist", "artist"),
            ("films", "Films that a viewer liked", "The next film that the viewer liked", "film"),
            ("books", "Books that a reader finished", "The reader's next book", "book"),
            ("games", "Games that a player took up", "The player's next game", "game"),
        )
    },
}


def render(template: Template, history: Sequence[str], candidates: Sequence[str] = ()) -> str:
    """The prompt for one user: the items of `history` (oldest first) and `candidates` in the template.

    Raises ValueError if the history is empty, or if the template lists candidates and none are given.
    """
    if not history:
        raise ValueError("The history is empty; a prompt needs at least one item.")
    if template.lists_candidates and not candidates:
        raise ValueError(f"The template {template.text!r} lists candidates and none were given.")
    # Split at the placeholders first: an item whose name contains a placeholder must stay as it is.
    shown = template.separator.join(history)
    listed = template.separator.join(candidates)
    return listed.join(part.replace(HISTORY, shown) for part in template.text.split(CANDIDATES))


def answer(item: str) -> str:
    """The text that follows a prompt when `item` is the answer; scoring adds the tokenizer's end-of-answer token."""
    return " " + item
