"""shared.text.loader: packing loses nothing, and batches depend on (seed, step) alone."""

import errno
import os
from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import CourseError
from shared.text.loader import (
    IGNORE_INDEX,
    Shard,
    cut_documents,
    get_batch,
    pack_rows,
    plan_packing,
    read_rows,
    row_order,
    rows_of_step,
    write_shard,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure


def numbered_documents(lengths: list[int]) -> list[list[int]]:
    """Documents in which every token is unique in the whole corpus, counting from 1 (0 is the filler)."""
    documents, first = [], 1
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    return documents


@pytest.fixture
def shard(tmp_path) -> Shard:
    lengths = [3, 9, 2, 5, 7, 30, 4, 6, 2, 8, 11, 3, 5]
    write_shard(tmp_path, numbered_documents(lengths), None, context=7)
    return Shard.open(tmp_path)


# ---------------------------------------------------------------- packing


@relaxed
@given(st.lists(st.integers(0, 40), max_size=60), st.integers(2, 12))
def test_pieces_cover_each_document_with_an_overlap_of_one(lengths, room):
    pieces = cut_documents(lengths, room)
    assert all(2 <= piece.stop - piece.start <= room for piece in pieces)
    targets = Counter((p.document, i) for p in pieces for i in range(p.start + 1, p.stop))
    assert targets == Counter((d, i) for d, length in enumerate(lengths) for i in range(1, length))


@relaxed
@given(st.lists(st.integers(1, 20), max_size=80), st.integers(20, 45))
def test_every_item_is_packed_once_and_no_row_overflows(lengths, room):
    plan = plan_packing(lengths, room)
    assert sorted(item for row in plan for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= room for row in plan)
    assert all(row == sorted(row) for row in plan)
    # no two rows can both be at most half full: the second one's items would have gone into the first
    assert len(plan) <= 1 + 2 * -(-sum(lengths) // room)


def test_best_fit_fills_the_tightest_gap():
    # 6 | 5 open rows of 4 and 5 left; 4 fits the first exactly, 3 then goes to the second
    assert plan_packing([3, 4, 5, 6], 10) == [[1, 3], [0, 2]]


def test_best_fit_equals_the_slow_definition():
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 60, size=400).tolist()
    rows: list[list[int]] = []
    gaps: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        fitting = [gap for gap in gaps if gap >= lengths[item]]
        row = gaps.index(min(fitting)) if fitting else len(gaps)
        if row == len(gaps):
            rows.append([])
            gaps.append(100)
        rows[row].append(item)
        gaps[row] -= lengths[item]
    plan = plan_packing(lengths, 100)
    assert len(plan) == len(rows)
    assert Counter(sum(lengths[i] for i in row) for row in plan) == Counter(100 - gap for gap in gaps)


def test_packing_refuses_items_that_do_not_fit():
    with pytest.raises(CourseError, match="11 tokens does not fit a row of 10"):
        plan_packing([3, 11], 10)
    with pytest.raises(CourseError, match="nothing to predict"):
        cut_documents([5], 1)


@relaxed
@given(st.lists(st.integers(0, 30), min_size=1, max_size=25), st.integers(1, 12), st.randoms(use_true_random=False))
def test_each_token_but_the_first_is_a_target_once_and_keeps_its_context(lengths, context, random):
    documents = numbered_documents(lengths)
    masks = [[random.random() < 0.6 for _ in document] for document in documents]
    rows = pack_rows(documents, masks, context)
    targets: Counter[int] = Counter()
    for tokens, is_target in zip(rows["tokens"], rows["is_target"], strict=True):
        for t in np.flatnonzero(is_target):
            targets[int(tokens[t + 1])] += 1
            assert tokens[t + 1] == tokens[t] + 1  # the input before a target is the token before it
    assert targets == Counter(
        token
        for document, mask in zip(documents, masks, strict=True)
        for token, on in list(zip(document, mask, strict=True))[1:]
        if on
    )


def test_no_document_that_fits_is_split():
    documents = numbered_documents([5, 8, 3, 8, 2, 6])
    rows = pack_rows(documents, None, context=7)["tokens"].tolist()
    for document in documents:
        assert any(row[i : i + len(document)] == document for row in rows for i in range(len(row)))


def test_ids_take_two_bytes_where_they_fit():
    small, large = pack_rows([[1, 65535]], None, 3), pack_rows([[1, 65536]], None, 3)
    assert small["tokens"].dtype == np.uint16 and large["tokens"].dtype == np.uint32
    assert large["tokens"].tolist() == [[1, 65536, 0, 0]]


# ---------------------------------------------------------------- shards


def test_shard_is_read_from_disk_as_it_was_packed(tmp_path):
    documents = [[9, 1, 2, 9], [9, 3, 9]]
    write_shard(tmp_path / "train", documents, [[True, False, True, True], [True, True, True]], context=8)
    shard = Shard.open(tmp_path / "train")
    assert (shard.n_rows, shard.context, shard.n_targets) == (1, 8, 4)
    assert isinstance(shard.tokens, np.memmap) and isinstance(shard.is_target, np.memmap)
    assert shard.tokens.tolist() == [[9, 1, 2, 9, 9, 3, 9, 0, 0]]
    inputs, targets = read_rows(shard, np.array([0]))
    assert inputs.tolist() == [[9, 1, 2, 9, 9, 3, 9, 0]]
    assert targets.tolist() == [[-100, 2, 9, -100, 3, 9, -100, -100]]
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE_INDEX


def test_shards_refuse_what_cannot_be_learnt_from(tmp_path):
    for documents, masks in ([], None), ([[], [5]], None), ([[1, 2]], [[True, False]]):
        with pytest.raises(CourseError, match="nothing to predict"):
            write_shard(tmp_path, documents, masks, context=4)
    with pytest.raises(CourseError, match="masks do not match"):
        write_shard(tmp_path, [[1, 2, 3]], [[True, True]], context=4)
    with pytest.raises(CourseError, match="context of at least 1"):
        write_shard(tmp_path, [[1, 2, 3]], None, context=0)
    assert os.listdir(tmp_path) == []


def test_damaged_shards_are_refused_in_one_line(tmp_path):
    write_shard(tmp_path, numbered_documents([9] * 20), None, context=8)
    path = tmp_path / "rows.npy"
    whole = path.read_bytes()
    np.save(tmp_path / "foreign.npy", np.zeros((3, 4)))
    foreign = (tmp_path / "foreign.npy").read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:40], b"", b"\x00" * 500, foreign):
        path.write_bytes(damaged)
        with pytest.raises(CourseError, match=r"rows\.npy .*build the shard again"):
            Shard.open(tmp_path)
    with pytest.raises(CourseError, match="missing"):
        Shard.open(tmp_path / "absent")


