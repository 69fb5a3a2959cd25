"""The box a task runs in: namespaces, a file system view, ids, a system call filter. Built from describable values."""
