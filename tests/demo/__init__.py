"""`make demo`: the main job, end to end, on a local internet: a task in a sandbox tries, the gate decides, all is told."""
