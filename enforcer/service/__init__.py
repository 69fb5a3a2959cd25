"""The long-running service: `exeat up`. It makes sandboxes for `exeat run`, and has few workers serve many of them.

`client` is what `exeat run` does when there is a service, and imports next to nothing; `service` is the loop of the
process that makes namespaces; `runs` the process that looks after one task, as `exeat run` does without a service;
`crew` the workers; `rule_sets` and `sandboxes` what they are given, also when one of them has died; `attach` gives the
gate to a network namespace that somebody else made.
"""
