"""The journal's events in the shapes that others read: small pure functions, from one record to another value.

A record is a line of the journal, decoded from JSON and made harmless (`record.harmless`): what a sandbox made up is
spelled out in it, so no shape has to ask whose text it carries. A kind that this version doesn't know has a shape, too.
"""
