"""`bare-train` and `bare-sample`: start to text with no machine-learning library in the process."""

import json
import subprocess
import sys

import numpy as np
import pytest

from shared.app import bare
from shared.app.bench_bare import bench_bare
from shared.app.cli import main
from shared.bare.gpt import BareConfig, BareGPT, load_bare, save_bare

SMALL = {"context": 64, "n_layers": 1, "n_heads": 2, "width": 16}
FORBIDDEN = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorflow", "jax", "scipy", "autograd", "transformers"):
            raise ImportError(f"{name} is forbidden here")
sys.meta_path.insert(0, Forbid())
"""


def run_without_libraries(script, *arguments):
    """Run Python with an import hook that refuses every machine-learning library; returns stdout."""
    command = [sys.executable, "-W", "error", "-c", FORBIDDEN + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model, trained and used in processes where PyTorch cannot be imported."""
    out = tmp_path_factory.mktemp("bare") / "model.npz"
    script = f"""
from shared.app import bare
from shared.app.cli import main
bare.SIZES = {SMALL}
bare.JUDGED_STORIES = 4
bare.WATCHED_TEXTS = 5
sys.exit(main(["bare-train", "--corpus", "stories-small", "--stories", "120", "--vocab-size", "400",
               "--steps", "3", "--seed", "2", "--json", "--out", sys.argv[1]]))
"""
    return out, json.loads(run_without_libraries(script, out))


def test_training_without_any_library_prints_all_figures(trained):
    out, figures = trained
    assert out.exists() and figures["steps"] == 3 and figures["out"] == str(out)
    assert 0 < figures["entropy_floor"] < figures["trigram_loss"] < figures["val_loss"] < np.log(400) + 1
    assert figures["story_rate"] == 0.0
    model, _ = load_bare(out)
    assert figures["parameters"] == sum(tensor.data.size for tensor in model.parameters().values())
    assert model.config == BareConfig(400, **SMALL)


def test_sampling_without_any_library_repeats_with_its_seed(trained):
    script = "from shared.app.cli import main\nsys.exit(main(['bare-sample', *sys.argv[1:]]))"
    options = ["--model", trained[0], "--prompt", "One day,", "--tokens", "12", "--seed", "1"]
    text = run_without_libraries(script, *options)
    assert text.startswith("One day,") and len(text) > 12
    assert run_without_libraries(script, *options) == text
    continuation = json.loads(run_without_libraries(script, *options, "--json"))
    assert continuation["prompt"] + continuation["continuation"] + "\n" == text


def test_the_trained_model_loads_in_pytorch_and_writes_the_same(trained):
    import torch

    from shared.bare.gpt import generate
    from shared.model.generate import generate as peer_generate

    model, tokenizer = bare.open_bare(trained[0])
    prompt = [[tokenizer.special_tokens["<|endoftext|>"], *tokenizer.encode("One day, Mira")]]
    expected = peer_generate(bare.to_torch(model).eval(), torch.tensor(prompt), 40, temperature=0)
    assert generate(model, prompt, 40, temperature=0).tolist() == expected.tolist()


def fails(capsys, *arguments):
    """Run a command that must fail as a user's mistake does; return its one line."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    return err


def test_each_mistake_is_one_line(capsys, tmp_path, trained):
    assert "no such corpus" in fails(capsys, "bare-train", "--corpus", "nothing", "--out", tmp_path / "m.npz")
    assert "too small" in fails(
        capsys,
        "bare-train",
        "--corpus",
        "stories-small",
        "--stories",
        "20",
        "--vocab-size",
        "9",
        "--out",
        tmp_path / "m",
    )
    assert "is a folder" in fails(capsys, "bare-train", "--corpus", "stories-small", "--out", tmp_path)
    (tmp_path / "file").write_text("x")
    inside = tmp_path / "file" / "model.npz"
    assert "cannot write" in fails(capsys, "bare-train", "--corpus", "stories-small", "--out", inside)
    assert "no such file" in fails(capsys, "bare-sample", "--model", tmp_path / "m.npz")
    assert "shorten it" in fails(capsys, "bare-sample", "--model", trained[0], "--prompt", "fox " * 200)
    (tmp_path / "bad.npz").write_bytes(trained[0].read_bytes()[:5000])
    assert "damaged" in fails(capsys, "bare-sample", "--model", tmp_path / "bad.npz")
    assert not (tmp_path / "m.npz").exists()


def test_a_model_with_another_tokenizer_is_refused(capsys, tmp_path, trained):
    _, text = load_bare(trained[0])
    save_bare(tmp_path / "other.npz", BareGPT(BareConfig(300, **SMALL)), text)
    assert "400 and 300 tokens" in fails(capsys, "bare-sample", "--model", tmp_path / "other.npz")
    save_bare(tmp_path / "none.npz", BareGPT(BareConfig(300, **SMALL)), "{}")
    assert "no tokenizer" in fails(capsys, "bare-sample", "--model", tmp_path / "none.npz")


def test_a_text_file_trains_too(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bare, "SIZES", SMALL)
    (tmp_path / "book.txt").write_text("\n\n".join(f"The fox number {n} ran home to sleep." for n in range(300)))
    out = tmp_path / "book.npz"
    arguments = ["--corpus", str(tmp_path / "book.txt"), "--vocab-size", "300", "--steps", "2", "--out", str(out)]
    assert main(["bare-train", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "val_loss" in printed and "story_rate       -" in printed and out.exists()


def test_steps_over_real_text_are_limited_to_some_epochs():
    assert bare.training_config(3 * bare.TRAINING["batch_size"], None, False, 0).steps == bare.MOST_EPOCHS * 3
    assert bare.training_config(10**6, None, False, 0).steps == bare.STEPS
    assert bare.training_config(32, None, True, 0).steps == bare.STEPS
    assert bare.training_config(32, 7, False, 0).steps == 7


def test_the_bench_compares_equal_work(monkeypatch):
    monkeypatch.setattr("shared.app.bench_bare.SIZES", BareConfig(50, 16, 1, 2, 8))
    monkeypatch.setattr("shared.app.bench_bare.TIMED_STEPS", 2)
    (record,) = bench_bare()
    assert record["ratio"] == record["ours"] / record["peer"] and record["bound"] == 1 / 4
    assert record["ok"] == (record["ratio"] >= record["bound"])
    assert {"unit", "peer", "threads", "dtype"} <= record["settings"].keys()
