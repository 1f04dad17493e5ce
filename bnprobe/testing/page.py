"""The page of all laws, generated from their docstrings: ``python -m bnprobe.testing.page --write``."""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnprobe.testing.models import MODEL_LAWS
from bnprobe.testing.pitfalls import PITFALLS
from bnprobe.testing.properties import LAWS, Law
from bnprobe.testing.typical_bugs import TYPICAL_BUGS

__all__ = ["main", "page"]

_HEAD = """# Properties

What the test kit checks, law by law. Generated from the docstrings by `python -m bnprobe.testing.page --write`; do not
edit it here.

- [Layers](#layers): `check_norm_layer`, `norm_layer_checks`, `pytest --bnprobe-norm pkg.module:MyNorm`
- [Models](#models): `check_model`, `model_checks`, `pytest --bnprobe-model pkg.module:make_model`
- [Pitfalls](#pitfalls): `bnprobe.testing.pitfalls`
- [Layers of other packages](third_party_layers.md), and what they break
"""
_LAYERS = """## Layers

Each is a function of `bnprobe.testing.properties`, put by hypothesis to layers of the kinds that are named.
"""
_MODELS = """## Models

Each is a function of `bnprobe.testing.models`, put by hypothesis to a model and its inputs.
"""
_PITFALLS = """## Pitfalls

Each is a function of `bnprobe.testing.pitfalls`, of a layer factory or of a loader. They are statistical: a sound one
fails by chance with probability 1e-8 at most, unless `rate=` says otherwise.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD, _LAYERS, *(_of_law(one, _kinds(one)) for one in LAWS.values())]
    parts += [_MODELS, *(_of_law(one, "") for one in MODEL_LAWS.values())]
    parts += [_PITFALLS, *(_entry(one.name, one.check, f"Of a {one.about}.") for one in PITFALLS.values())]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page, or write it.

    Args:
        arguments: of the command line; default those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m bnprobe.testing.page", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--write", nargs="?", const="docs/properties.md", metavar="FILE", help="default: %(const)s")
    target = parser.parse_args(arguments).write
    if target is None:
        sys.stdout.write(page())
    else:
        Path(target).write_text(page(), encoding="utf-8")


def _of_law(law: Law, kinds: str) -> str:
    needs = f" Where the layer has {' and '.join(law.needs)}." if law.needs else ""
    return _entry(law.name, law.check, kinds + needs)


def _kinds(law: Law) -> str:
    return f"Of {', '.join(like.replace('_', ' ') for like in law.likes)}."


def _entry(name: str, function: Callable[..., Any], about: str) -> str:
    """One law: statement, what it is about, what it means, the typical bug."""
    text = (inspect.getdoc(function) or "").split("\nArgs:")[0]
    paragraphs = [_plain(" ".join(one.split())) for one in text.split("\n\n") if one.strip()]
    body = " \n".join(paragraphs[1:])
    found = re.search(r"Broken by .*?(?:\.(?=\s)|\.$)", body, re.DOTALL)
    bug = found.group(0).removeprefix("Broken by ") if found else TYPICAL_BUGS.get(name, "")
    rest = body.replace(found.group(0), "") if found else body
    lines = [f"### {name}\n", f"**{paragraphs[0]}**" + (f" {about}" if about else "") + "\n"]
    lines += [f"{' '.join(one.split())}\n" for one in rest.split(" \n") if one.strip()]
    if bug:
        lines.append(f"*Typical bug:* broken by {bug}\n")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Roles and mathematics of Sphinx as Markdown."""
    text = re.sub(r":(?:func|class|meth|data):`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r"\.\. math:: ?", "", text)
    return text.replace("``", "`")


if __name__ == "__main__":
    main()
