"""Specimens from pytorchcv: the smallest constructor of every module that has one, with random weights.

Modules are imported one by one: ``pytorchcv.model_provider`` imports all of them, and with them torchvision.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_check import Specimen

__all__ = ["FAMILIES", "specimens", "unlisted"]

# Module and its smallest constructor, by the number of parameters (pytorchcv 0.0.74).
FAMILIES = {
    "airnet": "airnet50_1x64d_r16",
    "airnext": "airnext50_32x4d_r2",
    "alexnet": "alexnetb",
    "alphapose_coco": "alphapose_fastseresnet101b_coco",
    "bagnet": "bagnet9",
    "bamresnet": "bam_resnet18",
    "bisenet": "bisenet_resnet18_celebamaskhq",
    "bninception": "bninception",
    "cbamresnet": "cbam_resnet18",
    "centernet": "centernet_resnet18_voc",
    "cgnet": "cgnet_cityscapes",
    "channelnet": "channelnet",
    "condensenet": "condensenet74_c8_g8",
    "contextnet": "ctxnet_cityscapes",
    "dabnet": "dabnet_cityscapes",
    "danet": "danet_resnetd50b_cityscapes",
    "darknet": "darknet_tiny",
    "darknet53": "darknet53",
    "darts": "darts",
    "deeplabv3": "deeplabv3_resnetd50b_cityscapes",
    "densenet": "densenet121",
    "densenet_cifar": "densenet40_k12_bc_cifar10",
    "diapreresnet": "diapreresnet10",
    "diapreresnet_cifar": "diapreresnet20_cifar10",
    "diaresnet": "diaresnet10",
    "diaresnet_cifar": "diaresnet20_cifar10",
    "dicenet": "dicenet_wd5",
    "diracnetv2": "diracnet18v2",
    "dla": "dla46xc",
    "dpn": "dpn68",
    "drn": "drnd22",
    "edanet": "edanet_cityscapes",
    "efficientnet": "efficientnet_b0",
    "efficientnetedge": "efficientnet_edge_small_b",
    "enet": "enet_cityscapes",
    "erfnet": "erfnet_cityscapes",
    "esnet": "esnet_cityscapes",
    "espcnet": "espcnet_cityscapes",
    "espnetv2": "espnetv2_wd2",
    "fastscnn": "fastscnn_cityscapes",
    "fastseresnet": "fastseresnet101b",
    "fbnet": "fbnet_cb",
    "fcn8sd": "fcn8sd_resnetd50b_cityscapes",
    "fdmobilenet": "fdmobilenet_wd4",
    "fishnet": "fishnet99",
    "fpenet": "fpenet_cityscapes",
    "fractalnet_cifar": "fractalnet_cifar10",
    "ghostnet": "ghostnet",
    "hardnet": "hardnet39ds",
    "hrnet": "hrnet_w18_small_v1",
    "ibnbresnet": "ibnb_resnet50",
    "ibndensenet": "ibn_densenet121",
    "ibnresnet": "ibn_resnet50",
    "ibnresnext": "ibn_resnext50_32x4d",
    "ibppose_coco": "ibppose_coco",
    "icnet": "icnet_resnetd50b_cityscapes",
    "igcv3": "igcv3_wd4",
    "inceptionresnetv1": "inceptionresnetv1",
    "inceptionresnetv2": "inceptionresnetv2",
    "inceptionv3": "inceptionv3",
    "inceptionv4": "inceptionv4",
    "irevnet": "irevnet301",
    "isqrtcovresnet": "isqrtcovresnet18",
    "jasper": "jasper5x3",
    "jasperdr": "jasperdr10x5_en",
    "lednet": "lednet_cityscapes",
    "lffd": "lffd20x5s320v2_widerface",
    "linknet": "linknet_cityscapes",
    "lwopenpose_cmupan": "lwopenpose2d_mobilenet_cmupan_coco",
    "menet": "menet108_8x1_g3",
    "mixnet": "mixnet_s",
    "mnasnet": "mnasnet_small",
    "mobilenet": "mobilenet_wd4",
    "mobilenet_cub": "fdmobilenet_wd4_cub",
    "mobilenetb": "mobilenetb_wd4",
    "mobilenetv2": "mobilenetv2b_wd4",
    "mobilenetv3": "mobilenetv3_small_w7d20",
    "msdnet": "msdnet22",
    "msdnet_cifar10": "msdnet22_cifar10",
    "nasnet": "nasnet_4a1056",
    "nin_cifar": "nin_cifar10",
    "ntsnet_cub": "ntsnet_cub",
    "nvpattexp": "nvpattexp116bazel76",
    "octresnet": "octresnet10_ad2",
    "peleenet": "peleenet",
    "pfpcnet": "pfpcnet",
    "pnasnet": "pnasnet5large",
    "polynet": "polynet",
    "preresnet": "preresnet18_wd4",
    "preresnet_cifar": "preresnet20_cifar10",
    "prnet": "prnet",
    "proxylessnas": "proxylessnas_mobile",
    "proxylessnas_cub": "proxylessnas_mobile_cub",
    "pspnet": "pspnet_resnetd50b_cityscapes",
    "pyramidnet": "pyramidnet101_a360",
    "pyramidnet_cifar": "pyramidnet110_a48_cifar10",
    "quartznet": "quartznet5x5_en_ls",
    "raft": "raft_small",
    "regnet": "regnetx002",
    "resattnet": "resattnet56",
    "resdropresnet_cifar": "resdropresnet20_cifar10",
    "resnesta": "resnestabc14",
    "resnet": "resnet18_wd4",
    "resnet_cifar": "resnet20_cifar10",
    "resnet_cub": "resnet10_cub",
    "resneta": "resneta10",
    "resnetd": "resnetd50b",
    "resnext": "resnext14_32x2d",
    "resnext_cifar": "resnext20_32x2d_cifar10",
    "revnet": "revnet38",
    "rir_cifar": "rir_cifar10",
    "ror_cifar": "ror3_56_cifar10",
    "scnet": "scnet50",
    "segnet": "segnet_cityscapes",
    "selecsls": "selecsls42",
    "senet": "senet16",
    "sepreresnet": "sepreresnet10",
    "sepreresnet_cifar": "sepreresnet20_cifar10",
    "seresnet": "seresnet10",
    "seresnet_cifar": "seresnet20_cifar10",
    "seresnet_cub": "seresnet10_cub",
    "seresnext": "seresnext50_32x4d",
    "shakedropresnet_cifar": "shakedropresnet20_cifar10",
    "shakeshakeresnet_cifar": "shakeshakeresnet20_2x16d_cifar10",
    "sharesnet": "sharesnet18",
    "shufflenet": "shufflenet_g1_wd4",
    "shufflenetv2": "shufflenetv2_wd2",
    "shufflenetv2b": "shufflenetv2b_wd2",
    "simplepose_coco": "simplepose_resnet18_coco",
    "simpleposemobile_coco": "simplepose_mobile_mobilenetv3_small_w1_coco",
    "sinet": "sinet_cityscapes",
    "sknet": "sknet50",
    "sparsenet": "sparsenet121",
    "spnasnet": "spnasnet",
    "sqnet": "sqnet_cityscapes",
    "squeezenet": "squeezenet_v1_1",
    "squeezenext": "sqnxt23_w1",
    "superpointnet": "superpointnet",
    "tresnet": "tresnet_m",
    "unet": "unet_cityscapes",
    "vgg": "vgg11",
    "visemenet": "visemenet20",
    "voca": "voca8flame",
    "vovnet": "vovnet27s",
    "wrn": "wrn50_2",
    "wrn1bit_cifar": "wrn20_10_1bit_cifar10",
    "wrn_cifar": "wrn16_10_cifar10",
    "xception": "xception",
    "xdensenet": "xdensenet121_2",
    "xdensenet_cifar": "xdensenet40_2_k24_bc_cifar10",
    "zfnet": "zfnet",
}

# Pixels a side where it is not 224: as few as the network takes.
_PIXELS = {
    32: """
        alphapose_coco centernet cgnet contextnet dabnet danet densenet_cifar diapreresnet_cifar diaresnet_cifar
        dicenet edanet efficientnet efficientnetedge enet erfnet esnet espcnet fcn8sd fpenet fractalnet_cifar
        isqrtcovresnet linknet lwopenpose_cmupan msdnet_cifar10 nin_cifar preresnet_cifar prnet pyramidnet_cifar regnet
        resdropresnet_cifar resnesta resnet_cifar resneta resnetd resnext_cifar rir_cifar ror_cifar segnet
        sepreresnet_cifar seresnet_cifar shakedropresnet_cifar shakeshakeresnet_cifar simplepose_coco
        simpleposemobile_coco sqnet tresnet unet wrn1bit_cifar
        wrn_cifar xdensenet_cifar""",
    64: "ibppose_coco lednet bisenet deeplabv3 pspnet",
    128: "lffd scnet sinet icnet fastscnn",
    160: "msdnet",
    299: "inceptionresnetv1 inceptionresnetv2 inceptionv3 inceptionv4 xception",
    331: "pnasnet polynet",
    448: "ntsnet_cub",
}
_PIXELS_OF = {module: side for side, modules in _PIXELS.items() for module in modules.split()}

# What a constructor must be told: networks that fix their input's size, and speech networks that would import librosa.
_SETTINGS: dict[str, dict[str, Any]] = {
    **{
        module: {"in_size": (_PIXELS_OF[module],) * 2}
        for module in ("bisenet", "deeplabv3", "pspnet", "icnet", "fastscnn")
    },
    **{module: {"from_audio": False, "in_channels": 64} for module in ("jasper", "jasperdr", "quartznet")},
}


def _speech() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 64, 96), torch.tensor([96, 80])


# What a network takes that is not two colour pictures.
_INPUTS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "jasper": _speech,
    "jasperdr": _speech,
    "quartznet": _speech,
    "nvpattexp": lambda: (torch.randn(2, 8, 16, 29), torch.full((2,), 3)),
    "pfpcnet": lambda: (torch.randn(2, 1, 320, 240),),
    "raft": lambda: (torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128)),
    "superpointnet": lambda: (torch.randn(1, 1, 64, 64),),
    "visemenet": lambda: (torch.randn(34, 8, 195), torch.full((34, 76), 3)),
    "voca": lambda: (torch.randn(2, 1, 16, 29), torch.full((2,), 3)),
}

# Modules without a network of their own, or with one that cannot be built here.
_LEFT_OUT = {
    **dict.fromkeys(
        ("propainter", "propainter_ip", "propainter_rfc"), "imports torchvision, which has no build for this torch"
    ),
    **dict.fromkeys(
        ("propainter_stream", "propainter_ip_stream", "propainter_rfc_stream", "raft_stream"),
        "feeds another module's network with the frames of a video; it has none of its own",
    ),
}


def specimens() -> Iterator[Specimen]:
    """One network a module."""
    for module, constructor in FAMILIES.items():
        yield Specimen(
            name=f"pytorchcv {module}: {constructor}",
            package="pytorchcv",
            make=partial(_make, module, constructor),
            inputs=_INPUTS.get(module, partial(_pictures, _PIXELS_OF.get(module, 224))),
        )


def unlisted() -> dict[str, str]:
    """Modules of the installed pytorchcv of which no network is tried, with the reason."""
    if importlib.util.find_spec("pytorchcv") is None:
        return {}
    found = (
        one.name for one in pkgutil.iter_modules(importlib.import_module("pytorchcv.models").__path__) if not one.ispkg
    )
    return {name: _LEFT_OUT.get(name, "not in the list of FAMILIES") for name in found if name not in FAMILIES}


def _make(module: str, constructor: str) -> nn.Module:
    network = getattr(importlib.import_module(f"pytorchcv.models.{module}"), constructor)(**_SETTINGS.get(module, {}))
    if module == "nvpattexp":  # it leaves its decoder as it finds the memory, so that no two are the same
        nn.init.normal_(network.decoder.weight, std=0.1)
    return network


def _pictures(side: int) -> tuple[Tensor]:
    return (torch.randn(2, 3, side, side),)
