"""Which layer's output is used by one batch norm and by nothing else."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.tensors import tensors_in

__all__ = ["Pairs", "Weighted", "pairs_seen", "pairs_traced"]

Weighted: TypeAlias = _ConvNd | nn.Linear
Pairs: TypeAlias = list[tuple[Weighted, _BatchNorm]]
# What is asked of a tensor without reading its values.
_ASKED = {"__get__", "size", "dim", "ndimension", "numel", "nelement", "__len__", "stride", "is_contiguous", "data_ptr"}


def pairs_seen(root: nn.Module, run: Callable[[], Any]) -> Pairs:
    """Pairs of a layer and the batch norm that it feeds, in the forward that ``run`` does.

    Layers are known by their weights and running means among a function's arguments, so that no hook is needed.
    """
    weighted = {id(one.weight): one for one in root.modules() if isinstance(one, _ConvNd | nn.Linear)}
    norms = {id(one.running_mean): one for one in root.modules() if isinstance(one, _BatchNorm) and _keeps(one)}
    uses = _Uses({**weighted, **norms})
    with uses:
        output = run()
    uses.note([output], None)
    return uses.pairs()


def pairs_traced(root: nn.Module) -> Pairs:
    """Pairs of a convolution and the batch norm that it feeds, in the code as ``torch.fx`` reads it.

    Raises:
        NotMeasuredError: it cannot read it.
    """
    try:
        graph = _Tracer().trace(root)
    except Exception as error:  # whatever the user's code does with what is no tensor
        raise NotMeasuredError(
            f"torch.fx cannot follow {type(root).__name__} ({type(error).__name__}: {error}); "
            "batch= shows what feeds what"
        ) from error
    layers = {node: root.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    calls = Counter(id(layer) for layer in layers.values())
    pairs: Pairs = []
    for node, after in layers.items():
        maker = node.args[0] if node.args else None
        before = layers.get(maker) if isinstance(maker, fx.Node) else None
        if not (isinstance(maker, fx.Node) and isinstance(after, _BatchNorm) and isinstance(before, _ConvNd)):
            continue
        once = calls[id(before)] == calls[id(after)] == len(maker.users) == 1
        if once and not _read_elsewhere(graph, root, (before, after)):
            pairs.append((before, after))
    return pairs


class _Tracer(fx.Tracer):
    """Layers stay whole, subclasses of PyTorch's as well, and what the code reads of their tensors is in the graph."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        return isinstance(m, _ConvNd | nn.Linear | _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


class _Uses(TorchFunctionMode):
    """Follows what becomes of the outputs of layers.

    Args:
        layers: by ``id`` of a tensor that only calls of this layer get.
    """

    def __init__(self, layers: dict[int, nn.Module]) -> None:
        super().__init__()
        self._layers = layers
        self._calls: Counter[int] = Counter()
        self._made: dict[int, tuple[Tensor, nn.Module]] = {}  # the tensors are kept, so that no other has their id
        self._readers: dict[int, list[nn.Module | None]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """One function, done as it is."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        given = [one for _, one in tensors_in([args, kwargs])]
        layer = next((self._layers[id(one)] for one in given if id(one) in self._layers), None)
        asked = getattr(func, "__name__", "") in _ASKED and not isinstance(output, Tensor)
        if not asked:
            self.note(given, layer)
        if layer is not None and isinstance(output, Tensor):
            self._calls[id(layer)] += 1
            self._made[id(output)] = output, layer
        return output

    def note(self, given: Any, reader: nn.Module | None) -> None:
        """Somebody reads tensors."""
        for _, one in tensors_in(given):
            if id(one) in self._made:
                self._readers.setdefault(id(self._made[id(one)][1]), []).append(reader)

    def pairs(self) -> Pairs:
        """Layers that are called once, and whose output one batch norm reads that is called once, and nothing else."""
        found: Pairs = []
        for output, before in self._made.values():
            readers = self._readers.get(id(before), [])
            after = readers[0] if len(readers) == 1 else None
            once = self._calls[id(before)] == 1 and self._calls[id(after)] == 1
            if not (once and isinstance(after, _BatchNorm) and isinstance(before, Weighted)):
                continue
            if isinstance(before, _ConvNd) or output.dim() == 2:  # else its channels are not those of batch norm
                found.append((before, after))
        return found


def _keeps(layer: _BatchNorm) -> bool:
    return isinstance(layer.running_mean, Tensor)


def _read_elsewhere(graph: fx.Graph, root: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether the code reads a tensor of these layers besides calling them."""
    own = {id(one) for layer in layers for one in (*layer.parameters(), *layer.buffers())}
    return any(id(_attribute(root, str(node.target))) in own for node in graph.nodes if node.op == "get_attr")


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part, None)
    return value
