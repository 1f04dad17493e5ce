"""The README's table "Works under", made from the tests: ``python -m tests.works_under.table --write``.

A test that carries ``@pytest.mark.works_under("what", group="...")`` is a row; ``verdict=`` says what comes of it where
that is not "observed". The markers are read from the source, so that nothing has to run or to be installed.
"""

import argparse
import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- works under: begin -->", "<!-- works under: end -->"
OBSERVED = "observed"


class Row(NamedTuple):
    group: str
    what: str
    verdict: str
    file: str


def rows(folder=ROOT / "tests"):
    """Every marker of every test file, in the order of files and lines."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            file = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
            found += [row for decorator in function.decorator_list for row in _marked(decorator, file)]
    return found


def _marked(decorator, file):
    """Markers in a decorator, those on the parameters of a ``parametrize`` included."""
    for node in ast.walk(decorator):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "works_under":
            if len(node.args) != 1 or {word.arg for word in node.keywords} - {"group", "verdict"}:
                raise ValueError(f"{file}:{node.lineno}: works_under takes what, group and verdict")
            words = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
            yield Row(words["group"], ast.literal_eval(node.args[0]), words.get("verdict", OBSERVED), file)


def table(found):
    """Markdown: a line a group and verdict."""
    lines: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for row in found:
        whats, files = lines.setdefault((row.group, row.verdict), ([], []))
        whats.extend([] if row.what in whats else [row.what])
        files.extend([] if row.file in files else [row.file])
    order = list(dict.fromkeys(group for group, _ in lines))
    body = [
        f"| {group} | {'; '.join(whats)} | {verdict} | {', '.join(f'`{file}`' for file in files)} |"
        for group in order
        for (its, verdict), (whats, files) in lines.items()
        if its == group
    ]
    return "\n".join(["| | what | verdict | test |", "|---|---|---|---|", *body])


def written(readme, found):
    """The README with the table of today between its markers."""
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.S)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"the README must hold {BEGIN} and {END} once")
    return pattern.sub(lambda _: f"{BEGIN}\n{table(found)}\n{END}", readme)


def main():
    parser = argparse.ArgumentParser(description="Make the README's table of what the probe works under.")
    parser.add_argument("--write", action="store_true", help="write it into README.md instead of printing it")
    if parser.parse_args().write:
        README.write_text(written(README.read_text(), rows()))
    else:
        print(table(rows()))


if __name__ == "__main__":
    main()
