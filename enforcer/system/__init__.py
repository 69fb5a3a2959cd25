"""What lies under everything else: system calls, errors, state directories, processes, signals and notices."""
