import numpy as np
import pytest
import scipy.stats
import torch

from bnprobe.statistics.sample import Sampler, merge_samples, stacked


def test_a_small_tensor_is_taken_whole_and_a_large_one_is_not():
    sampler = Sampler(size=10)
    small, large = sampler.sample(torch.arange(20.0), None), sampler.sample(torch.arange(21.0), None)
    assert small.complete
    assert small.values.tolist() == list(range(20))
    assert not large.complete
    assert len(large.values.unique()) == len(large.values) == 10
    assert (small.count, large.count) == (20, 21)


@pytest.mark.parametrize("count", [100, 10_000])
def test_every_position_is_equally_likely(count):
    hits = np.zeros(count)
    x = torch.arange(float(count))
    for seed in range(2000):
        hits[Sampler(size=20, seed=seed).sample(x, None).values.long().numpy()] += 1
    blocks = hits.reshape(20, -1).sum(1)
    assert scipy.stats.chisquare(blocks).pvalue > 1e-4


def test_channels_are_those_of_the_values():
    x = torch.arange(3.0)[None, :, None, None].expand(8, 3, 20, 20)
    for tensor in (x, x.contiguous(), x.contiguous(memory_format=torch.channels_last), x.permute(2, 1, 0, 3)):
        sample = Sampler(size=50).sample(tensor, 1)
        assert sample.channels == 3
        assert torch.equal(sample.values, sample.channel.float())


def test_the_same_seed_takes_the_same_values_and_no_global_stream_moves():
    x, before = torch.randn(5000), torch.get_rng_state()
    a, b, c = (Sampler(size=100, seed=seed).sample(x, None).values for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_the_same_positions_until_renewed():
    sampler, x = Sampler(size=100), torch.randn(5000)
    a, b = sampler.sample(x, None), sampler.sample(x + 1, None)
    torch.testing.assert_close(a.values + 1, b.values)
    sampler.renew()
    assert not torch.equal(a.values, sampler.sample(x, None).values)


def _parts(seed):
    sampler = Sampler(size=40, seed=seed)
    return [sampler.sample(torch.full((n,), float(i)), None) for i, n in enumerate((30, 700, 5000, 60))]


def test_merging_is_associative_and_commutative():
    a, b, c, d = _parts(3)
    left = merge_samples(merge_samples(merge_samples(a, b), c), d)
    right = merge_samples(merge_samples(d, a), merge_samples(c, b))
    assert left.count == right.count == 5790
    assert torch.equal(left.values.sort().values, right.values.sort().values)
    assert torch.equal(left.keys.sort().values, right.keys.sort().values)


def test_complete_samples_stay_complete_while_there_is_room():
    sampler = Sampler(size=40)
    a, b, c = (sampler.sample(torch.arange(float(n)), None) for n in (30, 50, 1))
    both = merge_samples(a, b)
    assert both.complete
    assert sorted(both.values.tolist()) == sorted([*range(30), *range(50)])
    assert not merge_samples(both, c).complete
    assert len(merge_samples(both, c).values) == 40


def test_a_merged_sample_is_uniform_over_the_union():
    """Shares of four populations in merged samples, against their sizes; 400 merges."""
    counts = np.zeros(4)
    for seed in range(400):
        a, b, c, d = _parts(seed)
        merged = merge_samples(merge_samples(a, c), merge_samples(b, d))
        counts += np.bincount(merged.values.long().numpy(), minlength=4)
    expected = np.array([30, 700, 5000, 60]) / 5790 * counts.sum()
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_keys_are_the_smallest_of_as_many_uniforms():
    """The largest of the n smallest of N uniforms is Beta(n, N + 1 - n)."""
    largest = []
    for seed in range(300):
        sample = Sampler(size=20, seed=seed).sample(torch.zeros(500), None)
        largest.append(float(sample.with_keys().max()))
    assert scipy.stats.kstest(largest, scipy.stats.beta(20, 481).cdf).pvalue > 1e-4


def test_rows_are_stacked_by_length_and_type():
    sampler = Sampler(size=10)
    samples = [sampler.sample(x, None) for x in (torch.zeros(5), torch.ones(7), torch.ones(5), torch.ones(5).half())]
    groups = {tuple(rows): matrix for rows, matrix in stacked(samples)}
    assert set(groups) == {(0, 2), (1,), (3,)}
    assert all(matrix.dtype == np.float32 for matrix in groups.values())
