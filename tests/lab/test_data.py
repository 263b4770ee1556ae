"""The shipped digits are MNIST's, split once for ever; a file that is anything else is refused with the way out."""

import gzip
import hashlib
import zipfile

import numpy as np
import pytest
import torch

from inflib.lab import mnist, mnist_5k, mnist_full, normalise
from inflib.lab.data import FOLDER, MNIST_5K_SHA256, content_sha256

FILE = FOLDER / "mnist_5k.npz"


def arrays_of(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


# --- what is in the file ---------------------------------------------------------------------------------------


def test_the_file_is_small_and_its_dates_are_fixed():
    assert FILE.stat().st_size < 1_000_000
    with zipfile.ZipFile(FILE) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_readme_states_the_hashes_of_file_and_contents():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in readme
    assert MNIST_5K_SHA256 in readme


def test_train_and_queries_are_balanced_and_share_no_image(digits):
    assert torch.bincount(digits.train.labels).tolist() == [450] * 10
    assert torch.bincount(digits.queries.labels).tolist() == [50] * 10
    assert not set(digits.train.index) & set(digits.queries.index)
    assert not {i.tobytes() for i in digits.train.images} & {i.tobytes() for i in digits.queries.images}


def test_digits_come_in_the_order_of_mnist_each_once(digits):
    for part in (digits.train, digits.queries):
        assert (np.diff(part.index) > 0).all()
        assert part.index[0] >= 0
        assert part.index[-1] < 60_000


def test_every_image_is_the_canonical_training_set_image_at_its_index(digits, full_mnist):
    images = gzip.decompress((full_mnist / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((full_mnist / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    for part in (digits.train, digits.queries):
        for image, label, at in zip(part.images, part.labels.tolist(), part.index.tolist(), strict=True):
            assert images[784 * at : 784 * (at + 1)] == image.tobytes()
            assert labels[at] == label


def test_inputs_are_the_images_scaled_to_minus_one_and_one(digits):
    part = digits.queries
    assert part.inputs.shape == (500, 784)
    assert part.inputs.dtype == torch.float32
    expected = part.images.reshape(500, 784).astype(np.float64) / 127.5 - 1
    assert np.abs(part.inputs.numpy() - expected).max() < 1e-7
    assert normalise(np.array([[[0, 255]]], np.uint8)).tolist() == [[-1, 1]]


# --- all of MNIST ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(full_mnist):
    """mnist_full(), from wherever it is at hand."""
    return mnist_full()


def test_all_of_mnist_is_60000_and_10000_digits_in_its_own_order(everything, full_mnist):
    assert (len(everything.train), len(everything.queries)) == (60_000, 10_000)
    for part, name in ((everything.train, "train"), (everything.queries, "t10k")):
        labels = gzip.decompress((full_mnist / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
        images = gzip.decompress((full_mnist / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
        assert bytes(part.labels.tolist()) == labels
        assert part.images.tobytes() == images
        assert part.index.tolist() == list(range(len(part)))
        assert torch.equal(part.inputs[-100:], normalise(part.images[-100:]))


def test_every_shipped_image_is_the_full_sets_at_its_index(digits, everything):
    for part in (digits.train, digits.queries):
        same = everything.train[part.index]
        assert np.array_equal(same.images, part.images)
        assert torch.equal(same.labels, part.labels)
        assert torch.equal(same.inputs, part.inputs)


def test_the_scale_names_the_set(digits, full_mnist):
    assert np.array_equal(mnist().train.index, digits.train.index)
    assert len(mnist("full").queries) == 10_000
    with pytest.raises(ValueError, match=r"scale='large'; expected one of small, full"):
        mnist("large")


# --- using the digits ------------------------------------------------------------------------------------------


def test_the_file_is_found_from_any_working_directory(tmp_path, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(mnist_5k().queries.index, digits.queries.index)


def test_batches_are_all_digits_in_order_with_a_smaller_last_one(digits):
    batches = digits.queries.batches(150, dtype=torch.float64)
    assert [len(targets) for _, targets in batches] == [150, 150, 150, 50]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), digits.queries.inputs.double())
    assert torch.equal(torch.cat([targets for _, targets in batches]), digits.queries.labels)
    assert batches[0][1].dtype == torch.int64


@pytest.mark.parametrize(
    "rows", [slice(3, 8), [3, 4, 5, 6, 7], torch.arange(3, 8), np.isin(np.arange(500), range(3, 8))]
)
def test_chosen_rows_stay_together(digits, rows):
    part = digits.queries[rows]
    assert len(part) == 5
    assert np.array_equal(part.index, digits.queries.index[3:8])
    assert np.array_equal(part.images, digits.queries.images[3:8])
    assert torch.equal(part.inputs, normalise(part.images))
    assert torch.equal(part.labels, digits.queries.labels[3:8])


def test_one_row_number_gives_digits_of_length_one(digits):
    assert digits.queries[torch.tensor(7)].index.tolist() == [digits.queries.index[7]]


def test_digits_show_their_size_and_classes_instead_of_their_pixels(digits):
    assert repr(digits.queries) == f"Digits(500 images; of classes 0 to 9: {', '.join(['50'] * 10)})"


# --- a file that is not it -------------------------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz is missing.*git checkout.*build_mnist_5k\.py"):
        mnist_5k(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pixels"])
def test_a_damaged_file_is_refused_with_the_way_to_restore_it(tmp_path, damage):
    whole = FILE.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path = tmp_path / "mnist_5k.npz"
    path.write_bytes({"cut": whole[:middle], "empty": b"", "text": b"version https", "pixels": flipped}[damage])
    with pytest.raises(ValueError, match=r"mnist_5k\.npz cannot be read.*bytes came.*git checkout data/mnist_5k\.npz"):
        mnist_5k(path)


def test_no_single_changed_byte_changes_the_digits_unnoticed(tmp_path, digits):
    whole, path = FILE.read_bytes(), tmp_path / "mnist_5k.npz"
    heads = [whole.index(b"PK\x01\x02") + k for k in range(46)]  # the archive's table of contents
    refused = 0
    for at in [*range(0, 60, 3), *heads[::3], len(whole) - 10]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        try:
            read = mnist_5k(path)
        except ValueError:
            refused += 1
        else:  # the byte was a date or a comment
            assert np.array_equal(read.train.images, digits.train.images)
    assert refused > 10


@pytest.mark.parametrize("name", ["images", "labels", "index", "split"])
def test_one_changed_value_in_a_well_formed_file_is_refused(tmp_path, name):
    arrays = arrays_of(FILE)
    arrays[name] = arrays[name].copy()
    arrays[name].flat[-1] ^= 1
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(ValueError, match=rf"SHA-256 {content_sha256(arrays)}; expected {MNIST_5K_SHA256}"):
        mnist_5k(tmp_path / "changed.npz")


def test_other_arrays_are_named_beside_those_expected(tmp_path):
    np.savez(tmp_path / "other.npz", images=np.zeros((3, 28, 28), np.float32))
    with pytest.raises(ValueError, match=r"holds images float32 \(3, 28, 28\); expected images uint8 \(5000, 28, 28\)"):
        mnist_5k(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.arange(6, dtype=np.int32)},
        {"a": np.arange(6, dtype=np.int64)},
        {"a": np.arange(6, dtype=np.int32).reshape(2, 3)},
        {"a": np.arange(1, 7, dtype=np.int32)},
    ],
    ids=["name", "dtype", "shape", "values"],
)
def test_the_content_hash_covers_names_dtypes_shapes_and_values(other):
    this = {"a": np.arange(6, dtype=np.int32)}
    assert content_sha256(this) == content_sha256({"a": torch.arange(6, dtype=torch.int32)})
    assert content_sha256(this) != content_sha256(other)


# --- rebuilding it ---------------------------------------------------------------------------------------------


def test_the_builder_draws_the_shipped_split_again(builder):
    arrays = arrays_of(FILE)
    assert np.array_equal(builder.split(arrays["labels"]), arrays["split"])


def test_the_builder_writes_the_same_bytes_at_any_time(builder, tmp_path, monkeypatch):
    arrays = {name: array[:100] for name, array in arrays_of(FILE).items()}
    builder.write(tmp_path / "one.npz", arrays)
    monkeypatch.setattr("time.time", lambda: 1e9)
    builder.write(tmp_path / "two.npz", arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert content_sha256(arrays_of(tmp_path / "one.npz")) == content_sha256(arrays)
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_builder_finds_the_shipped_positions_again(builder, full_mnist):
    arrays = arrays_of(FILE)
    backwards = slice(None, None, -1)
    found = builder.find_in_mnist(arrays["images"][backwards], arrays["labels"][backwards], full_mnist)
    assert np.array_equal(found, arrays["index"][backwards])


def test_equal_images_take_their_positions_in_increasing_order(builder, tmp_path, digits):
    a, b, c = digits.train.images[:3]
    labels = [4, 4, 4, 7, 4]
    stored = np.stack([a, b, a, a, c])
    (tmp_path / builder.TRAIN_IMAGES).write_bytes(gzip.compress(bytes(16) + stored.tobytes()))
    (tmp_path / builder.TRAIN_LABELS).write_bytes(gzip.compress(bytes(8) + bytes(labels)))
    found = builder.find_in_mnist(np.stack([c, a, a, a]), np.array([4, 4, 7, 4], np.uint8), tmp_path)
    assert found.tolist() == [4, 0, 3, 2]
    with pytest.raises(SystemExit, match=r"row 1 .* a 7, is not in MNIST"):
        builder.find_in_mnist(np.stack([a, b]), np.array([4, 7], np.uint8), tmp_path)
