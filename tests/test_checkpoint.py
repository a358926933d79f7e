"""Model directories and resume files: round trips, crashes at any moment, damage, full disks."""

import errno
import json
import os
import shutil
from contextlib import suppress

import pytest
import torch

import shared.training.checkpoint as checkpoint
from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig
from shared.model.modern import ModernConfig, ModernGPT
from shared.text.bpe import BPETokenizer
from shared.training.checkpoint import load_model, load_resume, save_model, save_resume

FILES = ["config.json", "model.safetensors", "tokenizer.json", "training.json"]
SIZES = {"vocab_size": 261, "context": 8, "n_layers": 1, "n_heads": 2, "width": 12}


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train("a cat and a hat and a mat", 261, ("<|endoftext|>",))


@pytest.fixture(scope="module")
def other_tokenizer():
    return BPETokenizer.train("one dog or one log or one frog", 261, ("<|endoftext|>",))


def small_model(seed, kind=GPT, **options):
    torch.manual_seed(seed)
    return kind({GPT: GPTConfig, ModernGPT: ModernConfig}[kind](**SIZES, **options))


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GPT, {"dropout": 0.1}),
        (ModernGPT, {}),
        (ModernGPT, {"tied": True}),
        (ModernGPT, {"norm": "weighted_rms", "feed_forward": "swiglu", "n_kv_heads": 1, "window": 5}),
    ],
)
def test_a_model_comes_back_as_it_was(tmp_path, tokenizer, kind, options):
    model = small_model(0, kind, **options)
    info = {"corpus": "stories", "seed": 3, "losses": [1.5, float("nan")], "name": "größer"}
    save_model(tmp_path / "deep" / "model", model, tokenizer, info)
    directory = tmp_path / "deep" / "model"
    assert sorted(os.listdir(directory)) == FILES
    loaded, loaded_tokenizer, loaded_info = load_model(directory)
    assert type(loaded) is kind and loaded.config == model.config and not loaded.training
    assert same_weights(loaded, model)
    ids = torch.randint(0, 261, (2, 5))
    assert torch.equal(loaded(ids), model.eval()(ids))
    assert loaded_tokenizer.encode("a cat") == tokenizer.encode("a cat")
    assert loaded_tokenizer.special_tokens == tokenizer.special_tokens
    assert loaded_info == info | {"losses": [1.5, None]}  # JSON has no NaN
    config = json.loads((directory / "config.json").read_text())
    assert config["architecture"] == kind.__name__ and config["width"] == 12


def test_a_config_from_before_a_choice_existed_still_loads(tmp_path, tokenizer):
    model = small_model(0, ModernGPT)
    save_model(tmp_path, model, tokenizer, {})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("window") is None
    resign(tmp_path, "config.json", json.dumps(config).encode())
    assert load_model(tmp_path)[0].config == model.config


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path, tokenizer):
    tied, untied = (small_model(0, ModernGPT, tied=value) for value in (True, False))
    sizes = []
    for name, model in (("tied", tied), ("untied", untied)):
        save_model(tmp_path / name, model, tokenizer, {})
        sizes.append((tmp_path / name / "model.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] >= 261 * 12 * 4
    loaded, _, _ = load_model(tmp_path / "tied")
    assert loaded.head.weight is loaded.token_embedding.weight


def test_an_unknown_architecture_is_refused(tmp_path, tokenizer):
    with pytest.raises(CourseError, match="Linear"):
        save_model(tmp_path, torch.nn.Linear(2, 2), tokenizer, {})


def which_state(directory, old, new):
    """ "old" or "new", after checking that model, tokenizer and info all agree."""
    model, tokenizer, info = load_model(directory)
    for name, (expected_model, expected_tokenizer) in {"old": old, "new": new}.items():
        if info["name"] == name:
            assert same_weights(model, expected_model)
            assert tokenizer.ranks == expected_tokenizer.ranks
            return name
    raise AssertionError(info)


def test_every_moment_of_a_save_is_the_old_or_the_new_state(tmp_path, monkeypatch, tokenizer, other_tokenizer):
    """Copy the directory before and after every call that changes the disk: each copy is what a crash would leave."""
    old, new = (small_model(0), tokenizer), (small_model(1), other_tokenizer)
    directory = tmp_path / "model"
    save_model(directory, *old, {"name": "old"})
    copies = []

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*arguments, **options):
            copies.append(shutil.copytree(directory, tmp_path / f"copy{len(copies)}"))
            result = original(*arguments, **options)
            copies.append(shutil.copytree(directory, tmp_path / f"copy{len(copies)}"))
            return result

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (type(directory), "unlink")):
        watch(owner, name)
    save_model(directory, *new, {"name": "new"})
    monkeypatch.undo()
    states = []
    for copy in copies:
        states.append(which_state(copy, old, new))
        # opening it has settled it: nothing is pending, and a second look says the same
        assert not (copy / "pending.json").exists()
        assert which_state(copy, old, new) == states[-1]
        save_model(copy, *old, {"name": "old"})  # and saving over it works, whatever was left lying there
        assert which_state(copy, old, new) == "old"
        assert sorted(os.listdir(copy)) == FILES  # leftovers included
    assert states == sorted(states, reverse=True)  # once new, it stays new
    assert states.count("old") >= 8 and states.count("new") >= 8


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_pending_file_that_was_damaged_is_refused_and_can_be_saved_over(tmp_path, monkeypatch, tokenizer, damage):
    save_model(tmp_path, small_model(0), tokenizer, {"name": "old"})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "roll_forward", lambda directory: None)  # stops when the journal is in place
        save_model(tmp_path, small_model(1), tokenizer, {"name": "new"})
    pending = tmp_path / "model.safetensors.new"
    pending.write_bytes(b"?") if damage == "changed" else pending.unlink()
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(CourseError, match=r"model\.safetensors\.new is missing or damaged"):
        load_model(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    save_model(tmp_path, small_model(2), tokenizer, {"name": "newest"})
    assert same_weights(load_model(tmp_path)[0], small_model(2))
    assert sorted(os.listdir(tmp_path)) == FILES


class Crash(BaseException):
    """Nothing in the code under test may catch this."""


def fail_at_call(monkeypatch, number, error):
    """Make the number-th call of os.replace or os.fsync raise; returns a list that holds one entry per call."""
    calls = []
    for name in ("replace", "fsync"):
        original = getattr(os, name)

        def wrapped(*arguments, original=original, **options):
            calls.append(arguments)
            if len(calls) == number:
                raise error
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, wrapped)
    return calls


