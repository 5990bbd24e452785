"""A real model in a real child process."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.errors import ContextOverflow, GenerationTimeout, ModelCrashed, ModelLoadError
from llm_core.generation import GenerateRequest
from llm_core.worker import ModelWorker

GREEDY = SamplingParams(temperature=0, max_tokens=24)


def request(question: str, sampling: SamplingParams = GREEDY, system: str | None = None) -> GenerateRequest:
    messages = ((("system", system),) if system else ()) + (("user", question),)
    return GenerateRequest(messages, sampling)


@pytest.fixture(scope="module")
def load(smollm: Path) -> LoadParams:
    return LoadParams(str(smollm), n_ctx=512, n_gpu_layers=0)


@pytest.fixture(scope="module")
def worker(load: LoadParams) -> Iterator[ModelWorker]:
    worker = ModelWorker(load, "smol")
    yield worker
    worker.close()


def test_answer_carries_tokens_timings_and_the_exact_prompt(worker: ModelWorker) -> None:
    result = worker.generate(request("What is the capital of France?", system="Be brief."))
    assert "Paris" in result.text
    assert result.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert result.prompt_tokens == 24
    assert result.finish_reason == "stop"
    assert 0 < result.ttft_s < 60
    assert result.load_s > 0


def test_tokens_of_a_greedy_answer_are_those_of_llama_cpp_python(worker: ModelWorker, smollm: Path) -> None:
    from llama_cpp import Llama

    reference = Llama(str(smollm), n_ctx=512, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False)
    for question in ("What is ice?", "Count to ten.", "Name three colours and say why you like each of them."):
        reference.reset()
        messages = [{"role": "user", "content": question}]
        expected = reference.create_chat_completion(messages, temperature=0, max_tokens=24)
        assert worker.generate(request(question)).text == expected["choices"][0]["message"]["content"].strip()


def test_streamed_text_adds_up_to_the_answer(worker: ModelWorker) -> None:
    pieces: list[str] = []
    result = worker.generate(request("What is ice?"), lambda text, n: pieces.append(text))
    assert "".join(pieces).strip() == result.text
    assert len(pieces) == result.completion_tokens


def test_seed_repeats_a_drawn_answer_and_another_seed_changes_it(worker: ModelWorker) -> None:
    def drawn(seed: int) -> str:
        return worker.generate(
            request("Invent a name.", SamplingParams(temperature=1.5, max_tokens=24, seed=seed))
        ).text

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_stop_string_ends_the_answer_and_is_not_in_it(worker: ModelWorker) -> None:
    full = worker.generate(request("What is ice?")).text
    assert "substance" in full
    stopped = worker.generate(request("What is ice?", SamplingParams(temperature=0, stop=("substance",))))
    assert stopped.text == full[: full.index("substance")].strip()
    assert stopped.finish_reason == "stop"


def test_answer_that_fills_the_context_ends_by_length(worker: ModelWorker) -> None:
    result = worker.generate(request("Write a very long story.", SamplingParams(temperature=0, max_tokens=5000)))
    assert result.finish_reason == "length"
    assert result.prompt_tokens + result.completion_tokens == 512 + 1  # the last token is sampled, not decoded


def test_prompt_that_does_not_fit_is_refused_and_the_worker_lives(worker: ModelWorker) -> None:
    with pytest.raises(ContextOverflow, match=r"model 'smol': the prompt has \d+ tokens and n_ctx is 512"):
        worker.generate(request("word " * 600))
    assert worker.generate(request("What is ice?")).text


def test_timeout_ends_a_generation_and_the_worker_lives(worker: ModelWorker) -> None:
    slow = SamplingParams(temperature=0, max_tokens=5000, timeout_s=0.2)
    with pytest.raises(GenerationTimeout, match=r"timeout_s 0\.2"):
        worker.generate(request("Write a very long story.", slow))
    assert worker.generate(request("What is ice?")).text


def test_requests_from_several_threads_all_get_their_own_answer(worker: ModelWorker) -> None:
    questions = ["What is ice?", "What is the capital of France?", "Count to ten."]
    alone = {question: worker.generate(request(question)).text for question in questions}
    together: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda q=question: together.update({q: worker.generate(request(q)).text}))
        for question in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize(("sig", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGABRT, "SIGABRT")])
def test_process_that_dies_in_mid_generation_is_a_model_crash(load: LoadParams, sig: int, name: str) -> None:
    worker = ModelWorker(load, "smol")
    with pytest.raises(
        ModelCrashed, match=rf"model 'smol' \(SmolLM2.*\): its process ended by signal {name} while gen"
    ):
        worker.generate(
            request("Write a long story.", SamplingParams(max_tokens=400)), lambda *_: os.kill(worker.pid, sig)
        )
    assert not worker.alive
    worker.close()


def test_file_that_llama_cpp_refuses_is_a_load_error_with_its_reason(tmp_path: Path, smollm: Path) -> None:
    bad = tmp_path / "bad.gguf"
    with smollm.open("rb") as file:
        bad.write_bytes(file.read(5_000_000))
    with pytest.raises(
        ModelLoadError, match=r"model 'bad': llama\.cpp cannot load .*bad\.gguf: .*not within the file bounds"
    ):
        ModelWorker(LoadParams(str(bad), n_ctx=512, n_gpu_layers=0), "bad")


def test_close_ends_the_process_even_in_mid_generation(load: LoadParams) -> None:
    worker = ModelWorker(load, "smol")
    process = psutil.Process(worker.pid)
    with pytest.raises(ModelCrashed):
        worker.generate(request("Write a story.", SamplingParams(max_tokens=400)), lambda *_: worker.close())
    assert not process.is_running()


def test_model_process_ends_when_its_parent_is_killed(load: LoadParams, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import os, signal\nfrom llm_core.worker import ModelWorker\nfrom llm_core.call_params import LoadParams\n"
        f"worker = ModelWorker(LoadParams({load.path!r}, 512), 'smol')\n"
        "print(worker.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    child = int(parent.stdout)
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=10)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
