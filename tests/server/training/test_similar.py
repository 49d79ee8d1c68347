"""Copies and near-copies under another subject's name, found among slices that are not."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from limner_server.training import similar
from limner_server.training.similar import NEAR_DUPLICATE, find_similar, unit_vectors


def smooth(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """Slices that look like something, `(count, size, size)`."""
    noise = np.random.default_rng(seed).normal(size=(count, size, size))
    return (100 + 50 * gaussian_filter(noise, (0, 3, 3)) / 0.1).astype(np.float32)


def subjects_of(count: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(count)
    return np.array([f"s{row // slices:03d}" for row in rows]), np.array([f"i{row:03d}" for row in rows])


def test_a_copied_slice_under_another_subject_is_found() -> None:
    images = smooth(40)
    images[33] = images[2]
    subjects, instances = subjects_of(40, 4)
    found = find_similar(images, subjects, instances)
    assert found.found == 1
    (pair,) = found.pairs
    assert (pair.first, pair.first_subject, pair.second, pair.second_subject) == ("i002", "s000", "i033", "s008")
    assert pair.similarity == 1


def test_gain_and_offset_hide_nothing_and_a_little_noise_neither() -> None:
    images = smooth(12)
    images[5] = 3 * images[0] + 70
    images[9] = images[1] + np.random.default_rng(1).normal(0, 4, images[1].shape)
    found = find_similar(images, *subjects_of(12, 3))
    assert [(pair.first, pair.second) for pair in found.pairs] == [("i000", "i005"), ("i001", "i009")]
    assert 1 > found.pairs[0].similarity > 0.9999
    assert found.pairs[0].similarity > found.pairs[1].similarity >= NEAR_DUPLICATE


def test_slices_of_one_subject_and_constant_slices_are_no_news() -> None:
    images = np.repeat(smooth(4), 2, axis=0)
    assert find_similar(images, *subjects_of(8, 2)).found == 0
    assert find_similar(np.full((6, 32, 32), 7, np.float32), *subjects_of(6, 1)).found == 0


def test_nothing_is_missed_by_a_glance_or_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "BLOCK", 7)
    monkeypatch.setattr(similar, "NEAR_DUPLICATE", 0.6)
    base = smooth(10)
    weights = np.random.default_rng(2).random((60, 10))
    images = (weights[:, :, None, None] * base).sum(axis=1).astype(np.float32)
    subjects, instances = subjects_of(60, 4)
    unit = unit_vectors(images)
    expected = {
        (f"i{i:03d}", f"i{j:03d}"): unit[i] @ unit[j]
        for i, j in itertools.combinations(range(60), 2)
        if subjects[i] != subjects[j] and unit[i] @ unit[j] >= 0.6
    }
    found = find_similar(images, subjects, instances)
    assert found.found == len(expected) > similar.SHOWN
    assert len(found.pairs) == similar.SHOWN
    best = sorted(expected.values(), reverse=True)[: similar.SHOWN]
    assert [pair.similarity for pair in found.pairs] == pytest.approx(best, abs=2e-5)
    assert all(expected[pair.first, pair.second] == pytest.approx(pair.similarity, abs=2e-5) for pair in found.pairs)
