"""Text as token ids and back; a corpus knows where its sequences stand."""

import pytest
import torch

from inflib.lab import Corpus, Vocabulary, alternating, characters, words


def test_characters_go_to_ids_and_back():
    vocabulary = characters("hello, world")
    assert vocabulary.symbols == tuple(" ,dehlorw")
    assert vocabulary.encode("hold") == [4, 6, 5, 2]
    assert vocabulary.decode(vocabulary.encode("hello, world")) == "hello, world"
    assert len(vocabulary) == 9


def test_words_go_to_ids_and_back_whatever_the_blanks():
    vocabulary = words("the end of the day")
    assert vocabulary.symbols == ("day", "end", "of", "the")
    assert vocabulary.encode("  the   end ") == [3, 1]
    assert vocabulary.decode([3, 1, 2]) == "the end of"


@pytest.mark.parametrize(("make", "text"), [(characters, "a b\n<c>"), (words, "one two three")])
def test_the_pieces_of_a_text_joined_are_the_text(make, text):
    vocabulary = make(text)
    pieces = vocabulary.pieces(vocabulary.encode(text))
    assert "".join(pieces) == text
    assert len(pieces) == len(vocabulary.encode(text))


def test_ids_may_come_as_a_tensor():
    assert characters("abc").decode(torch.tensor([2, 0])) == "ca"


def test_an_unknown_piece_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"'é', character 4 of the text, .* vocabulary of 4 characters.*'acfé'|'é'"):
        characters("caf").encode("café")
    with pytest.raises(ValueError, match=r"'queen', word 2 of the text, .* of 3 words; expected one of end king the"):
        words("the king end").encode("the queen")


def test_a_large_vocabulary_is_not_printed_whole():
    vocabulary = words(" ".join(f"w{k:03}" for k in range(500)))
    assert "and 488 more" in repr(vocabulary)
    assert "w499" not in repr(vocabulary)


def corpus():
    return Corpus.of(["ab", "bca", "cc"], characters("abc"), "line {}".format)


def test_a_corpus_gives_texts_batches_and_places():
    some = corpus()
    assert some.texts == ["ab", "bca", "cc"]
    assert len(some) == 3
    assert some.context == 2
    assert some.place(1) == "line 1"
    (first, targets), (last, _) = some.batches(2)
    assert first["input_ids"].tolist() == [[0, 0], [1, 2]]
    assert first["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert targets.tolist() == [[1, -100], [2, 0]]
    assert last["input_ids"].tolist() == [[2]]


def test_all_of_a_corpus_as_tensors_is_one_batch():
    inputs, targets = corpus().tensors()
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == targets.shape == (3, 2)


@pytest.mark.parametrize("rows", [slice(1, None), [1, 2], torch.tensor([1, 2]), torch.tensor([False, True, True])])
def test_a_part_of_a_corpus_keeps_its_places(rows):
    part = corpus()[rows]
    assert part.texts == ["bca", "cc"]
    assert part.place(1) == "line 2"
    assert part[1:].place(0) == "line 2"


def test_a_sequence_knows_what_stands_before_and_after_it():
    assert [corpus().neighbours(n) for n in range(3)] == [("", "bca"), ("ab", "cc"), ("bca", "")]


def test_a_part_of_a_corpus_keeps_the_neighbours_of_the_whole():
    part = corpus()[::2]
    assert part.texts == ["ab", "cc"]
    assert [part.neighbours(n) for n in range(2)] == [("", "bca"), ("bca", "")]
    assert corpus()[1:][1:].neighbours(0) == ("bca", "")


@pytest.mark.parametrize("n", [-1, 3])
@pytest.mark.parametrize("what", ["place", "neighbours"])
def test_a_place_outside_the_corpus_is_refused(what, n):
    with pytest.raises(IndexError, match=rf"sequence {n} (was|were) asked for; expected 0 to 2"):
        getattr(corpus(), what)(n)
    with pytest.raises(IndexError, match="expected 0 to 1"):
        getattr(corpus()[:2], what)(2)


def test_letters_and_digits_alternate_each_in_its_own_order():
    windows = alternating()
    assert windows.texts[:3] == ["a0b1c", "0b1c2", "b1c2d"]
    assert windows.texts[-1] == "t7u8v9"[-5:]
    assert len(windows) == 196
    text = "".join(window[0] for window in windows.texts) + windows.texts[-1][1:]
    assert len(text) == 200
    assert text[18:24] == "j9k0l1"
    assert text[50:54] == "z5a6"


def test_its_ids_are_character_codes_and_no_window_comes_twice():
    windows = alternating()
    assert windows.vocabulary == Vocabulary(tuple(map(chr, range(128))))
    assert windows.sequences[0] == [ord(c) for c in "a0b1c"]
    assert len(set(windows.texts)) == 196
    assert windows.place(3) == "characters 3 to 7 of 200"


@pytest.mark.parametrize("sizes", [(4, 5), (10, 1)])
def test_windows_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match=r"expected 2 ≤ window ≤ length: length=200, window=5"):
        alternating(*sizes)