def test_a_full_disk_leaves_the_old_shard(tmp_path, shard):
    before = (tmp_path / "rows.npy").read_bytes()
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch("numpy.save", side_effect=full), pytest.raises(CourseError, match="No space left"):
        write_shard(tmp_path, [[1, 2, 3]], None, context=7)
    assert (tmp_path / "rows.npy").read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.npy"]


# ---------------------------------------------------------------- batches


@relaxed
@given(st.integers(0, 2**32), st.integers(1, 50), st.integers(1, 17), st.integers(1, 4))
def test_each_epoch_is_a_permutation_and_epochs_differ(seed, n_rows, batch_size, epochs):
    steps = -(-n_rows * epochs // batch_size)
    endless = np.concatenate([rows_of_step(step, batch_size, n_rows, seed) for step in range(steps)])
    for epoch in range(epochs):
        one = endless[epoch * n_rows : (epoch + 1) * n_rows]
        assert sorted(one) == list(range(n_rows))
        assert (one == row_order(seed, epoch, n_rows)).all()


def test_orders_differ_between_seeds_and_epochs():
    orders = {tuple(row_order(seed, epoch, 40)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_batches_depend_on_seed_and_step_alone(tmp_path, shard):
    first = [get_batch(shard, step, batch_size=3, seed=5) for step in range(9)]
    row_order.cache_clear()
    reopened = Shard.open(tmp_path)
    get_batch(reopened, 100, batch_size=2, seed=1)
    for step in (8, 0, 3, 3, 7):
        inputs, targets = get_batch(reopened, step, batch_size=3, seed=5)
        assert torch.equal(inputs, first[step][0]) and torch.equal(targets, first[step][1])
    assert not torch.equal(first[0][0], get_batch(shard, 0, batch_size=3, seed=6)[0])


def test_batch_holds_the_rows_of_its_step(shard):
    inputs, targets = get_batch(shard, step=2, batch_size=5, seed=9)
    assert inputs.shape == targets.shape == (5, 7)
    assert inputs.dtype == targets.dtype == torch.int64
    for place, row in enumerate(rows_of_step(2, 5, shard.n_rows, 9)):
        assert inputs[place].tolist() == shard.tokens[row, :-1].tolist()
        expected = np.where(shard.is_target[row], shard.tokens[row, 1:].astype(int), IGNORE_INDEX)
        assert targets[place].tolist() == expected.tolist()


@pytest.mark.parametrize(("batch_size", "world_size"), [(6, 2), (6, 3), (7, 2), (5, 4)])
def test_ranks_share_the_rows_of_a_step(shard, batch_size, world_size):
    whole, _ = get_batch(shard, 1, batch_size, seed=2)
    parts = [get_batch(shard, 1, batch_size, seed=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert all(len(inputs) == len(targets) for inputs, targets in parts)
    together = torch.cat([inputs for inputs, _ in parts])
    assert sorted(together.tolist()) == sorted(whole.tolist())
    assert max(len(inputs) for inputs, _ in parts) - min(len(inputs) for inputs, _ in parts) <= 1


def test_one_epoch_of_batches_trains_every_token_once(shard):
    seen: Counter[int] = Counter()
    for step in range(shard.n_rows):
        _, targets = get_batch(shard, step, batch_size=1, seed=4)
        seen.update(targets[targets != IGNORE_INDEX].tolist())
    assert sum(seen.values()) == shard.n_targets and set(seen.values()) == {1}
