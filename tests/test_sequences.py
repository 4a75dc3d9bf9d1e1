"""Rows of sequences: each chosen item is learnt once, as scoring asks for it, at a fraction of the tokens."""

import warnings

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

from minipo.compatibility import tokenizers
from minipo.experiments.arguments import training_arguments
from minipo.experiments.datasets import catalog, llara
from minipo.experiments.datasets.by_time import split_by_time
from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.models import pocket_tokenizer
from minipo.experiments.users import preference_rows, sequence_rows, user_sequences
from minipo.prompts import TEMPLATES, answer, render
from minipo.scoring import candidate_logps, packed_logps
from minipo.sequences import token_sequences
from minipo.trainers import PreferenceTrainer, SFTTrainer

ITEMS = ["Velvet Tiger", "Neon Fox", "Fox", "Iron Lark Song", "Redemption, The (1994)", "Glass", "Fôx"]
TOKENIZER = pocket_tokenizer([*ITEMS, TEMPLATES["liked"].text])
PAD = TOKENIZER.pad_token_id
# Items, and how many of the first are only history; at most one item more than the window.
WINDOW = 4
SEQUENCES = [(ITEMS[:4], 1), (ITEMS[1:6], 3), (["Glass", "Fôx"], 1), (ITEMS[::-1][:5], 2)]
SHAPE = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
LLAMA = SHAPE | {"num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": PAD}
GPT2 = {"vocab_size": len(TOKENIZER), "n_embd": 32, "n_head": 4, "n_positions": 96}
ENDS = {"bos_token_id": None, "eos_token_id": TOKENIZER.eos_token_id}


@pytest.fixture(autouse=True)
def warnings_are_errors():
    tokenizers._warned.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*candidate on its own")
        yield


def make(architecture=LlamaForCausalLM, config=LlamaConfig, layers=2, **settings):
    """A tiny model whose weights are large enough for attention to decide."""
    depth = {"n_layer" if config is GPT2Config else "num_hidden_layers": layers}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture(config(**(GPT2 if config is GPT2Config else LLAMA) | ENDS | depth | settings))
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.0 if "embed" in name or "wte" in name else 0.3)
    return model.eval()


def rows_of(given=SEQUENCES, template="liked", window=WINDOW, **others):
    return token_sequences(TOKENIZER, given, TEMPLATES[template], window, **others)


def logps_of(model, rows):
    """The log-probs of all that the rows learn, in order."""
    packed = rows.pack([rows[0, row] for row in range(len(rows))], PAD)
    return packed_logps(model, packed)[packed["mask"]]


def targets_of(given=SEQUENCES, template="liked", window=WINDOW):
    """The same as prompts and answers, a row per target."""
    places = [(items, place) for items, known in given for place in range(known, len(items))]
    prompts = [render(TEMPLATES[template], items[max(0, place - window) : place]) for items, place in places]
    return prompts, [answer(items[place]) for items, place in places]


def plain_logps(model, *given):
    """One forward per target, no mask and no packing."""
    found = []
    for prompt, text in zip(*targets_of(*given), strict=True):
        start = TOKENIZER.encode(prompt)
        ids = torch.tensor([start + TOKENIZER.encode(text) + [TOKENIZER.eos_token_id]])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(logps.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum())
    return torch.stack(found)


def assert_same(model, rows, template="liked"):
    """Log-probs and gradients of the rows are those of a row per target."""
    found, expected = logps_of(model, rows), plain_logps(model, SEQUENCES, template)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    parameters = list(model.parameters())
    gradients, plain = (torch.autograd.grad(-logps.mean(), parameters) for logps in (found, expected))
    for gradient, wanted in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


# What is computed


