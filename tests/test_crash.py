"""Runs that end badly: killed at random moments, a full disk, a damaged checkpoint, other options than before.

Whatever happens, what was there stays whole, and the run that is resumed ends with the weights of one left alone.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from shared.app.cli import main
from shared.errors import CourseError
from shared.training.checkpoint import RESUME, load_model
from shared.training.runlog import RunLog, read_log

KILLS = 20
FILES = ["config.json", "model.safetensors", "tokenizer.json", "training.json"]

# Main jobs in child processes: one that is left alone, and twenty that are killed once each and then given the same
# command again. The children are forked before any thread exists, which saves importing PyTorch in each. Left out is
# what happens after the last weight: the five questions, and the samples on the way.
SCRIPT = """
import json, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
import torch._dynamo  # optimisers import it at their first use: once here instead of in every child
import shared.app.cli
from shared.app import pipeline
from shared.training.runlog import PRESETS

torch.set_num_threads(1)
tiny = PRESETS["tiny"]
PRESETS["tiny"] = replace(tiny, every=1, finetune={**tiny.finetune, "steps": 5, "decay": 3})  # a checkpoint a step
pipeline.summarize_stories = lambda *arguments: {}
pipeline.begin_text = lambda *arguments: ""
folder, kills, moments = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))

def start(models):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            command = "run --corpus stories-small --preset tiny --stories 50 --steps 10 --models"
            code = shared.app.cli.main([*command.split(), str(models)])
        finally:
            os._exit(code)
    return child

def code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def being_written(models):
    return [path.name for path in models.rglob("*") if path.suffix in (".tmp", ".new") or path.name == "pending.json"]

begin = time.perf_counter()
assert code(start(folder / "straight")) == 0
seconds = time.perf_counter() - begin

def kill(child, models, at, in_a_write):
    # at that time, or in its next write after it; False where it was done before
    while time.perf_counter() < at or (in_a_write and not being_written(models)):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.0002)
    os.kill(child, signal.SIGKILL)
    return code(child) == -signal.SIGKILL

interrupted = []  # for each kill, what was half written
while len(interrupted) < kills:
    number = len(interrupted)
    models = folder / f"killed{number}"
    at = time.perf_counter() + (number + moments.random()) / kills * seconds  # spread evenly over the whole run
    if kill(start(models), models, at, in_a_write=number % 2):
        interrupted.append(being_written(models))
        assert code(start(models)) == 0
    else:
        seconds *= 0.95  # a run takes less time now; once more
