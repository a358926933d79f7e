"""What a preset needs, against figures that others have published."""

import pytest

from shared.app.cli import main
from shared.app.needs import HARDWARE, describe_needs, operations_per_token, preset_needs


def test_gpt2_on_eight_cards_takes_what_was_published():
    needs = preset_needs("gpt2", ranks=8, hardware="h100")
    assert needs["parameters"] == 124_439_808 and needs["tokens"] == pytest.approx(10e9, rel=1e-3)
    # 45 minutes on 8 H100 for 10 billion tokens: what modded-nanogpt (Jordan et al., 2024) says of llm.c's run
    assert 60 * needs["hours"] == pytest.approx(45, rel=0.2)
    assert preset_needs("gpt2", ranks=1, hardware="h100")["hours"] == pytest.approx(8 * needs["hours"])


def test_six_operations_for_each_parameter_and_token_and_attention_on_top():
    assert operations_per_token(1000, 0, 0, 0) == 6000
    assert operations_per_token(1000, 2, 16, 8) == 6000 + 12 * 2 * 16 * 8


def test_sharding_divides_the_memory_and_costs_traffic():
    whole, sharded = preset_needs("gpt2", 8), preset_needs("gpt2", 8, sharded=True)
    assert whole["state_bytes"] == 16 * 124_439_808
    assert sharded["state_bytes"] == pytest.approx(whole["state_bytes"] / 8, rel=0.01)
    assert sharded["sent_bytes"] == 1.5 * whole["sent_bytes"]


def test_the_table_of_the_command(capsys):
    assert main(["presets", "--ranks", "8", "--parallel", "fsdp", "--on", "h100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["tiny", "laptop", "wide", "desktop", "gpt2"]
    assert "8 x " + HARDWARE["h100"].name in lines[-1] and "124.4 M parameters" in lines[-1]
    assert describe_needs(preset_needs("gpt2", 8, True, "h100")) == lines[-1]
