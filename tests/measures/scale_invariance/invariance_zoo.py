"""Architectures and, by hand, which of their parameters are scale-invariant and why.

All biases, gammas and betas are random: at their usual initial values of 0 and 1 more would be invariant by accident.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

IMAGES, LABELS = (6, 3, 8, 8), 3


def shaken(model, seed=3, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def pooled(inner):
    return [Lambda(lambda x: x.mean((2, 3))), nn.Linear(inner, LABELS)]


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 0
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 5, 3, padding=1, bias=False),  # 3
        nn.BatchNorm2d(5),
        nn.Sigmoid(),
        *pooled(5),
    )


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 0
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),  # 4
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, padding=1),  # 7
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        *pooled(6),
    )


class Block(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer)
        self.skip = nn.Sequential()
        if inner != outer:
            self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))


def residual():
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*stem, Block(4, 4), Block(4, 6), *pooled(6))


class Forked(nn.Module):
    """A convolution whose output goes through batch norm and around it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.after, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, LABELS)

    def forward(self, x):
        x = self.conv(x)
        x = F.relu(self.bn(x)) + x
        return self.head(torch.tanh(self.bn2(self.after(x))).mean((2, 3)))


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False),  # 0
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),  # 3
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False),  # 6
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=False),  # 9
        nn.BatchNorm2d(6),
        nn.SiLU(),
        *pooled(6),
    )


def unnormalized():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), *pooled(4))


def evaluated():
    model = plain()
    model(torch.randn(16, *IMAGES[1:]))
    return model.eval()


def frozen():
    """The first batch norm in evaluation mode, and its convolution without gradients."""
    model = plain()
    model(torch.randn(16, *IMAGES[1:]))
    model[1].eval()
    for parameter in (*model[0].parameters(), *model[3].parameters()):
        parameter.requires_grad_(False)
    return model


def instance():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 0
        nn.InstanceNorm2d(4, affine=True),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding=1),  # 3
        nn.InstanceNorm2d(4),
        nn.SiLU(),
        *pooled(4),
    )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.down2, self.norm2 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.GroupNorm(3, 6)
        self.up, self.norm3 = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False), nn.GroupNorm(1, 4)
        self.out, self.head = nn.Conv2d(8, 4, 3), nn.Linear(4, LABELS)

    def forward(self, x):
        x = F.silu(self.norm1(self.down1(x)))
        y = F.silu(self.norm2(self.down2(F.avg_pool2d(x, 2))))
        y = F.silu(self.norm3(self.up(y)))
        return self.head(torch.tanh(self.out(torch.cat([x, y], 1))).mean((2, 3)))


class Siamese(nn.Module):
    """One branch, run twice; its two outputs are compared."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, LABELS)

    def forward(self, x):
        a, b = (F.silu(self.bn(self.conv(one))).mean((2, 3)) for one in (x, x.flip(3) * 2 - 1))
        return self.head((a - b).abs())


class Transformer(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.1 if first else 0.0, batch_first=True, norm_first=first
        )
        self.head = nn.Linear(8, LABELS)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(1))


class QueryKeyNorm(nn.Module):
    """Attention whose queries and keys are normalized, head by head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.query_norm, self.key_norm = nn.LayerNorm(4), nn.RMSNorm(4, eps=1e-6)
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, LABELS)

    def forward(self, tokens):
        x = self.embedding(tokens)
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(self.query_norm(q), self.key_norm(k), v)
        return self.head(torch.tanh(self.out(y.transpose(1, 2).flatten(2))).mean(1))


class Recurrent(nn.Module):
    """Batch norm between an LSTM's last state and the output, and before the LSTM."""

    def __init__(self):
        super().__init__()
        self.into, self.bn1 = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.out, self.bn2, self.head = nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, LABELS)

    def forward(self, x):
        x = self.bn1(self.into(x).transpose(1, 2)).transpose(1, 2)
        states, _ = self.lstm(x)
        return self.head(torch.tanh(self.bn2(self.out(states[:, -1]))))


def weight_normed():
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 4, 3)),  # 0
        nn.Tanh(),
        weight_norm(nn.Conv2d(4, 4, 3)),  # 2
        nn.BatchNorm2d(4),
        nn.Tanh(),
        *pooled(4),
    )


def spectral():
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 4, 3)),  # 0
        nn.Tanh(),
        spectral_norm(nn.Conv2d(4, 4, 3)),  # 2
        nn.BatchNorm2d(4),
        nn.Tanh(),
        *pooled(4),
    )


class HandMade(nn.Module):
    """Batch norm by elementary operations, which shows nobody its epsilon."""

    def __init__(self, channels, epsilon=1e-5):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x):
        centred = x - x.mean((0, 2, 3), keepdim=True)
        variance = centred.square().mean((0, 2, 3), keepdim=True)
        hat = centred / (variance + self.epsilon).sqrt()
        return hat * self.scale[:, None, None] + self.shift[:, None, None]


def handmade():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 0
        HandMade(4),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),  # 3
        HandMade(4),
        nn.SiLU(),
        *pooled(4),
    )


def layer_norm_mlp():
    return nn.Sequential(
        nn.Linear(10, 8, bias=False),  # 0
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Linear(8, 6),  # 3
        nn.LayerNorm(6),
        nn.GELU(),
        nn.Linear(6, LABELS),
    )


def tokens(generator):
    return torch.randint(11, (5, 7), generator=generator)


def normal(*shape):
    return lambda generator: torch.randn(shape, generator=generator)


