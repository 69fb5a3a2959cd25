"""Formats: pure functions from one record of the journal to the schema of a SIEM.

A record is a line of the journal, decoded from JSON and made harmless (`record.harmless`): what a sandbox made up is
spelled out in it, so no shape has to ask whose text it carries. A kind that this version doesn't know has a shape, too.
"""