print(json.dumps(interrupted))
"""


def hidden(folder):
    return [path for path in folder.rglob("*") if path.suffix in (".tmp", ".new") or path.name == "shard"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_twenty_random_moments_and_resumed_it_ends_bitwise_the_same(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(KILLS), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    interrupted = json.loads(done.stdout.splitlines()[-1])
    assert len(interrupted) == KILLS
    half_written = {name for names in interrupted for name in names}
    assert f".{RESUME}.tmp" in half_written  # some of the kills came in the middle of a checkpoint
    straight = tmp_path / "straight"
    for number in range(KILLS):
        killed = tmp_path / f"killed{number}"
        assert hidden(killed) == [] and not (killed / "run.json").exists()
        for stage in ("pretrained", "chat"):
            assert sorted(os.listdir(killed / stage)) == FILES
            weights = (killed / stage / "model.safetensors").read_bytes()
            assert weights == (straight / stage / "model.safetensors").read_bytes(), (number, stage)
        for log in ("log.jsonl", "log-tuning.jsonl"):  # no step is missing in the log, none is there twice
            steps, expected = ([r for r in read_log(folder / log) if "loss" in r] for folder in (killed, straight))
            assert steps == expected


# ---- what the others begin with: a main job that was stopped in its pretraining, a finished model, an older one

JOB = "run --corpus stories-small --preset tiny --stories 50 --steps 20 --seed 3"
PRETRAINING = JOB.replace("run", "pretrain")
STOPPED = 15  # the step after which the job is stopped: the preset's checkpoints are at 10 and at 20


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The model directory that the pretraining leaves when nothing goes wrong."""
    out = tmp_path_factory.mktemp("finished")
    assert main([*PRETRAINING.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder of models: pretraining was stopped by Ctrl-C, and where its model will stand there is an older one."""
    import shared.training.train as train_module

    models = tmp_path_factory.mktemp("interrupted")
    older = PRETRAINING.replace("--steps 20", "--steps 2")
    assert main([*older.split(), "--out", str(models / "pretrained"), "--log", str(models / "older.jsonl")]) == 0
    original = train_module.train_step

    def train_step(run, batch, *more):
        if run.step == STOPPED - 1:
            signal.raise_signal(signal.SIGINT)
        return original(run, batch, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "train_step", train_step)
        assert main([*JOB.split(), "--models", str(models)]) == 130
    assert (models / "pretrained" / RESUME).exists()
    return models


@pytest.fixture
def models(interrupted, tmp_path):
    """A copy of the interrupted job, for a test to spoil."""
    return shutil.copytree(interrupted, tmp_path / "models")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(capsys, command):
    """Run a command that must end with exit code 2 and a single line about what went wrong; return that line."""
    capsys.readouterr()
    assert main([str(part) for part in command]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    complaints = [line for line in err.splitlines() if "error: " in line]
    assert len(complaints) == 1 and err.endswith(complaints[0] + "\n") and complaints[0].startswith("error: ")
    return complaints[0]


def both_commands(models):
    """The main job, and its first stage alone: two ways to go on with the same checkpoint."""
    yield [*JOB.split(), "--models", models]
    yield [*PRETRAINING.split(), "--out", models / "pretrained", "--log", models / "log.jsonl", "--resume"]


# ---- a full disk


@contextmanager
def largest_file(size):
    """Inside, the system refuses to write any file beyond so many bytes, in the middle of a write."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_last_one(models, finished, capsys):
    out = models / "pretrained"
    before = contents(out)
    assert len(before[RESUME]) > 500_000
    command = [*PRETRAINING.split(), "--out", out, "--log", models / "log.jsonl", "--resume"]
    with largest_file(300_000):
        line = fails(capsys, command)
    assert f"cannot write {out / RESUME}: File too large; free some space" in line
    assert contents(out) == before
    assert load_model(out)[2]["pretraining"]["training"]["steps"] == 2  # the older model
    assert main([str(part) for part in command]) == 0
    assert contents(out)["model.safetensors"] == contents(finished)["model.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_model_that_does_not_fit_on_the_disk_leaves_the_older_one_and_the_checkpoint(models, finished, capsys):
    out = models / "pretrained"
    before = contents(out)
    (out / "model.safetensors.new").symlink_to("/dev/full")
    command = [*PRETRAINING.split(), "--out", out, "--log", models / "log.jsonl", "--resume"]
    assert f"cannot save in {out}: No space left on device; free some space" in fails(capsys, command)
    after = contents(out)
    assert after.pop(RESUME) != before.pop(RESUME)  # that of the last step: nothing has to be trained again
    assert after == before
    load_model(out)
    assert main([str(part) for part in command]) == 0
    assert "going on after step 20 of 20" in capsys.readouterr().err
    assert contents(out)["model.safetensors"] == contents(finished)["model.safetensors"]


def test_a_log_that_does_not_fit_on_the_disk_is_one_line_and_keeps_its_steps(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path, seed=0)
    log.write(step=1, loss=2.5)
    with largest_file(path.stat().st_size + 10), pytest.raises(CourseError, match=r"log\.jsonl: File too large"):
        log.write(step=2, loss=2.25)
    assert path.read_bytes()[-1:] != b"\n"  # a part of the line is there
    assert [record["step"] for record in read_log(path)[1:]] == [1]
    before = path.read_bytes()
    with largest_file(100), pytest.raises(CourseError, match=r"log\.jsonl: File too large"):
        RunLog(path, seed=0, resume_step=1)
    assert contents(tmp_path) == {"log.jsonl": before}
    RunLog(path, seed=0, resume_step=1).write(step=2, loss=2.25)
    assert [record["step"] for record in read_log(path) if "step" in record] == [1, 2]


def test_a_log_into_a_pipe_leaves_the_pipe(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    RunLog(tmp_path / "pipe", seed=4).write(step=1)
    assert [json.loads(line).get("step") for line in os.read(reader, 100_000).splitlines()] == [None, 1]
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


# ---- a damaged checkpoint


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def random_bytes(path):
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def rewritten(**parts):
    """The damage of putting other parts, or with None no part, into a file that is otherwise in order."""

    def damage(path):
        content = torch.load(path, weights_only=True) | parts
        torch.save({name: part for name, part in content.items() if part is not None}, path)

    return damage


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": cut_short,
    "random bytes": random_bytes,
    "one bit": one_bit,
    "a later format": rewritten(format=2),
    "no state": rewritten(state=None),
    "no config": rewritten(config=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_and_nothing_is_touched(models, capsys, damage):
    path = models / "pretrained" / RESUME
    DAMAGES[damage](path)
    before = contents(models)
    for command in both_commands(models):
        line = fails(capsys, command)
        assert f"{path} is damaged" in line and "--fresh" in line and "without --resume" in line
        assert contents(models) == before
    load_model(models / "pretrained")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"settings": {}}', b"\xff\xfe"])
def test_a_damaged_record_of_the_job_does_not_throw_its_checkpoint_away(models, capsys, content):
    (models / "run.json").write_bytes(content)
    before = contents(models)
    line = fails(capsys, next(both_commands(models)))
    assert f"{models / 'run.json'} is damaged" in line and "--fresh" in line
    assert contents(models) == before


# ---- another recipe than before


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [("--seed", 4, "seed was 3"), ("--steps", 30, "steps was 20"), ("--stories", 40, "stories was 50"),
     ("--corpus", "text", "stories-small")],
)  # fmt: skip
def test_other_options_than_those_of_the_checkpoint_are_one_line_and_nothing_is_touched(
    models, tmp_path, capsys, option, value, what
):
    if value == "text":
        value = tmp_path / "poem.txt"
        value.write_text("".join(f"Line {n}: the sea was {n % 7} shades of grey.\n" for n in range(300)))
    before = contents(models)
    for command in both_commands(models):
        line = fails(capsys, [*command, option, value])
        assert what in line and ("other settings" in line or "belongs to another run" in line)
        assert contents(models) == before
