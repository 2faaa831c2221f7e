"""The command line, ``revolve-plan``."""
