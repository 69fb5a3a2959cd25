"""Formats: pure functions from one record of the journal to the schema of a SIEM.

A record is a line of the journal, decoded from JSON, with all texts escaped (`decoded_event`), so that no format has to
escape them again. Each format also accepts kinds that this version doesn't know.
"""
