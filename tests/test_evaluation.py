"""Ranking metrics, the common yardstick, ValidRatio, and intervals over users and seeds."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tokenizers.processors import TemplateProcessing

from minipo.evaluation import Interval, pair_loss, paired_interval, ranking_metrics, ranks, report, reward_wins
from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.models import load_model, pocket_tokenizer
from minipo.experiments.users import evaluate, fit_prompts, named, named_hits, preference_rows, score, valid_ratio

# Small whole numbers, so that ties are common.
SCORES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=8), elements=st.integers(-3, 3))


def test_ranks_count_the_negatives_that_are_as_good():
    scores = [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [1.0, 1.0, 0.0], [-np.inf, -np.inf, 0.0]]
    assert ranks(np.array(scores)).tolist() == [0, 1, 2, 1, 2]


def test_a_constant_scorer_never_hits():
    metrics = report(np.zeros((50, 20))).metrics
    assert metrics == {"hr@1": 0.0, "hr@5": 0.0, "ndcg@5": 0.0, "mrr": pytest.approx(1 / 20)}


def test_a_random_scorer_hits_one_time_in_twenty():
    users = 40_000
    metrics = report(np.random.default_rng(0).normal(size=(users, 20))).metrics
    four_errors = 4 * math.sqrt(1 / 20 * 19 / 20 / users)
    assert metrics["hr@1"] == pytest.approx(1 / 20, abs=four_errors)
    assert metrics["hr@5"] == pytest.approx(5 / 20, abs=4 * math.sqrt(1 / 4 * 3 / 4 / users))
    assert metrics["mrr"] == pytest.approx(sum(1 / place for place in range(1, 21)) / 20, abs=0.01)


def test_metrics_by_hand():
    found = ranking_metrics(np.array([0, 1, 4, 5]))
    assert found["hr@1"].tolist() == [1, 0, 0, 0]
    assert found["hr@5"].tolist() == [1, 1, 1, 0]
    assert found["ndcg@5"] == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(6), 0])
    assert found["mrr"] == pytest.approx([1, 1 / 2, 1 / 5, 1 / 6])


@given(SCORES)
def test_metrics_are_those_of_a_sorted_list(scores):
    expected: dict[str, list[float]] = {"hr@1": [], "hr@5": [], "ndcg@5": [], "mrr": []}
    for row in scores:
        # Best first; among equals the chosen item, column 0, comes last.
        order = sorted(range(len(row)), key=lambda column: (-row[column], column == 0))
        relevant = [1.0 if column == 0 else 0.0 for column in order]
        expected["hr@1"].append(sum(relevant[:1]))
        expected["hr@5"].append(sum(relevant[:5]))
        # The ideal list has the chosen item first: its DCG is 1.
        expected["ndcg@5"].append(sum(gain / math.log2(place + 2) for place, gain in enumerate(relevant[:5])))
        expected["mrr"].append(1 / (1 + relevant.index(1.0)))
    found = ranking_metrics(ranks(scores))
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name


@pytest.mark.parametrize("measure", [ranks, reward_wins, pair_loss, report])
def test_scores_that_cannot_be_ranked(measure):
    scores = np.zeros((3, 4))
    scores[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"^scores has NaN at row 1, column 2: give every candidate a number"):
        measure(scores)
    for shape in [(3,), (3, 1), (2, 3, 4)]:
        with pytest.raises(ValueError, match=r"scores has shape .*: give \(users, 1 \+ negatives\)"):
            measure(np.zeros(shape))


def test_reward_wins_only_if_every_negative_is_beaten():
    assert reward_wins(np.array([[1.0, 0, -1], [1, 1, 0], [0, -1, 1]])).tolist() == [True, False, False]


def test_pair_loss_by_hand():
    assert pair_loss(np.full((4, 20), 0.3)) == pytest.approx(math.log(2))
    expected = -np.mean([np.log(1 / (1 + np.exp(-margin))) for margin in (1.0, -2.0, 0.5, 0.0)])
    assert pair_loss(np.array([[0.0, -1.0, 2.0], [0.5, 0.0, 0.5]])) == pytest.approx(expected)
    assert pair_loss(np.array([[-1e4, 1e4]], dtype=np.float32)) == pytest.approx(2e4)
    assert pair_loss(np.array([[1e4, -1e4]], dtype=np.float32)) == 0


@given(SCORES, st.floats(0.01, 5))
def test_pair_loss_falls_with_the_chosen_and_rises_with_a_negative(scores, step):
    better, worse = scores.copy(), scores.copy()
    better[0, 0] += step
    worse[0, 1] += step
    assert pair_loss(better) < pair_loss(scores) < pair_loss(worse)


def test_report_takes_the_log_ratio_from_the_reference():
    scores, reference = np.array([[-5.0, -4.0], [-5.0, -6.0]]), np.array([[-7.0, -4.0], [-5.0, -7.0]])
    found = report(scores, reference)
    assert found.ranks.tolist() == [1, 0]
    assert found.reward_wins is not None
    assert found.reward_wins.tolist() == [True, False]  # ρ: (2, 0) and (0, 1)
    assert found.metrics["reward_win_rate"] == 0.5
    assert found.metrics["pair_loss"] == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2)
    assert "pair_loss" not in report(scores).metrics
    with pytest.raises(ValueError, match=r"reference has shape \(1, 2\) and scores has \(2, 2\): give the SFT model's"):
        report(scores, reference[:1])


@pytest.mark.parametrize("name", ["pocket-gpt2", "pocket-qwen2"])
def test_score_is_one_plain_forward_per_candidate(name, tiny):
    model, tokenizer = load_model(name, items=tiny.items)
    model.train()  # with the dropout that SFT has; scoring leaves it out, and the model as it found it
    for parameter in model.parameters():
        parameter.data.mul_(3)  # away from uniform probabilities
    users = tiny.test[:3]
    found = score(model, tokenizer, users, batch_size=2)
    assert model.training
    model.eval()
    for row, user in zip(found, users, strict=True):
        negatives = [item for item in user.candidates if item != user.chosen]
        prompt = ", ".join(user.history) + ","
        start = len(tokenizer(prompt)["input_ids"])
        for logp, item in zip(row, [user.chosen, *negatives], strict=True):
            line = torch.tensor([[*tokenizer(f"{prompt} {item}")["input_ids"], tokenizer.eos_token_id]])
            with torch.no_grad():
                logps = model(line).logits.log_softmax(-1)[0, :-1].gather(1, line[0, 1:, None])
            assert logp == pytest.approx(logps[start - 1 :].sum().item(), abs=1e-4)


@given(SCORES, SCORES, st.data())
def test_absent_candidates_are_left_out(scores, reference, data):
    """A ragged report is the report of each row alone, without what is absent."""
    rows, columns = (min(sizes) for sizes in zip(scores.shape, reference.shape, strict=True))
    scores, reference = scores[:rows, :columns], reference[:rows, :columns]
    counts = [data.draw(st.integers(2, columns)) for _ in range(rows)]
    absent = np.arange(columns) >= np.array(counts)[:, None]
    found = report(np.where(absent, -np.inf, scores), np.where(absent, -np.inf, reference))
    assert found.reward_wins is not None
    alone = [report(scores[[row], :count], reference[[row], :count]) for row, count in enumerate(counts)]
    assert found.ranks.tolist() == [int(single.ranks[0]) for single in alone]
    assert found.reward_wins.tolist() == [bool(single.reward_wins[0]) for single in alone]
    losses = [single.metrics["pair_loss"] * (count - 1) for single, count in zip(alone, counts, strict=True)]
    assert found.metrics["pair_loss"] == pytest.approx(sum(losses) / sum(count - 1 for count in counts))


def test_scores_and_reference_agree_on_what_is_absent():
    scores = np.array([[-1.0, -2, -3], [-1, -2, -np.inf]])
    with pytest.raises(ValueError, match=r"^At row 1, column 2 only one of scores and reference is -inf"):
        report(scores, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"^At row 1, column 2 only one of scores and reference is -inf"):
        report(np.zeros((2, 3)), scores)


def test_users_may_differ_in_their_number_of_candidates(tiny):
    model, tokenizer = load_model("pocket-gpt2", items=tiny.items)
    users = [shorter(user, 3 + number) for number, user in enumerate(tiny.test[:4])]
    found = score(model, tokenizer, users)
    assert found.shape == (4, 6)
    for row, user in zip(found, users, strict=True):
        count = len(user.candidates)
        assert row[:count] == pytest.approx(score(model, tokenizer, [user])[0], abs=1e-4)
        assert np.isneginf(row[count:]).all()
    metrics = evaluate(model, tokenizer, users, reference=found).metrics
    assert metrics["pair_loss"] == pytest.approx(math.log(2))


# Prompts and the model's context


def shorter(user, count):
    """The user with so many candidates."""
    return Interaction(user.user, user.history, user.chosen, user.canonical[:count])


def test_prompts_that_are_too_long_lose_their_oldest_items(tiny):
    tokenizer = pocket_tokenizer(tiny.items)
    users = [shorter(user, 4) for user in tiny.test[:5]]
    whole, none = fit_prompts(tokenizer, users)
    assert none == 0
    assert whole == [", ".join(user.history) + "," for user in users]
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in whole)
    room = max(len(tokenizer(" " + item)["input_ids"]) for user in users for item in user.candidates)
    assert fit_prompts(tokenizer, users, context=longest + room) == (whole, 0)
    for context in (longest, 10):
        prompts, shortened = fit_prompts(tokenizer, users, context=context)
        cut = 0
        for prompt, user in zip(prompts, users, strict=True):
            needs = max(len(tokenizer(" " + item)["input_ids"]) for item in user.candidates)
            fitting = [  # the longest history that fits, counted by hand
                history
                for start in range(len(user.history))
                if len(tokenizer(", ".join(history := user.history[start:]) + ",")["input_ids"]) + needs <= context
            ]
            assert prompt == ", ".join(fitting[0]) + ","
            cut += fitting[0] != user.history
        assert shortened == cut > 0
    with_room, _ = fit_prompts(tokenizer, users, context=longest, room=longest - 4)
    assert all(len(tokenizer(prompt)["input_ids"]) <= 4 for prompt in with_room)


def test_a_prompt_that_does_not_fit_with_one_item(tiny):
    tokenizer = pocket_tokenizer(tiny.items)
    with pytest.raises(
        ValueError,
        match=r"^User \d+: with one item of history, prompt and answer need \d+ tokens, more than the 4 of the",
    ) as raised:
        fit_prompts(tokenizer, tiny.test[:3], context=4)
    assert "\n" not in str(raised.value)
    assert fit_prompts(tokenizer, [], context=4) == ([], 0)


def test_preference_rows(tiny):
    (row, *_) = rows = preference_rows(tiny.test[:3])
    user = tiny.test[0]
    assert len(rows) == 3
    assert row == {
        "prompt": ", ".join(user.history) + ",",
        "chosen": " " + user.chosen,
        "rejected": [" " + item for item in user.negatives],
    }
    tokenizer = pocket_tokenizer(tiny.items)
    with pytest.warns(
        UserWarning, match=r"^3 of 3 prompts were longer than the 12 tokens of the model's context: their"
    ):
        rows = preference_rows(tiny.test[:3], "line", tokenizer, 12)
    assert [row["prompt"] for row in rows] == fit_prompts(tokenizer, tiny.test[:3], context=12)[0]
    assert preference_rows(tiny.test[:3], "line", tokenizer, 128) == preference_rows(tiny.test[:3])


def test_long_histories_are_scored_shortened(tiny):
    model, tokenizer = load_model("pocket-gpt2", items=tiny.items)
    user = tiny.test[0]
    long = Interaction(user.user, user.history * 12, user.chosen, user.candidates)
    with pytest.warns(UserWarning, match="1 of 2 prompts were longer than the 128 tokens"):
        found = score(model, tokenizer, [user, long])
    (prompt,), _ = fit_prompts(tokenizer, [long], context=128)
    assert len(prompt.split(", ")) < len(long.history)
    kept = Interaction(user.user, tuple(prompt.removesuffix(",").split(", ")), user.chosen, user.candidates)
    assert found[1] == pytest.approx(score(model, tokenizer, [kept])[0], abs=1e-4)
    with pytest.warns(UserWarning, match="1 of 1 prompts were longer"):
        assert 0 <= valid_ratio(model, tokenizer, [long], tiny.items) <= 1


def test_an_error_in_scoring_leaves_the_model_in_training(tiny):
    model, tokenizer = load_model("pocket-gpt2", items=tiny.items)
    model.train()
    with pytest.raises(ValueError, match="more than the 128 of the model's context"):
        score(model, tokenizer, tiny.test[:1], "choice")
    assert model.training


def test_evaluate(tiny):
    model, tokenizer = load_model("pocket-gpt2", items=tiny.items)
    plain = evaluate(model, tokenizer, tiny.validation)
    assert plain.ranks.shape == (len(tiny.validation),)
    assert plain.metrics["hr@1"] == np.mean(plain.ranks == 0)
    itself = evaluate(model, tokenizer, tiny.validation, reference=plain.scores)
    assert itself.metrics["pair_loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert itself.metrics["reward_win_rate"] == 0
    with pytest.raises(ValueError, match="no users to evaluate: the split is empty"):
        evaluate(model, tokenizer, [])
    with pytest.raises(ValueError, match=r"Unknown template 'lin'. Did you mean 'line'\? Known: line, liked, question"):
        evaluate(model, tokenizer, tiny.validation, template="lin")


# ValidRatio

ITEMS = ("Neon Fox", "Fox", "Iron Lark", "Heat", "Heather", "Mr. (X)")


class Says:
    """A stand-in for a model: answers every prompt with the next of some texts, whatever the prompt."""

    device, config = "cpu", SimpleNamespace(get_text_config=SimpleNamespace)

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.prompts, self.training = tokenizer, list(texts), [], True

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)

    def generate(self, input_ids, attention_mask, max_new_tokens, **_):
        assert not self.training
        assert (input_ids[:, -1] != self.tokenizer.eos_token_id).all(), (
            "the text goes on, whatever the tokenizer puts there"
        )
        assert attention_mask[:, -1].all(), "the padding must stand before the prompt, not between prompt and answer"
        self.prompts += self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        texts, self.texts = self.texts[: len(input_ids)], self.texts[len(input_ids) :]
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        rows = [[*self.tokenizer(text)["input_ids"], end][:max_new_tokens] for text in texts]
        width = max(map(len, rows))
        return torch.cat([input_ids, torch.tensor([row + [pad] * (width - len(row)) for row in rows])], dim=1)


def users_with(candidates, count):
    """Users whose histories differ in length."""
    return [
        Interaction(number, ("Heat",) * (1 + number % 3), candidates[0], tuple(candidates)) for number in range(count)
    ]


def ratio(texts, template, candidates=ITEMS, items=ITEMS, batch_size=2, ends=False):
    tokenizer = pocket_tokenizer([*ITEMS, "nothing and or not a b c d e f g h"])
    if ends:
        template_of_tokens = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
        tokenizer.backend_tokenizer.post_processor = template_of_tokens
    model = Says(tokenizer, texts)
    found = valid_ratio(model, tokenizer, users_with(candidates, len(texts)), items, template, batch_size)  # type: ignore[arg-type]
    assert model.training
    assert tokenizer.padding_side == "right"
    return found, model.prompts


def test_what_a_tokenizer_puts_behind_a_text_does_not_stand_between_prompt_and_answer():
    plain, ended = (ratio(["Fox", "Heat", "no"], "line", ends=ends) for ends in (False, True))
    assert ended == plain


def test_a_generated_hit_names_the_chosen_item_and_no_other_candidate():
    tokenizer = pocket_tokenizer([*ITEMS, "or I say"])
    texts = ["Neon Fox", "Neon Fox or Heat", "Fox", "Heather", "I say Neon Fox", "or"]
    users = users_with(ITEMS, len(texts))
    items = [*ITEMS, "or or or or or or"]  # so that an answer may be as long
    found = named_hits(Says(tokenizer, texts), tokenizer, users, items, "choice", batch_size=4)  # type: ignore[arg-type]
    assert found.tolist() == [True, False, False, False, True, False]


def test_without_the_list_an_answer_is_a_name_and_nothing_else():
    texts = ["Neon Fox", "Neon Fox Heat", "Fox", "Neon", "Neon Fox, Heat", "neon fox", "Mr. (X)"]
    found, prompts = ratio(texts, "line")
    assert found == 3 / 7
    assert prompts[:4] == ["Heat,", "Heat, Heat,", "Heat, Heat, Heat,", "Heat,"]
    assert ratio(["Iron Lark"], "line", candidates=ITEMS[:2])[0] == 1  # a catalogue item, though no candidate


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("Iron Lark", True),
        ("a b Iron Lark c", True),
        ("Iron Lark Iron Lark", True),  # twice the same one
        ("Neon Fox", True),  # and not Fox as well
        ("not Fox", True),
        ("Neon Fox or Fox", False),
        ("Iron Lark and Heat", False),
        ("Heather", True),  # and not Heat as well
        ("a Heaths", False),  # no name stands in it as a word
        ("Mr. (X), or not", True),
        ("Iron", False),
        ("nothing", False),
    ],
)
def test_with_the_list_an_answer_names_exactly_one_candidate(text, usable):
    items = [*ITEMS, "a b c d e f g h i j"]  # room for long answers
    assert ratio([text], "choice", items=items)[0] == usable


def test_with_the_list_an_item_that_is_no_candidate_does_not_count():
    found, prompts = ratio(["Iron Lark", "Fox"], "choice", candidates=("Fox", "Heat"))
    assert found == 1 / 2
    assert "Fox, Heat?" in prompts[0]


def test_named_knows_names_with_marks_in_them():
    assert named(["C++", "C", "Who?"], "C++ and Who?") == {"C++", "Who?"}
    assert named(["Heat"], "preHeat Heated") == set()


@pytest.mark.parametrize("template", ["line", "choice"])
def test_what_valid_ratio_does_not_measure(template, tiny):
    model, tokenizer = load_model("pocket-gpt2", items=tiny.items)
    with pytest.raises(ValueError, match="no users to evaluate: the split is empty"):
        valid_ratio(model, tokenizer, [], tiny.items, template)


def test_a_prompt_beyond_the_context_is_one_sentence(tiny):
    model, tokenizer = load_model("pocket-gpt2", items=tiny.items)
    model.train()
    with pytest.raises(
        ValueError, match=r"prompt and answer need \d+ tokens, more than the 128 of the model's context;"
    ):
        valid_ratio(model, tokenizer, tiny.test[:2], tiny.items, "choice")
    assert model.training
    assert tokenizer.padding_side == "right"


def test_valid_ratio_of_a_model_before_and_after_training(tiny, tiny_sft):
    model, tokenizer = load_model("pocket-gpt2", items=tiny.items)
    assert valid_ratio(model, tokenizer, tiny.test, tiny.items) < 0.1
    model, tokenizer = tiny_sft.load_model()
    after = valid_ratio(model, tokenizer, tiny.test, tiny.items)
    assert after > 0.7
    longer = [Interaction(user.user, user.history[-2:], user.chosen, user.candidates) for user in tiny.test[::2]]
    mixed = [user for pair in zip(tiny.test[::2], longer, strict=True) for user in pair]
    # Prompts of different lengths in a batch: padding must not change an answer.
    assert valid_ratio(model, tokenizer, mixed, tiny.items) == valid_ratio(
        model, tokenizer, mixed, tiny.items, batch_size=1
    )


# Intervals


@pytest.mark.parametrize(("seeds", "seed_effect"), [(5, 0.01), (3, 0.0), (1, 0.0)])
def test_the_interval_covers_the_true_mean(seeds, seed_effect):
    """Crossed data as paired runs give it: users differ, seeds hardly, and each pair has a luck of its own."""
    generator, covered, repeats, users, mean = np.random.default_rng(0), 0, 300, 150, 0.03
    for _ in range(repeats):
        difference = (
            mean
            + seed_effect * generator.normal(size=(seeds, 1))
            + 0.15 * generator.normal(size=(1, users))
            + 0.3 * generator.normal(size=(seeds, users))
        )
        interval = paired_interval(difference, resamples=400)
        assert interval.low <= interval.mean <= interval.high
        covered += interval.low <= mean <= interval.high
    assert covered / repeats > 0.93


def test_the_interval_is_narrow_where_users_are_many():
    generator = np.random.default_rng(0)
    wide, narrow = (paired_interval(generator.normal(size=(5, users)), resamples=500) for users in (100, 4_000))
    assert narrow.high - narrow.low < 0.25 * (wide.high - wide.low)


def test_intervals_of_plain_cases():
    assert paired_interval(np.zeros((5, 40))) == Interval(0.0, 0.0, 0.0)
    one = np.random.default_rng(0).normal(size=30)
    assert paired_interval(one) == paired_interval(one[None])
    assert paired_interval(one).mean == pytest.approx(one.mean())
    assert paired_interval(one, seed=1) == paired_interval(one, seed=1)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,), (2, 2, 2)])
def test_an_interval_needs_paired_runs(shape):
    with pytest.raises(ValueError, match=r"difference has shape .*: give \(seeds, users\)"):
        paired_interval(np.zeros(shape))
