"""Labels of what belongs to a pipeline: its jobs, their pods, and the ConfigMaps with the plans."""

PIPELINE = "nanochat.dev/pipeline"
UID = "nanochat.dev/pipeline-uid"
STAGE = "nanochat.dev/stage"
