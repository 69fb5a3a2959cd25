"""The long-running service, `exeat up`: makes sandboxes for `exeat run`, and has a few workers serve many of them.

`client` is `exeat run` with a service; `service` the loop of the process that makes namespaces; `run_process` the
process of one run; `worker_pool` the workers; `rule_sets` and `sandboxes` what workers get; `messages` their messages.
"""
