"""What the command line says of itself: help screens, completion and docs/cli.md, read from the source of the verbs."""
