"""From the bytes of tokens to text that may be shown."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_core.text_stream import TextStream, split_reasoning


@pytest.mark.parametrize(
    ("stop", "pieces", "shown", "text"),
    [
        ([], [b"a", b"b"], ["a", "b"], "ab"),
        # A character that comes in several tokens: é is 2 bytes, € is 3, 🙂 is 4.
        ([], [b"\xc3", b"\xa9"], ["", "é"], "é"),
        ([], [b"x\xe2", b"\x82", b"\xac!"], ["x", "", "€!"], "x€!"),
        ([], [b"\xf0", b"\x9f", b"\x99", b"\x82"], ["", "", "", "🙂"], "🙂"),
        ([], [b"a\xffb"], ["a\ufffdb"], "a\ufffdb"),
        # A stop string is held back while it may still come, and given out when it did not.
        (["END"], [b"one E", b"N", b"D two"], ["one ", "", ""], "one "),
        (["END"], [b"one E", b"N", b"T two"], ["one ", "", "ENT two"], "one ENT two"),
        (["aab"], [b"a", b"a", b"a", b"b"], ["", "", "a", ""], "a"),
        (["\n\n"], [b"one\n", b"two\n", b"\nthree"], ["one", "\ntwo", ""], "one\ntwo"),
        (["STOP", "TO"], [b"ST", b"O", b"P"], ["", "S", ""], "S"),
        (["long one", "b"], [b"a", b"b"], ["a", ""], "a"),
        (["é"], [b"a\xc3", b"\xa9b"], ["a", ""], "a"),
        (["END"], [b"END"], [""], ""),
    ],
)
def test_text_is_shown_once_it_is_whole_and_can_be_no_stop_string(
    stop: list[str], pieces: list[bytes], shown: list[str], text: str
) -> None:
    stream = TextStream(stop)
    assert [stream.push(piece) for piece in pieces] == shown
    assert stream.text == text


@pytest.mark.parametrize(("pieces", "stopped"), [([b"a END"], True), ([b"a EN"], False), ([b"a end"], False)])
def test_stream_says_whether_a_stop_string_came(pieces: list[bytes], stopped: bool) -> None:
    stream = TextStream(["END"])
    for piece in pieces:
        stream.push(piece)
    assert stream.stopped is stopped


def test_nothing_follows_a_stop_string() -> None:
    stream = TextStream(["END"])
    stream.push(b"a END")
    assert (stream.push(b"b"), stream.push(b"c", last=True), stream.text) == ("", "", "a ")


@pytest.mark.parametrize(("piece", "rest"), [(b"a EN", "EN"), (b"a \xf0\x9f", "\ufffd"), (b"a ", "")])
def test_end_gives_out_what_was_held_back(piece: bytes, rest: str) -> None:
    stream = TextStream(["END"])
    assert stream.push(piece) == "a "
    assert stream.push(b"", last=True) == rest
    assert stream.text == f"a {rest}"


@given(st.text("aé🙂\n", max_size=12), st.text("aé🙂\n", min_size=1, max_size=3), st.lists(st.integers(0, 48)))
def test_however_the_bytes_are_split_the_same_text_is_shown(text: str, stop: str, cuts: list[int]) -> None:
    data = text.encode()
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    stream = TextStream([stop])
    shown = [stream.push(data[start:end]) for start, end in pairwise(bounds)]
    shown.append(stream.push(b"", last=True))
    assert "".join(shown) == stream.text == text.partition(stop)[0]


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("Paris.", "Paris.", None),
        ("<think>France?</think>Paris.", "Paris.", "France?"),
        ("<think>\nFrance?\n</think>\n\nParis.", "Paris.", "France?"),
        ("<think>a</think>One <think>b</think>two", "One two", "a\nb"),
        ("<think>\n\n</think>\nParis.", "Paris.", None),
        ("Let me see. <think>France has", "Let me see.", "France has"),  # cut off by max_tokens
        ("France? Paris.</think>Paris.", "Paris.", "France? Paris."),  # opened by the chat template, in the prompt
        ("a</think>b<think>c</think>d", "bd", "a\nc"),
        ("</think>Paris.", "Paris.", None),
        ("<think>only this", "", "only this"),
        ("", "", None),
    ],
)
def test_reasoning_is_taken_out_of_the_answer(text: str, answer: str, reasoning: str | None) -> None:
    assert split_reasoning(text) == (answer, reasoning)
