"""The losses against twenty lines of float64, the memory they need, and their gradients' reach."""

import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.attention import ATTENTIONS, CHUNK, by_chunks, by_flash
from pretrain.loss import info_nce, mean_cosine, nt_xent, top1
from pretrain.matching import match_by_similarity, match_entropy
from pretrain.precision import choose_attention, compare


def naive_info_nce(query, positive, negatives, temperature):
    """What MoCo does: all logits at once, cross-entropy with the positive in column 0."""
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ negatives.T], 1)
    labels = torch.zeros(len(query), dtype=torch.long)
    return F.cross_entropy(logits / temperature, labels)


def unit_rows(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


def value_and_gradient(function, query, *arguments):
    query = query.clone().requires_grad_()
    value = function(query, *arguments)
    value.backward()
    return value.detach().double(), query.grad.double()


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


_CHUNK = CHUNK["cpu"]
SHAPES = [
    (rows, width, length)
    for rows, width in [(1, 8), (7, 128), (98, 16)]
    for length in [
        1,
        3,
        997,
        CHUNK["cpu"] - 1,
        CHUNK["cpu"],
        CHUNK["cpu"] + 1,
        2 * CHUNK["cpu"] + 17,
        4096,
    ]
]


@pytest.mark.parametrize("rows,width,length", SHAPES)
@pytest.mark.parametrize("temperature", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("attend", ATTENTIONS.values())
def test_info_nce_equals_naive_float64(rows, width, length, temperature, attend):
    query, positive, negatives = (
        unit_rows(count, width, seed) for seed, count in enumerate((rows, rows, length))
    )
    expected = value_and_gradient(naive_info_nce, query, positive, negatives, temperature)
    # The flash attention here returns float32, whatever it is given.
    exact = [(torch.float64, 1e-12)] if attend is by_chunks else []
    for dtype, tolerance in [*exact, (torch.float32, 1e-5)]:
        given = (x.to(dtype) for x in (query, positive, negatives))
        ours = value_and_gradient(info_nce, *given, temperature, attend)
        assert relative_error(ours[0], expected[0]) <= tolerance
        assert relative_error(ours[1], expected[1]) <= tolerance


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 300), st.floats(0.05, 5))
def test_info_nce_equals_naive_for_vectors_of_any_length(rows, width, length, scale):
    """Rows need not have unit length: the running maximum keeps the sum finite."""
    query, positive, negatives = (
        scale * unit_rows(count, width, seed) for seed, count in enumerate((rows, rows, length))
    )
    expected = value_and_gradient(naive_info_nce, query, positive, negatives, 0.2)
    ours = value_and_gradient(info_nce, query, positive, negatives, 0.2)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-9, atol=1e-12)


def test_huge_logits_stay_finite():
    query, positive, negatives = (1e4 * unit_rows(5, 8, seed) for seed in range(3))
    loss, gradient = value_and_gradient(
        info_nce, query.float(), positive.float(), negatives.float(), 0.01
    )
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_top1_counts_rows_whose_positive_is_best():
    query, positive, negatives = unit_rows(50, 4, 0), unit_rows(50, 4, 1), unit_rows(7, 4, 2)
    wins = [max(q @ n for n in negatives) < q @ k for q, k in zip(query, positive)]
    assert 0 < sum(wins) < 50
    assert top1(query, positive, negatives).item() == pytest.approx(sum(wins) / 50)


def test_gradient_for_a_key_is_refused():
    query, positive, negatives = unit_rows(2, 4, 0), unit_rows(2, 4, 1), unit_rows(2, 4, 2)
    with pytest.raises(ValueError, match="constants"):
        info_nce(query, positive.requires_grad_(), negatives, 0.2)


