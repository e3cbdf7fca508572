"""Reports of a run while it works: the journal (the truth), progress.json, and their projection into MLflow."""
