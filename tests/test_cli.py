"""Every command, as a user types it: what it prints, and that each mistake is one line and exit code 2."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from shared.app.cli import build_parser, main
from shared.corpora import load_corpus
from shared.model.modern import ModernConfig, ModernGPT
from shared.text.bpe import BPETokenizer
from shared.text.template import SPECIAL_TOKENS
from shared.training.checkpoint import load_model, save_model

COMMAND = [sys.executable, "-m", "shared"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`pretrained` and `chat`: an untrained model with a real tokenizer and a real training.json."""
    folder = tmp_path_factory.mktemp("models")
    corpus = load_corpus("stories-small", stories=100)
    tokenizer = BPETokenizer.train(corpus.train, 400, SPECIAL_TOKENS)
    torch.manual_seed(0)
    model = ModernGPT(ModernConfig(tokenizer.vocab_size, context=64, n_layers=1, n_heads=2, width=16))
    recipe = {"name": "stories-small", "stories": 100, "seed": 0, "world": None}
    info = {"corpus": recipe, "preset": "tiny", "seed": 0}
    save_model(folder / "pretrained", model, tokenizer, {**info, "instructions": False})
    save_model(folder / "chat", model, tokenizer, {**info, "instructions": True})
    return folder


def fails(capsys, *arguments):
    """Run a command that must fail as a user's mistake does; return its one line."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    return err


# ---- help


def test_help_of_every_command_has_an_example_and_needs_no_heavy_import():
    script = (
        "import sys\n"
        "from shared.app.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'tiktoken', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python -m shared run --corpus python-docs" in done.stdout


@pytest.mark.parametrize(
    "command",
    ["run", "corpus", "tokenizer train", "tokenizer encode", "pretrain", "finetune", "evaluate", "sample", "chat",
     "export", "bench"],
)  # fmt: skip
def test_the_examples_in_help_can_be_parsed(command, capsys):
    import shlex

    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    examples = re.findall(r"^  python -m shared (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert examples and all(example.startswith(command) for example in examples)
    for example in examples:
        build_parser().parse_args(shlex.split(example))


def test_presets_are_those_of_the_training_code():
    from shared.app.cli import PRESET_NAMES
    from shared.training.runlog import PRESETS

    assert tuple(PRESETS) == PRESET_NAMES


# ---- what each command does


def test_corpus_writes_the_same_text_for_the_same_seed(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = str(tmp_path / name)
        assert main(["corpus", "stories", "--out", out, "--stories", "20", "--seed", str(seed), "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["texts"] == 20 and figures["bytes"] == os.path.getsize(out)
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].rstrip("\n").split("\n\n") == load_corpus("stories", stories=20, seed=1).train


def test_corpus_writes_other_splits(tmp_path, capsys):
    out = tmp_path / "docs.txt"
    assert main(["corpus", "python-docs", "--split", "val", "--out", str(out)]) == 0
    assert "texts" in capsys.readouterr().out
    assert load_corpus("python-docs").val[0].rstrip("\n") in out.read_text(encoding="utf-8")
    assert "no heldout" in fails(capsys, "corpus", "python-docs", "--split", "heldout", "--out", out)


def test_a_written_corpus_can_be_read_as_a_file(tmp_path, capsys):
    out = tmp_path / "stories.txt"
    assert main(["corpus", "stories", "--out", str(out), "--stories", "30"]) == 0
    assert load_corpus(out).train_bytes > 2000


def test_tokenizer_train_and_encode(tmp_path, capsys):
    out = tmp_path / "tokenizer.json"
    options = ["--corpus", "stories", "--stories", "50", "--vocab-size", "300", "--out", str(out), "--json"]
    assert main(["tokenizer", "train", *options]) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size"] == 300
    text = "a caf\u00e9 <|end|>"
    assert main(["tokenizer", "encode", "--tokenizer", str(out), "--text", text, "--json"]) == 0
    encoded = json.loads(capsys.readouterr().out)
    tokenizer = BPETokenizer.load(out)
    assert encoded["ids"] == tokenizer.encode(text) and len(encoded["tokens"]) == len(encoded["ids"])
    assert not set(encoded["ids"]) & set(tokenizer.special_tokens.values())
    assert main(["tokenizer", "encode", "--tokenizer", str(out), "--text", text]) == 0
    assert capsys.readouterr().out.split() == [str(token) for token in encoded["ids"]]


def test_evaluate_prints_flat_json_and_nothing_else_on_stdout(models, capsys):
    options = ["--stories", "2", "--questions", "5"]
    assert main(["evaluate", "--model", str(models / "chat"), "--json", *options]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["stories"] == 2 and figures["instructions"] >= 5 and figures["story_rate"] == 0
    assert figures["val_loss"] > figures["entropy_floor"] > 0
    low, high = figures["instruction_accuracy_low"], figures["instruction_accuracy_high"]
    assert 0 <= low <= figures["instruction_accuracy"] <= high < 1  # an untrained model
    assert sum(value for name, value in figures.items() if name.startswith("count_")) == figures["instructions"]
    assert main(["evaluate", "--model", str(models / "chat"), *options]) == 0
    out = capsys.readouterr().out
    assert f"{figures['val_loss']:.4f}" in out and re.search(r"^distinct +-$", out, re.MULTILINE)
    assert {len(line.rpartition(" ")[0]) for line in out.splitlines()} == {26}  # one column, whatever the name


def test_sample_begins_with_the_prompt_and_obeys_the_seed(models, capsys):
    def sample(*more):
        assert main(["sample", "--model", str(models / "pretrained"), "--prompt", "One day,", *more]) == 0
        return capsys.readouterr().out

    text = sample("--tokens", "12", "--seed", "1")
    assert text.startswith("One day,") and text == sample("--tokens", "12", "--seed", "1")
    assert text != sample("--tokens", "12", "--seed", "2")
    answer = json.loads(sample("--tokens", "12", "--seed", "1", "--json"))
    assert text == answer["prompt"] + answer["continuation"] + "\n"
    assert len(sample("--tokens", "200", "--seed", "1")) > len(text)  # longer than the context


def test_sample_passes_its_settings_on(models, capsys):
    def sample(*options):
        prompt = ["--model", str(models / "pretrained"), "--prompt", "One day,", "--tokens", "20", "--seed", "1"]
        assert main(["sample", *prompt, *options]) == 0
        return capsys.readouterr().out

    free, greedy = sample("--temperature", "1"), sample("--temperature", "0")
    for option, everything, one in (("--top-k", "999999", "1"), ("--top-p", "1", "1e-9"), ("--min-p", "1e-9", "1")):
        assert sample("--temperature", "1", option, everything) == free != greedy
        assert sample("--temperature", "1", option, one) == greedy
    assert sample("--temperature", "0", "--repetition-penalty", "1") == greedy
    assert sample("--temperature", "0", "--repetition-penalty", "1e-4") != greedy  # below 1: again and again


def test_chat_once_prints_the_answer_alone(models, capsys):
    assert main(["chat", "--model", str(models / "chat"), "--once", "Who are you?", "--seed", "1"]) == 0
    first = capsys.readouterr()
    assert first.out.endswith("\n") and first.err == ""
    assert main(["chat", "--model", str(models / "chat"), "--once", "Who are you?", "--seed", "1"]) == 0
    assert capsys.readouterr().out == first.out
    assert main(["chat", "--model", str(models / "pretrained"), "--once", "Who are you?"]) == 0
    assert "pretrained only" in capsys.readouterr().err


def test_chat_trims_a_message_that_sample_refuses(models, capsys):
    long = "the fox and the bear " * 40
    assert main(["chat", "--model", str(models / "chat"), "--once", long, "--seed", "1"]) == 0
    assert "left out" in capsys.readouterr().err
    line = fails(capsys, "sample", "--model", models / "chat", "--prompt", long)
    assert "64" in line and "shorten" in line


def test_chat_reads_lines_from_a_pipe(models):
    lines = "/temperature 0\nWho are you?\n/quit\n"
    done = subprocess.run(
        [*COMMAND, "chat", "--model", str(models / "chat"), "--seed", "1"], input=lines, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "The temperature is 0." in done.stdout and "model  " in done.stdout


def test_export_can_be_loaded_and_says_so(models, tmp_path, capsys):
    assert main(["export", "--model", str(models / "chat"), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    assert "transformers" in capsys.readouterr().out
    assert (tmp_path / "hf" / "config.json").exists()


def test_bench_exits_with_1_below_its_bound(capsys, monkeypatch):
    import shared.app.bench_tokenizer as bench

    record = {"name": "speed", "ours": 3.0, "peer": 2.0, "ratio": 1.5, "settings": {"unit": "MB/s", "peer": "rival"}}
    for bound, code in ((1.2, 0), (1.6, 1)):
        records = [{**record, "bound": bound, "ok": bound <= 1.5}]
        monkeypatch.setattr(bench, "bench_tokenizer", lambda data, records=records: records)
        assert main(["bench", "tokenizer", "--json"]) == code
        assert json.loads(capsys.readouterr().out) == records
        assert main(["bench", "tokenizer"]) == code
        assert ("TOO LOW" in capsys.readouterr().out) == bool(code)


# ---- a run from start to end, killed in between


def test_pretrain_survives_kill_9_and_ctrl_c(tmp_path, capsys):
    """Killed at any moment and resumed, it ends with the weights of the uninterrupted run; then it is tuned."""
    options = ["--corpus", "stories-small", "--stories", "60", "--preset", "tiny", "--steps", "40", "--seed", "2"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"

    def interrupt(signal_number, *more):
        """Send the signal as soon as a new resume.pt is there."""
        command = [*COMMAND, "pretrain", *options, "--out", str(cut), *more]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        resume = cut / "resume.pt"
        before = resume.stat().st_mtime_ns if resume.exists() else 0
        deadline = time.monotonic() + 60
        while not (resume.exists() and resume.stat().st_mtime_ns > before) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal_number)
        return process.communicate()[1], process.returncode

    interrupt(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    assert (cut / "resume.pt").exists() and not (cut / "config.json").exists()
    if os.name != "nt":
        err, code = interrupt(signal.SIGINT, "--resume")
        assert code == 130 and "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert "to go on: python -m shared pretrain" in last and last.endswith("--resume")
    assert main(["pretrain", *options, "--out", str(cut), "--resume", "--seed", "3"]) == 2
    assert "belongs to another run" in capsys.readouterr().err.splitlines()[-1]
    assert main(["pretrain", *options, "--out", str(cut), "--resume"]) == 0
    assert main(["pretrain", *options, "--out", str(whole)]) == 0
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert not (cut / "resume.pt").exists()
    assert main(["finetune", "--model", str(cut), "--out", str(tmp_path / "chat"), "--steps", "2"]) == 0
    assert load_model(tmp_path / "chat")[2]["instructions"]


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("", "COMMAND"),
        ("dance", "dance"),
        ("corpus stories --out x --stories 0", "at least 1"),
        ("corpus stories --out x --stories -5", "at least 1"),
        ("corpus stories --out x --stories many", "whole number"),
        ("corpus stories --out x --seed -1", "at least 0"),
        ("corpus nothing --out x", "no such corpus"),
        ("corpus missing/file.txt --out x", "no such file"),
        ("tokenizer train --corpus stories --vocab-size -1 --out x", "at least 1"),
        ("tokenizer train --corpus stories --stories 5 --vocab-size 100 --out x", "too small"),
        ("tokenizer encode --tokenizer missing.json --text a", "missing.json"),
        ("pretrain --corpus stories --out x --steps 0", "at least 1"),
        ("pretrain --corpus stories --out x --preset huge", "huge"),
        ("pretrain --corpus python-docs --world w.toml --out x", "w.toml"),
        ("pretrain --corpus stories --world w.toml --out x", "w.toml"),
        ("pretrain --corpus stories --stories 5 --preset tiny --out x --resume", "--resume"),
        ("finetune --model missing --out x", "missing"),
        ("evaluate --model missing", "missing"),
        ("evaluate --model missing --stories 0", "at least 1"),
        ("sample --model missing --prompt a", "missing"),
        ("sample --model missing --tokens -1", "at least 1"),
        ("sample --model missing --temperature -1", "at least 0"),
        ("sample --model missing --temperature nan", "out of range"),
        ("sample --model missing --top-p 0", "above 0, up to 1"),
        ("sample --model missing --top-k 0", "at least 1"),
        ("sample --model missing --min-p 1.5", "above 0, up to 1"),
        ("sample --model missing --repetition-penalty 0", "above 0"),
        ("chat --model missing", "make run"),
        ("export --model missing --to hf --out x", "missing"),
        ("export --model missing --to onnx --out x", "onnx"),
        ("bench everything", "everything"),
        ("run --corpus storys", "stories-small"),
        ("run --steps -3", "at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, arguments, what):
    monkeypatch.chdir(tmp_path)
    assert what in fails(capsys, *arguments.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "what"), [(b"", "empty"), (b"tiny", "4 bytes"), (b"\0\1\2" * 9999, "binary")])
@pytest.mark.parametrize("command", ["run", "pretrain"])
def test_a_bad_text_file_stops_a_run_before_it_begins(tmp_path, capsys, monkeypatch, command, content, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_bytes(content)
    out = ["--models", "x"] if command == "run" else ["--out", "x"]
    assert what in fails(capsys, command, "--corpus", "bad.txt", *out)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.txt"]


def test_a_damaged_model_directory_is_named(models, tmp_path, capsys):
    import shutil

    shutil.copytree(models / "chat", tmp_path / "chat")
    path = tmp_path / "chat" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in fails(capsys, "chat", "--model", tmp_path / "chat", "--once", "hi")
    path.unlink()
    assert "model.safetensors" in fails(capsys, "evaluate", "--model", tmp_path / "chat")


def test_an_empty_message_and_invalid_unicode_are_refused(models, capsys):
    assert "empty" in fails(capsys, "chat", "--model", models / "chat", "--once", " ")
    assert "UTF-8" in fails(capsys, "chat", "--model", models / "chat", "--once", "\udce9")


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "file" in fails(capsys, "corpus", "stories", "--stories", "5", "--out", tmp_path / "file" / "out.txt")


def test_mistakes_are_one_line_in_a_real_process_too():
    done = subprocess.run([*COMMAND, "evaluate", "--model", "no/such/place"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no/such/place") or "no" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_reader_that_leaves_is_no_error(models):
    command = [*COMMAND, "sample", "--model", str(models / "pretrained"), "--tokens", "3000", "--temperature", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) != 0


def test_ctrl_c_names_make_where_make_started_it(tmp_path, monkeypatch, capsys):
    import shared.app.pipeline as pipeline

    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "main_job", interrupted)
    assert main(["run", "--corpus", "stories", "--fresh"]) == 130
    assert "to go on: python -m shared run --corpus stories\n" in capsys.readouterr().err
    monkeypatch.setenv("COURSE_MAKE", "make run SEED=1")
    assert main(["run", "--seed", "1"]) == 130
    assert capsys.readouterr().err.endswith("to go on: make run SEED=1\n")
