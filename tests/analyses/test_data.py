"""Where images come from, and what is said where they do not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets

from analyses import data
from analyses.data import DataError, Dataset, load, save
from bnprobe.errors import ArgumentError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path))
    load.cache_clear()
    yield tmp_path
    load.cache_clear()


def tiny(name: str = "tiny", **changes: Any) -> Dataset:
    generator = np.random.default_rng(0)
    fields = {
        "x_train": generator.integers(0, 256, (6, 1, 4, 4), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": generator.integers(0, 256, (3, 1, 4, 4), np.uint8),
        "y_test": np.array([0, 1, 2]),
        "classes": ("a", "b", "c"),
    }
    return Dataset(name, **{**fields, **changes}, source="made up")


def test_digits_is_split_alike_every_time_and_keeps_its_grey_levels() -> None:
    first = load("digits")
    load.cache_clear()
    assert load("digits").checksum == first.checksum
    assert first.x_train.shape == (1347, 1, 8, 8)
    assert first.x_test.shape == (450, 1, 8, 8)
    bundled = sklearn.datasets.load_digits().data
    back = np.concatenate([first.x_train, first.x_test]).reshape(-1, 64) * (16 / 255)
    assert np.array_equal(np.sort(np.round(back).sum(1)), np.sort(bundled.sum(1)))
    assert np.abs(back - np.round(back)).max() < 0.04


def test_digits_has_every_class_in_both_parts_alike() -> None:
    found = load("digits")
    shares = [np.bincount(y, minlength=10) / len(y) for y in (found.y_train, found.y_test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.005


def test_a_saved_data_set_comes_back(folder: Path) -> None:
    save(tiny(), folder / "tiny.npz")
    found = load("tiny")
    assert found.checksum == tiny().checksum
    assert found.classes == ("a", "b", "c")
    assert found.source == "file tiny.npz"
    assert load("tiny") is found
    assert [p.name for p in folder.iterdir()] == ["tiny.npz"]


def test_the_checksum_sees_one_pixel_and_one_label() -> None:
    pixels, labels = tiny().x_test.copy(), tiny().y_test.copy()
    pixels[0, 0, 0, 0] ^= 1
    labels[0] = 2
    assert len({tiny().checksum, tiny(x_test=pixels).checksum, tiny(y_test=labels).checksum}) == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_train": np.zeros((6, 1, 4, 4))}, r"x_train must be uint8 of shape \[N, C, H, W\]; got float64"),
        ({"x_test": np.zeros((3, 16), np.uint8)}, r"x_test must be uint8 .* got uint8 \(3, 16\)"),
        ({"y_test": np.zeros(4, np.int64)}, r"y_test must be \[N\] with N = 3; got \(4,\)"),
        ({"y_train": np.array([0, 1, 2, 3, 0, 1])}, r"y_train must be class numbers 0\.\.2; got 0\.\.3"),
    ],
)
def test_a_data_set_of_the_wrong_form_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        tiny(**changes)


def test_a_file_that_lacks_arrays_is_refused(folder: Path) -> None:
    np.savez(folder / "half.npz", x_train=tiny().x_train)
    with pytest.raises(DataError, match=r"half\.npz lacks classes, x_test, y_test, y_train; it has x_train"):
        load("half")


def test_a_file_that_is_no_archive_is_refused(folder: Path) -> None:
    (folder / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="can not be read as a NumPy archive"):
        load("text")


def test_a_pickle_inside_a_file_is_not_executed(folder: Path) -> None:
    np.savez(folder / "sly.npz", **{key: np.array([{}], object) for key in ("x_train", "y_train", "x_test", "y_test")},
             classes=np.array(["a"]))  # fmt: skip
    with pytest.raises(DataError, match="can not be read"):
        load("sly")


def test_a_path_is_no_name() -> None:
    with pytest.raises(ArgumentError, match=r"not a path; got '\.\./secret'"):
        load("../secret")


def test_an_unknown_name_says_where_to_put_the_file(folder: Path) -> None:
    with pytest.raises(DataError, match=f"no data set 'svhn'.*put svhn.npz into {folder}"):
        load("svhn")


def test_without_network_the_error_says_where_to_put_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", offline)
    with pytest.raises(DataError, match=f"download failed .*name resolution.*put mnist.npz into {folder}") as caught:
        load("mnist")
    assert data.FOLDER_VARIABLE in str(caught.value)
    assert not (folder / "mnist.npz").exists()


def stand_in(monkeypatch: pytest.MonkeyPatch, checksum: str) -> list[dict[str, Any]]:
    """Puts a tiny data set in OpenML's place; returns the calls."""
    calls: list[dict[str, Any]] = []
    source = tiny()

    def fetch(title: str, **options: Any) -> tuple[Any, Any]:
        calls.append({"title": title, **options})
        images = np.concatenate([source.x_train, source.x_test]).reshape(9, 16).astype(np.float64)
        return images, np.concatenate([source.y_train, source.y_test]).astype(str)

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    monkeypatch.setitem(data._REMOTE, "mnist", data._Remote("small", 1, (1, 4, 4), 6, checksum))
    return calls


def test_a_download_is_kept_and_not_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, tiny().checksum)
    assert load("mnist").checksum == tiny().checksum
    load.cache_clear()
    assert load("mnist").checksum == tiny().checksum
    assert len(calls) == 1
    assert calls[0]["title"] == "small"
    assert calls[0]["as_frame"] is False


def test_a_download_of_other_images_is_refused_and_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "0" * 64)
    with pytest.raises(DataError, match=r"downloaded mnist has checksum .* expected 000000000000"):
        load("mnist")
    assert not (folder / "mnist.npz").exists()


def test_without_a_folder_named_files_lie_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(data.FOLDER_VARIABLE)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert data.data_folder() == tmp_path / ".cache" / "bnprobe"
