"""The library under the flows: models, plans, memory, generation, sessions. Imports no Prefect."""
