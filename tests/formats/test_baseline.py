"""The file of accepted findings."""

import pytest
from formats.handmade_diagnosis import diagnosis, finding

from bnprobe.errors import ArgumentError
from bnprobe.formats.baseline import outdated, read_baseline, write_baseline


def test_what_is_written_accepts_all_that_was_found(tmp_path):
    made = diagnosis(finding("層"), finding("", code="N01"))
    write_baseline(made, tmp_path / "new" / "base.json")
    known = read_baseline(tmp_path / "new" / "base.json")
    assert known == ["N01", "N11 層"]
    after = made.accept(known)
    assert after.ok
    assert len(after.accepted) == 2
    write_baseline(after, tmp_path / "again.json")
    assert read_baseline(tmp_path / "again.json") == known


def test_another_layer_is_another_finding():
    assert [one.layer for one in diagnosis(finding("a"), finding("b")).accept(["N11 a"]).findings] == ["b"]


def test_what_is_not_found_any_more_is_told_only_of_rules_that_judged():
    made = diagnosis(finding("a")).accept(["N11 a"])
    assert outdated(made, ["N11 a", "N11 gone", "N25 copy"]) == ["N11 gone"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ('{"a": 1}', "must be a JSON list"),
        ("[1]", "must be a JSON list"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "base.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArgumentError, match=message):
        read_baseline(path)
