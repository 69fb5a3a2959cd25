"""What costs too much in Python: bytes passed on between sockets, in C, where somebody compiled it (`build`)."""
