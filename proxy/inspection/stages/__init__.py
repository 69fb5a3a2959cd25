"""Stages of an inspected request; `proxy.inspection.pipeline` lists them in order."""
