"""A model that sees: images in the prompts of the engine, through a projector of random weights and a real model."""

import random
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.engine import Engine
from llm_core.engine_answer import Failed, Finished, Token
from llm_core.errors import ContextOverflow, InputError, ModelLoadError
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.images import Image, make_image
from llm_core.worker import ModelWorker
from tests.llm_core.pictures import GIF, png
from tests.llm_core.test_engine import results, work_off
from tests.llm_core.tiny_mmproj import IMAGE_TOKENS, write_tiny_mmproj

RED, BLUE = make_image(png(), "red.png"), make_image(png(32, 48, (0, 0, 255)), "blue.png")
TEXT = "What is it?"
SHORT = "You know the sea and all that lives in it. Answer in plain words. " * 4


@pytest.fixture(scope="module")
def mmproj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mmproj(tmp_path_factory.mktemp("mmproj") / "mmproj.gguf")


def make_engine(smollm: Path, mmproj: Path | None, n_ctx: int = 768, sequences: int = 4) -> Engine:
    engine = Engine(LoadParams(str(smollm), n_ctx, sequences=sequences, mmproj=mmproj and str(mmproj)))
    return engine


@pytest.fixture(scope="module")
def engine(smollm: Path, mmproj: Path) -> Engine:
    return make_engine(smollm, mmproj)


def request(*images: Image, text: str = TEXT, system: str | None = None, **sampling: object) -> GenerateRequest:
    messages = ((("system", system),) if system else ()) + (("user", text),)
    params = SamplingParams(**{"temperature": 0, "max_tokens": 12, **sampling})  # type: ignore[arg-type]
    return GenerateRequest(messages, params, images=images)


def answer(engine: Engine, asked: GenerateRequest) -> GenerateResult:
    engine.submit(1, asked)
    return results(work_off(engine))[1]


def first_logits(engine: Engine, asked: GenerateRequest) -> tuple[int, np.ndarray]:
    """How many tokens of the prompt were there already, and what the first token was drawn from."""
    result = answer(engine, replace(asked, sampling=replace(asked.sampling, max_tokens=1)))
    logits = llama_cpp.llama_get_logits_ith(engine.llama.context, -1)
    return result.cached_prompt_tokens, np.ctypeslib.as_array(logits, (engine.llama.n_vocab,)).copy()


def refusal(engine: Engine, asked: GenerateRequest) -> Exception:
    engine.submit(1, asked)
    (failed,) = work_off(engine)
    assert isinstance(failed, Failed)
    return failed.error


@pytest.mark.parametrize("projector", ["mlp", "gemma3"])
def test_answer_depends_on_the_image_and_comes_again(smollm: Path, tmp_path: Path, projector: str) -> None:
    engine = make_engine(smollm, write_tiny_mmproj(tmp_path / "p.gguf", projector))  # type: ignore[arg-type]
    red, blue, none = (answer(engine, request(*images)) for images in ([RED], [BLUE], []))
    assert len({red.tokens, blue.tokens, none.tokens}) == 3
    assert answer(engine, request(RED)).tokens == red.tokens


def test_image_stands_before_the_text_of_the_last_message_and_its_tokens_count(engine: Engine) -> None:
    with_image, without = answer(engine, request(RED, system="Be kind.")), answer(engine, request(system="Be kind."))
    assert with_image.prompt == without.prompt.replace(TEXT, f"<__media__>{TEXT}")
    assert with_image.prompt_tokens == without.prompt_tokens + IMAGE_TOKENS["mlp"]
    assert answer(engine, request(RED, BLUE, RED)).prompt_tokens == answer(engine, request()).prompt_tokens + 48


def test_text_that_looks_like_a_marker_is_text(engine: Engine) -> None:
    told = answer(engine, request(RED, text="What does <__media__> mean?"))
    assert told.prompt.count("<__media__>") == 2
    assert answer(engine, request(text="What does <__media__> mean?")).prompt_tokens == told.prompt_tokens - 16


def test_gif_is_seen(engine: Engine) -> None:
    assert answer(engine, request(make_image(GIF, "a.gif"))).completion_tokens > 0


def test_answers_beside_text_requests_are_those_of_requests_alone(engine: Engine) -> None:
    asked = [request(RED), request(text="Say something about rain."), request(BLUE), request(text="Count to ten.")]
    alone = [answer(engine, one).tokens for one in asked]
    for id, one in enumerate(asked):
        engine.submit(id, replace(one, sampling=replace(one.sampling, deterministic=False)))
    together = results(work_off(engine))
    assert [together[id].tokens for id in range(4)] == alone


def test_answer_on_its_way_goes_on_between_the_images_of_another(engine: Engine) -> None:
    engine.submit(1, request(text="Write a long story.", max_tokens=40, deterministic=False))
    work_off(engine, until=lambda event: isinstance(event, Token))
    engine.submit(2, request(RED, BLUE, RED, max_tokens=1, deterministic=False))
    events = [event.id for event in work_off(engine) if isinstance(event, Token)]
    assert events[:3] == [1, 1, 1], "a token a step, with an image each"


