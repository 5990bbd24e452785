"""Keys of remote models: from the environment, else from Prefect's Secret blocks."""

from prefect.blocks.system import Secret

from llm_core.errors import ConfigError
from llm_core.providers.environment import from_environment
from llm_core.providers.faults import block_name


def find_key(name: str) -> str | None:
    """The value of a variable, or of the Secret block that is named like it: `openai-api-key` for `OPENAI_API_KEY`.

    Blocks; not to be called on an event loop.

    Raises:
        ConfigError: the block is there and cannot be read.
    """
    if found := from_environment(name):
        return found
    try:
        block = Secret.load(block_name(name), _sync=True)  # type: ignore[call-arg]
    except ValueError as error:
        if "Unable to find block document" in str(error):
            return None
        raise ConfigError(f"Secret block '{block_name(name)}' cannot be read: {error}") from None
    return str(block.get())  # type: ignore[union-attr]
