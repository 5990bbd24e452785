"""Every pipeline of pipeline.yaml as an attribute: `from flows.pipelines import base`.

The attribute is compiled when it is asked for, so the file may change between runs. `flows/pipelines.py:base` is a
deployment's entrypoint. In Python a dash in a pipeline's name is written as an underscore.
"""

from typing import Any

from prefect.flows import Flow

from flows.pipeline import compile_flow
from llm_core.errors import ConfigError
from llm_core.pipeline import load_pipeline, load_pipelines
from llm_core.settings import Settings


def __getattr__(name: str) -> Flow[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)
    settings = Settings()
    try:
        return compile_flow(load_pipeline(settings.pipeline_file, name))
    except ConfigError as error:
        raise AttributeError(str(error)) from None


def __dir__() -> list[str]:
    return list(load_pipelines(Settings().pipeline_file))
