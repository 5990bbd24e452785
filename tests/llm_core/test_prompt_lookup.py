"""Guesses of what comes next, from what stood there before."""

from llm_core.prompt_lookup import FIRST_DRAFT, MATCH, MAX_DRAFT, PromptLookup
from llm_core.prompt_pieces import NO_TOKEN

SONG = list(range(100, 140))
START = SONG[:MATCH]


def test_what_followed_the_same_tokens_in_the_prompt_is_guessed() -> None:
    assert PromptLookup(SONG).draft(START, 99) == SONG[MATCH : MATCH + FIRST_DRAFT]


def test_fewer_tokens_in_common_are_no_guess() -> None:
    assert PromptLookup(SONG).draft(START[1:], 99) == []
    assert PromptLookup(SONG[:3]).draft([], 99) == []


def test_latest_place_counts() -> None:
    assert PromptLookup([*START, 1, 2, 3, *START, 7, 8, 9, 0]).draft(START, 99) == [7, 8, 9]


def test_answer_that_repeats_itself_is_guessed_too() -> None:
    lookup = PromptLookup([1, 2, 3])
    assert lookup.draft(SONG, 99) == []
    assert lookup.draft([*SONG, *START], 99) == SONG[MATCH : MATCH + FIRST_DRAFT]


def test_guess_has_no_more_tokens_than_there_is_room_for() -> None:
    assert PromptLookup(SONG).draft(START, 2) == SONG[MATCH : MATCH + 2]
    assert PromptLookup(SONG).draft(START, 0) == []


def test_guesses_get_longer_while_they_come_true_and_no_longer_than_the_last_one_was_right() -> None:
    lookup, lengths = PromptLookup(SONG), []
    for n_accepted in (3, 7, 15, 15, 2, 0, 1):
        lengths.append(len(lookup.draft(START, 99)))
        lookup.learn(lengths[-1], n_accepted)
    assert lengths == [3, 7, 15, MAX_DRAFT, 15, 2, 1]


def test_image_is_never_guessed() -> None:
    assert PromptLookup([*START, 7, NO_TOKEN, NO_TOKEN, 8]).draft(START, 99) == [7]