def test_a_crash_at_any_call_leaves_the_old_or_the_new_state(tmp_path, monkeypatch, tokenizer, other_tokenizer):
    old, new = (small_model(0), tokenizer), (small_model(1), other_tokenizer)
    states = []
    for number in range(1, 100):
        directory = tmp_path / str(number)
        save_model(directory, *old, {"name": "old"})
        with monkeypatch.context() as patch:
            calls = fail_at_call(patch, number, Crash())
            with suppress(Crash):
                save_model(directory, *new, {"name": "new"})
        if len(calls) < number:
            break
        states.append(which_state(directory, old, new))
    assert states == sorted(states, reverse=True) and set(states) == {"old", "new"}
    assert len(states) >= 12


def test_a_full_disk_is_one_clear_line_and_leaves_a_loadable_state(tmp_path, monkeypatch, tokenizer, other_tokenizer):
    old, new = (small_model(0), tokenizer), (small_model(1), other_tokenizer)
    states = []
    for number in range(1, 100):
        directory = tmp_path / str(number)
        save_model(directory, *old, {"name": "old"})
        with monkeypatch.context() as patch:
            calls = fail_at_call(patch, number, OSError(errno.ENOSPC, "No space left on device"))
            try:
                save_model(directory, *new, {"name": "new"})
            except CourseError as error:
                assert "No space left on device" in str(error) and "\n" not in str(error)
        if len(calls) < number:
            break
        if not (directory / "pending.json").exists():
            assert sorted(os.listdir(directory)) == FILES  # no temporary file stays behind
        states.append(which_state(directory, old, new))
    assert states == sorted(states, reverse=True) and states.count("old") >= 8


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_fills_while_a_file_is_written_keeps_the_old_state(tmp_path, monkeypatch, tokenizer, name):
    save_model(tmp_path, small_model(0), tokenizer, {"name": "old"})
    before = {file: (tmp_path / file).read_bytes() for file in FILES}
    written = type(tmp_path).write_bytes

    def full(path, data):
        if path.name == name + ".new":
            written(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, data)

    def full_save(self, path):
        full(path, b"x" * 100)

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    if name == "tokenizer.json":
        monkeypatch.setattr(BPETokenizer, "save", full_save)
    with pytest.raises(CourseError, match="No space left"):
        save_model(tmp_path, small_model(1), tokenizer, {"name": "new"})
    assert {file: (tmp_path / file).read_bytes() for file in os.listdir(tmp_path)} == before


