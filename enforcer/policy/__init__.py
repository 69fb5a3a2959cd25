"""The rules in force for a task: root's and the named files, read again as they change, and what a run asks for."""
