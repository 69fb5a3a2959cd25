"""Stages of a request on an inspected connection; `proxy.inspection.pipeline` has them in their order."""