@pytest.mark.parametrize("targets", [3, 16])
@pytest.mark.parametrize("template", ["line", "liked"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [(LlamaForCausalLM, LlamaConfig), (GPT2LMHeadModel, GPT2Config)])
def test_up_to_a_window_of_items_log_probs_and_gradients_are_those_of_a_row_per_target(
    kind, attention, template, targets
):
    model = make(*kind, attn_implementation=attention)
    assert_same(model, rows_of(template=template, targets=targets), template)


def test_an_architecture_that_is_not_known_is_tested_on_candidates_and_computes_the_same():
    sizes = {"alibi": False, "new_decoder_architecture": False, "multi_query": True, "num_kv_heads": 4}
    model = make(FalconForCausalLM, FalconConfig, **sizes)
    assert_same(model, rows_of())


@pytest.mark.parametrize(
    ("architecture", "config", "settings", "said"),
    [
        (MistralForCausalLM, MistralConfig, {"sliding_window": 8}, "its attention slides over a window of 8"),
        (None, LlamaConfig, {}, "differ"),
    ],
)
def test_a_model_that_cannot_read_such_rows_reads_one_target_at_a_time(architecture, config, settings, said):
    class WithoutMask(LlamaForCausalLM):
        def forward(self, attention_mask=None, **arguments):
            return super().forward(**arguments)

    model = make(architecture or WithoutMask, config, **settings)
    with pytest.warns(UserWarning, match=f"on its own, which takes longer: .*{said}"):
        logps_of(model, rows_of())
    assert_same(model, rows_of())  # and no second warning


def test_rows_beyond_the_short_factors_of_longrope():
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, **factors}
    model = make(Phi3ForCausalLM, Phi3Config, rope_parameters=rope, original_max_position_embeddings=16)
    prompts, answers = targets_of()
    lengths = [len(TOKENIZER.encode(prompt + text)) for prompt, text in zip(prompts, answers, strict=True)]
    assert min(lengths) < 15 < max(lengths)
    expected = candidate_logps(model, TOKENIZER, prompts, [[text] for text in answers]).flatten()
    torch.testing.assert_close(logps_of(model, rows_of()), expected, atol=1e-5, rtol=1e-5)


LONG = ([f"{first} {second}" for first in ITEMS[:3] for second in ITEMS[:3]], 1)  # 9 items: 8 targets


def test_a_prediction_depends_on_the_items_of_its_window_alone():
    """In one layer; in several, an item also sees what the items of its window saw."""
    model, window = make(layers=1), 3
    before = logps_of(model, rows_of([LONG], window=window))
    for place in range(len(LONG[0])):
        changed = [*LONG[0]]
        changed[place] = " ".join(reversed(changed[place].split()))  # another item of as many tokens
        after = logps_of(model, rows_of([(changed, 1)], window=window))
        moved = (1 + ((after - before).abs() > 1e-4).nonzero().flatten()).tolist()
        if changed[place] != LONG[0][place]:
            assert moved == [each for each in range(max(1, place), len(LONG[0])) if each <= place + window]


