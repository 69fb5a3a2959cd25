"""Rules in force for a task: root's and the named rule files, their reload, and the request of a run."""
