import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from promotion_gate.detect.near import Groups, hamming, near_pairs, perceptual_hashes, same_tone


def pairs(hashes, bits):
    found = [
        pair for one, two in near_pairs(hashes, bits) for pair in zip(one.tolist(), two.tolist(), strict=True)
    ]
    assert len(found) == len(set(found)), "each pair once"
    return set(found)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), bits=st.integers(0, 12))
def test_no_pair_is_missed_and_none_made_up(data, bits):
    base = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
    flips = st.lists(st.integers(0, 63), max_size=bits + 2)
    values = [*base, *base]
    for value in base:
        drawn = data.draw(st.lists(flips, max_size=4))
        values += [value ^ sum(1 << place for place in set(places)) for places in drawn]
    hashes = np.array(values, dtype=np.uint64)
    expected = {
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if (values[i] ^ values[j]).bit_count() <= bits
    }
    assert pairs(hashes, bits) == expected


def test_many_of_one_hash_come_in_portions():
    hashes = np.zeros(3000, dtype=np.uint64)
    sizes = [len(one) for one, _ in near_pairs(hashes, 3)]
    assert sum(sizes) == 3000 * 2999 // 2
    assert max(sizes) < sum(sizes)


def test_too_many_bits_are_refused():
    with pytest.raises(ValueError, match="at most 24"):
        list(near_pairs(np.zeros(2, dtype=np.uint64), 25))


def test_the_hash_is_that_of_the_cosine_transform():
    grey = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    places = [(i, d - i) for d in range(1, 11) for i in range(d + 1)][:64]
    for image, found in zip(grey, perceptual_hashes(grey), strict=True):
        spectrum = dctn(image.astype(float), norm="ortho")
        lowest = np.array([spectrum[place] for place in places])
        bits = "".join("1" if value > np.median(lowest) else "0" for value in lowest)
        assert (int(bits, 2) ^ int(found)).bit_count() <= 1  # 32-bit arithmetic may differ at the median


def test_brighter_and_weaker_images_hash_alike():
    grey = np.random.default_rng(1).integers(40, 160, (20, 8, 8)).repeat(4, axis=1).repeat(4, axis=2)
    changed = np.round(grey * 0.8 + 30)
    away = hamming(perceptual_hashes(grey.astype(np.uint8)), perceptual_hashes(changed.astype(np.uint8)))
    assert away.max() <= 5
    other = perceptual_hashes(np.roll(grey, 1, axis=0).astype(np.uint8))
    assert hamming(perceptual_hashes(grey.astype(np.uint8)), other).min() > 12


def test_tone():
    rng = np.random.default_rng(2)
    one = rng.integers(40, 160, (30, 64)).astype(np.uint8)
    assert same_tone(one, (one * 0.9 + 20).astype(np.uint8), 2).all()
    assert not same_tone(one, np.roll(one, 1, axis=0), 8).any()
    assert same_tone(np.full((1, 64), 7, np.uint8), np.full((1, 64), 200, np.uint8), 1).all()


def test_groups_join_over_portions():
    groups = Groups(6)
    groups.join(np.array([0]), np.array([1]))
    groups.join(np.array([4, 1]), np.array([5, 2]))
    of = groups.of_row
    assert of[0] == of[1] == of[2]
    assert of[4] == of[5]
    assert len(set(of.tolist())) == 3
