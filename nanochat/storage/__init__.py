"""One store over a folder or S3: artifacts with manifests, checkpoints, the local cache, garbage collection."""
