import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from promotion_gate.detect.attribution import (
    cell_edges,
    concentration,
    in_pixels,
    lies_on,
    locally_filled,
    on_pixels,
    position_consensus,
    smallest_window,
)
from promotion_gate.detect.windows import Window

MASS = arrays(np.float32, (5, 5), elements=st.floats(-1, 1, width=16))


def test_the_window_closes_on_the_mass():
    cells = np.zeros((8, 8), np.float32)
    cells[6, 5:7] = 0.4
    cells[0, 0] = 0.3
    assert smallest_window(cells) == Window(6, 5, 1, 2)
    assert smallest_window(cells, share=0.3) == Window(6, 5, 1, 1)


def test_of_equally_small_windows_the_fullest():
    cells = np.zeros((4, 4), np.float32)
    cells[0, 0], cells[3, 3] = 0.5, 0.55
    assert smallest_window(cells, share=0.4) == Window(3, 3, 1, 1)


def test_nothing_to_locate():
    assert smallest_window(np.full((4, 4), -0.5, np.float32)) is None
    assert smallest_window(np.full((4, 4), np.nan, np.float32)) is None
    assert smallest_window(np.full((4, 4), 0.001, np.float32), least=0.05) is None
    assert concentration(None, 4) == 0.0


@given(MASS)
def test_no_smaller_rectangle_holds_half_of_the_mass(cells):
    window, positive = smallest_window(cells), np.maximum(cells.astype(np.float64), 0)
    if window is None:
        assert positive.sum() == 0
        return
    half = positive.sum() / 2
    assert positive[window.slices].sum() >= half * (1 - 1e-6)
    area = window.height * window.width
    for top in range(5):
        for left in range(5):
            for height in range(1, 6 - top):
                for width in range(1, 6 - left):
                    if height * width < area:
                        held = positive[top : top + height, left : left + width].sum()
                        assert held < half * (1 + 1e-6)


def test_concentration_is_the_area_left_out():
    assert concentration(Window(0, 0, 2, 4), 8) == 1 - 8 / 64
    assert concentration(Window(0, 0, 8, 8), 8) == 0


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 41), (8, 9)])
def test_cells_cover_every_pixel_once(height, width):
    assert cell_edges(height, 8)[0] == 0
    assert cell_edges(height, 8)[-1] == height
    spread = on_pixels(np.arange(64, dtype=np.float32).reshape(8, 8), height, width)
    assert spread.shape == (height, width)
    assert len(np.unique(spread)) == 64
    box = in_pixels(Window(2, 3, 1, 2), 8, height, width)
    assert set(np.unique(spread[box.slices])) == {19.0, 20.0}
    assert box.height * box.width == np.isin(spread, (19, 20)).sum()


def test_a_filled_cell_takes_nothing_from_itself():
    image = np.full((32, 32, 3), 50, np.uint8)
    image[8:12, 12:16] = (255, 255, 0)
    filled = locally_filled(image, 8)
    assert (filled[8:12, 12:16] == 50).all()
    assert (filled[4:8, 12:16, 0] > 50).all()


def test_one_cell_is_filled_with_its_own_mean():
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert (locally_filled(image, 1) == 2).all()


def test_a_window_marks_a_trigger_it_shares_place_with():
    trigger = Window(20, 20, 6, 6)
    assert lies_on(Window(20, 20, 4, 4), trigger, 4)
    assert lies_on(Window(16, 20, 8, 8), trigger, 4)
    assert not lies_on(Window(4, 4, 4, 4), trigger, 4)
    assert not lies_on(Window(0, 0, 32, 32), trigger, 4)
    assert not lies_on(Window(20, 14, 6, 8), trigger, 4)
    assert not lies_on(Window(12, 12, 20, 20), trigger, 4)
    assert not lies_on(None, trigger, 4)


def test_consensus_counts_windows_without_evidence_against():
    here, there = Window(20, 20, 4, 4), Window(0, 0, 4, 4)
    assert position_consensus([here, here, there, None], 4) == 0.5
    assert position_consensus([None, None], 4) == 0
    assert position_consensus([], 4) == 0
