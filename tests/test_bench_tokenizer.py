"""shared.app.bench_tokenizer: records that the command line can print and judge; speeds themselves are not tested."""

import os
from unittest.mock import patch

import pytest

from shared.app import bench_tokenizer as bench
from shared.errors import CourseError


def test_records_are_complete_and_consistent(tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    path = tmp_path / "text.txt"
    path.write_text("The rain, it's endless; the café opens at 8.\n" * 60, encoding="utf-8")
    with patch.object(bench, "ROUNDS", 1):
        records = bench.bench_tokenizer(path)
    assert [record["name"] for record in records] == ["bpe_training", "bpe_encoding"]
    for record in records:
        assert record["ratio"] == pytest.approx(record["ours"] / record["peer"])
        assert record["ok"] == (record["ratio"] >= record["bound"])
        assert record["settings"]["bytes"] == path.stat().st_size
        assert record["settings"]["text"] == "text.txt"
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_text_comes_from_course_data_or_from_python_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    text, name = bench.bench_text(None)
    assert name == "python-code" and len(text) == bench.CHARACTERS
    (tmp_path / "tinyshakespeare.txt").write_text("To be, or not to be.\n" * 200, encoding="utf-8")
    assert bench.bench_text(None) == ("To be, or not to be.\n" * 200, "tinyshakespeare.txt")
    with pytest.raises(CourseError, match=r"absent\.txt"):
        bench.bench_text(tmp_path / "absent.txt")
