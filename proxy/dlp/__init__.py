"""Leaks: what leaves is looked through for what looks like a credential, and for the values of the task's secrets.

Pure, and bounded: how much is looked at, kept and held back is stated where it is done. What is found is named (which
kind of credential, and where it was); nothing of it gets any further: no event, page, log or error has a byte of it.
What is looked at is what the task wrote, before the broker puts anything in; which values are looked for is the
broker's to know (`proxy/secrets/detection.py`).
"""
