"""A data row's prompt and answers as texts, whichever tool the row was written for.

All rows are converted to TRL's form, with any number of rejected answers:
{"prompt": text or messages, "chosen": answer, "rejected": [answer, ...]}, or "completion" in place of the two for SFT.
An answer is text, or what the assistant says in a message. Also accepted are

- TRL's implicit prompt: no "prompt", and every answer is the whole conversation, as messages or, as in HH-RLHF, as text
  whose turns start with "\n\nHuman:" and "\n\nAssistant:";
- ms-swift: "messages", which end with the chosen answer, and "rejected_response" or "rejected_messages";
- LLaMA-Factory: "conversations", "messages", or "instruction" and "input", with "chosen" and "rejected".

Ambiguous rows are refused.
"""

import ast
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
from jinja2 import TemplateError
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Answers = Callable[[Mapping[str, Any]], list[Any]]  # those of a row in TRL's form: `preference_answers` or `completion`

PROMPTS = ("prompt", "messages", "conversations", "instruction")
REJECTED = ("rejected", "rejected_response", "rejected_messages")
READ = (*PROMPTS, "input", "history", "system", "chosen", *REJECTED, "completion")
NOT_READ = ("tools", "image", "images", "videos", "audios", "chat_template_kwargs")  # they would change the prompt
ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ("system", "user", "assistant")}
TURN = "\n\nAssistant:"


class Rows(Protocol):
    """What a trainer takes as data: a list of dictionaries, a `datasets.Dataset` or `torch.utils.data.Dataset` with a
    length, or a `pandas.DataFrame`."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Any: ...


def records(rows: Any) -> Rows:
    """`rows` as a sequence of rows. Raises ValueError for anything that is not rows."""
    if isinstance(rows, pd.DataFrame):
        rows = rows.to_dict("records")
    elif isinstance(rows, pa.Table):
        rows = rows.to_pylist()
    countable = hasattr(rows, "__len__") and hasattr(rows, "__getitem__")
    if not countable or isinstance(rows, str | Mapping | pd.Series | IterableDataset):
        of = f" of {_listed(rows)}" if isinstance(rows, Mapping) else ""
        raise ValueError(
            f"The rows are of type {type(rows).__name__}{of}: give a list of dictionaries, a datasets.Dataset (one of "
            "several splits) or a pandas.DataFrame."
        )
    if not len(rows):
        raise ValueError("There are no rows: the split is empty; give at least one.")
    return rows


def row_texts(tokenizer: PreTrainedTokenizerBase, row: Any, answers_of: Answers) -> tuple[str, list[str], bool]:
    """A row's prompt and answers as texts, and whether they went through the tokenizer's chat template.

    Raises ValueError, in a sentence without the row's number, for a row in none of the accepted forms.
    """
    standard = _standard(row)
    first, wanted = "chosen answer", "'prompt', 'chosen' and 'rejected'"
    if answers_of is completion:
        first, wanted = "completion", "'prompt' and 'completion'"
    try:
        found = {
            f"rejected answer {number}" if number else first: answer
            for number, answer in enumerate(answers_of(standard))
        }
        prompt, answers = _joined(standard.get("prompt"), found)
    except KeyError as missing:
        held = _listed(key for key in row if _plain(row[key]) is not None)
        raise ValueError(f"it has {held} and no {missing}; give {wanted}.") from None
    for name, answer in answers.items():
        if not (answer if isinstance(answer, str) else answer["content"]).strip():
            raise ValueError(f"the {name} is empty; leave it out.")
    start, texts = (prompt, answers) if isinstance(prompt, str) else _chat(tokenizer, prompt, answers)
    place: dict[str, str] = {}
    for name, text in texts.items():
        if place.setdefault(text, name) != name:
            raise ValueError(f"the {place[text]} and the {name} are the same; leave one out.")
    return start, [*texts.values()], not isinstance(prompt, str)


def preference_answers(row: Mapping[str, Any]) -> list[Any]:
    """The chosen answer of a row of preferences in TRL's form, and the rejected ones: a list in the form of the chosen
    answer, or a single one."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(rejected, str) and isinstance(_spelled(rejected), list | tuple | set):
        raise ValueError(
            f"'rejected' is a list written as text, {_short(rejected)}; give the list, as json.loads or "
            "ast.literal_eval reads it, or, if it is one answer, [that text]."
        )
    if isinstance(rejected, str | Mapping):
        return [chosen, rejected]
    if not isinstance(rejected, list):
        raise ValueError(f"'rejected' is of type {type(rejected).__name__}; give a list.")
    if not rejected:
        raise ValueError("there is no rejected answer; leave the row out, or give it one.")
    # A list of messages is one answer, unless the chosen answer is a message outside a list.
    return [chosen, *(rejected if isinstance(chosen, Mapping) or not isinstance(rejected[0], Mapping) else [rejected])]


