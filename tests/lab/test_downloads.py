"""Downloads, against a real server on this machine that misbehaves in the ways servers do."""

import gzip
import hashlib
import os
import socketserver
import tempfile
import threading
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from inflib.lab import downloads, mnist_5k, mnist_full
from inflib.lab.downloads import MNIST, PublishedFile, read

CONTENT = np.random.Philox(key=1).random_raw(40_000).tobytes()  # 320 kB that gzip cannot shrink
PACKED = gzip.compress(CONTENT, mtime=0)
PATH = "folder/digits.gz"


class Server:
    """Serves ``body`` at /digits.gz as its ``ways`` say, one of them a request, the last for all others."""

    def __init__(self) -> None:
        self.body, self.ways, self.ranges = PACKED, ["whole"], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a connection that we cut ourselves is no news
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        way = self.ways.pop(0) if len(self.ways) > 1 else self.ways[0]
        if way == "dropped":
            request.connection.close()
            return
        if way == "404" or request.path != "/digits.gz":
            request.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and way != "no ranges" else 0
        if start >= len(self.body):
            request.send_error(416)
            return
        if way == "another part":
            start += 5
        request.send_response(206 if asked and way != "no ranges" else 200)
        if asked and way != "no ranges":
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        rest = self.body[start:]
        if way != "no length":
            request.send_header("Content-Length", str(len(rest)))
        request.end_headers()
        request.wfile.write(rest[: len(rest) // 2] if way == "cut" else rest)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no INFLIB_DATA, no word against the network, and no proxy in front of this machine."""
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INFLIB_DATA", raising=False)
    monkeypatch.delenv("INFLIB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def file(server):
    return PublishedFile(PATH, hashlib.sha256(CONTENT).hexdigest(), (server.url,))


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --- a download ------------------------------------------------------------------------------------------------


def test_a_download_is_unpacked_kept_as_it_came_and_not_repeated(server, file, cache):
    assert read(file) == CONTENT
    assert (cache / PATH).read_bytes() == PACKED
    assert files_in(cache) == [PATH]
    server.ways = ["404"]
    assert read(file) == CONTENT
    assert len(server.ranges) == 1


def test_a_file_that_is_not_gzipped_is_taken_as_it_is(server, file):
    server.body = CONTENT
    assert read(file) == CONTENT


@pytest.mark.parametrize("ways", [["cut", "whole"], ["cut", "cut", "cut", "whole"]])
def test_a_broken_connection_is_taken_up_where_it_stopped(server, file, cache, ways):
    server.ways = list(ways)
    assert read(file) == CONTENT
    assert server.ranges[:2] == [None, f"bytes={len(PACKED) // 2}-"]
    assert len(server.ranges) == len(ways)
    assert files_in(cache) == [PATH]


def test_the_next_run_goes_on_with_what_the_last_one_kept(server, file, cache):
    server.ways = ["cut", "404"]
    with pytest.raises(FileNotFoundError, match="HTTP Error 404"):
        read(file)
    assert files_in(cache) == [f"{PATH}.part"]
    assert (cache / f"{PATH}.part").read_bytes() == PACKED[: len(PACKED) // 2]
    server.ways = ["whole"]
    assert read(file) == CONTENT
    assert server.ranges[-1] == f"bytes={len(PACKED) // 2}-"
    assert files_in(cache) == [PATH]


def test_an_interrupt_keeps_what_came(server, file, cache, monkeypatch):
    def interrupted(address, held, what, progress):
        held += PACKED[:1000]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read(file)
    assert (cache / f"{PATH}.part").read_bytes() == PACKED[:1000]
    assert read(file) == CONTENT
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize("way", ["no ranges", "another part"])
def test_a_server_that_does_not_go_on_where_asked_is_asked_for_the_whole(server, file, way):
    server.ways = ["cut", way, "whole"]
    if way == "another part":  # the next run goes on with the half from before
        with pytest.raises(FileNotFoundError, match="another part of the file"):
            read(file)
    assert read(file) == CONTENT
    assert server.ranges[1] == f"bytes={len(PACKED) // 2}-"
    assert server.ranges[2:] == ([f"bytes={len(PACKED) // 2}-"] if way == "another part" else [])


@pytest.mark.parametrize("body", [PACKED, gzip.compress(b"something else" * 99)], ids=["breaks off", "another file"])
def test_a_part_is_kept_until_the_whole_is_right(server, file, cache, body):
    """A mirror that sends all of it anew, and breaks off earlier or sends another file, loses nothing."""
    left = PACKED[: len(PACKED) // 4 * 3]
    (cache / "folder").mkdir(parents=True)
    (cache / f"{PATH}.part").write_bytes(left)

    class Anew(Server):
        def answer(self, request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body[: len(body) // 2] if body is PACKED else body)

    anew = Anew()
    with pytest.raises(FileNotFoundError):
        read(replace(file, mirrors=(anew.url,)))
    assert (cache / f"{PATH}.part").read_bytes() == left
    assert read(replace(file, mirrors=(anew.url, server.url))) == CONTENT
    assert server.ranges == [f"bytes={len(left)}-"]
    assert files_in(cache) == [PATH]
    anew.http.shutdown()
    anew.http.server_close()


@pytest.mark.parametrize("left", [b"\x00" * 1000, b"\x00" * len(PACKED), b"\x00" * (len(PACKED) + 1)])
def test_a_wrong_part_is_thrown_away_and_the_file_fetched_anew(server, file, cache, left):
    (cache / "folder").mkdir(parents=True)
    (cache / f"{PATH}.part").write_bytes(left)
    assert read(file) == CONTENT
    assert server.ranges == [f"bytes={len(left)}-", None]
    assert files_in(cache) == [PATH]


def test_a_server_that_states_no_length_is_checked_by_the_hash(server, file):
    server.ways = ["no length"]
    assert read(file) == CONTENT


def test_the_bar_counts_mebibytes_and_is_silent_without_progress(server, file, monkeypatch):
    shown = []
    monkeypatch.setattr(downloads, "bar", lambda steps, *about: (shown.append(about), steps)[1])
    read(file, progress=False)
    assert not shown
    os.remove(downloads.cache_folder() / PATH)
    read(file)
    assert shown == [(1, "downloading digits.gz", "MiB")]


# --- mirrors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["404", "dropped", "cut", "wrong", "truncated"])
def test_a_mirror_that_fails_falls_to_the_next(server, file, cache, way):
    bad = Server()
    if way in ("wrong", "truncated"):
        bad.body = gzip.compress(CONTENT[:-1]) if way == "wrong" else PACKED[:-100]
    else:
        bad.ways = [way]
    assert read(replace(file, mirrors=(bad.url, server.url))) == CONTENT
    assert files_in(cache) == [PATH]
    bad.http.shutdown()
    bad.http.server_close()
    os.remove(cache / PATH)
    assert read(replace(file, mirrors=(bad.url, server.url))) == CONTENT  # now nobody listens there


def test_when_every_mirror_fails_the_error_says_why_and_what_to_do_by_hand(server, file, cache):
    with socketserver.TCPServer(("127.0.0.1", 0), None) as nobody:
        port = nobody.server_address[1]
    server.body = gzip.compress(b"something else")
    both = replace(file, mirrors=(f"http://127.0.0.1:{port}", server.url))
    with pytest.raises(FileNotFoundError) as error:
        read(both)
    for part in (
        rf"127.0.0.1:{port}/digits.gz: <urlopen error",
        f"{server.url}digits.gz: 14 bytes came with SHA-256 {hashlib.sha256(b'something else').hexdigest()}",
        f"expected {file.sha256}",
        f"by hand and put it at {cache / PATH}, or below a folder of your own that INFLIB_DATA names ({PATH})",
    ):
        assert part in str(error.value)
    assert files_in(cache) == []


@pytest.mark.parametrize("value", ["1", "yes"])
def test_offline_asks_nobody_and_says_where_to_put_the_file(server, file, tmp_path, monkeypatch, value):
    monkeypatch.setenv("INFLIB_OFFLINE", value)
    monkeypatch.setenv("INFLIB_DATA", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match=r"INFLIB_OFFLINE forbids.*by hand and put it at .*mine.folder.digits"):
        read(file)
    assert server.ranges == []
    monkeypatch.setenv("INFLIB_OFFLINE", "0")
    assert read(file) == CONTENT


# --- what is on this machine ---------------------------------------------------------------------------------------


def test_the_readers_own_folder_comes_first_and_is_never_changed(server, file, cache, tmp_path, monkeypatch):
    mine = tmp_path / "mine" / PATH
    mine.parent.mkdir(parents=True)
    mine.write_bytes(PACKED)
    assert not downloads.at_hand(file)
    monkeypatch.setenv("INFLIB_DATA", str(tmp_path / "mine"))
    assert downloads.at_hand(file)
    assert read(file) == CONTENT
    assert not server.ranges
    assert not cache.exists()


@pytest.mark.parametrize(
    ("came", "said"),
    [
        (
            gzip.compress(b"else"),
            rf"4 bytes came with SHA-256 {hashlib.sha256(b'else').hexdigest()}; expected \w{{64}}",
        ),
        (PACKED[:-100], r"320,\d\d\d bytes came that cannot be unpacked \(.*\); expected a whole archive"),
        (PACKED[:5000] + b"\x00" * 99 + PACKED[5099:], r"cannot be unpacked|SHA-256"),
        (b"", r"0 bytes came with SHA-256"),
        (None, r"[Ii]s a directory"),
    ],
    ids=["other", "truncated", "damaged", "empty", "folder"],
)
def test_a_wrong_file_of_the_readers_is_named_and_left_alone(server, file, tmp_path, monkeypatch, came, said):
    mine = tmp_path / "mine" / PATH
    (mine if came is None else mine.parent).mkdir(parents=True)
    if came is not None:
        mine.write_bytes(came)
    monkeypatch.setenv("INFLIB_DATA", str(tmp_path / "mine"))
    with pytest.raises(
        ValueError, match=rf"mine.folder.digits\.gz is not the file expected: .*(?:{said}).*move it away"
    ):
        read(file)
    assert came is None or mine.read_bytes() == came
    assert not server.ranges


def test_a_damaged_file_in_the_cache_is_fetched_again_and_named_where_it_cannot(server, file, cache, monkeypatch):
    (cache / "folder").mkdir(parents=True)
    (cache / PATH).write_bytes(PACKED[:-100])
    with monkeypatch.context() as patch:
        patch.setenv("INFLIB_OFFLINE", "1")
        with pytest.raises(FileNotFoundError, match=r"cache.folder.digits\.gz: .*cannot be unpacked.*forbids"):
            read(file)
    assert read(file) == CONTENT
    assert (cache / PATH).read_bytes() == PACKED


def test_without_a_place_to_keep_it_a_download_works_from_memory(server, file, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("where the folder should be")
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path / "a file"))
    with pytest.warns(UserWarning, match=r"digits\.gz .*from memory.*could not be kept.*Set INFLIB_CACHE"):
        assert read(file) == CONTENT
    assert files_in(tmp_path) == ["a file"]


@pytest.fixture
def shut():
    """A folder in one that all can search; the user is one whom permissions stop, which root is not."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as outer:
        os.chmod(outer, 0o755)
        inner = Path(outer) / "folder"
        inner.mkdir()
        inner.chmod(0o777)
        if root:
            os.seteuid(65534)
        try:
            yield inner
        finally:
            if root:
                os.seteuid(0)
            inner.chmod(0o755)


def shut_to(path, mode):
    """Permissions of what another user may own."""
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    path.chmod(mode)
    os.seteuid(user)


@pytest.mark.skipif(os.name == "nt", reason="permissions are not of this kind there")
def test_a_read_only_cache_is_a_warning(server, file, shut, monkeypatch):
    monkeypatch.setenv("INFLIB_CACHE", str(shut.parent))
    shut_to(shut, 0o555)
    with pytest.warns(UserWarning, match=r"Permission denied.*Set INFLIB_CACHE"):
        assert read(file) == CONTENT
    assert files_in(shut) == []


@pytest.mark.skipif(os.name == "nt", reason="permissions are not of this kind there")
@pytest.mark.parametrize("which", ["INFLIB_DATA", "INFLIB_CACHE"])
def test_a_folder_that_cannot_be_searched_is_named_with_the_fix(server, file, shut, monkeypatch, which):
    monkeypatch.setenv(which, str(shut.parent))
    shut_to(shut, 0o000)
    if which == "INFLIB_CACHE":  # that is ours: the file is fetched, and not kept
        with pytest.warns(UserWarning, match=r"Permission denied.*Set INFLIB_CACHE"):
            assert read(file) == CONTENT
        return
    with pytest.raises(ValueError, match=r"cannot be read \(.*Permission denied.*expected a file that can.*chmod"):
        read(file)
    assert server.ranges == []


@pytest.mark.skipif(os.name == "nt", reason="permissions are not of this kind there")
def test_a_part_that_cannot_be_read_is_fetched_from_the_start(server, file, shut, monkeypatch):
    monkeypatch.setenv("INFLIB_CACHE", str(shut.parent))
    (shut / "digits.gz.part").write_bytes(PACKED[:1000])
    shut_to(shut / "digits.gz.part", 0o000)
    assert read(file) == CONTENT
    assert server.ranges == [None]
    assert files_in(shut) == ["digits.gz"]


def test_a_disk_that_fills_up_leaves_no_half_file(server, file, cache, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert read(file) == CONTENT
    assert files_in(cache) == []


def test_the_cache_is_the_repositorys_unless_the_environment_names_another(monkeypatch):
    monkeypatch.delenv("INFLIB_CACHE")
    assert downloads.cache_folder() == downloads.FOLDER / "cache"
    monkeypatch.setenv("INFLIB_CACHE", "~/kept")
    assert downloads.cache_folder() == downloads.Path.home() / "kept"


def test_without_a_repository_the_cache_is_the_users_own(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("INFLIB_CACHE", raising=False)
    monkeypatch.setattr(downloads, "FOLDER", tmp_path / "nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert downloads.cache_folder() == tmp_path / "xdg" / "inflib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert downloads.cache_folder() == downloads.Path.home() / ".cache" / "inflib"


# --- the files of the course -----------------------------------------------------------------------------------


def test_the_files_of_the_course_are_asked_for_at_their_public_mirrors():
    assert [len(file.mirrors) for file in MNIST.values()] == [2, 2, 2, 2]
    assert MNIST["test_images"].addresses == [
        "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-images-idx3-ubyte.gz",
        "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-images-idx3-ubyte.gz",
    ]
    assert downloads.TINY_SHAKESPEARE.addresses == [
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    ]


def test_the_readme_lists_every_file_with_its_mirrors_and_hash():
    readme = (downloads.FOLDER / "README.md").read_text(encoding="utf-8")
    for file in (*MNIST.values(), downloads.TINY_SHAKESPEARE):
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{file.path}` |"))
        assert f"`{file.sha256}`" in row
        assert all(f"({address})" in row for address in file.addresses)


def test_without_the_full_set_the_error_points_to_the_digits_that_ship(monkeypatch):
    monkeypatch.setenv("INFLIB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"mnist.train-images.*by hand.*The 5,000 digits that ship .*mnist_5k"):
        mnist_full()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(mnist_5k().train) == 4_500
