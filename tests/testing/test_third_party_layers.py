"""Layers of packages that nobody here wrote; what they break is told in docs/third_party_layers.md."""

from dataclasses import dataclass, field
from importlib import import_module, util
from pathlib import Path
from typing import Any

import pytest

from bnprobe.testing import check_norm_layer, checks_of

DOCS = Path(__file__).parents[2] / "docs" / "third_party_layers.md"
IMAGES, SEQUENCES = ("N", "C", "H", "W"), ("N", "C", "L")
SINGLE = {"dtypes": ["float32"]}
OF_ONE_PLUS = {"scale_offset": 1.0}


@dataclass(frozen=True)
class Layer:
    """Where it is, what it is like, how it is made and asked, and the laws it breaks, with the reason."""

    module: str
    name: str
    like: str
    arguments: dict[str, Any] = field(default_factory=dict)
    keywords: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


WHOLE_DTYPE = "computes in single precision whatever the input's dtype"
NARROW = "computes mean and variance in the input's half precision"
LAYERS = {
    f"{one.module.split('.')[0]}: {one.name}": one
    for one in (
        Layer("transformers.models.llama.modeling_llama", "LlamaRMSNorm", "rms_norm", keywords=SINGLE),
        Layer("transformers.models.t5.modeling_t5", "T5LayerNorm", "rms_norm", keywords=SINGLE),
        Layer("transformers.models.gemma.modeling_gemma", "GemmaRMSNorm", "rms_norm", keywords=SINGLE | OF_ONE_PLUS),
        Layer("transformers.models.cohere.modeling_cohere", "CohereLayerNorm", "layer_norm", keywords=SINGLE),
        Layer(
            "transformers.models.nemotron.modeling_nemotron",
            "NemotronLayerNorm1P",
            "layer_norm",
            keywords=OF_ONE_PLUS,
        ),
        Layer(
            "transformers.models.vitdet.modeling_vitdet",
            "VitDetLayerNorm",
            "layer_norm",
            keywords={"shapes": [IMAGES], "axes": (-3,)},
            broken={"half_precision": NARROW},
        ),
        Layer(
            "transformers.models.squeezebert.modeling_squeezebert",
            "SqueezeBertLayerNorm",
            "layer_norm",
            keywords={"shapes": [SEQUENCES], "axes": (-2,)},
        ),
        Layer("transformers.models.poolformer.modeling_poolformer", "PoolFormerGroupNorm", "group_norm"),
        Layer(
            "transformers.models.pocket_tts.modeling_pocket_tts",
            "PocketTTSFlowLayerNorm",
            "layer_norm",
            broken={"half_precision": NARROW},
        ),
        Layer("pytorch_tabnet.tab_network", "GBN", "ghost_batch_norm", arguments={"virtual_batch_size": 2}),
    )
}


def found(layer):
    if util.find_spec(layer.module.split(".")[0]) is None:
        pytest.skip(f"{layer.module.split('.')[0]} is not installed")
    kind = getattr(import_module(layer.module), layer.name)
    return lambda channels: kind(channels, **layer.arguments)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    layer = LAYERS[name]
    names = [one.name for one in checks_of(layer.like) if one.name != "compiled"]
    conformance = check_norm_layer(
        found(layer), layer.like, only=names, expected_failures=layer.broken, profile="bnprobe-fast", **layer.keywords
    )
    assert set(conformance.expected) == set(layer.broken)
    assert len(conformance.passed) > 20


def test_double_precision_is_lost():
    """Of the layers that are asked in single precision only: in double precision they are off by that of single."""
    layer = LAYERS["transformers: LlamaRMSNorm"]
    known = {"output_equals_oracle": WHOLE_DTYPE}
    assert check_norm_layer(
        found(layer), layer.like, only=[*known], expected_failures=known, profile="bnprobe-fast"
    ).expected


def test_the_docs_have_every_layer_and_what_it_breaks():
    lines = [one for one in DOCS.read_text().splitlines() if one.startswith("| `")]
    told = {line.split("`")[1]: line for line in lines}
    assert set(told) == {layer.name for layer in LAYERS.values()}
    for layer in LAYERS.values():
        line = told[layer.name]
        assert layer.like.replace("_", " ") in line
        for law in layer.broken:
            assert f"`{law}`" in line, layer.name
        if layer.keywords.get("dtypes") == ["float32"]:
            assert "single precision" in line, layer.name
