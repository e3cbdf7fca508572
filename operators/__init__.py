"""The controller: runs ChatPipelines on a cluster, each attempt of a stage as one PyTorchJob."""
