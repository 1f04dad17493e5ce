"""What to try layers and models on, for hypothesis: batches, factors, orders, layers, networks, loaders, labels.

All shrink to small examples, and print as code that makes them again.
"""

from bnprobe.testing.strategies.batch import Batch, tensor
from bnprobe.testing.strategies.batches import batches, recipes
from bnprobe.testing.strategies.kinds import KINDS
from bnprobe.testing.strategies.label_sets import label_sets
from bnprobe.testing.strategies.layers import NormLayer, norm_layers
from bnprobe.testing.strategies.layouts import LAYOUTS
from bnprobe.testing.strategies.loaders import ORDERS, Loader, loaders
from bnprobe.testing.strategies.networks import Network, networks
from bnprobe.testing.strategies.permutations import permutations
from bnprobe.testing.strategies.scales import scales

__all__ = [
    "KINDS",
    "LAYOUTS",
    "ORDERS",
    "Batch",
    "Loader",
    "Network",
    "NormLayer",
    "batches",
    "label_sets",
    "loaders",
    "networks",
    "norm_layers",
    "permutations",
    "recipes",
    "scales",
    "tensor",
]
