"""Random numbers: published vectors, uniformity, and who shares which stream."""

from itertools import combinations

import pytest
import torch
from scipy import stats

from gradstats import rng as rng_module
from gradstats.compressors import Rng
from gradstats.kernels import use
from gradstats.rng import Stream, philox
from gradstats.testing import counting_host_reads

LEVEL = 1e-4  # of every chi-square test here; seeds are fixed, so a pass stays a pass
DRAWS = 1000


def test_philox_gives_the_published_vector():
    """Random123's known answer for philox4x32-10, key and counter zero.

    Its two other vectors have counters with more than one non-zero word, which our counters
    (c, 0, 0, 0) never have; the oracle below covers keys and counters.
    """
    words = philox((0, 0), torch.tensor([0]))
    assert [int(word) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def slow_philox(key, counter):
    """The definition of Salmon et al. on Python integers, which do not wrap."""
    words, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            (p1 >> 32) ^ words[1] ^ k0,
            p1 % 2**32,
            (p0 >> 32) ^ words[3] ^ k1,
            p0 % 2**32,
        ]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return words


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_oracle_gives_all_published_vectors(counter, key, answer):
    assert tuple(slow_philox(key, counter)) == answer


@pytest.mark.parametrize("key", [(1, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xA4093822, 0x299F31D0)])
def test_philox_is_the_oracle_on_our_counters(key):
    counters = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    words = torch.stack(philox(key, torch.tensor(counters)), dim=1)
    assert words.tolist() == [slow_philox(key, (c, 0, 0, 0)) for c in counters]


def test_uniform_is_uniform():
    draws = Rng(seed=1).own.uniform(100_001)
    assert draws.shape == (100_001,)
    assert 0 <= float(draws.min()) < float(draws.max()) < 1
    assert stats.kstest(draws.numpy(), "uniform").pvalue > LEVEL
    pairs = (draws[:100_000].reshape(-1, 2) * 10).long()
    counts = torch.bincount(pairs[:, 0] * 10 + pairs[:, 1], minlength=100)
    assert stats.chisquare(counts.numpy()).pvalue > LEVEL
    assert torch.equal(Rng(seed=1).own.uniform(10), draws[:10])


def test_integers_reach_both_ends_and_nothing_beyond():
    draws = Rng(seed=2).own.integers(2000, 7)
    assert stats.chisquare(torch.bincount(draws, minlength=7).numpy()).pvalue > LEVEL
    assert int(draws.max()) == 6


@pytest.mark.parametrize("numel", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 1025, 65_537])
def test_subsets_are_sorted_distinct_and_in_range(numel):
    for k in {0, 1, numel // 3, numel - 1, numel}:
        chosen = Rng(seed=numel).shared.subset(k, numel)
        assert chosen.dtype == torch.int64
        assert chosen.shape == (k,)
        assert bool((chosen.diff() > 0).all())
        assert k == 0 or (int(chosen[0]) >= 0 and int(chosen[-1]) < numel)


@pytest.mark.parametrize(("k", "numel", "reads"), [(20, 100, 1), (333, 1025, 1), (5, 64, 0)])
def test_a_device_draws_the_same_subset_and_the_host_looks_once(k, numel, reads):
    place = torch.zeros(0)
    with use("eager"), counting_host_reads(place) as counted:
        chosen = Rng(seed=3).shared.subset(k, numel, place.device)
    assert torch.equal(chosen, Rng(seed=3).shared.subset(k, numel))
    assert counted.reads == reads


def test_a_subset_of_nothing_is_empty():
    assert Rng().shared.subset(0, 0).tolist() == []


def test_a_subset_costs_its_own_size():
    """Of a vector that would not fit into memory."""
    chosen = Rng().shared.subset(1000, 1 << 45)
    assert bool((chosen.diff() > 0).all())
    assert stats.kstest(chosen.numpy() / 2**45, "uniform").pvalue > LEVEL


@pytest.mark.parametrize(("k", "numel"), [(1, 3), (2, 4), (2, 5), (3, 6)])
@pytest.mark.slow
def test_all_subsets_are_equally_likely(k, numel):
    """The whole law, and with it single elements and pairs: chi-square over all k-subsets."""
    counts = dict.fromkeys(combinations(range(numel), k), 0)
    for seed in range(DRAWS):
        counts[tuple(Rng(seed=seed).shared.subset(k, numel).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > LEVEL


def test_inclusion_is_flat_over_keys_singly_and_in_pairs():
    """70 of 300 elements. The statistics over correlated counts are scaled to be chi-square."""
    k, numel, draws = 70, 300, 400
    chosen = torch.zeros(draws, numel, dtype=torch.float64)
    for seed in range(draws):
        chosen[seed, Rng(seed=seed).shared.subset(k, numel)] = 1
    share = k / numel
    counts = chosen.sum(0)
    statistic = ((counts - draws * share) ** 2 / (draws * share * (1 - share))).sum()
    assert _inside(float(statistic) * (numel - 1) / numel, numel - 1)
    both = (chosen[:, :-1] * chosen[:, 1:]).sum(0)  # neighbours, which a weak network would join
    pair_share = k * (k - 1) / (numel * (numel - 1))
    z = (both.sum() - draws * (numel - 1) * pair_share) / (draws * numel * pair_share) ** 0.5
    assert abs(float(z)) < stats.norm.isf(LEVEL / 2)


def _inside(statistic, freedom):
    """Neither too uneven nor too even to be random."""
    return LEVEL < stats.chi2.sf(statistic, freedom) < 1 - LEVEL


def test_shared_streams_are_shared_and_own_streams_are_not():
    workers = [Rng(seed=5, step=3, parameter="w", worker=worker) for worker in range(3)]
    assert len({worker.shared for worker in workers}) == 1
    assert len({worker.own for worker in workers} | {workers[0].shared}) == 4


def test_every_coordinate_changes_the_stream():
    base = {"seed": 1, "step": 2, "parameter": "a", "worker": 3}
    others = [base | change for change in ({"seed": 2}, {"step": 3}, {"parameter": "b"})]
    assert len({Rng(**each).shared for each in [base, *others]}) == 4
    # coordinates that read alike when written side by side
    assert Rng(seed=1, step=23).shared != Rng(seed=12, step=3).shared
    assert Rng(worker=1, parameter="2").own != Rng(worker=12, parameter="").own


def test_a_stream_is_a_value():
    assert Stream((1, 2)) == Stream((1, 2))
    assert torch.equal(Stream((1, 2)).subset(5, 50), Stream((1, 2)).subset(5, 50))


def test_uniform_numbers_have_all_their_bits_and_stay_below_one(monkeypatch):
    """A word of 2^32 - 1 must not be rounded to 1: it would be an index behind the last."""
    top = torch.full((1,), 0xFFFFFFFF)
    monkeypatch.setattr(rng_module, "philox", lambda key, counter: (top, top - 1, top - 2, top))
    drawn = Stream((1, 2)).uniform(4)
    assert drawn.dtype == torch.float64
    assert drawn.tolist() == [1 - i / 2**32 for i in (1, 2, 3, 1)]
    assert Stream((1, 2)).integers(4, 1000).tolist() == [999] * 4
