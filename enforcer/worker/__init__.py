"""The worker as its supervisor sees it: process, confinement, signer, credentials and trusted roots."""
