"""Pipelines as Prefect deployments: served from this machine, or run by work pools."""
