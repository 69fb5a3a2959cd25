"""Secret scanning (dlp): searches outgoing data for credentials, and for the values of the task's secrets.

Pure and bounded. A finding has a kind and a place; no event, page, log or error has a byte of its value. It scans what
the task wrote, before secrets are injected. `proxy/secrets/detection.py` searches for the values of the task's secrets;
this package decodes the data for it, and has the patterns for credentials of any service.
"""