def test_stretches_of_one_row_do_not_see_each_other():
    model = make()
    together = logps_of(model, rows_of([LONG, *SEQUENCES]))
    apart = torch.cat([logps_of(model, rows_of([each])) for each in (LONG, *SEQUENCES)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_padding_to_few_shapes_changes_nothing():
    model, rows = make(), rows_of(targets=3)
    visits = [rows[0, row] for row in range(len(rows))]
    plain, padded = (rows.pack(visits, PAD, few_shapes) for few_shapes in (False, True))
    assert padded["input_ids"].shape[1] % 8 == 0 == len(padded["predicting"]) % 32
    torch.testing.assert_close(*(packed_logps(model, packed) for packed in (plain, padded)))


# What a row holds


def shown(rows, row):
    """A row's text, and the texts of what it learns."""
    return TOKENIZER.decode(rows.rows[row].ids), [TOKENIZER.decode(ids[:-1]).strip() for ids in rows.answers[row]]


def test_a_row_is_a_beginning_and_stretches_of_which_titles_and_their_ends_are_learnt():
    rows = rows_of([(["Fox", "Glass", "Neon Fox"], 1), (["Glass", "Fox"], 1)])
    text, learnt = shown(rows, 0)
    assert text == "I enjoyed these, oldest first: Fox, Glass, Neon Fox Glass, Fox"
    assert learnt == ["Glass", "Neon Fox", "Fox"]
    packed = rows.pack([rows[0, 0]], PAD)
    comma = TOKENIZER.convert_tokens_to_ids(",")
    for column, ids in enumerate(rows.answers[0]):
        assert ids[-1] == TOKENIZER.eos_token_id
        assert comma not in ids
        places = packed["predicting"][packed["sources"][0, column, : len(ids)]]
        assert packed["input_ids"][0, places].tolist() == [comma, *ids[:-1]]  # the prompt's last token, then the item
        assert packed["targets"][0, column, : len(ids)].tolist() == ids.tolist()
    positions = packed["position_ids"][0].tolist()
    start, second = (len(TOKENIZER.encode(text)) for text in ("I enjoyed these, oldest first:", "Glass, Fox"))
    assert positions[-second:] == [*range(start, start + second)]  # the second stretch begins where the first did
    assert positions[:-second] == [*range(len(positions) - second)]


@pytest.mark.parametrize(("targets", "repeated"), [(16, 4), (8, 10)])
def test_a_full_row_is_followed_by_one_that_repeats_some_items(targets, repeated):
    """As many as a row per target would show where rows are short, because they are cut often."""
    items = [f"Item{number}" for number in range(4 * targets)]
    rows = rows_of([(items, 3), (["Fox", "Glass"], 1)], "line", 10, targets=targets)
    assert rows.counts.tolist() == [targets, targets, targets, targets - 2]
    assert [item for row in range(4) for item in shown(rows, row)[1]] == [*items[3:], "Glass"]
    for row in (1, 2):
        cut = 3 + row * targets
        assert shown(rows, row)[0] == ", ".join(items[cut - repeated : cut + targets])
    assert shown(rows, 3)[0] == ", ".join(items[3 + 3 * targets - repeated :]) + " Fox, Glass"


def test_the_first_rows_learn_what_they_learn_among_others():
    model, rows = make(), rows_of(targets=3)
    first = rows.first(2)
    torch.testing.assert_close(logps_of(model, first), logps_of(model, rows)[: first.counts.sum()])


def test_the_separator_is_that_of_prompts_where_no_title_keeps_its_end_before_it():
    """Titles like MovieLens', under a tokenizer that joins ")," and marks the start of a text, as Llama's does."""
    titles = ["Fargo (1996)", "Heat (1995)"]
    pieces = dict.fromkeys([*"".join(titles), *"▁,", "▁,", "),", "a"], -1.0) | {"<s>": 0.0, "</s>": 0.0, "<unk>": -9.0}
    unigram = Tokenizer(Unigram(list(pieces.items()), unk_id=len(pieces) - 1))
    unigram.pre_tokenizer = Metaspace()
    unigram.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    (row,) = token_sequences(tokenizer, [(titles, 1)], TEMPLATES["line"], 4).rows
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(f"{titles[0]},"))[-1] == "),"
    assert "".join(tokenizer.convert_ids_to_tokens(row.ids)) == "▁Fargo▁(1996),▁Heat▁(1995)"


def test_a_stretch_ends_where_the_context_does():
    items = [f"Item{number}" for number in range(10, 30)]
    each = len(TOKENIZER.encode(f" {items[0]},"))
    rows = rows_of([(items, 1)], "line", 10, context=8 * each)
    assert rows.longest == 8 * each - 1
    assert [item for row in range(len(rows)) for item in shown(rows, row)[1]] == items[1:]
    with pytest.warns(UserWarning, match=r"^\d+ stretches .* begin with fewer .* has only \d+ tokens"):
        rows = rows_of([(items, 9)], "line", 10, context=3 * each)
    assert [item for row in range(len(rows)) for item in shown(rows, row)[1]] == items[9:]
    with pytest.raises(ValueError, match=r"'Item10' and 'Item11' need \d+ tokens with the template, more than the 9 "):
        rows_of([(items, 1)], "line", 10, context=9)


@pytest.mark.parametrize(
    ("given", "template", "said"),
    [
        ([], "line", "There is no item to learn"),
        ([(["Fox"], 1)], "line", "There is no item to learn"),
        ([(["Fox", "Glass"], 0)], "line", "The history is empty"),
        ([(["Fox", "Glass"], 1)], "question", "does not end in the history.* choose 'line' or 'liked'"),
    ],
)
def test_what_makes_no_rows(given, template, said):
    with pytest.raises(ValueError, match=said):
        rows_of(given, template)
    with pytest.raises(ValueError, match="targets is 0; it must be at least 1"):
        rows_of(targets=0)


def test_a_tokenizer_that_splits_answers_otherwise_within_a_line_is_refused():
    legacy = pocket_tokenizer(ITEMS)
    legacy.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    with (
        pytest.warns(UserWarning, match="differently"),
        pytest.raises(ValueError, match=r"splits 'Fox,' \+ ' Glass' differently"),
    ):
        token_sequences(legacy, [(["Fox", "Glass"], 1)], TEMPLATES["line"], 4)


# From interactions to sequences


@pytest.fixture(scope="module")
def dated():
    """Interactions like MovieLens-100K's: 120 users with sequences of its lengths, in films of 2 to 6 tokens."""
    random = np.random.default_rng(0)
    words = np.array([f"Word{number}" for number in range(300)])
    titles = list(dict.fromkeys(" ".join(random.choice(words, random.integers(2, 7))) for _ in range(900)))
    lengths = np.clip(np.exp(random.normal(3.55, 0.95, 120)), 6, 380).astype(int)  # median 35, mean 55
    items = np.concatenate([random.permutation(len(titles))[:length] for length in lengths])
    users = np.repeat(np.arange(len(lengths)), lengths)
    return split_by_time("dated", users, items, np.arange(len(items)), np.ones(len(items), bool), titles, {}, 0)


def test_each_chosen_item_is_learnt_once_with_what_stands_before_it_and_no_answer_of_another_split_is(dated):
    mixed = [dated.train[row] for row in np.random.default_rng(1).permutation(len(dated.train))]
    found = user_sequences(mixed)
    assert len(found) == len({user.user for user in mixed})
    learnt = {
        (items[place], items[max(0, place - 10) : place])
        for items, known in found
        for place in range(known, len(items))
    }
    assert sum(len(items) - known for items, known in found) == len(learnt) == len(mixed)
    assert learnt == {(user.chosen, user.history) for user in mixed}
    later = {user.user: {user.chosen} for user in dated.validation}
    for user in dated.test:
        later[user.user].add(user.chosen)
    owner = {user.history[:3]: user.user for user in mixed if len(user.history) == 3}
    assert not any(later[owner[items[:3]]] & set(items) for items, _ in found)


def test_rows_of_sequences_take_few_tokens(dated):
    tokenizer = pocket_tokenizer([*dated.items, TEMPLATES["liked"].text])
    rows = sequence_rows(dated.train, "liked", tokenizer)
    names = [tokenizer(answer(user.chosen))["input_ids"] for user in dated.train]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in preference_rows(dated.train, "liked")]
    targets, tokens = rows.counts.sum(), sum(map(len, rows.prompts))
    assert targets == len(dated.train)
    assert sum(map(len, names)) / targets == pytest.approx(4.0, abs=0.2)  # 4.2 on MovieLens-100K, under SmolLM2
    assert tokens / targets <= 7.5
    assert sum(map(len, prompts + names)) > 7 * tokens
    assert set(rows.counts[:-1]) == {16}


