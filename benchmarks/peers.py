"""Other tools that watch layers, one adapter each; every one is optional and imported when it is first used.

They record different things, most of them less than the probe: each adapter's docstring says what. All are told to
record at every step, on the layers that the probe listens to by default as far as they take them.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arms import Arm, default_layers, first_tensor

__all__ = ["PEERS"]


class Delve(Arm):
    """Layer saturation: covariances of the features of Conv2d and Linear layers, their spectra once a block."""

    name = requires = "delve"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        from delve import SaturationTracker

        super().__init__(model, optimizer)
        logging.getLogger("delve.logger").setLevel(logging.WARNING)
        self._directory = tempfile.mkdtemp()
        # It writes attributes and hooks onto the layers and takes none off again.
        self._before = [(one, dict(vars(one)), dict(one._forward_hooks)) for one in model.modules()]
        device = next(model.parameters()).device
        self._tracker = SaturationTracker(self._directory, save_to="csv", modules=model, device=device)

    def finish(self) -> None:
        self._tracker.add_saturations()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._tracker.close()
        for module, attributes, hooks in self._before:
            for name in vars(module).keys() - attributes.keys():
                delattr(module, name)
            for identity in module._forward_hooks.keys() - hooks.keys():
                del module._forward_hooks[identity]
        shutil.rmtree(self._directory, ignore_errors=True)


class TorchInstruments(Arm):
    """Mean, standard deviation, extremes, quartiles and shares of outputs and their gradients, and histograms."""

    name = requires = "torchinstruments"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        import torchinstruments

        super().__init__(model, optimizer)
        self._directory, layers = tempfile.mkdtemp(), set(default_layers(model))
        torchinstruments.inject_observer(
            model,
            sampler=torchinstruments.AlwaysSampler(),
            selector=lambda name, _module: name in layers,
            output_dir=self._directory,
        )

    def close(self) -> None:
        import torchinstruments

        torchinstruments.remove_observer(self.model)
        shutil.rmtree(self._directory, ignore_errors=True)


_INSPECT_CONFIG = """
every_layer:
  enabled: True
  layers:
    layer_name_regex_pattern: .*
  LogTensorStats:
    enabled: True
    tensors_struct:
      - tensor: activation
        stats: [mean, std, min, max]
        freq: 1
"""


class NvdlfwInspect(Arm):
    """Mean, standard deviation, minimum and maximum of outputs, handed to it by our hooks: it has none of its own."""

    name = requires = "nvdlfw_inspect"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        import nvdlfw_inspect.api as api

        super().__init__(model, optimizer)
        self._api, self._directory = api, Path(tempfile.mkdtemp())
        config = self._directory / "config.yaml"
        config.write_text(_INSPECT_CONFIG)
        os.environ.setdefault("NVDLFW_INSPECT_LOG_LEVEL", "ERROR")
        api.initialize(config_file=str(config), log_dir=str(self._directory), default_logging_enabled=True)
        self._handles = [
            layer.register_forward_hook(lambda _module, _args, output, name=name: self._saw(name, output))
            for name, layer in default_layers(model).items()
        ]

    def _saw(self, name: str, output: Any) -> None:
        with torch.no_grad():
            tensor = first_tensor(output).detach()
            self._api.log_tensor_stats(name, tensor=tensor, tensor_name="activation", skip_reduction=True)

    def step(self) -> None:
        self._api.step()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._api.end_debug()
        shutil.rmtree(self._directory, ignore_errors=True)


class TorchLens(Arm):
    """Copies of the outputs of all operations of the forward, no statistics; by ``record``, lighter than ``trace``."""

    name = requires = "torchlens"

    def forward(self, x: Tensor) -> Tensor:
        import torchlens

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output, self.recording = torchlens.record(self.model, x, default_op=True, return_output=True)
        return output

    def close(self) -> None:
        from torchlens.backends.torch.wrappers import unwrap_torch

        unwrap_torch()  # else torch's functions stay wrapped, and the others pay for it


PEERS: tuple[type[Arm], ...] = (Delve, TorchInstruments, NvdlfwInspect, TorchLens)
