"""Images to train on, by name: bundled, from a folder, or downloaded once.

``digits`` comes with scikit-learn. Any other name is ``<name>.npz`` in the folder that the environment variable
``BNPROBE_DATA`` names, with the arrays

===================  =====================================================
``x_train, x_test``  images, uint8 ``[N, C, H, W]``
``y_train, y_test``  class numbers, integers ``[N]``
``classes``          their names, strings ``[K]``
===================  =====================================================

``mnist`` is downloaded from OpenML where the file is not there, checked against the checksum of the published images,
and kept as such a file.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bnprobe.errors import ArgumentError, BnprobeError

__all__ = ["FOLDER_VARIABLE", "DataError", "Dataset", "data_folder", "load", "save"]

FOLDER_VARIABLE = "BNPROBE_DATA"
_ARRAYS = ("x_train", "y_train", "x_test", "y_test", "classes")


class DataError(BnprobeError):
    """A data set can not be had; the message says where to put it."""


@dataclass(frozen=True)
class Dataset:
    """Images with class labels, in a training and a test part.

    Attributes:
        name: as in ``load``.
        x_train: ``[N, C, H, W]`` uint8.
        y_train: ``[N]`` int64 class numbers.
        x_test: as ``x_train``.
        y_test: as ``y_train``.
        classes: name of each class number.
        source: where the images come from, for the report.
    """

    name: str
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if images.dtype != np.uint8 or images.ndim != 4:
                raise DataError(
                    f"{self.name}: x_{part} must be uint8 of shape [N, C, H, W]; got {images.dtype} {images.shape}"
                )
            if labels.shape != images.shape[:1]:
                raise DataError(f"{self.name}: y_{part} must be [N] with N = {len(images)}; got {labels.shape}")
            if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise DataError(
                    f"{self.name}: y_{part} must be class numbers 0..{len(self.classes) - 1}; "
                    f"got {labels.min()}..{labels.max()}"
                )

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over images and labels: two data sets with the same one are the same."""
        digest = hashlib.sha256()
        for part in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(str(part.shape).encode())
            digest.update(np.ascontiguousarray(part.astype(np.uint8)).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class _Remote:
    """A data set of OpenML: the first ``train`` rows are the training part."""

    title: str
    version: int
    shape: tuple[int, int, int]
    train: int
    checksum: str


_REMOTE = {
    "mnist": _Remote(
        "mnist_784", 1, (1, 28, 28), 60_000, "7ea4b60ae284dd6359a4172ef4aae04c62afcbff9a2216f9d9dcef92d9e6e65a"
    ),
}


def data_folder() -> Path:
    """The folder of data files: ``BNPROBE_DATA``, else ``~/.cache/bnprobe``."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "bnprobe"


@lru_cache(maxsize=2)
def load(name: str) -> Dataset:
    """The data set of this name; a second call in the same process returns the same object.

    Raises:
        ArgumentError: ``name`` is no plain name.
        DataError: there is no such data set here and none could be downloaded; the message says where to put it.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ArgumentError(f"data must be a name such as digits or mnist, not a path; got {name!r}")
    if name == "digits":
        return _digits()
    path = data_folder() / f"{name}.npz"
    if not path.exists():
        save(_download(name, path), path)
    return _read(name, path)


def save(data: Dataset, path: Path) -> None:
    """Write a data set as ``load`` reads it; the file appears under its name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            arrays: dict[str, Any] = {key: np.asarray(getattr(data, key)) for key in _ARRAYS}
            np.savez_compressed(file, **arrays)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    # The bundled images have 17 grey levels, 0..16; stretched to 0..255 they are like any other data set's.
    pixels = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    # scikit-learn's customary quarter for testing. The seed is fixed: the split belongs to the data, not to a trial.
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, labels.astype(np.int64), test_size=0.25, random_state=0, stratify=labels
    )
    return Dataset(
        "digits", x_train, y_train, x_test, y_test, tuple("0123456789"), "scikit-learn load_digits, seeded 3:1 split"
    )


def _read(name: str, path: Path) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = sorted(set(_ARRAYS) - set(file.files))
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(file.files))}")
            arrays: dict[str, NDArray[Any]] = {key: file[key] for key in _ARRAYS}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can not be read as a NumPy archive: {error}") from error
    return Dataset(
        name,
        arrays["x_train"],
        arrays["y_train"].astype(np.int64),
        arrays["x_test"],
        arrays["y_test"].astype(np.int64),
        tuple(map(str, arrays["classes"])),
        f"file {path.name}",
    )


def _download(name: str, path: Path) -> Dataset:
    """From OpenML.

    Raises:
        DataError: unknown name, no network, or images that are not the published ones.
    """
    advice = f"put {path.name} into {path.parent}, or set {FOLDER_VARIABLE} to the folder that holds it"
    if name not in _REMOTE:
        raise DataError(
            f"no data set {name!r}: digits is bundled, {', '.join(_REMOTE)} can be downloaded; else {advice}"
        )
    remote = _REMOTE[name]
    try:
        images, labels = _fetch(name, remote, path.parent)
    except (OSError, URLError) as error:
        raise DataError(f"{name} is not on this machine and the download failed ({error}); {advice}") from error
    pixels = np.asarray(images).astype(np.uint8).reshape(-1, *remote.shape)
    numbers = np.asarray(labels).astype(np.int64)
    classes = tuple(map(str, range(numbers.max() + 1)))
    k = remote.train
    data = Dataset(name, pixels[:k], numbers[:k], pixels[k:], numbers[k:], classes, f"OpenML {remote.title}")
    if data.checksum != remote.checksum:
        raise DataError(
            f"the downloaded {name} has checksum {data.checksum[:12]}..., expected {remote.checksum[:12]}...; {advice}"
        )
    return data


def _fetch(name: str, remote: _Remote, folder: Path) -> tuple[Any, Any]:
    from sklearn.datasets import fetch_openml

    cache = folder / "openml"
    with _growth(cache, f"download {name}"):
        return fetch_openml(  # type: ignore[no-any-return]  # scikit-learn has no types
            remote.title, version=remote.version, data_home=str(cache), as_frame=False, return_X_y=True, parser="auto"
        )


@contextmanager
def _growth(folder: Path, label: str) -> Iterator[None]:
    """A progress bar of the bytes that have arrived in a folder: scikit-learn itself tells nothing on the way."""
    done = threading.Event()

    def size() -> int:
        return sum(file.stat().st_size for file in list(folder.rglob("*")) if file.is_file())

    def watch() -> None:
        with tqdm(desc=label, unit="B", unit_scale=True, disable=None) as bar:
            while not done.wait(0.3):
                try:
                    bar.update(size() - bar.n)
                except FileNotFoundError:  # a file was moved between listing and asking
                    continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