def test_the_attention_chosen_is_there_and_agrees():
    chosen, why = compare(torch.device("cpu"), rows=20, keys=640, width=16)
    assert chosen in ATTENTIONS and "they differ by" in why
    for device in ("cpu", "cuda"):  # which in float32 has no flash attention
        sizes = {"rows": 20, "keys": 640, "width": 16}
        assert choose_attention(torch.device(device), False, **sizes)[0] == "chunks"


def test_a_flash_attention_that_lies_or_fails_is_not_chosen(monkeypatch):
    def lying(queries, keys, scale):
        return by_flash(queries, keys, scale)._replace(log_sum=torch.zeros(len(queries)))

    def missing(queries, keys, scale):
        raise RuntimeError("no such kernel\nlong story")

    for broken, words in ((lying, "differs from chunks"), (missing, "no such kernel")):
        monkeypatch.setitem(ATTENTIONS, "flash", broken)
        chosen, why = compare(torch.device("cpu"), rows=20, keys=640, width=16)
        assert chosen == "chunks" and words in why and "long story" not in why


class PeakMemory(TorchDispatchMode):
    """Most bytes of tensors alive at once, besides those given."""

    def __init__(self, *given):
        super().__init__()
        self.alive, self.peak = 0, 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key, size):
        self.seen.discard(key)
        self.alive -= size


def test_peak_memory_is_a_twentieth_of_the_naive_one():
    query, positive = unit_rows(392, 128, 0).float(), unit_rows(392, 128, 1).float()
    negatives = unit_rows(65536, 128, 2).float()
    ways = {"naive": naive_info_nce}
    ways |= {name: partial(info_nce, attend=attend) for name, attend in ATTENTIONS.items()}
    peaks = {}
    for name, function in ways.items():
        with PeakMemory(query, positive, negatives) as memory:
            value_and_gradient(function, query, positive, negatives, 0.2)
        peaks[name] = memory.peak
    assert peaks["naive"] > 2 * 392 * 65536 * 4  # the measurement sees the logits
    assert peaks["naive"] >= 20 * max(peaks[name] for name in ATTENTIONS), peaks


def test_match_equals_brute_force():
    query = F.normalize(torch.randn(3, 5, 9, dtype=torch.float64), dim=1)
    key = F.normalize(torch.randn(3, 5, 9, dtype=torch.float64), dim=1)
    found = match_by_similarity(query, key)
    for image in range(3):
        for position in range(9):
            similarities = [
                float(query[image, :, position] @ key[image, :, other]) for other in range(9)
            ]
            assert found[image, position] == similarities.index(max(similarities))


@pytest.mark.parametrize("first", [0, 6])
def test_nt_xent_equals_naive_loops(first):
    everyone = unit_rows(18, 8, 0)
    own = everyone[first : first + 6].clone().requires_grad_()  # three images in two views
    ours, top1 = nt_xent(own, everyone, first, 0.2)
    terms, wins = [], []
    for row in range(6):
        similar = {j: own[row] @ everyone[j] / 0.2 for j in range(18) if j != first + row}
        positive = similar[first + (row + 3) % 6]
        terms.append(torch.stack(list(similar.values())).exp().sum().log() - positive)
        wins.append(positive == max(similar.values()))
    expected = torch.stack(terms).mean()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)
    assert top1.item() == pytest.approx(sum(map(float, wins)) / 6)
    gradients = [torch.autograd.grad(loss, own)[0] for loss in (ours, expected)]
    assert relative_error(*gradients) <= 1e-12


def test_mean_cosine_is_that_of_all_pairs():
    rows = unit_rows(7, 5, 0)
    pairs = [rows[i] @ rows[j] for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(rows).item() == pytest.approx(float(sum(pairs) / 42))
    assert mean_cosine(rows[:1]).item() == pytest.approx(0, abs=1e-12)


def test_match_entropy_is_1_when_even_and_0_when_one_takes_all():
    assert match_entropy(torch.arange(9).repeat(4, 1)).item() == pytest.approx(1)
    assert match_entropy(torch.full((4, 9), 3)).item() == pytest.approx(0)