def test_what_stands_before_an_image_is_shared_and_no_more(smollm: Path, mmproj: Path) -> None:
    engine = make_engine(smollm, mmproj, n_ctx=256, sequences=2)
    kinds = {"red": (RED,), "blue": (BLUE,), "none": ()}
    fresh = {kind: first_logits(engine, request(*images, system=SHORT))[1] for kind, images in kinds.items()}
    for kind in ("red", "red", "blue", "none", "blue"):
        cached, shared = first_logits(engine, request(*kinds[kind], system=SHORT, deterministic=False))
        assert 50 < cached < 80
        distance = {other: float(np.abs(shared - logits).max()) for other, logits in fresh.items()}
        assert distance.pop(kind) < 1 < 4 < min(distance.values())


def test_number_of_threads_changes_no_token_and_may_change_at_any_time(engine: Engine) -> None:
    one = answer(engine, request(RED, deterministic=False, max_tokens=4)).tokens
    engine.threads = 2
    two = answer(engine, request(RED, deterministic=False, max_tokens=4)).tokens
    engine.threads = 1
    assert one == two == answer(engine, request(RED, deterministic=False, max_tokens=4)).tokens


def test_prompt_that_has_room_only_without_its_image_is_refused_before_anything_is_decoded(
    smollm: Path, mmproj: Path
) -> None:
    engine = make_engine(smollm, mmproj, n_ctx=48)
    n_tokens = answer(engine, request()).prompt_tokens
    assert n_tokens < 48 <= n_tokens + 16
    error = refusal(engine, request(RED))
    assert isinstance(error, ContextOverflow)
    assert str(error) == f"the prompt has {n_tokens + 16} tokens and n_ctx is 48; raise n_ctx or shorten it"


def test_damaged_image_is_one_line_and_the_others_go_on(engine: Engine) -> None:
    engine.submit(1, request(text="Hi", deterministic=False))
    noise = random.Random(1).randbytes(3 * 64 * 64)
    truncated = png(64, 64)[:60]
    engine.submit(2, request(make_image(truncated, "half.png")))
    engine.submit(3, request(make_image(b"\xff\xd8\xff" + noise, "noise.jpg")))
    events = work_off(engine)
    said = {event.id: event.error for event in events if isinstance(event, Failed)}
    assert str(said[2]) == "image half.png: damaged: it cannot be decoded as png"
    assert str(said[3]) == "image noise.jpg: damaged: it cannot be decoded as jpeg"
    assert {type(error) for error in said.values()} == {InputError}
    assert [event.id for event in events if isinstance(event, Finished)] == [1]


def test_webp_without_ffmpeg_is_one_line(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    error = refusal(engine, request(make_image(b"RIFF\x1a\0\0\0WEBPVP8L" + b"\0" * 20, "a.webp")))
    assert str(error) == "image a.webp: llama.cpp reads webp only where ffmpeg is; convert it to png or jpeg"


def test_model_without_a_projector_refuses_images(smollm: Path) -> None:
    error = refusal(make_engine(smollm, None, 256, 1), request(RED))
    assert str(error) == "it cannot see images; give it an 'mmproj' in models.yaml"


def damaged(mmproj: Path, target: Path) -> Path:
    """One whose header names a tensor that the projector needs by another name."""
    data = mmproj.read_bytes()
    target.write_bytes(data.replace(b"mm.0.weight", b"mm.9.weight").replace(b"v.blk.1.ffn_down", b"v.blk.7.ffn_down"))
    return target


def test_projector_of_another_model_or_without_its_tensors_is_one_line(
    smollm: Path, mmproj: Path, tmp_path: Path
) -> None:
    other = write_tiny_mmproj(tmp_path / "other.gguf", embedding=960)
    with pytest.raises(
        ModelLoadError, match=r"mmproj .*other\.gguf: .*text model \(n_embd = 576\).*\(n_embd = 960\)"
    ) as said:
        make_engine(smollm, other)
    assert "\n" not in str(said.value)
    with pytest.raises(
        ModelLoadError, match=r"mmproj .*bad\.gguf: .*unable to find tensor v\.blk\.1\.ffn_down\.weight"
    ) as said:
        make_engine(smollm, damaged(mmproj, tmp_path / "bad.gguf"))
    assert "\n" not in str(said.value)


def test_images_reach_the_child_process_of_a_model(smollm: Path, mmproj: Path, engine: Engine) -> None:
    worker = ModelWorker(LoadParams(str(smollm), 768, sequences=4, mmproj=str(mmproj)), "m")
    try:
        assert worker.generate(request(RED)).tokens == answer(engine, request(RED)).tokens
        with pytest.raises(InputError, match=r"^model 'm': image half\.png: damaged: it cannot be decoded as png$"):
            worker.generate(request(make_image(png()[:40], "half.png")))
        assert worker.generate(request(BLUE)).tokens == answer(engine, request(BLUE)).tokens
    finally:
        worker.close()
