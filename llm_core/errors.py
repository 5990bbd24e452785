"""What can go wrong, one small class per phase. Every message is one line: what, where, and the remedy."""


class GgufFlowError(Exception):
    """Base of everything a user can act on."""


class ConfigError(GgufFlowError):
    """A YAML file or a setting says something that cannot be; the message names file and key path."""


class PlanError(GgufFlowError):
    """A pipeline cannot be planned with the models that are here."""


class InputError(GgufFlowError):
    """The question, or an option given with it, cannot be used."""


class ModelFileError(GgufFlowError):
    """A model's file is missing, empty, truncated or not GGUF."""


class ModelLoadError(GgufFlowError):
    """llama.cpp refused to load a model or to make a context for it."""


class ModelCrashed(GgufFlowError):
    """The process that held a model ended by itself or was killed; a retry may succeed."""


class ModelOutOfMemory(GgufFlowError):
    """A device had no memory left while a model was loaded or used; the pool makes room and tries again."""


class InsufficientMemory(GgufFlowError):
    """What is asked for does not fit into memory; nothing was loaded for it. Retrying does not help."""


class ContextOverflow(GgufFlowError):
    """A prompt does not fit into the model's context length; nothing is ever cut silently."""


class GenerationTimeout(GgufFlowError):
    """A generation ran past its `timeout_s` and was ended."""


class ProviderError(GgufFlowError):
    """A remote model refused, or gave something that is no answer; a retry does not help."""


class RequestRefused(ProviderError):
    """A remote model does not take this one request; it may take others."""


class ProviderUnavailable(ProviderError):
    """A remote model was busy, broke down or could not be reached; a retry may succeed."""

    retry_after_s: float | None = None
    """How long the provider asks to be left alone."""


class ConstraintError(GgufFlowError):
    """An answer could not be held to its schema or grammar."""


class AggregationError(GgufFlowError):
    """The answers of a stage could not be merged."""


class NotWaitedFor(GgufFlowError):
    """A member was still at it when its stage's quorum had answered and waited long enough."""


class SessionError(GgufFlowError):
    """A session cannot be written or read."""


class PullError(GgufFlowError):
    """A model could not be fetched; no file was left under its final name."""
