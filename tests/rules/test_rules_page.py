"""The page of all rules is the one that their texts give."""

import json
from pathlib import Path

from bnprobe.rules import rules
from bnprobe.rules.page import as_json, entry, main, page, plain

DOCS = Path(__file__).parents[2] / "docs" / "rules.md"


def test_rules_page_is_current():
    assert DOCS.read_text() == page(), "run: python -m bnprobe.rules.page --write"


def test_every_rule_is_on_it_with_its_parts():
    for rule in rules().values():
        text, terminal = entry(rule), plain(rule)
        assert f"](#{rule.code.lower()}-{rule.name}) {rule.title}" in page()
        assert text.count("```") == 6
        for part in (rule.remedy.strip(), rule.sick.strip(), rule.healthy.strip(), *rule.references):
            assert part in text
        words = " ".join(terminal.split())
        for part in (rule.title, rule.harm, rule.shows, *rule.references):
            assert " ".join(part.split()) in words
        prose = terminal.partition("What to do")[0]
        assert max(map(len, prose.splitlines())) <= 100


def test_thresholds_are_told_with_where_they_come_from():
    assert "- `channels` = 0.1: of the catalogue" in entry(rules()["N02"])


def test_written_printed_and_as_objects(tmp_path, capsys):
    main(["--write", str(tmp_path / "page.md")])
    main([])
    assert (tmp_path / "page.md").read_text() == capsys.readouterr().out == page()
    assert [one["code"] for one in json.loads(as_json(rules().values()))] == list(rules())
