"""A pipeline that is put together in the form of the Prefect UI, or in Python, and written nowhere."""

from typing import Any, Literal

from prefect import flow

from flows.pipeline import execute
from llm_core.documents import validate
from llm_core.manual_pipeline import NAME, ManualPipeline
from llm_core.settings import Settings


# What is wrong is said in our own words: one line, with the key path.
@flow(
    name=NAME,
    persist_result=True,
    validate_parameters=False,
    description="A pipeline made for this run: stages, models, parameters.",
)
async def manual(
    question: str, pipeline: ManualPipeline, on_insufficient_memory: Literal["sequential", "fail"] = "sequential"
) -> Any:
    """Put a pipeline together and run it; `gguf-flow save SESSION NAME` keeps it in pipeline.yaml.

    Args:
        question: What is asked.
        pipeline: Its stages.
        on_insufficient_memory: In mode parallel, where a stage's models do not fit side by side.
    """
    spec = validate(pipeline, ManualPipeline, NAME).spec(on_insufficient_memory)
    return await execute(spec, question, Settings(), None)
