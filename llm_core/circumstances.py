"""What decides, beside the words, which tokens come: model files, chat templates, llama.cpp and CPU, then and now."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_core.fingerprint import sha256, text_sha256
from llm_core.machine import cpu_name
from llm_core.session_records import StepRecord
from llm_core.snapshot import Snapshot


@dataclass(frozen=True)
class Circumstance:
    """One of them; `None`: not known."""

    what: str
    then: str | None
    now: str | None

    def __str__(self) -> str:
        if self.then == self.now:
            return f"{self.what}: {self.now}, as then"
        return f"{self.what}: {self.now or 'not known'}, then {self.then or 'not noted'}"


def circumstances(
    snapshot: Snapshot, steps: Iterable[StepRecord], builds_now: Iterable[str], cache: Path
) -> Iterator[Circumstance]:
    """Of the models that answered in `steps`, and of the machine.

    Args:
        builds_now: of llama.cpp, where models were asked again.
        cache: where SHA-256 of files are remembered.
    """
    steps = list(steps)
    for name in dict.fromkeys(step.model for step in steps if step.model in snapshot.registry.available):
        then, model = snapshot.models[name], snapshot.registry.available[name]
        here = name not in snapshot.gone
        yield Circumstance(f"SHA-256 of {name}", then["sha256"], sha256(model.path, cache) if here else None)
        if model.mmproj:
            now = sha256(model.mmproj.path, cache) if here else None
            yield Circumstance(f"SHA-256 of {name}'s mmproj", then["mmproj"]["sha256"], now)
        template = text_sha256(model.gguf.chat_template) if here else None
        yield Circumstance(f"SHA-256 of {name}'s chat template", then.get("chat_template_sha256"), template)
    builds_then = {step.build for step in steps if step.build}
    yield Circumstance("llama.cpp", "; ".join(sorted(builds_then)) or None, "; ".join(sorted(set(builds_now))) or None)
    yield Circumstance("CPU", snapshot.cpu, cpu_name())
