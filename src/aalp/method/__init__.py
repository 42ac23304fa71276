"""The method, one file an idea: torch only, no I/O."""
