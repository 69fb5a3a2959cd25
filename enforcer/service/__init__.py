"""The long-running service: `exeat up`. It makes sandboxes for `exeat run`, and has few workers serve many of them.

`client` is what `exeat run` does when there is a service; `service` the loop of the process that makes namespaces;
`run_process` the process of one run; `worker_pool` its workers; `rule_sets` and `sandboxes` what these are given.
"""
