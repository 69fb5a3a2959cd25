"""The key holder: the one process that has the CA's key, and signs certificates for workers, which never have it."""
