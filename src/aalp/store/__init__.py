"""What is kept on disk: run directories, records, checkpoints."""
