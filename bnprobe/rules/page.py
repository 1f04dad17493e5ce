"""The page of all rules, generated from their texts: ``python -m bnprobe.rules.page --write``."""

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from textwrap import fill, indent

from bnprobe.rules import Rule, rules

__all__ = ["as_json", "entry", "main", "page", "plain"]

_HEAD = """# Rules

What `bnprobe.diagnose` looks for, rule by rule: `bnprobe explain N02` shows one of them. Generated from the rules'
texts by `python -m bnprobe.rules.page --write`; do not edit it here.

A finding is an error or a warning only where it is no accident (its p-value is controlled over all layers and rules
together, or it is exact), is large, and costs loss or changes outputs; else it is information.
"""
_IN = "    "
_COMMENTED = re.compile(r"^ {4}(\w+): [^=\n]+= [^#\n]+# *(.+)$", re.MULTILINE)


def page() -> str:
    """The page, in Markdown."""
    contents = "\n".join(f"- [{one.code}](#{_anchor(one)}) {one.title}" for one in rules().values())
    return "\n".join([_HEAD, contents + "\n", *map(entry, rules().values())])


def entry(rule: Rule) -> str:
    """One rule: what it finds, why it hurts, how it shows, what to do, thresholds, examples, where to read."""
    lines = [f"## {rule.code} {rule.name}\n", f"**{rule.title}**\n", f"{rule.harm}\n"]
    lines += [f"*Shows as:* {rule.shows}\n", "*What to do:*\n", f"```python\n{rule.remedy.strip()}\n```\n"]
    lines += ["*Sick:*\n", f"```python\n{rule.sick.strip()}\n```\n"]
    lines += ["*Healthy:*\n", f"```python\n{rule.healthy.strip()}\n```\n"]
    lines += [f"*Needs:* {', '.join(rule.needs)}\n"] if rule.needs else []
    if rule.follows_from:
        lines.append(f"*Only information where one of these explains it:* {', '.join(rule.follows_from)}\n")
    thresholds = _thresholds(rule)
    if thresholds:
        lines += ["*Thresholds:*\n", "\n".join(thresholds) + "\n"]
    if rule.references:
        lines += ["*Read:*\n", "\n".join(f"- {one}" for one in rule.references) + "\n"]
    return "\n".join(lines)


def plain(rule: Rule) -> str:
    """The same for a terminal."""
    parts = [
        f"{rule.code} {rule.name}\n{_wrapped(rule.title)}",
        _wrapped(rule.harm),
        f"Shows as\n{_wrapped(rule.shows)}",
        f"What to do\n{indent(rule.remedy.strip(), _IN)}",
        f"Sick\n{indent(rule.sick.strip(), _IN)}",
        f"Healthy\n{indent(rule.healthy.strip(), _IN)}",
    ]
    parts += [f"Needs\n{_wrapped(', '.join(rule.needs))}"] if rule.needs else []
    parts += (
        [f"Only information where one of these explains it\n{_IN}{', '.join(rule.follows_from)}"]
        if rule.follows_from
        else []
    )
    thresholds = "\n".join(_wrapped(one.replace("`", ""), "  ") for one in _thresholds(rule))
    parts += [f"Thresholds\n{thresholds}"] if thresholds else []
    parts += ["Read\n" + "\n".join(_wrapped(f"- {one}", "  ") for one in rule.references)] if rule.references else []
    return "\n\n".join(parts)


def _wrapped(text: str, further: str = "") -> str:
    words, ahead = " ".join(text.split()), _IN + further
    return fill(words, 100, initial_indent=_IN, subsequent_indent=ahead, break_long_words=False, break_on_hyphens=False)


def as_json(some: Iterable[Rule]) -> str:
    """An object a rule."""
    texts = [
        "code",
        "name",
        "title",
        "harm",
        "shows",
        "remedy",
        "references",
        "needs",
        "follows_from",
        "sick",
        "healthy",
    ]
    rows = [{text: getattr(rule, text) for text in texts} for rule in some]
    return json.dumps(rows, indent=2, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page, or write it.

    Args:
        arguments: of the command line; default those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m bnprobe.rules.page", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--write", nargs="?", const="docs/rules.md", metavar="FILE", help="default: %(const)s")
    target = parser.parse_args(arguments).write
    if target is None:
        sys.stdout.write(page())
    else:
        Path(target).write_text(page(), encoding="utf-8")


def _thresholds(rule: Rule) -> list[str]:
    """Names and values of a rule's fields, and where the source says that they come from."""
    comments = dict(_COMMENTED.findall(inspect.getsource(type(rule))))
    return [
        f"- `{one.name}` = {getattr(rule, one.name)}" + (f": {comments[one.name]}" if one.name in comments else "")
        for one in fields(rule)  # type: ignore[arg-type]  # every rule is a dataclass
    ]


def _anchor(rule: Rule) -> str:
    return f"{rule.code} {rule.name}".lower().replace(" ", "-")


if __name__ == "__main__":
    main()
