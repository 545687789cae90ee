"""One method per file, named as in the grammar."""