def completion(row: Mapping[str, Any]) -> list[Any]:
    """What SFT learns from a row: its completion, or the chosen answer of a row of preferences."""
    return [row["chosen" if "completion" not in row and "chosen" in row else "completion"]]


def _standard(row: Any) -> dict[str, Any]:
    """`row` in TRL's form, in Python's own types and without missing values."""
    if not isinstance(row, Mapping):
        raise ValueError(f"it is a {type(row).__name__}; give a dictionary.")
    unread = [key for key in NOT_READ if key in row and _plain(row[key])]
    if unread:
        raise ValueError(f"it has {_listed(unread)}, but only text is read; remove what is not needed.")
    fields = {key: value for key in READ if key in row and (value := _plain(row[key])) is not None}
    for group in (PROMPTS, REJECTED):
        found = [key for key in group if key in fields]
        if len(found) > 1:
            raise ValueError(f"it has {_listed(found)}, which mean the same thing; keep one.")
    if "instruction" in fields:
        return _alpaca(fields)
    if "messages" in fields or "conversations" in fields:
        return _messages(fields)
    if "system" in fields:
        raise ValueError("it has 'system', which is not supported in this form; put it in front of the prompt.")
    return fields


def _alpaca(fields: dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's alpaca form: what the user says is the instruction and, on the next line, the input."""
    prompt = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
    history = fields.get("history", [])
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise ValueError("its 'history' is not a list of pairs, what the user said and the answer; remove it.")
    for said, replied in history:
        prompt += [{"role": "user", "content": said}, {"role": "assistant", "content": replied}]
    asked = [part for part in (fields["instruction"], fields.get("input")) if part]
    if not all(isinstance(part, str) for part in asked):
        raise ValueError("its 'instruction' or 'input' is not text.")
    return fields | {"prompt": [*prompt, {"role": "user", "content": "\n".join(asked)}]}


def _messages(fields: dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's sharegpt form, or ms-swift's, whose messages include the chosen answer."""
    messages = _checked(fields.get("messages", fields.get("conversations")), "prompt")
    if fields.get("system"):
        if messages[0]["role"] == "system":
            raise ValueError("it has 'system' and a system message; keep one.")
        messages = [{"role": "system", "content": fields["system"]}, *messages]
    if "chosen" in fields or "completion" in fields:
        return fields | {"prompt": messages}
    rejected = [fields[key] for key in REJECTED if key in fields]
    if not rejected and sum(message["role"] == "assistant" for message in messages) > 1:
        raise ValueError("the assistant answers more than once, but a row has one answer; give each a row of its own.")
    return {"prompt": messages[:-1], "chosen": messages[-1:]} | ({"rejected": rejected[0]} if rejected else {})


def _joined(prompt: Any, answers: Mapping[str, Any]) -> tuple[str | list[Message], dict[str, Any]]:
    """The prompt (text or messages), and the answers (text or, after messages, a message each). KeyError if there is no
    prompt.

    An answer may start with the conversation that it ends: then that is the prompt, and a given prompt must equal it.
    """
    if isinstance(prompt, str):
        spelled = _spelled(prompt)
        if isinstance(spelled, list) and any(isinstance(part, Mapping) for part in spelled):
            raise ValueError(f"the prompt is a list of messages written as text, {_short(prompt)}; give the list.")
        if prompt and all(isinstance(answer, str) and answer.startswith(prompt) for answer in answers.values()):
            raise ValueError("every answer starts with the prompt, so it would appear twice; remove it from answers.")
    elif prompt is not None:
        prompt = _checked(prompt, "prompt")
    elif all(isinstance(answer, str) for answer in answers.values()):
        return _implicit(answers)
    rest: dict[str, Any] = {}
    for name, answer in answers.items():
        if isinstance(answer, str) and prompt is not None:
            rest[name] = answer
            continue
        if answer is None:
            raise ValueError(f"the {name} is missing; leave it out.")
        *before, last = _checked([answer] if isinstance(answer, Mapping) else answer, name)
        if last["role"] != "assistant":
            raise ValueError(f"the {name} ends with a message of the {last['role']}; end it with the assistant's.")
        if before and (prompt is None or (isinstance(prompt, str) and before[-1]["content"] == prompt)):
            prompt = before
        if isinstance(prompt, str):
            raise ValueError(f"the prompt is text and the {name} is a message; give both as one or the other.")
        if before and before != prompt:
            raise ValueError(
                f"the {name} is {len(before) + 1} messages, which do not start with the prompt's; give one "
                "message, and each of several answers a list of its own."
            )
        rest[name] = last
    if prompt is None:
        raise KeyError("prompt")
    return prompt, rest


def _implicit(answers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Conversations written as in HH-RLHF: the prompt ends where the assistant's last turn starts."""
    first, text = next(iter(answers.items()))
    before, turn, _ = text.rpartition(TURN)
    if not turn:
        raise KeyError("prompt")
    prompt = before + turn
    for name, answer in answers.items():
        if not answer.startswith(prompt):
            raise ValueError(f"the {name} differs from the {first} before the last turn; give 'prompt'.")
    return prompt, {name: answer.removeprefix(prompt) for name, answer in answers.items()}


def _checked(messages: Any, name: str) -> list[Message]:
    """`messages` with "role" and "content"; ValueError for all but text of the system, the user or the assistant."""
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"the {name} is neither text nor a list of messages, each with a role and a content.")
    checked = []
    for message in messages:
        said = {"role": message.get("from"), "content": message.get("value")} | message
        if said["role"] not in ROLES or message.get("tool_calls"):
            what = "calls a tool" if message.get("tool_calls") else f"has the role {said['role']!r}"
            raise ValueError(
                f"a message of the {name} {what}; only the system's, user's and assistant's texts are read."
            )
        if not isinstance(said["content"], str):
            raise ValueError(f"a message of the {name} is of type {type(said['content']).__name__}; give text.")
        others = {key: value for key, value in said.items() if key not in ("from", "value") and value is not None}
        checked.append(others | {"role": ROLES[said["role"]]})
    return checked


def _chat(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], answers: Mapping[str, Any]
) -> tuple[str, dict[str, str]]:
    """Prompt and answers as the tokenizer's chat template writes them."""
    if not tokenizer.chat_template:
        raise ValueError("the prompt is a list of messages and the tokenizer has no chat_template; give strings.")
    if prompt[-1]["role"] != "user":
        raise ValueError(f"the prompt ends with a message of the {prompt[-1]['role']}; end it with the user's.")

    def written(messages: list[Message], answer_next: bool) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next))
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}; change them or give strings.") from None

    start = written(prompt, answer_next=True)
    for message in prompt:  # some templates leave out the assistant's reasoning, as they should
        if message["role"] != "assistant" and message["content"].strip() not in start:
            raise ValueError(f"the chat template leaves out a message of the {message['role']}; put it elsewhere.")
    texts = {}
    for name, answer in answers.items():
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        line = written([*prompt, message], answer_next=False)
        if not line.startswith(start):
            raise ValueError("the chat template does not start an answer as add_generation_prompt does; give strings.")
        # The end-of-answer token, which the template may write and follow with a newline, is added to every answer.
        text, end, after = line[len(start) :].rpartition(str(tokenizer.eos_token))
        text, after = (text, after) if end else (after, "")
        if after.strip() or message["content"].strip() not in text + end:
            raise ValueError(f"the chat template turns the {name} into {_short(line[len(start) :])}; give strings.")
        texts[name] = text
    return start, texts


def _plain(value: Any) -> Any:
    """`value` in Python's own types: lists for arrays and tuples, None for missing values."""
    if isinstance(value, str):
        return str(value)
    for convert in ("tolist", "to_pylist", "as_py"):  # NumPy's and pandas' arrays, Arrow's, Arrow's scalars
        if hasattr(value, convert):
            return _plain(getattr(value, convert)())
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if pd.isna(value) else value


def _spelled(text: str) -> Any:
    """`text` read as a JSON or Python literal, if it starts with a bracket; None if it is not one."""
    if text.lstrip()[:1] in ("[", "(", "{"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return read(text.strip())
    return None


def _listed(keys: Any) -> str:
    return ", ".join(map(repr, keys)) or "nothing"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
