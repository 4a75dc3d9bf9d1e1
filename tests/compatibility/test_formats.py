"""Rows of this kit and of other tools, read as the prompt and the answers that they mean, or refused in a sentence."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from minipo.compatibility.formats import completion, preference_answers, records, row_texts
from minipo.experiments.models import load_model
from minipo.rows import token_rows

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROW = {"prompt": "Heat,", "chosen": " Fox", "rejected": [" Glass", " Iron Lark"]}
READ = ("Heat,", [" Fox", " Glass", " Iron Lark"], False)
USER = [{"role": "user", "content": "Next?"}]
CHAT = ("<user>Next?<eos>\n<assistant>", ["Fox", "Glass", "Heat"], True)


def said(text):
    return {"role": "assistant", "content": text}


def shared(text):
    """A message as sharegpt writes it."""
    return {"from": "gpt", "value": text}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = load_model("pocket-gpt2", items=["Fox", "Glass", "Heat"])[1]
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def template(tokenizer):
    """Sets another chat template for a test."""
    yield lambda text: setattr(tokenizer, "chat_template", text)
    tokenizer.chat_template = TEMPLATE


class Plain(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, number):
        return ROW


def through_parquet(rows, **how):
    file = io.BytesIO()
    pd.DataFrame(rows).to_parquet(file)
    return pd.read_parquet(file, **how)


# Where rows come from


@pytest.mark.parametrize(
    "rows",
    [
        [ROW] * 2,
        Plain(),
        pd.DataFrame([ROW] * 2, index=[7, 7]),
        pa.Table.from_pylist([ROW] * 2),
        through_parquet([ROW] * 2),
        through_parquet([ROW] * 2, dtype_backend="pyarrow"),
        [ROW | {"rejected": (" Glass", " Iron Lark")}] * 2,
        [ROW | {"rejected": np.array([" Glass", " Iron Lark"])}] * 2,
        [ROW | {"system": None, "messages": float("nan"), "tools": pd.NA, "price": 3}] * 2,  # columns without a value
    ],
    ids=["list", "torch", "frame", "table", "parquet", "arrow", "tuple", "array", "missing"],
)
def test_rows_come_as_people_hold_them(tokenizer, rows):
    held = records(rows)
    assert [row_texts(tokenizer, held[number], preference_answers) for number in range(len(held))] == [READ] * 2


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_a_dataset_is_a_list_of_rows(tokenizer, form):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([ROW]).with_format(form)
    assert row_texts(tokenizer, records(rows)[0], preference_answers) == READ
    with pytest.raises(
        ValueError,
        match=r"^The rows are of type DatasetDict of 'train', 'test': give a list .* \(one of several splits\)",
    ):
        records(datasets.DatasetDict({"train": rows, "test": rows}))
    with pytest.raises(ValueError, match=r"^The rows are of type IterableDataset: give a list of dictionaries"):
        records(rows.to_iterable_dataset())


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], r"There are no rows: the split is empty; give at least one\."),
        (pd.DataFrame([]), r"There are no rows"),
        (
            iter([ROW]),
            r"The rows are of type list_iterator: give a list of dictionaries, a datasets\.Dataset",
        ),
        (pd.Series([ROW]), r"The rows are of type Series: "),
        ("rows.jsonl", r"The rows are of type str: "),
        (
            {"prompt": ["Heat,"], "chosen": [" Fox"]},
            r"The rows are of type dict of 'prompt', 'chosen': give a list of dictionaries",
        ),
    ],
)
def test_what_is_no_rows(rows, sentence):
    with pytest.raises(ValueError, match="^" + sentence):
        records(rows)


# The forms of other tools

TURNS = "\n\nHuman: One?\n\nAssistant: Heat\n\nHuman: Next?\n\nAssistant:"
LONG = [{"role": "user", "content": "One?"}, said("Two."), *USER]
ASKED = "<user>One?<eos>\n<assistant>Two.<eos>\n<user>Next?<eos>\n<assistant>"
SYSTEM = {"role": "system", "content": "Be short."}
FORMS = {
    "a lone rejected answer": (ROW | {"rejected": " Glass"}, ("Heat,", [" Fox", " Glass"], False)),
    "a list that is an answer": (ROW | {"rejected": ["['Fox']"]}, ("Heat,", [" Fox", "['Fox']"], False)),
    "TRL, messages and texts": ({"prompt": USER, "chosen": "Fox", "rejected": ["Glass", "Heat"]}, CHAT),
    "TRL, messages": (
        {"prompt": USER, "chosen": [said("Fox")], "rejected": [[said("Glass")], [said("Heat")]]},
        CHAT,
    ),
    "TRL, one rejected list of messages": (
        {"prompt": USER, "chosen": [said("Fox")], "rejected": [said("Glass")]},
        (CHAT[0], ["Fox", "Glass"], True),
    ),
    "TRL, implicit prompt": (
        {"chosen": [*LONG, said("Fox")], "rejected": [[*LONG, said("Glass")], [*LONG, said("Heat")]]},
        (ASKED, CHAT[1], True),
    ),
    "UltraFeedback, the prompt twice": (
        {"prompt": "Next?", "chosen": [*USER, said("Fox")], "rejected": [*USER, said("Glass")]},
        (CHAT[0], ["Fox", "Glass"], True),
    ),
    "HH-RLHF": (
        {"chosen": TURNS + " Fox", "rejected": [TURNS + " Foxes", TURNS + " Heat"]},
        (TURNS, [" Fox", " Foxes", " Heat"], False),
    ),
    "ms-swift, texts": (
        {"messages": [*USER, said("Fox")], "rejected_response": ["Glass", "Heat"], "rejected_messages": None},
        CHAT,
    ),
    "ms-swift, one text": (
        {"messages": [*LONG, said("Fox")], "rejected_response": "Glass"},
        (ASKED, ["Fox", "Glass"], True),
    ),
    "ms-swift, conversations": (
        {"messages": [*USER, said("Fox")], "rejected_messages": [[*USER, said("Glass")], [*USER, said("Heat")]]},
        CHAT,
    ),
    "LLaMA-Factory, sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Next?"}],
            "chosen": shared("Fox"),
            "rejected": [shared("Glass"), shared("Heat")],
        },
        CHAT,
    ),
    "LLaMA-Factory, messages and system": (
        {"messages": USER, "system": "Be short.", "chosen": said("Fox"), "rejected": said("Glass")},
        ("<system>Be short.<eos>\n" + CHAT[0], ["Fox", "Glass"], True),
    ),
    "LLaMA-Factory, alpaca": (
        {
            "instruction": "After Heat?",
            "input": "One title.",
            "system": "Be short.",
            "history": [["One?", "Two."]],
            "chosen": "Fox",
            "rejected": ["Glass", "Heat"],
        },
        (
            "<system>Be short.<eos>\n" + ASKED.replace("Next?", "After Heat?\nOne title."),
            CHAT[1],
            True,
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_other_tools(tokenizer, form):
    row, expected = FORMS[form]
    assert row_texts(tokenizer, row, preference_answers) == expected
    (held,) = records(through_parquet([row]))
    assert row_texts(tokenizer, held, preference_answers) == expected
    prompt, answers, chat = expected
    assert row_texts(tokenizer, row, completion) == (prompt, answers[:1], chat)  # SFT learns the chosen answer


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Heat,", "completion": " Fox", "chosen": " Glass"}, ("Heat,", [" Fox"], False)),
        ({"prompt": USER, "completion": [said("Fox")]}, (CHAT[0], ["Fox"], True)),
        ({"messages": [*USER, said("Fox")]}, (CHAT[0], ["Fox"], True)),
    ],
)
def test_sft_learns_the_completion(tokenizer, row, expected):
    assert row_texts(tokenizer, row, completion) == expected


# Rows that are refused

BAD = {
    "no dictionary": ("Heat,", r"it is a str; give a dictionary\."),
    "nothing known": (
        {"question": "Next?", "chosen": "Fox", "rejected": "Heat"},
        r"it has 'question', 'chosen', 'rejected' and no 'prompt'; give 'prompt', 'chosen' and 'rejected'\.",
    ),
    "no chosen": (ROW | {"chosen": None}, r"it has 'prompt', 'rejected' and no 'chosen'; give 'prompt', 'chosen' and"),
    "no rejected": ({"messages": [*USER, said("Fox")]}, r"it has 'messages' and no 'rejected'; give 'prompt', "),
    "two prompts": (ROW | {"messages": USER}, r"it has 'prompt', 'messages', which mean the same thing; keep one"),
    "two kinds of rejected": (ROW | {"rejected_response": "Heat"}, r"it has 'rejected', 'rejected_response', which"),
    "a system that is not read": (
        ROW | {"system": "Be short."},
        r"it has 'system', which is not supported in this form; put it in",
    ),
    "two systems": (
        {"messages": [SYSTEM, *USER, said("Fox")], "system": "Be.", "rejected_response": "Heat"},
        r"it has 'system' and a system message; keep one",
    ),
    "images": (ROW | {"images": ["cat.png"]}, r"it has 'images', but only text is read; remove what is not needed"),
    "titles for a history": (
        {"instruction": "Next?", "history": ["Heat", "Fox"], "chosen": "Fox", "rejected": "Heat"},
        r"its 'history' is not a list of pairs, what the user said and the answer; remove it",
    ),
    "nothing rejected": (ROW | {"rejected": []}, r"there is no rejected answer; leave the row out, or give it one"),
    "a set": (ROW | {"rejected": {" Heat"}}, r"'rejected' is of type set; give a list"),
    "an answer that is a number": (ROW | {"chosen": 3}, r"the chosen answer is neither text nor a list of messages"),
    "an answer that is missing": (ROW | {"rejected": ["Fox", None]}, r"the rejected answer 2 is missing; leave it out"),
    "an empty answer": (ROW | {"rejected": [" Glass", " "]}, r"the rejected answer 2 is empty; leave it out"),
    "an empty message": (ROW | {"prompt": USER, "chosen": ""}, r"the chosen answer is empty; leave it out"),
    "the chosen answer rejected": (
        ROW | {"rejected": [" Heat", " Fox"]},
        r"the chosen answer and the rejected answer 2 are the same; leave one out",
    ),
    "twice rejected": (
        ROW | {"rejected": [" Heat", " Glass", " Heat"]},
        r"the rejected answer 1 and the rejected answer 3 are the same; leave one out",
    ),
    "a list as CSV files keep it": (
        ROW | {"rejected": '[" Glass", " Heat"]'},
        r"'rejected' is a list written as text, '\[\" Glass\", \" Heat\"\]'; give the list, as json\.loads or ast",
    ),
    "an array as CSV files keep it": (ROW | {"rejected": "[' Glass' ' Heat']"}, r"'rejected' is a list written as te"),
    "messages as CSV files keep them": (
        ROW | {"prompt": str(USER)},
        r"the prompt is a list of messages written as text, .*; give the list",
    ),
    "answers that repeat the prompt": (
        ROW | {"chosen": "Heat, Fox", "rejected": "Heat, Glass"},
        r"every answer starts with the prompt, so it would appear twice; remove it from answers",
    ),
    "messages after text": (ROW | {"chosen": [said("Fox")]}, r"the prompt is text and the chosen answer is a message"),
    "another conversation": (
        ROW | {"prompt": USER, "chosen": [*LONG, said("Fox")]},
        r"the chosen answer is 4 messages, which do not start with the prompt's; give one message",
    ),
    "answers in one list": (
        {"messages": [*USER, said("Fox")], "rejected_response": [said("Glass"), said("Heat")]},
        r"the rejected answer 1 is 2 messages, .* give one message, and each of several answers a list of its own",
    ),
    "another way": (
        {"chosen": TURNS + " Fox", "rejected": "\n\nHuman: Next?\n\nAssistant: Fox"},
        r"the rejected answer 1 differs from the chosen answer before the last turn; give 'prompt'",
    ),
    "texts without turns": (
        {"chosen": "Next? The Fox", "rejected": "Next? The Heat"},
        r"it has 'chosen', 'rejected' and no 'prompt'",
    ),
    "an answer of the user": (
        ROW | {"prompt": USER, "chosen": USER},
        r"the chosen answer ends with a message of the user; end it with the assistant's",
    ),
    "a prompt of the assistant": (
        ROW | {"prompt": [*USER, said("I")]},
        r"the prompt ends with a message of the assist",
    ),
    "a tool": (
        ROW | {"prompt": [*USER, {"role": "tool", "content": "7"}]},
        r"a message of the prompt has the role 'tool'; only the system's, user's and assistant's texts are read",
    ),
    "a call of a tool": (
        ROW | {"prompt": USER, "chosen": [said("") | {"tool_calls": [{"name": "find"}]}]},
        r"a message of the chosen answer calls a tool; only the system's",
    ),
    "parts": (
        ROW | {"prompt": [{"role": "user", "content": [{"type": "text"}]}]},
        r"a message of the prompt is of type",
    ),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_row_that_could_mislead_is_refused(tokenizer, wrong):
    row, sentence = BAD[wrong]
    with pytest.raises(ValueError, match="^Row 1: " + sentence) as raised:
        token_rows(tokenizer, [ROW, row], preference_answers)
    assert "\n" not in str(raised.value)


def test_sft_rows_that_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"^it has 'prompt' and no 'completion'; give 'prompt' and 'completion'\."):
        row_texts(tokenizer, {"prompt": "Heat,"}, completion)
    with pytest.raises(ValueError, match=r"^the assistant answers more than once, but a row has one answer"):
        row_texts(tokenizer, {"messages": [*LONG, said("Fox")]}, completion)


# Chat templates


@pytest.mark.parametrize(
    ("text", "prompt", "answers"),
    [
        # What a template writes after its end-of-answer token is nothing to learn, and the token is added anyway.
        (TEMPLATE, "<system>Be short.<eos>\n" + CHAT[0], ["Fox", " Glass"]),
        (
            TEMPLATE.replace("{{ eos_token }}", ""),
            "<system>Be short.\n<user>Next?\n<assistant>",
            ["Fox\n", " Glass\n"],
        ),
        (
            TEMPLATE.replace("{{ message.content }}", " {{ message.content | trim }} "),
            "<system> Be short. <eos>\n<user> Next? <eos>\n<assistant>",
            [" Fox ", " Glass "],
        ),
    ],
    ids=["ends", "no end", "trims"],
)
def test_an_answer_is_what_the_template_makes_of_it(tokenizer, template, text, prompt, answers):
    template(text)
    row = {"prompt": [SYSTEM, *USER], "chosen": "Fox", "rejected": [" Glass"]}
    assert row_texts(tokenizer, row, preference_answers) == (prompt, answers, True)


def test_all_that_a_message_holds_goes_through_the_template(tokenizer, template):
    template(TEMPLATE.replace("{{ message.content }}", "{{ message.reasoning }}|{{ message.content }}"))
    row = {"prompt": USER, "chosen": [said("Fox") | {"reasoning": "Foxes"}], "rejected": "Glass"}
    assert row_texts(tokenizer, row, preference_answers)[1] == ["Foxes|Fox", "|Glass"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "the prompt is a list of messages and the tokenizer has no chat_template; give strings"),
        (TEMPLATE.replace("<assistant>", "<bot>"), "the chat template does not start an answer as add_gener"),
        ("{{ raise_exception('No system here') }}", "the chat template refuses the messages: No system here; change"),
        (
            TEMPLATE.replace("in messages", "in messages if message.role != 'system'"),
            "the chat template leaves out a message of the system; put it elsewhere",
        ),
        (
            TEMPLATE.replace("message.content", "message.content.split('</think>')[-1]"),
            r"the chat template turns the chosen answer into 'Fox<eos>\\n'; give strings",
        ),
        (
            TEMPLATE.replace("{{ eos_token }}\n", "{{ eos_token }}<next>"),
            "the chat template turns the chosen answer into '.*<eos><next>'; give strings",
        ),
    ],
    ids=["none", "another beginning", "refuses", "leaves out", "cuts", "goes on"],
)
def test_templates_that_would_mislead(tokenizer, template, text, sentence):
    template(text)
    row = {"prompt": [SYSTEM, *USER], "chosen": "<think>Foxes</think>Fox", "rejected": ["Glass"]}
    with pytest.raises(ValueError, match="^" + sentence):
        row_texts(tokenizer, row, preference_answers)