def interaction(history, chosen, user=0):
    return Interaction(user, tuple(history), chosen, (chosen, "other"))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Two users with the same history, and a user whose second row is missing.
        ([("a", "b", 0), ("a", "c", 1)], [("ab", 1), ("ac", 1)]),
        ([("ab", "c", 0), ("abcd", "e", 0)], [("abc", 2), ("abcde", 4)]),
        # Two rows that continue one: the first does, the other has a sequence of its own.
        ([("a", "b", 0), ("ab", "c", 0), ("ab", "d", 0)], [("abc", 1), ("abd", 2)]),
        # Later than its continuation, and with a history that has dropped its oldest item.
        ([("bcd", "e", 0), ("abc", "d", 0)], [("abcde", 3)]),
        # A row that continues itself, and two that continue each other.
        ([("aa", "a", 0)], [("aaa", 2)]),
        ([("ab", "a", 0), ("ba", "b", 0)], [("abab", 2)]),
    ],
)
def test_rows_are_joined_where_one_continues_another(rows, expected):
    found = user_sequences([interaction(history, chosen, user) for history, chosen, user in rows])
    assert sorted(("".join(items), known) for items, known in found) == sorted(expected)


def test_rows_without_a_user_are_joined_as_they_are_read(tmp_path):
    """LLaRA's, whose reader finds the users; in any order."""
    lines = {user: [f"Artist {(7 * user + step) % 60}" for step in range(9)] for user in range(6)}
    rows = [
        {"historyList": line[max(0, end - 5) : end], "itemList": [line[end], "Other"], "trueSelection": line[end]}
        for line in lines.values()
        for end in range(3, 9)
    ]
    for split in ("train", "val", "test"):
        path = tmp_path / f"some-{split}.json"
        path.write_text(llara.TypeAdapter(list[dict]).dump_json(rows if split == "train" else rows[:1]).decode())
    found = user_sequences(llara.read(tmp_path).train)
    assert sorted(found) == sorted((tuple(line), 3) for line in lines.values())


