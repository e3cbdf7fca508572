"""A pipeline as an object of Kubernetes: names that the CLI and the controller share."""

GROUP, VERSION, PLURAL, KIND = "nanochat.dev", "v1alpha1", "chatpipelines", "ChatPipeline"
API_VERSION = f"{GROUP}/{VERSION}"

# Annotation with the time of the last retry, which the status echoes.
RETRY = "nanochat.dev/retry"

# Annotation that says who submitted the pipeline, for MLflow.
USER = "nanochat.dev/user"

# Labels of what belongs to a pipeline: its jobs, their pods, and the ConfigMaps with the plans.
PIPELINE = "nanochat.dev/pipeline"
UID = "nanochat.dev/pipeline-uid"
STAGE = "nanochat.dev/stage"
ATTEMPT = "nanochat.dev/attempt"  # its number; as an annotation of a job, what the attempt's record begins with

# Installs the Kubeflow training operator, which runs the jobs.
TRAINING_OPERATOR = (
    "kubectl apply --server-side -k 'https://github.com/kubeflow/trainer.git/manifests/overlays/standalone?ref=v1.9.4'"
)
