"""Checks of a norm layer or a model without a test file: ``pytest --bnprobe-norm pkg.module:MyNorm``.

Neither torch nor hypothesis is imported until a check is asked for: pytest loads this file in every run.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

__all__ = ["LawItem", "Laws"]

_PROFILE = "--hypothesis-profile"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the group ``bnprobe``."""
    group = parser.getgroup("bnprobe", "laws of normalization")
    group.addoption(
        "--bnprobe-norm", action="append", default=[], metavar="PKG.MODULE:NAME",
        help="check this norm layer, a class or function: channels -> module; may be repeated",
    )  # fmt: skip
    group.addoption(
        "--bnprobe-like", default="batch_norm", metavar="KIND", help="whose laws it is to obey; default: batch_norm"
    )
    group.addoption(
        "--bnprobe-model", action="append", default=[], metavar="PKG.MODULE:NAME",
        help="check this model, a function: () -> module; may be repeated",
    )  # fmt: skip
    group.addoption(
        "--bnprobe-inputs", default=None, metavar="PKG.MODULE:NAME",
        help="what the models are fed: a hypothesis strategy or an input, or a function that returns one; "
        "default: Gaussian batches of the shape that the first layer wants",
    )  # fmt: skip
    group.addoption(
        "--bnprobe-expected-failure", action="append", default=[], metavar="LAW=REASON",
        help="a law that is known not to hold; the run fails once it does; may be repeated",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before hypothesis loads the profile
def pytest_configure(config: pytest.Config) -> None:
    """Make the marker ``bnprobe`` known, and the kit's profiles of hypothesis where one is asked for."""
    config.addinivalue_line(
        "markers", "bnprobe: a law of normalization, collected by --bnprobe-norm or --bnprobe-model"
    )
    if str(config.getoption(_PROFILE, default=None) or "").startswith("bnprobe"):
        import_module("bnprobe.testing.profiles")


@pytest.hookimpl(tryfirst=True)  # before -k and -m deselect
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add an item for each law of each layer and model that is asked for."""
    norms, models = config.getoption("--bnprobe-norm"), config.getoption("--bnprobe-model")
    if not norms and not models:
        return
    if (here := str(config.invocation_params.dir)) not in sys.path:
        sys.path.insert(0, here)  # as `python -m pytest` does
    try:
        from bnprobe.errors import BnprobeError
        from bnprobe.testing import checks_of, checks_of_models
        from bnprobe.testing.models import Model
        from bnprobe.testing.subject import Subject
    except ImportError as error:
        raise pytest.UsageError(str(error)) from error
    try:
        given = _expected(config.getoption("--bnprobe-expected-failure"))
        like = config.getoption("--bnprobe-like")
        pairs: list[tuple[str, Any, list[Any]]] = []
        for path in norms:
            subject = Subject(_named(path, "--bnprobe-norm"), like)
            pairs.append((path, subject, checks_of(like, expected_failures=_known(given, checks_of(like)))))
        for path in models:
            model = Model(_named(path, "--bnprobe-model"), _inputs(config.getoption("--bnprobe-inputs")))
            pairs.append((path, model, checks_of_models(expected_failures=_known(given, checks_of_models()))))
    except BnprobeError as error:
        raise pytest.UsageError(str(error)) from error
    known = {check.name for _, _, checks in pairs for check in checks}
    if wrong := sorted(set(given) - known):
        raise pytest.UsageError(
            f"--bnprobe-expected-failure: there is no law {wrong[0]!r} among those that are checked"
        )
    for path, subject, checks in pairs:
        parent = Laws.from_parent(session, name=path, nodeid=path)
        items.extend(LawItem.from_parent(parent, name=check.name, subject=subject, check=check) for check in checks)


class Laws(pytest.Collector):
    """The layer or model that is checked."""

    def collect(self) -> Iterator[pytest.Item]:
        """Nothing: its items are made beside it."""
        return iter(())


class LawItem(pytest.Item):
    """One law of one layer or model."""

    def __init__(self, *, subject: Any, check: Any, **others: Any) -> None:
        super().__init__(**others)
        self._subject, self._check = subject, check
        self.add_marker("bnprobe")

    def runtest(self) -> None:
        """Check it."""
        self._check(self._subject)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> Any:
        """The message alone where a law is broken: the traceback would lead through the kit."""
        from bnprobe.errors import BnprobeError

        if isinstance(excinfo.value, BnprobeError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Layer and law."""
        return self.config.rootpath, None, self.nodeid


def _expected(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, separator, reason = text.partition("=")
        if not separator or not name.strip() or not reason.strip():
            raise pytest.UsageError(f"--bnprobe-expected-failure must be LAW=REASON; got {text!r}")
        found[name.strip()] = reason.strip()
    return found


def _known(expected: dict[str, str], checks: list[Any]) -> dict[str, str]:
    names = {check.name for check in checks}
    return {name: reason for name, reason in expected.items() if name in names}


def _inputs(path: str | None) -> Any:
    if path is None:
        return None
    from hypothesis.strategies import SearchStrategy

    found = _named(path, "--bnprobe-inputs")
    return found() if callable(found) and not isinstance(found, SearchStrategy) else found


def _named(path: str, option: str) -> Any:
    """What stands at ``pkg.module:name``."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise pytest.UsageError(f"{option}: {path!r} is not of the form pkg.module:name")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # something that the module itself needs
        raise pytest.UsageError(f"{option}: there is no module {module!r} from here") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise pytest.UsageError(f"{option}: {module} has no {name!r}")
        found = getattr(found, part)
    return found
