"""How long a run takes: counted from its settings, at the speed that this machine's calibration measured."""

import time
from dataclasses import replace

import pytest

from minipo import threads
from minipo.experiments import estimates
from minipo.experiments.configuration import PreferConfig, SFTConfig, make_config
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.estimates import Data, Speed
from minipo.experiments.models import load_model

SPEED = Speed(step=0.005, train=0.3, learn=0.3, score=0.15, float32=0.01, bfloat16=0.005, row=2e-4)


@pytest.fixture
def data() -> Data:
    return Data.of(load_dataset("catalog"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPO_HOME", str(tmp_path))
    return tmp_path


def prefer(**settings) -> PreferConfig:
    return make_config(PreferConfig, settings)


@pytest.mark.parametrize("name", estimates.POCKET)
def test_texts_and_size_are_those_of_the_real_tokenizer_and_model(name, data):
    splits = load_dataset("catalog")
    model, tokenizer = load_model(name, items=splits.items)
    texts = estimates.texts_of(name, "line", data)
    assert texts is not None
    layers = model.transformer.h if name == "pocket-gpt2" else model.model.layers
    weights = sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2)
    assert (texts.layers * 1e9, texts.output * 1e9) == pytest.approx((weights, model.lm_head.weight.numel()))
    ids = tokenizer([", ".join(user.history) + "," for user in splits.train[:200]])["input_ids"]
    assert texts.prompt == pytest.approx(sum(map(len, ids)) / 200, rel=0.02)
    ids = tokenizer([" " + item for item in splits.items])["input_ids"]
    assert texts.answer == pytest.approx(1 + sum(map(len, ids)) / len(ids), rel=0.02)


def test_an_estimate_grows_with_what_the_run_does(data):
    def of(config) -> float:
        found = estimates.seconds(config, data, SPEED)
        assert found is not None
        return found

    run = of(prefer(negatives=15, steps=300))
    assert of(prefer(negatives=15, steps=600)) > 1.5 * run
    assert of(prefer(negatives=1, steps=300)) < run < of(prefer(negatives=15, steps=300, evaluate_every=10))
    assert of(prefer(negatives=15, steps=300, validation_users=10)) < run
    short, long = (of(make_config(SFTConfig, {"epochs": epochs})) for epochs in (1, 10))
    assert 4 * short < long


def test_a_model_whose_size_is_unknown_has_no_estimate(data, tmp_path):
    assert estimates.seconds(prefer(model="gpt2"), data, SPEED) is None
    (tmp_path / "fetched" / "gpt2").mkdir(parents=True)
    (tmp_path / "fetched" / "gpt2" / "config.json").write_text(
        '{"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}'
    )
    texts = estimates.texts_of("gpt2", "question", data)
    assert texts is not None
    assert (texts.layers * 1e9, texts.output * 1e9) == pytest.approx((12 * 12 * 768**2, 768 * 50257))


def test_on_a_machine_three_times_as_slow_a_run_is_said_to_take_three_times_as_long(data, monkeypatch, tmp_path):
    found = []
    for slow in (1, 3):  # a clock that runs faster makes everything look slower; processor time, as others are busy too
        monkeypatch.setattr(estimates, "clock", lambda slow=slow: slow * time.process_time())
        monkeypatch.setattr(estimates, "BUDGET", 0.1 * slow)
        (tmp_path / "speed.json").unlink(missing_ok=True)
        begin = time.process_time()
        found.append(estimates.seconds(prefer(), data, estimates.speeds()[1]))
        assert time.process_time() - begin < 10  # about one second; the first time, modules are imported too
    assert 3 / 1.5 < found[1] / found[0] < 3 * 1.5


def test_what_was_measured_while_others_were_busy_is_measured_again(monkeypatch):
    calls, others = [], iter([1.5, 1.5, 0.0])
    monkeypatch.setattr(threads.Threads, "others", lambda self: next(others))
    monkeypatch.setattr(estimates, "_measured", lambda: calls.append(1) or {1: replace(SPEED, train=1 / len(calls))})
    assert [estimates.speeds()[1].train for _ in range(5)] == [1, 1 / 2, 1 / 3, 1 / 3, 1 / 3]
    assert estimates.speeds(measure=False)[1].train == 1 / 3


def test_the_speed_is_measured_once_and_again_if_its_file_is_damaged(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(threads.Threads, "others", lambda self: 0.0)
    monkeypatch.setattr(estimates, "_measured", lambda: calls.append(1) or {1: SPEED})
    assert estimates.speeds(measure=False) == {}
    assert estimates.speeds() == estimates.speeds() == {1: SPEED}
    assert len(calls) == 1
    written = (tmp_path / "speed.json").read_text()
    for damage in ("{", "[]", "{}", written.replace("0.3", "null"), written.replace("0.3", "-1.0")):
        (tmp_path / "speed.json").write_text(damage)
        assert estimates.speeds() == {1: SPEED}
    assert len(calls) == 6
    monkeypatch.setattr(estimates, "_measured", lambda: {1: replace(SPEED, train=0.9, score=0.1)})
    assert estimates.calibrate() == estimates.speeds() == {1: replace(SPEED, score=0.1)}  # each is the better one