def test_saving_where_a_file_stands_is_refused(tmp_path, tokenizer):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CourseError, match="file"):
        save_model(tmp_path / "file", small_model(0), tokenizer, {})
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "one byte changed", "removed"])
def test_damage_is_refused_by_the_name_of_the_file(tmp_path, tokenizer, name, damage):
    save_model(tmp_path, small_model(0), tokenizer, {"seed": 3})
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"truncated": data[: len(data) // 2], "emptied": b"", "one byte changed": data}[damage])
    with pytest.raises(CourseError, match=name.replace(".", r"\.")) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_edited_training_record_is_refused(tmp_path, tokenizer):
    save_model(tmp_path, small_model(0), tokenizer, {"seed": 3})
    path = tmp_path / "training.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(CourseError, match=r"training\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_what_is_no_model_directory_is_refused(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match=f"{path} is not a model directory"):
        load_model(tmp_path / path)


def resign(directory, name, data):
    """Replace a file and its sha256, as someone would who knows the format."""
    (directory / name).write_bytes(data)
    training = json.loads((directory / "training.json").read_text())
    training["sha256"][name] = checkpoint.sha256(data)
    del training["sha256"]["training.json"]
    training["sha256"]["training.json"] = checkpoint.sha256(checkpoint.to_json(training))
    (directory / "training.json").write_text(json.dumps(training))


@pytest.mark.parametrize(
    "config",
    [{"architecture": "Elephant"}, {"architecture": "GPT", "legs": 4}, {"architecture": "GPT", **SIZES, "width": 6}],
)
def test_a_config_that_does_not_describe_the_weights_is_refused(tmp_path, tokenizer, config):
    save_model(tmp_path, small_model(0), tokenizer, {})
    resign(tmp_path, "config.json", json.dumps(config).encode())
    with pytest.raises(CourseError, match=r"config\.json"):
        load_model(tmp_path)


def run_state():
    torch.manual_seed(0)
    weights = torch.randn(50, 40)
    return {
        "step": 7,
        "model": {"weight": weights},
        "optimizers": [
            {"state": {0: {"mean": torch.randn(50, 40)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]}
        ],
        "history": [{"step": 1, "loss": 3.25, "val_loss": None}],
    }


CONFIG = {"train": {"steps": 10, "betas": (0.9, 0.95)}, "corpus": "stories", "model": {"width": 12}}


def test_a_resume_file_comes_back_and_needs_no_pickle(tmp_path):
    save_resume(tmp_path, run_state(), CONFIG)
    assert os.listdir(tmp_path) == ["resume.pt"]
    loaded = load_resume(tmp_path, CONFIG)
    expected = run_state()
    assert torch.equal(loaded["model"]["weight"], expected["model"]["weight"])
    assert torch.equal(loaded["optimizers"][0]["state"][0]["mean"], expected["optimizers"][0]["state"][0]["mean"])
    assert loaded["history"] == expected["history"] and loaded["step"] == 7
    content = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert content["format"] == 1 and len(content["config_sha256"]) == 64


def test_resuming_with_another_config_says_what_differs(tmp_path):
    save_resume(tmp_path, run_state(), CONFIG)
    other = {**CONFIG, "train": {"steps": 12, "betas": (0.9, 0.95)}, "seed": 1}
    with pytest.raises(CourseError) as caught:
        load_resume(tmp_path, other)
    assert "train.steps was 10 and is now 12" in str(caught.value)
    assert "seed was None and is now 1" in str(caught.value)
    assert "corpus" not in str(caught.value)


def test_resuming_without_a_file_is_refused(tmp_path):
    with pytest.raises(CourseError, match="nothing to resume"):
        load_resume(tmp_path, CONFIG)


def test_a_damaged_resume_file_is_refused(tmp_path):
    save_resume(tmp_path, run_state(), CONFIG)
    path = tmp_path / "resume.pt"
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CourseError, match=r"resume\.pt is damaged"):
            load_resume(tmp_path, CONFIG)
    weights = run_state()["model"]["weight"].numpy().tobytes()
    changed = bytearray(whole)
    changed[whole.index(weights) + 1000] ^= 4  # one bit of one weight
    path.write_bytes(changed)
    with pytest.raises(CourseError, match=r"resume\.pt is damaged"):
        load_resume(tmp_path, CONFIG)


def test_a_resume_file_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": 1, "config": {}, "state": Evil()}, tmp_path / "resume.pt")
    with pytest.raises(CourseError):
        load_resume(tmp_path, {})
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_keeps_the_last_resume_file(tmp_path, monkeypatch):
    save_resume(tmp_path, run_state(), CONFIG)
    for number in (1, 2):
        with monkeypatch.context() as patch:
            calls = fail_at_call(patch, number, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(CourseError, match="No space left"):
                save_resume(tmp_path, {**run_state(), "step": 8}, CONFIG)
            assert len(calls) == number
        assert os.listdir(tmp_path) == ["resume.pt"]
        assert load_resume(tmp_path, CONFIG)["step"] == 7
