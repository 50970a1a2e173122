"""The order of images: a permutation of each epoch, random, windowed or not, never stored."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from pretrain.config import Data, Optim, PretrainConfig, check
from pretrain.order import Order, permute, permute_windowed
from pretrain.shards import RUN_LENGTH

WINDOWS = st.integers(1, 12).map(lambda runs: runs * RUN_LENGTH)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(-(2**63), 2**63 - 1))
def test_permute_visits_each_number_once(n, key):
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12_000), WINDOWS, st.integers(0, 2**32))
def test_windowed_orders_visit_each_number_once(n, window, key):
    assert sorted(permute_windowed(np.arange(n), n, window, key).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [2**20, 2**20 + 1, 1_281_167])
def test_large_sets_are_permuted_whole(n):
    assert np.array_equal(np.sort(permute(np.arange(n), n, 1)), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.data())
def test_any_part_of_the_places_gives_that_part_of_the_order(n, data):
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=50)), np.int64)
    for order in (permute, lambda p, n, key: permute_windowed(p, n, RUN_LENGTH, key)):
        assert np.array_equal(order(places, n, 5), order(np.arange(n), n, 5)[places])


@pytest.mark.parametrize("n", [3, 7, 16, 48])
def test_every_image_is_as_likely_at_every_place(n):
    """Pearson's χ² of n × n counts: mean (n-1)², standard deviation √2 (n-1)."""
    keys, counts = 200 * n, np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), permute(np.arange(n), n, key)] += 1
    chi_square = ((counts - keys / n) ** 2 / (keys / n)).sum()
    assert abs(chi_square - (n - 1) ** 2) < 5 * 2**0.5 * (n - 1)


def test_places_epochs_and_neighbours_are_uncorrelated():
    """|r| of independent numbers is below 5/√n in all but one of a million trials."""
    n = 1_000_003
    first, second = permute(np.arange(n), n, 1), permute(np.arange(n), n, 2)
    pairs = [(np.arange(n), first), (first, second), (first[1:], first[:-1])]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / n**0.5
    pieces = np.histogram2d(np.arange(n), first, bins=100)[0]
    assert abs(((pieces - n / 1e4) ** 2 / (n / 1e4)).sum() - 99**2) < 5 * 2**0.5 * 99


@pytest.mark.parametrize("n", [256 * 40, 256 * 40 + 1, 256 * 40 + 255, 300, 100])
@pytest.mark.parametrize("window", [256, 1024, 2560])
def test_each_window_mixes_the_images_of_few_runs(n, window):
    """Cut where the promise says, by counting: no place of a window shares a run with another."""
    order = permute_windowed(np.arange(n), n, window, 9)
    runs = order // RUN_LENGTH
    last_place = {run: np.flatnonzero(runs == run).max() for run in set(runs.tolist())}
    start = 0
    while start < n:
        here, end = {runs[start]}, last_place[runs[start]]
        place = start
        while place <= end:  # grow until every run that has begun has ended
            here.add(runs[place])
            end = max(end, last_place[runs[place]])
            place += 1
        assert len(here) <= window // RUN_LENGTH
        assert end + 1 - start <= window
        start = place
    if n > 2 * window > 512:
        assert len(set(runs[:500].tolist())) > 1  # mixed, and not run by run


def make_config(window=0, batch_size=256):
    return PretrainConfig(data=Data(window=window), optim=Optim(epochs=3, batch_size=batch_size))


@pytest.mark.parametrize("window", [0, 512])
def test_windowed_epochs_differ_and_any_step_can_come_first(window):
    config = make_config(window, batch_size=64)
    steps = list(Order(3000, config, 0))
    assert list(Order(3000, config, 77)) == steps[77:]
    epochs = [[n for step in steps for e, n in step if e == epoch] for epoch in range(3)]
    assert all(len(set(epoch)) == 3000 // 64 * 64 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(Order(3000, replace(config, seed=1), 0)) != steps


@pytest.mark.parametrize("window", [0, 65536])
def test_a_step_of_a_billion_images_costs_what_a_batch_costs(window):
    order = Order(10**9, make_config(window), 1_234_567)
    tracemalloc.start()
    started = time.perf_counter()
    batches = [batch for batch, _ in zip(iter(order), range(20))]
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({number for batch in batches for _, number in batch}) == 20 * 256
    assert peak < 4e6  # bytes
    assert seconds < 20  # it takes a hundredth of one


def test_the_order_is_the_same_on_any_machine():
    assert permute(np.arange(6), 6, 1).tolist() == [5, 2, 4, 1, 0, 3]
    assert permute(np.arange(3), 10**9, 1).tolist() == [427960256, 13705559, 150536193]


@pytest.mark.parametrize("window,words", [(100, "multiple of 256"), (-256, "0 or more")])
def test_windows_that_cannot_be_are_named(window, words):
    with pytest.raises(UserError, match=f"data.window = {window}.*{words}"):
        check(make_config(window), world_size=1)
