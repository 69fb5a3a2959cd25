"""What every start waits for and an interpreter takes long to begin with: the client of `exeat run`, in C (`build`)."""
