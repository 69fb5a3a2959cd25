"""Certificate authority of the installation: its key, its leaf certificates, and the trust stores of clients."""
