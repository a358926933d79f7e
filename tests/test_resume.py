"""A run that is killed with SIGKILL at random moments and resumed ends exactly where an uninterrupted one does."""

import os
import subprocess
import sys

import pytest
import torch

from shared.text.loader import write_shard

# Trains in child processes: one that is left alone, and one that is killed again and again. The children are forked
# before any thread exists, which saves importing PyTorch in each.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
import torch._dynamo  # optimisers import it at their first use: once here instead of in every child
from shared.model.gpt import GPT, GPTConfig
from shared.text.loader import Shard
from shared.training.checkpoint import checkpoint_every, load_resume, RESUME
from shared.training.train import TrainConfig, train, validate_every

torch.set_num_threads(1)
folder = Path(sys.argv[1])
config = TrainConfig(steps=40, batch_size=4, micro_batches=2, warmup=3, decay=20, precision="fp32", seed=5)

def work(name):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, context=16, n_layers=2, n_heads=2, width=32, dropout=0.2))
    out = folder / name
    state = load_resume(out, {"seed": 5}) if (out / RESUME).exists() else None
    callbacks = [
        validate_every(5, lambda model: model.token_embedding.weight.norm().item()),
        lambda run: time.sleep(0.005),
        checkpoint_every(2, out, {"seed": 5}),
    ]
    history = train(model, Shard.open(folder), config, callbacks, state)
    torch.save((history, model.state_dict()), folder / (name + ".pt"))

def start(name):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(name)
            status = 0
        finally:
            os._exit(status)
    return child

assert os.waitpid(start("straight"), 0)[1] == 0
moments = random.Random(int(sys.argv[2]))
kills = 0
for attempt in range(100):
    resume = folder / "killed" / RESUME
    before = resume.stat().st_mtime_ns if resume.exists() else None
    child = start("killed")
    finished = (0, 0)
    if kills < 6:
        while finished[0] == 0 and (not resume.exists() or resume.stat().st_mtime_ns == before):
            time.sleep(0.001)
            finished = os.waitpid(child, os.WNOHANG)
        if finished[0] == 0:
            time.sleep(moments.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
    status = finished[1] if finished[0] else os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        assert status == 0
        break
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    documents = torch.randint(0, 50, (30, 17), generator=torch.Generator().manual_seed(3)).tolist()
    write_shard(tmp_path, documents, None, 16)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3  # it was killed several times on its way
    assert os.listdir(tmp_path / "killed") == ["resume.pt"]  # and what it left half written is gone
    history, weights = torch.load(tmp_path / "straight.pt", weights_only=True)
    killed_history, killed_weights = torch.load(tmp_path / "killed.pt", weights_only=True)
    assert len(history) == 40 and "val_loss" in history[4]
    assert killed_history == history
    assert weights.keys() == killed_weights.keys()
    assert all(torch.equal(tensor, killed_weights[name]) for name, tensor in weights.items())
