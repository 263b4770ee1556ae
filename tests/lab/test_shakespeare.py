"""The plays: cut without gaps, every sequence at its speaker and line; a clear message where the file is not."""

import pytest

from inflib.lab import shakespeare
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
    assert plays.place(1).startswith("All, line 5, character 128") or "character 128" in plays.place(1)