# By name: model, batch, scale-invariant parameters, those invariant only together, vectors that do not matter.
# A softmax does not see a number added to all logits, so that the head's bias is always among the last.
ZOO = {
    # Every channel of a convolution has a batch norm of its own; the bias is subtracted with the mean. The nonlinearity
    # is not homogeneous, so that gamma and beta matter.
    "plain": (plain, normal(*IMAGES), {"0.weight", "3.weight"}, set(), {"0.bias", "7.bias"}),
    # With ReLU, pooling and convolution homogeneous, the next batch norm takes the size out of gamma and beta together.
    # The last block's go to the head.
    "vgg": (
        vgg,
        normal(*IMAGES),
        {"0.weight", "4.weight", "7.weight"},
        {("1.weight", "1.bias"), ("5.weight", "5.bias")},
        {"0.bias", "4.bias", "7.bias", "11.bias"},
    ),
    # All convolutions feed batch norm alone. Inside a block gamma and beta of bn1 are homogeneous up to bn2; all others
    # meet a skip connection. The bias of bn2 and that of the skip's batch norm act as a sum.
    "residual": (
        residual,
        normal(*IMAGES),
        {"0.weight", "3.conv1.weight", "3.conv2.weight", "4.conv1.weight", "4.conv2.weight", "4.skip.0.weight"},
        {("3.bn1.weight", "3.bn1.bias"), ("4.bn1.weight", "4.bn1.bias")},
        {"6.bias"},
    ),
    # `conv` has a way around its batch norm; `after` has not. The bias of `conv` is constant over the image on both
    # ways, and stays so through a convolution without padding: the second batch norm takes it out.
    "forked": (Forked, normal(*IMAGES), {"after.weight"}, set(), {"conv.bias", "after.bias", "head.bias"}),
    # One channel of a depthwise, grouped or transposed convolution is one of its batch norm.
    "depthwise": (depthwise, normal(*IMAGES), {"0.weight", "3.weight", "6.weight", "9.weight"}, set(), {"13.bias"}),
    "unnormalized": (unnormalized, normal(*IMAGES), set(), set(), {"5.bias"}),
    # Batch norm in evaluation mode multiplies by constants.
    "evaluated": (evaluated, normal(*IMAGES), set(), set(), {"7.bias"}),
    # So does a frozen one; a frozen weight before one that works is as invariant as another.
    "frozen": (frozen, normal(*IMAGES), {"3.weight"}, set(), {"7.bias"}),
    # Instance norm works on the channels of a convolution as batch norm does, sample by sample.
    "instance": (instance, normal(*IMAGES), {"0.weight", "3.weight"}, set(), {"0.bias", "3.bias", "7.bias"}),
    # down1 has a bias, which a group's mean does not take out channel by channel: it scales with the weight. down2 and
    # up have none: they are invariant in groups, and as a whole. A bias may be shifted group by group.
    "unet": (
        UNet,
        normal(*IMAGES),
        {"down2.weight", "up.weight"},
        {("down1.weight", "down1.bias")},
        {"down1.bias", "head.bias"},
    ),
    # Both runs meet batch norm, with statistics of their own.
    "siamese": (Siamese, normal(*IMAGES), {"conv.weight"}, set(), {"conv.bias", "head.bias"}),
    # Layer norm before attention and feed-forward: what it normalizes is the residual stream, which is a sum of the
    # embedding and the layers' outputs; here the first norm sees the embedding alone, but so does the sum after it.
    "pre-norm": (lambda: Transformer(True), tokens, set(), set(), {"head.bias"}),
    # Layer norm after the sums: what it normalizes is a sum with the way around. Beta of norm2 meets the head as is. Of
    # the biases added to a sum before layer norm, the sum of the entries is taken out (with dropout between it
    # would not be).
    "post-norm": (
        lambda: Transformer(False),
        tokens,
        set(),
        set(),
        {"layer.self_attn.out_proj.bias", "layer.linear2.bias", "head.bias"},
    ),
    # Queries and keys are normalized over each head's features, by layer and by rms norm: invariant head by head.
    "query-key-norm": (QueryKeyNorm, tokens, {"query.weight", "key.weight"}, set(), {"head.bias"}),
    # `into` and `out` feed batch norm; what is inside of the LSTM, and the LSTM behind batch norm, meets sigmoids.
    "recurrent": (
        Recurrent,
        normal(9, 6, 5),
        {"into.weight", "out.weight"},
        set(),
        {"into.bias", "head.bias"},
    ),
    # A direction v / |v| does not know its length, row by row; the length g is invariant where batch norm follows.
    "weight-normed": (
        weight_normed,
        normal(*IMAGES),
        {
            "0.parametrizations.weight.original1",
            "2.parametrizations.weight.original0",
            "2.parametrizations.weight.original1",
        },
        set(),
        {"2.bias", "6.bias"},
    ),
    # Divided by its largest singular value a matrix does not know its size, as a whole; row by row if batch norm
    # follows.
    "spectral-normed": (
        spectral,
        normal(*IMAGES),
        {"0.parametrizations.weight.original", "2.parametrizations.weight.original"},
        set(),
        {"2.bias", "6.bias"},
    ),
    # As "plain", with somebody's own batch norm.
    "hand-made": (handmade, normal(*IMAGES), {"0.weight", "3.weight"}, set(), {"0.bias", "7.bias"}),
    # Layer norm takes out the size of the whole matrix; with a bias, that of both.
    "layer-norm": (layer_norm_mlp, normal(6, 10), {"0.weight"}, {("3.weight", "3.bias")}, {"3.bias", "6.bias"}),
}  # fmt: skip


def case(name):
    """Model, batch and what is expected of it."""
    make, draw, *expected = ZOO[name]
    torch.manual_seed(0)
    model = shaken(make())
    x = draw(torch.Generator().manual_seed(1))
    y = torch.randint(LABELS, (len(x),), generator=torch.Generator().manual_seed(2))
    return model, (x, y), expected
