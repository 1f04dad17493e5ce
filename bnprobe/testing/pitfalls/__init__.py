"""Laws about what batches do to batch norm: who shares one, how many, in which order.

They are statistical. Each states its null law, from which the tolerance follows, and fails a sound layer or loader by
chance with probability ``rate`` at most: default 1e-8, so that a run of a hundred of them stays under 1e-6. Those about
layers take a factory ``channels -> module`` of a batch norm; those about loaders take what yields batches.
"""

from bnprobe.testing.pitfalls.accumulation import accumulation
from bnprobe.testing.pitfalls.alternating_domains import alternating_domains, two_domain_moments
from bnprobe.testing.pitfalls.dropout_before import dropout_before, variance_behind_dropout
from bnprobe.testing.pitfalls.exchangeable import Mixing, batches_are_exchangeable, batches_are_reshuffled
from bnprobe.testing.pitfalls.fixed_partition import fixed_partition, optimum_of_partition
from bnprobe.testing.pitfalls.registry import PITFALLS, RATE, Pitfall
from bnprobe.testing.pitfalls.small_batches import Noise, noise_of_batches, small_batches
from bnprobe.testing.pitfalls.sorted_batches import sorted_batches
from bnprobe.testing.pitfalls.two_samples import two_samples

__all__ = [
    "PITFALLS",
    "RATE",
    "Mixing",
    "Noise",
    "Pitfall",
    "accumulation",
    "alternating_domains",
    "batches_are_exchangeable",
    "batches_are_reshuffled",
    "dropout_before",
    "fixed_partition",
    "noise_of_batches",
    "optimum_of_partition",
    "small_batches",
    "sorted_batches",
    "two_domain_moments",
    "two_samples",
    "variance_behind_dropout",
]
