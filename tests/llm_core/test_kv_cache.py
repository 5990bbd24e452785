"""Where answers sit in the context, on a real one."""

from pathlib import Path

import pytest

from llm_core.call_params import LoadParams
from llm_core.kv_cache import MIN_SHARED, KVCache, common_prefix
from llm_core.llama_model import LlamaModel

LONG = list(range(1000, 1000 + MIN_SHARED))


@pytest.fixture(scope="module")
def model(smollm: Path) -> LlamaModel:
    return LlamaModel(LoadParams(str(smollm), 256, sequences=4))


@pytest.fixture
def cache(model: LlamaModel) -> KVCache:
    return KVCache(model.context, 4)


def take(cache: KVCache, prompt: list[int], *, share: bool = True) -> tuple[int, int]:
    sequence, n_cached = cache.take(prompt, share=share)
    cache.held[sequence] = list(prompt)
    return sequence, n_cached


@pytest.mark.parametrize(
    ("left", "right", "length"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 5, 3], [1, 2, 3], 1)]
)
def test_common_prefix(left: list[int], right: list[int], length: int) -> None:
    assert common_prefix(left, right) == length


def test_answers_sit_side_by_side(cache: KVCache) -> None:
    assert [take(cache, [n])[0] for n in range(3)] == [0, 1, 2]
    cache.leave(1)
    assert take(cache, [9])[0] in (1, 3), "in the gap, or next to the others"
    assert cache.taken in ([0, 1, 2], [0, 2, 3])


def test_gap_is_closed_by_the_last(cache: KVCache) -> None:
    for n in range(4):
        take(cache, [n])
    cache.leave(1)
    assert cache.close_gap() == (3, 1)
    assert cache.taken == [0, 1, 2]
    assert cache.held[1] == [3]
    assert cache.close_gap() is None


def test_prefix_is_shared_with_who_sits_there_and_with_who_has_left(cache: KVCache) -> None:
    first, _ = take(cache, [*LONG, 1])
    assert take(cache, [*LONG, 2])[1] == MIN_SHARED
    cache.leave(first)
    assert take(cache, [*LONG, 3])[1] == MIN_SHARED


def test_last_token_of_a_prompt_is_always_decoded_anew(cache: KVCache) -> None:
    take(cache, [*LONG, 1, 2])
    assert cache.shared([*LONG, 1, 2]) == MIN_SHARED + 1


def test_short_prefix_is_not_worth_a_copy(cache: KVCache) -> None:
    take(cache, LONG)
    assert take(cache, [*LONG[:-1], 7])[1] == 0


def test_nothing_is_shared_with_who_is_to_be_alone_or_with_what_was_cleared(cache: KVCache) -> None:
    first, _ = take(cache, [*LONG, 1])
    assert take(cache, [*LONG, 2], share=False)[1] == 0
    cache.leave(first, clear=True)
    assert cache.held[first] == []


def test_longest_unused_sequence_is_taken_first_so_that_prefixes_stay(cache: KVCache) -> None:
    first, _ = take(cache, [*LONG, 1])
    cache.leave(first)
    second, _ = take(cache, [5, 6])
    cache.leave(second)
    assert second != first
    assert cache.shared([*LONG, 9]) == MIN_SHARED


def test_short_beginning_that_is_in_the_very_sequence_is_kept(cache: KVCache) -> None:
    sequence, _ = take(cache, [1, 2, 3, 4])
    for n in range(3):
        take(cache, [90 + n])
    cache.leave(sequence)
    assert take(cache, [1, 2, 9]) == (sequence, 2)
    assert cache.held[sequence] == [1, 2, 9]


def test_nothing_is_kept_for_who_decodes_alone(cache: KVCache) -> None:
    sequence, _ = take(cache, [1, 2, 3])
    for n in range(3):
        take(cache, [90 + n])
    cache.leave(sequence)
    assert take(cache, [1, 2, 9], share=False) == (sequence, 0)
