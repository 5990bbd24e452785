"""The Prefect tasks: each adds a name, a retry rule or an artifact to something llm_core does."""
