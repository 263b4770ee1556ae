"""The plays: cut without gaps, every sequence at its speaker and line; a clear message where the file is not."""

import gzip
import sys

import pytest
from build import SOURCES, read_source
from matplotlib import pyplot as plt

from inflib.lab import shakespeare, two_plays
from inflib.lab.downloads import TINY_SHAKESPEARE, at_hand
from inflib.lab.shakespeare import places

PLAY = "First Citizen:\nSpeak: now,\nspeak.\n\nAll:\nResolved.\n\nKING HENRY:\nWhat?\n"


def test_a_place_is_its_speaker_line_and_character():
    where = places(PLAY)
    assert where(0) == "First Citizen, line 1, character 0"
    assert where(PLAY.index("now")) == f"First Citizen, line 2, character {PLAY.index('now')}"
    assert where(PLAY.index("All")) == f"All, line 5, character {PLAY.index('All')}"
    assert where(PLAY.index("Resolved")).startswith("All, line 6")
    assert where(len(PLAY) - 1).startswith("KING HENRY, line 9")


def test_text_before_the_first_speaker_says_so():
    assert places("Enter two.\n\nAll:\nSpeak.\n")(3) == "before the first speaker, line 1, character 3"


def test_one_character_a_sequence_is_refused():
    with pytest.raises(ValueError, match="length=1; expected at least 2 characters"):
        shakespeare(1)


def test_without_file_and_network_it_says_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.delenv("INFLIB_DATA", raising=False)
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path))
    monkeypatch.setenv("INFLIB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"tinyshakespeare/input.txt is not on this machine.*by hand"):
        shakespeare()


@pytest.mark.skipif(not at_hand(TINY_SHAKESPEARE), reason="needs tinyshakespeare/input.txt: set INFLIB_DATA")
def test_the_plays_are_cut_without_gaps():
    plays = shakespeare(progress=False)
    assert len(plays) == 1_115_394 // 128
    assert len(plays.vocabulary) == 65
    assert plays.texts[0].startswith("First Citizen:\nBefore we proceed")
    assert {len(ids) for ids in plays.sequences} == {128}
    text = "".join(plays.texts)
    assert plays.place(1) == "First Citizen, line 8, character 128"
    assert plays[3:][0:].neighbours(0) == (text[256:384], text[512:640])


@pytest.mark.skipif(not at_hand(TINY_SHAKESPEARE), reason="needs tinyshakespeare/input.txt: set INFLIB_DATA")
def test_what_ships_is_cut_from_the_plays_and_keeps_their_places():
    plays, shipped = shakespeare(progress=False)[3500:5500], two_plays()
    assert shipped.texts == plays.texts
    assert shipped.vocabulary == plays.vocabulary
    assert [shipped.place(n) for n in range(2000)] == [plays.place(n) for n in range(2000)]


def test_two_plays_ship():
    plays = two_plays()
    assert len(plays) == 2000
    assert len(plays.vocabulary) == 65
    assert plays.place(0) == "BENVOLIO, line 15820, character 448000"
    assert plays.place(235) == "ROMEO, line 16905, character 478080"
    assert "wherefore art thou Romeo?" in plays.texts[235]
    assert {len(ids) for ids in two_plays(100).sequences} == {100}
    with pytest.raises(ValueError, match="length=0; expected at least 2 characters"):
        two_plays(0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"no archive", "cannot be read"),
        (gzip.compress(b"To be", mtime=0), "has SHA-256 .* expected"),
    ],
)
def test_a_file_that_is_not_the_two_plays_is_refused(monkeypatch, tmp_path, content, says):
    path = tmp_path / "two_plays.txt.gz"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys.modules["inflib.lab.shakespeare"], "TWO_PLAYS_FILE", path)
    with pytest.raises(ValueError, match=rf"two_plays.txt.gz {says}.*python data/build_two_plays.py"):
        two_plays()


def ask_the_plays(scale):
    """What notebook 08's first cell and its cells on Shakespeare define, run at this scale."""
    headings, sources = ("", "## Shakespeare", "## Summary"), {}
    heading = ""
    for cell in read_source(SOURCES / "08_transformer.py").cells:
        if cell.cell_type == "code":
            sources.setdefault(heading, []).append(cell.source)
        else:
            heading = next((line for line in cell.source.splitlines() if line in headings), heading)
    names = {"__name__": "08_transformer"}
    exec(sources[""][0], names)
    names["scale"] = scale
    for source in sources["## Shakespeare"]:
        exec(source, names)
    return names


def test_notebook_08_asks_the_plays(monkeypatch, tmp_path, capsys):
    """Its own cells on Shakespeare, at scale "tiny": a model trained here, an index, a browser and a figure."""
    monkeypatch.delenv("INFLIB_DATA", raising=False)
    monkeypatch.setenv("INFLIB_OFFLINE", "1")
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path))
    with plt.rc_context():
        names = ask_the_plays("tiny")
        rows = len(plt.gcf().axes[0].texts)
        plt.close("all")
    browser, plays = names["browser"], names["plays"]
    assert len(plays) == len(browser.influence.index) == 64
    assert "the index of 64 sequences in 2 layers will take 0.1 MB" in capsys.readouterr().out
    assert browser.answer.question.completion == "Romeo?"
    assert len(names["raised"]) == 9
    assert rows > 9 * plays.context
