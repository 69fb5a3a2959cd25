"""Secret scanning (dlp): searches outgoing data for credentials, and for the values of the task's secrets.

Pure and bounded. A finding is named (kind and place); no event, page, log or error has a byte of it. Scanned is what
the task wrote, before secrets are put in; `proxy/secrets/detection.py` knows the values.
"""
