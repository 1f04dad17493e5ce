"""The file of accepted findings: a JSON list of fingerprints such as ``N06 layer1.bn``."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnprobe.errors import ArgumentError

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis

__all__ = ["outdated", "read_baseline", "write_baseline"]


def read_baseline(path: str | os.PathLike[str]) -> list[str]:
    """The fingerprints in a file.

    Raises:
        ArgumentError: there is no such file, or it is something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"baseline {path} cannot be read: {error.strerror}; --write-baseline makes one") from error
    except ValueError as error:
        raise ArgumentError(f"baseline {path} is not JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ArgumentError(f'baseline {path} must be a JSON list of fingerprints such as "N06 layer1.bn"')
    return found


def write_baseline(diagnosis: "Diagnosis", path: str | os.PathLike[str]) -> None:
    """Accept all that a diagnosis has found, accepted before or not."""
    every = sorted({one.fingerprint for one in (*diagnosis.findings, *diagnosis.accepted)})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(every, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def outdated(diagnosis: "Diagnosis", fingerprints: Collection[str]) -> Sequence[str]:
    """Accepted findings of rules that judged which are not found any more: they may leave the file."""
    there = {one.fingerprint for one in (*diagnosis.findings, *diagnosis.accepted)}
    return [one for one in fingerprints if one not in there and one.partition(" ")[0] in diagnosis.asked]
