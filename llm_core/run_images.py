"""What the stages of a run look at: the question's own images, and those that the pipeline names."""

from collections.abc import Sequence

from llm_core.errors import InputError
from llm_core.image_sources import ImageSources
from llm_core.images import Image
from llm_core.pipeline import QUESTION, PipelineSpec
from llm_core.plan import Plan, StagePlan
from llm_core.session_images import Images


def check_images(spec: PipelineSpec, of_question: Sequence[str], sources: ImageSources) -> None:
    """Refuse, before anything is read, images that no stage looks at, or that may not be read.

    Raises:
        InputError: one line.
    """
    if of_question and not looks_at_question(spec):
        raise InputError(f"no stage of '{spec.name}' looks at the question's images; give one `images: {QUESTION}`")
    named = [name for stage in spec.stages for name in stage.images or () if name != QUESTION]
    for source in (*of_question, *named):
        sources.check(source)


def looks_at_question(spec: PipelineSpec) -> bool:
    """Whether a stage looks at the images that are given with the question."""
    return any(QUESTION in (stage.images or ()) for stage in spec.stages)


def load_images(plan: Plan, of_question: Sequence[str], sources: ImageSources) -> dict[str, tuple[Image, ...]]:
    """All that `plan`'s stages look at, by what they call it.

    Raises:
        InputError: one of them may not be read, cannot be, or is no image.
    """
    return {
        name: tuple(map(sources.load, of_question if name == QUESTION else (name,)))
        for name in needed_images(plan, of_question)
    }


def needed_images(plan: Plan, of_question: Sequence[str]) -> tuple[str, ...]:
    """What `plan`'s stages look at, by what they call it; the question's images only where it has some."""
    named = dict.fromkeys(name for stage in plan.stages for name in stage.images if name != QUESTION)
    return (QUESTION, *named) if of_question else tuple(named)


def images_of(stage: StagePlan, images: Images) -> tuple[Image, ...]:
    """What one stage looks at; nothing where it looks at the question's images and there are none."""
    return tuple(image for name in stage.images for image in images.get(name, ()))