# Training on them


def trainer(rows, folder, steps=3, batch_size=1, kind=SFTTrainer, **others):
    arguments = training_arguments(
        folder, steps=steps, batch_size=batch_size, accumulation=1, learning_rate=1e-2, seed=0, progress=False,
        save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    return kind(make(), arguments, rows, processing_class=TOKENIZER, **others)


def test_a_step_on_them_is_a_step_on_their_targets(tmp_path):
    targets = [{"prompt": prompt, "completion": text} for prompt, text in zip(*targets_of(), strict=True)]
    whole = trainer(rows_of(), tmp_path, 1)
    apart = trainer(targets, tmp_path, 1, len(targets))
    assert whole.evaluate(rows_of(targets=3)) == pytest.approx(apart.evaluate(targets), rel=1e-5)
    for each in (whole, apart):
        each.train()
    for (name, left), right in zip(whole.model.named_parameters(), apart.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3, msg=name)


def test_training_learns_and_an_epoch_visits_each_row_once(tmp_path, monkeypatch):
    seen, collate = [], SFTTrainer.collate
    monkeypatch.setattr(SFTTrainer, "collate", lambda self, visits: seen.extend(visits) or collate(self, visits))
    rows = rows_of(targets=2)
    run = trainer(rows, tmp_path, 2 * len(rows))
    before = run.evaluate(rows)["eval_loss"]
    run.train()
    assert run.evaluate(rows)["eval_loss"] < before - 1
    order = [row for row, _ in seen]
    for epoch in (order[: len(rows)], order[len(rows) :]):
        assert sorted(epoch) == list(range(len(rows)))
    assert all(columns.tolist() == list(range(rows.counts[row])) for row, columns in seen)


def test_rows_that_a_trainer_cannot_take(tmp_path):
    with pytest.raises(ValueError, match=r"learn answers and no other tokens; leave whole_line out"):
        trainer(rows_of(), tmp_path, whole_line=True)
    with pytest.raises(ValueError, match=r"have no rejected answers; give rows of preferences"):
        trainer(rows_of(), tmp_path, kind=PreferenceTrainer)
    longer = rows_of([([f"Item{number}" for number in range(30)], 1)])
    with pytest.raises(ValueError, match=r"need up to \d+ tokens, more than the 96 .*; make them with context=96"):
        trainer(longer, tmp_path)


def test_where_no_row_continues_another_rows_hold_the_same_targets():
    users = catalog.generate(0, train=40, validation=4, test=4)[1].train
    rows = sequence_rows(users, "line", pocket_tokenizer([item for user in users for item in user.candidates]))
    assert rows.counts.tolist() == [16, 16, 8]
